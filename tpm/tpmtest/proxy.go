package tpmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Fault is what a Proxy does to one command. The zero value lets it pass.
type Fault struct {
	Answer   []byte // given instead of asking the TPM; nil: the TPM's own
	Truncate int    // only so many bytes of the answer, then the connection ends; 0: all
	Dribble  bool   // the answer comes byte by byte
	Hang     bool   // the command is swallowed, and nothing comes
	Drop     bool   // the connection ends instead of an answer
}

// A Proxy lies between a Device and a TPM on a unix socket, and spoils the answers a test
// chooses. Like swtpm it serves one connection at a time, and keeps the upstream one.
type Proxy struct {
	upstream string
	socket   string
	listener net.Listener
	done     chan struct{} // closed when serve has ended

	mu       sync.Mutex
	fault    func(code uint32) Fault
	current  net.Conn
	closed   bool
	commands int
}

// StartProxy starts a proxy in front of the TPM at upstream (unix:…). Where upstream is ""
// every command must be answered by a Fault.
func StartProxy(upstream string) (*Proxy, error) {
	dir, err := shortDir()
	if err != nil {
		return nil, fmt.Errorf("starting a TPM proxy: %w", err)
	}
	socket := filepath.Join(dir, "proxy.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting a TPM proxy: %w", err), os.RemoveAll(dir))
	}
	p := &Proxy{upstream: strings.TrimPrefix(upstream, "unix:"), socket: socket, listener: listener, done: make(chan struct{})}
	go p.serve() // ends with Close
	return p, nil
}

// Address is the TPM's path in the configuration: unix:….
func (p *Proxy) Address() string { return "unix:" + p.socket }

// Commands counts what came in.
func (p *Proxy) Commands() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.commands
}

// Inject sets what chooses the fault of each command from its code (Part 2, 6.5.2); nil
// lets everything pass. It is called by one goroutine at a time.
func (p *Proxy) Inject(f func(code uint32) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	if p.current != nil {
		_ = p.current.Close()
	}
	p.mu.Unlock()
	<-p.done
	return errors.Join(err, os.RemoveAll(filepath.Dir(p.socket)))
}

func (p *Proxy) serve() {
	defer close(p.done)
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.current = client
		closed := p.closed
		p.mu.Unlock()
		if !closed {
			p.relay(client)
		}
		_ = client.Close()
	}
}

// relay carries commands until either side ends.
func (p *Proxy) relay(client net.Conn) {
	var tpm net.Conn
	if p.upstream != "" {
		var err error
		if tpm, err = dialPatiently(p.upstream); err != nil {
			return
		}
		defer tpm.Close()
	}
	for {
		cmd, err := readPacket(client)
		if err != nil {
			return
		}
		f := p.choose(cmd)
		answer := f.Answer
		if answer == nil && !f.Hang && !f.Drop {
			if answer, err = ask(tpm, cmd); err != nil {
				return
			}
		}
		if f.Hang {
			_, _ = io.Copy(io.Discard, client) // until the other side gives up
			return
		}
		if f.Drop || !f.send(client, answer) {
			return
		}
	}
}

// dialPatiently waits while the TPM is busy with the connection that has just ended.
func dialPatiently(socket string) (net.Conn, error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return c, err
		}
	}
}

func (p *Proxy) choose(cmd []byte) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commands++
	if p.fault == nil {
		return Fault{}
	}
	return p.fault(binary.BigEndian.Uint32(cmd[6:]))
}

// send reports whether the connection goes on.
func (f Fault) send(client net.Conn, answer []byte) bool {
	whole := true
	if f.Truncate > 0 && f.Truncate < len(answer) {
		answer, whole = answer[:f.Truncate], false
	}
	chunk := max(len(answer), 1)
	if f.Dribble {
		chunk = 1
	}
	for len(answer) > 0 {
		n := min(chunk, len(answer))
		if _, err := client.Write(answer[:n]); err != nil {
			return false
		}
		answer = answer[n:]
	}
	return whole
}

func ask(tpm net.Conn, cmd []byte) ([]byte, error) {
	if tpm == nil {
		return nil, errors.New("no TPM behind the proxy")
	}
	if _, err := tpm.Write(cmd); err != nil {
		return nil, err
	}
	return readPacket(tpm)
}

// readPacket reads one command or response; both carry their size in bytes 2 to 5.
func readPacket(r io.Reader) ([]byte, error) {
	const header, most = 10, 4096
	b := make([]byte, header, 512)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < header || size > most {
		return nil, fmt.Errorf("TPM packet of %d bytes", size)
	}
	b = append(b, make([]byte, size-header)...)
	_, err := io.ReadFull(r, b[header:])
	return b, err
}
