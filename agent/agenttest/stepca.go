package agenttest

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The provisioners of a StepCA.
const (
	StepJWK = "ferrule"
	StepX5C = "factory"
	// StepKeyID is the kid of StepJWK's key.
	StepKeyID = "ferrule-key"
)

// StepOptions say how a step-ca issues; the zero values are good ones.
type StepOptions struct {
	// Factory is the CA whose certificates the X5C provisioner takes; nil: there is none.
	Factory *CA
	// Life is that of the certificates, 24 h unless set; step-ca dates them back by a minute.
	Life time.Duration
	// Log gets what it prints; nil discards it.
	Log io.Writer
}

// StepCA is a step-ca that runs in a process of its own.
type StepCA struct {
	program, dir, address string
	ca                    *CA
	key                   *ecdsa.PrivateKey
	log                   io.Writer
	cmd                   *exec.Cmd
	drained               chan struct{}
}

// StepCAProgram finds step-ca: $FERRULE_STEP_CA, or where build/stepca.sh puts it.
func StepCAProgram() (string, error) {
	if program := os.Getenv("FERRULE_STEP_CA"); program != "" {
		return program, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		program := filepath.Join(dir, ".cache", "stepca", "step-ca")
		if _, err := os.Stat(program); err == nil {
			return program, nil
		}
		break
	}
	return "", errors.New("step-ca is missing; run: build/stepca.sh")
}

// StartStepCA starts program in dir, which holds all it keeps, on a free port of this machine,
// and waits until it answers. Tokens of StepJWK are signed by Key, those of StepX5C by
// certificates of the factory.
func StartStepCA(ctx context.Context, program, dir string, o StepOptions) (*StepCA, error) {
	s := &StepCA{program: program, dir: dir, log: o.Log}
	var err error
	if s.ca, err = NewCA("step"); err != nil {
		return nil, err
	}
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	for range 3 { // another process may take the port before step-ca does
		if s.address, err = freeAddress(); err != nil {
			return nil, err
		}
		if err = s.configure(o); err != nil {
			return nil, err
		}
		if err = s.Start(ctx); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// URL is where it answers.
func (s *StepCA) URL() string { return "https://" + s.address }

// RootPEM is its root as a file holds it, Pool the same for a client.
func (s *StepCA) RootPEM() []byte { return s.ca.RootPEM() }

// IssuingPEM is the authority below it that issues, and its key: for certificates that it would
// not issue itself.
func (s *StepCA) IssuingPEM() (certificate, key []byte) {
	der, err := x509.MarshalECPrivateKey(s.ca.issuingKey)
	if err != nil {
		panic(err) // a P-256 key that was just made
	}
	return encodeCertificates(s.ca.issuing), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// Pool holds its root.
func (s *StepCA) Pool() *x509.CertPool { return s.ca.Pool() }

// Key signs tokens of the provisioner StepJWK.
func (s *StepCA) Key() crypto.Signer { return s.key }

// configure writes keys, certificates and ca.json.
func (s *StepCA) configure(o StepOptions) error {
	if o.Life == 0 {
		o.Life = 24 * time.Hour
	}
	key, err := x509.MarshalECPrivateKey(s.ca.issuingKey)
	if err != nil {
		return err
	}
	config, err := json.MarshalIndent(s.config(o), "", "  ")
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"root.crt":    s.ca.RootPEM(),
		"issuing.crt": encodeCertificates(s.ca.issuing),
		"issuing.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
		"ca.json":     config,
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), text, 0o600); err != nil {
			return fmt.Errorf("preparing step-ca: %w", err)
		}
	}
	return nil
}

func (s *StepCA) config(o StepOptions) map[string]any {
	point := func(v *big.Int) string { return base64.RawURLEncoding.EncodeToString(v.FillBytes(make([]byte, 32))) }
	provisioners := []any{map[string]any{
		"type": "JWK", "name": StepJWK,
		"key": map[string]any{
			"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": StepKeyID, "x": point(s.key.X), "y": point(s.key.Y),
		},
	}}
	if o.Factory != nil {
		provisioners = append(provisioners, map[string]any{"type": "X5C", "name": StepX5C, "roots": o.Factory.RootPEM()})
	}
	in := func(name string) string { return filepath.Join(s.dir, name) }
	return map[string]any{
		"root": in("root.crt"), "crt": in("issuing.crt"), "key": in("issuing.key"),
		"address": s.address, "dnsNames": []string{"127.0.0.1", "localhost"},
		"logger": map[string]any{"format": "text"},
		"db":     map[string]any{"type": "badgerv2", "dataSource": in("db")},
		"authority": map[string]any{
			"provisioners": provisioners,
			"claims": map[string]any{
				"minTLSCertDuration": "1s", "maxTLSCertDuration": "87600h", "defaultTLSCertDuration": o.Life.String(),
			},
		},
		"tls": map[string]any{"minVersion": 1.2, "maxVersion": 1.3, "renegotiation": false},
	}
}

// Start starts it again where Stop or Kill ended it, with all that it knew, and waits until it
// answers.
func (s *StepCA) Start(ctx context.Context) error {
	cmd := exec.Command(s.program, filepath.Join(s.dir, "ca.json"))
	cmd.Env = append(os.Environ(), "STEPPATH="+s.dir)
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting step-ca: %w", err)
	}
	s.cmd, s.drained = cmd, make(chan struct{})
	serving := make(chan string, 1)
	go s.watch(output, serving)
	select {
	case last, up := <-serving:
		if !up || last != "" {
			s.Kill()
			return fmt.Errorf("starting step-ca: %s", last)
		}
		return s.handshake(ctx)
	case <-ctx.Done():
		s.Kill()
		return fmt.Errorf("starting step-ca: %w", ctx.Err())
	}
}

// watch reads what it prints: the listener is open when it says that it serves. A last line that
// is something else is why it ended.
func (s *StepCA) watch(output io.Reader, serving chan<- string) {
	defer close(s.drained)
	said, last := false, "it said nothing"
	for lines := bufio.NewScanner(output); lines.Scan(); {
		last = lines.Text()
		if s.log != nil {
			fmt.Fprintln(s.log, last)
		}
		if !said && strings.Contains(last, "Serving HTTPS") {
			said = true
			serving <- ""
		}
	}
	if !said {
		serving <- last
	}
}

// handshake makes sure that it is this one which listens there.
func (s *StepCA) handshake(ctx context.Context) error {
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: s.ca.Pool()}}
	connection, err := dialer.DialContext(ctx, "tcp", s.address)
	if err != nil {
		s.Kill()
		return fmt.Errorf("starting step-ca: %w", err)
	}
	return connection.Close()
}

// Kill ends it with SIGKILL, as a power cut would, and waits for it. It may be called again.
func (s *StepCA) Kill() { s.end(os.Kill) }

// Stop ends it with SIGTERM and waits for it. It may be called again.
func (s *StepCA) Stop() { s.end(os.Interrupt) }

func (s *StepCA) end(signal os.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(signal)
	<-s.drained
	_ = s.cmd.Wait()
	s.cmd = nil
}
