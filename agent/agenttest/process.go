package agenttest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// BrokerFiles describes a broker that runs in a process of its own, so that a test may kill it.
type BrokerFiles struct {
	Address     string // as HOST:PORT; the port may be 0 for the first start only
	Certificate string // PEM file of the broker's chain
	Key         string // PEM file of its key
	ClientCAs   string // PEM file of the authorities of its clients
	Ledger      string
	Fsync       bool
}

// brokerVariable is the environment variable that carries BrokerFiles to the process.
const brokerVariable = "FERRULE_TEST_BROKER"

// RunBroker runs the broker that the environment describes and never returns; it does nothing
// where there is none. A program that is to become the process calls it first thing in main,
// or in TestMain.
func RunBroker() {
	text := os.Getenv(brokerVariable)
	if text == "" {
		return
	}
	var f BrokerFiles
	err := json.Unmarshal([]byte(text), &f)
	if err == nil {
		err = f.serve(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "broker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve runs until stdin ends, which it does when the parent is gone.
func (f BrokerFiles) serve(stdin io.Reader, stdout io.Writer) error {
	certificate, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(f.ClientCAs)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	ledger, err := OpenLedger(f.Ledger, f.Fsync)
	if err != nil {
		return err
	}
	defer ledger.Close()
	b, err := StartBroker(BrokerConfig{
		Address: f.Address, Ledger: ledger.Append,
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: pool},
	})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := fmt.Fprintln(stdout, b.Address()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// BrokerProcess is a broker in a process of its own.
type BrokerProcess struct {
	Address string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
}

// Start starts program, which calls RunBroker, as this broker, and waits until it listens.
// The words of FERRULE_EXEC are put before it: an emulator, where tests run under one.
func (f BrokerFiles) Start(program string) (*BrokerProcess, error) {
	description, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	argv := append(strings.Fields(os.Getenv("FERRULE_EXEC")), program)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), brokerVariable+"="+string(description))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	p := &BrokerProcess{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("waiting for the broker: %w", err)
	}
	p.Address = strings.TrimSpace(line)
	return p, nil
}

// Kill ends the process with SIGKILL and waits for it.
func (p *BrokerProcess) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	_ = p.stdin.Close()
}
