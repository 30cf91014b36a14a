package e2e

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// keeper is what systemd is for the agent's unit: it starts ferrule-launch, and again whenever the
// agent has ended (Restart=always), and kills what does not say in time that it is ready.
type keeper struct {
	t       *testing.T
	argv    []string
	env     []string
	wrap    []string // words before it
	notify  *net.UnixConn
	readied chan struct{}

	held     chan struct{} // see hold
	mu       sync.Mutex
	command  *exec.Cmd
	all      []keptStart
	ending   bool
	patience time.Duration // with READY=1
	out      bytes.Buffer
	ended    chan struct{}
}

// keptStart is one start of the agent.
type keptStart struct {
	began, ended time.Time
	code         int
}

// restartPause is shorter than the unit's, which is for the processor's sake.
const restartPause = 100 * time.Millisecond

func newKeeper(t *testing.T, u *updating) *keeper {
	t.Helper()
	launcher, err := filepath.Abs("../systemd/ferrule-launch")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(u.dir, "notify")
	k := &keeper{t: t, argv: []string{"sh", launcher, "run", "--config", u.config}, readied: make(chan struct{}, 1), held: make(chan struct{}, 1)}
	if k.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	k.env = append(os.Environ(), "FERRULE_DIRECTORY="+u.program, "FERRULE_PACKAGED="+u.ferrule[0], "NOTIFY_SOCKET="+socket)
	if err := os.MkdirAll(u.program, 0o755); err != nil {
		t.Fatal(err)
	}
	listening := make(chan struct{})
	go k.listen(listening)
	t.Cleanup(func() {
		k.halt(syscall.SIGKILL)
		_ = k.notify.Close()
		<-listening
		if t.Failed() {
			t.Logf("output of the agent, %d starts:\n%s", len(k.starts()), tail(k.output()))
		}
	})
	return k
}

// listen hears who is ready until the socket is closed.
func (k *keeper) listen(done chan struct{}) {
	defer close(done)
	for b := make([]byte, 1<<10); ; {
		n, err := k.notify.Read(b)
		if err != nil {
			return
		}
		if strings.Contains(string(b[:n]), "READY=1") {
			select {
			case k.readied <- struct{}{}:
			default:
			}
		}
	}
}

// begin starts the agent and keeps it running until halt.
func (k *keeper) begin() {
	k.mu.Lock()
	k.ending, k.ended = false, make(chan struct{})
	ended := k.ended
	k.mu.Unlock()
	go func() { // ends with halt
		defer close(ended)
		for k.once() {
			<-time.After(restartPause)
			k.hold() // until whoever holds it lets go
			k.let()
		}
	}()
}

// once runs the agent to its end; false: for the last time.
func (k *keeper) once() bool {
	k.mu.Lock()
	if k.ending {
		k.mu.Unlock()
		return false
	}
	argv := append(append([]string(nil), k.wrap...), k.argv...)
	command := exec.Command(argv[0], argv[1:]...)
	command.Env, command.Stdout, command.Stderr = k.env, k, k
	command.WaitDelay = time.Second // what a hung program has started holds its output
	began := time.Now()
	err := command.Start()
	if err == nil {
		k.command = command
	}
	patience := k.patience
	k.mu.Unlock()
	if err != nil {
		k.t.Errorf("starting the agent: %v", err)
		return false
	}
	select {
	case <-k.readied:
	default:
	}
	gone := make(chan struct{})
	go func() { _ = command.Wait(); close(gone) }()
	if patience > 0 {
		select {
		case <-k.readied:
		case <-gone:
		case <-time.After(patience):
			_ = command.Process.Kill()
		}
	}
	<-gone
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all = append(k.all, keptStart{began, time.Now(), command.ProcessState.ExitCode()})
	return !k.ending
}

// impatient has programs killed that are not ready within d; 0: none.
func (k *keeper) impatient(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.patience = d
}

// Write implements io.Writer.
func (k *keeper) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.Write(p)
}

func (k *keeper) output() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.String()
}

// starts are those that have ended.
func (k *keeper) starts() []keptStart {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]keptStart(nil), k.all...)
}

func (k *keeper) pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.command == nil {
		return 0
	}
	return k.command.Process.Pid
}

func (k *keeper) signal(s os.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.command.Process.Signal(s)
}

// kill is a power cut for the agent, which is started again.
func (k *keeper) kill() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.command.Process.Kill()
	return time.Now()
}

// hold has the agent not be started until let.
func (k *keeper) hold() { k.held <- struct{}{} }

func (k *keeper) let() { <-k.held }

// halt ends the agent for good.
func (k *keeper) halt(signal os.Signal) {
	k.mu.Lock()
	k.ending = true
	command, ended := k.command, k.ended
	if command != nil {
		_ = command.Process.Signal(signal)
	}
	k.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// end ends it by SIGTERM, which is a clean end.
func (k *keeper) end(t *testing.T) {
	t.Helper()
	k.halt(syscall.SIGTERM)
	if all := k.starts(); len(all) > 0 && all[len(all)-1].code != 0 {
		t.Errorf("the agent ended with exit code %d", all[len(all)-1].code)
	}
}
