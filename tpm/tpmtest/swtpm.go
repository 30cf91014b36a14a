// Package tpmtest is a TPM for tests and the demo: swtpm, one process per test, and scripted
// stand-ins that spoil chosen answers. The trap is the socket's path: the kernel takes 108
// bytes, and test folders are longer, so the socket lies in a short folder of its own.
package tpmtest

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"ferrule/internal/hint"
)

// ErrNotInstalled: there is no swtpm on this machine.
var ErrNotInstalled = errors.New("swtpm is missing")

// startTimeout is long: a start takes 5 to 8 ms on an idle machine.
const startTimeout = 20 * time.Second

// A Swtpm is a running software TPM. It serves one connection at a time; a second one waits
// until the first is closed.
//
//	running ──Kill, Stop──► ended ──Restart──► running
type Swtpm struct {
	stateDir string
	socket   string // in a folder of its own
	roots    []*x509.Certificate

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	stderr bytes.Buffer  // read only after that
}

// StartSwtpm starts a TPM whose memory is in stateDir, and returns when it takes commands.
// The caller calls Stop.
func StartSwtpm(ctx context.Context, stateDir string) (*Swtpm, error) {
	dir, err := shortDir()
	if err != nil {
		return nil, fmt.Errorf("starting swtpm: %w", err)
	}
	s := &Swtpm{stateDir: stateDir, socket: filepath.Join(dir, "tpm.sock")}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// shortDir makes a folder for a socket, in /tmp where the usual place is too long.
func shortDir() (string, error) {
	const longest = 80 // of 108, with room for names below
	if len(os.TempDir()) > longest {
		return os.MkdirTemp("/tmp", "tpm")
	}
	return os.MkdirTemp("", "tpm")
}

// Address is the TPM's path in the configuration: unix:….
func (s *Swtpm) Address() string { return "unix:" + s.socket }

// Socket is the path of the unix socket, as tpm2-tools (TPM2TOOLS_TCTI) and openssl's tpm2
// provider (TPM2OPENSSL_TCTI) take it: swtpm:path=SOCKET. The control socket that they also
// want lies beside it.
func (s *Swtpm) Socket() string { return s.socket }

// StateDir is where the TPM keeps its memory.
func (s *Swtpm) StateDir() string { return s.stateDir }

// Pid is the running process.
func (s *Swtpm) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill ends the TPM as a power cut does: SIGKILL, without TPM2_Shutdown. It returns when
// the process is gone.
func (s *Swtpm) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Restart starts the TPM again, on the same memory and at the same address; a running one
// is killed first.
func (s *Swtpm) Restart(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return fmt.Errorf("restarting swtpm: %w", err)
	}
	return s.start(ctx)
}

// Stop ends the TPM and removes its socket; its memory stays. Stopping twice is harmless.
func (s *Swtpm) Stop() error {
	return errors.Join(s.Kill(), os.RemoveAll(filepath.Dir(s.socket)))
}

func (s *Swtpm) start(ctx context.Context) error {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return hint.With(fmt.Errorf("%w: %w", ErrNotInstalled, err), "install it: apt install swtpm")
	}
	for _, socket := range []string{s.socket, s.socket + ".ctrl"} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("starting swtpm: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stderr.Reset()
	cmd := exec.Command(program, "socket", "--tpm2", "--tpmstate", "dir=.",
		"--server", "type=unixio,path="+s.socket, "--ctrl", "type=unixio,path="+s.socket+".ctrl", "--flags", "not-need-init,startup-clear")
	cmd.Dir = s.stateDir // a comma in its name would end the option
	cmd.Stdout, cmd.Stderr = &s.stderr, &s.stderr
	// A signal at the terminal is for us alone: we end the TPM after the keys are closed.
	// Where we die without doing so, the kernel does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error, 1), make(chan struct{})
	go func() { // ends with the process, which Kill and the lines below see to
		// The kernel counts the thread as the parent. Another goroutine that comes to run on it may
		// end it, and with it a TPM that is in use.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // says "signal: killed"
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting swtpm: %w", err)
	}
	s.exited = exited
	if err := s.await(ctx); err != nil {
		_ = cmd.Process.Kill()
		<-s.exited
		return fmt.Errorf("starting swtpm: %w: %s", err, bytes.TrimSpace(s.stderr.Bytes()))
	}
	s.cmd = cmd
	return nil
}

// await returns when the TPM serves. That its socket takes a connection says little: it
// does so before it has looked at its state folder.
func (s *Swtpm) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := s.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.exited:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return err
		}
	}
}

// probe asks the control socket for the simulator's capabilities; a connection that is
// being restored may hold the other one already.
func (s *Swtpm) probe(ctx context.Context) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", s.socket+".ctrl")
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	if _, err := c.Write([]byte{0, 0, 0, 1}); err != nil { // CMD_GET_CAPABILITY, swtpm_ioctls(3)
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 8))
	return err
}

// TB is what Start needs of a *testing.T; the demo links this package, and not testing.
type TB interface {
	Helper()
	TempDir() string
	Cleanup(func())
	Fatal(args ...any)
}

// Start gives a test a TPM of its own, which ends with the test.
func Start(t TB) *Swtpm {
	t.Helper()
	s, err := StartSwtpm(context.Background(), t.TempDir())
	return started(t, s, err)
}
