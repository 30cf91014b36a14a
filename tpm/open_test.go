package tpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOpenTellsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		want error
		hint string
	}{
		"switched off":      {"none", tpm.ErrNoDevice, "auto"},
		"no device":         {dir + "/tpmrm0", tpm.ErrNoDevice, "kernel driver"},
		"a file in the way": {file + "/tpmrm0", tpm.ErrNoDevice, "kernel driver"},
		"no socket":         {"unix:" + dir + "/sock", tpm.ErrNoDevice, "swtpm"},
		"no listener":       {"unix:" + file, tpm.ErrNoDevice, "swtpm"},
		"no server":         {"tcp:127.0.0.1:" + freePort(t), tpm.ErrNoDevice, "swtpm"},
		"unknown form":      {"swtpm", tpm.ErrUnsupported, ""},
		"no address":        {"unix:", tpm.ErrUnsupported, ""},
		"relative path":     {"dev/tpm0", tpm.ErrUnsupported, ""},
	} {
		d, err := tpm.Open(background, tpm.Options{Path: c.path})
		if !errors.Is(err, c.want) || !strings.Contains(hint.Of(err), c.hint) || d != nil {
			t.Errorf("%s: %v, hint %q", name, err, hint.Of(err))
		}
		if c.want == tpm.ErrNoDevice && c.path != "none" && !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %q does not name the path", name, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestAutoPrefersTheResourceManager(t *testing.T) {
	var log bytes.Buffer
	o := tpm.Options{Log: slog.New(slog.NewTextHandler(&log, nil))}
	dir := t.TempDir()
	if _, err := tpm.OpenAuto(background, dir, o); !errors.Is(err, tpm.ErrNoDevice) || !strings.Contains(err.Error(), "tpmrm0") {
		t.Errorf("neither: %v", err)
	}
	for _, name := range []string{"tpm0", "tpmrm0"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		d, err := tpm.OpenAuto(background, dir, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := filepath.Base(d.Path()); got != name {
			t.Errorf("opened %s, want %s", got, name)
		}
		if warned := strings.Contains(log.String(), "resource manager"); warned == d.ResourceManager() {
			t.Errorf("%s: resource manager %t, log %q", name, d.ResourceManager(), log.String())
		}
		_ = d.Close()
	}
}

// TestNoPermission takes root's rights over files from its thread, where it has them.
func TestNoPermission(t *testing.T) {
	s := tpmtest.Start(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "tpmrm0")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.Socket(), 0); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	errs := make(chan error, 2)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if os.Geteuid() == 0 {
			if _, err := unix.SetfsuidRetUid(nobody); err != nil {
				errs <- err
			}
		}
		_, err := tpm.OpenAuto(background, dir, tpm.Options{})
		errs <- err
		_, err = tpm.Open(background, tpm.Options{Path: s.Address()})
		errs <- err
	}()
	device, socket := <-errs, <-errs
	if !errors.Is(device, tpm.ErrPermission) || !strings.Contains(hint.Of(device), "group tss") {
		t.Errorf("device: %v, hint %q", device, hint.Of(device))
	}
	if !errors.Is(socket, tpm.ErrPermission) || !strings.Contains(hint.Of(socket), "write permission") {
		t.Errorf("socket: %v, hint %q", socket, hint.Of(socket))
	}
}

// TestOverTCP: a simulator on a network port, taking bare commands.
func TestOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener, or after one command
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 64)); err == nil {
			_, _ = c.Write(answer())
		}
	}()
	d := open(t, "tcp:"+l.Addr().String(), tpm.Options{})
	if got, err := random(t.Context(), d); err != nil || !bytes.Equal(got, []byte{0xAB, 0xCD}) {
		t.Errorf("%x, %v", got, err)
	}
}

// interrupted counts how often poll(2) was interrupted.
type interrupted struct {
	tpm.Descriptor
	times atomic.Int64
}

func (i *interrupted) Poll(d time.Duration) (bool, error) {
	ready, err := i.Descriptor.Poll(d)
	if errors.Is(err, syscall.EINTR) {
		i.times.Add(1)
	}
	return ready, err
}

// TestSignalsAtTheWaitingThread: go-tpm's own transport fails each command that a signal
// interrupts. A packet socket stands in for the device: one write, one command.
func TestSignalsAtTheWaitingThread(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := &interrupted{Descriptor: tpm.CharDevice(pair[0])}
	d, err := tpm.OpenDescriptors(tpm.Options{Path: "/dev/tpm0"}, func() (tpm.Descriptor, error) { return fd, nil })
	if err != nil {
		t.Fatal(err)
	}
	chip := make(chan struct{})
	go func() { // the chip: answers once the wait was interrupted three times more; ends with the pair
		defer close(chip)
		cmd := make([]byte, 4096)
		for {
			n, err := unix.Read(pair[1], cmd)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil || n < 10 || binary.BigEndian.Uint32(cmd[6:]) == 0 {
				return
			}
			for enough := fd.times.Load() + 3; fd.times.Load() < enough; {
				signalEveryThread(t)
			}
			if _, err := unix.Write(pair[1], answer()); err != nil {
				return
			}
		}
	}()
	for range 20 {
		if got, err := random(background, d); err != nil || !bytes.Equal(got, []byte{0xAB, 0xCD}) {
			t.Fatalf("%x, %v", got, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	<-chip
	_ = unix.Close(pair[1])
	if n := fd.times.Load(); n < 60 {
		t.Errorf("only %d interruptions", n)
	}
}

// signalEveryThread sends SIGURG, which the runtime takes for a preemption request gone by.
func signalEveryThread(t *testing.T) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Error(err)
		return
	}
	for _, task := range tasks {
		var tid int
		for _, digit := range task.Name() {
			tid = 10*tid + int(digit-'0')
		}
		_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
	}
}

func TestOpenEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	cancel()
	if _, err := tpm.Open(ctx, tpm.Options{Path: "unix:" + t.TempDir() + "/x"}); err == nil {
		t.Error("opened with an ended context")
	}
}
