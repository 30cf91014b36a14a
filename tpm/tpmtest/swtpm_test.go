package tpmtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"ferrule/internal/hint"
	"ferrule/tpm/tpmtest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ask sends GetRandom(2) and returns the answer.
func ask(t *testing.T, address string) []byte {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(address, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 2}); err != nil {
		t.Fatal(err)
	}
	rsp := make([]byte, 14)
	if _, err := io.ReadFull(c, rsp); err != nil {
		t.Fatal(err)
	}
	return rsp
}

func TestSwtpmLivesThroughKillAndRestart(t *testing.T) {
	s := tpmtest.Start(t)
	for range 3 {
		if rsp := ask(t, s.Address()); !bytes.Equal(rsp[:10], []byte{0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0}) {
			t.Fatalf("answer %x", rsp)
		}
		pid := s.Pid()
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d after Kill: %v", pid, err)
		}
		if err := s.Restart(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Stop(), s.Stop()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Socket()); !errors.Is(err, os.ErrNotExist) || s.Pid() != 0 {
		t.Errorf("after Stop: socket %v, pid %d", err, s.Pid())
	}
}

func TestSwtpmThatCannotStart(t *testing.T) {
	ctx := context.Background()
	if _, err := tpmtest.StartSwtpm(ctx, t.TempDir()+"/missing"); err == nil || !strings.Contains(err.Error(), "starting swtpm") {
		t.Errorf("without a state folder: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := tpmtest.StartSwtpm(ctx, t.TempDir()); !errors.Is(err, tpmtest.ErrNotInstalled) || !strings.Contains(hint.Of(err), "apt install swtpm") {
		t.Errorf("without swtpm: %v", err)
	}
}

func TestSocketPathStaysShortInLongFolders(t *testing.T) {
	long := t.TempDir() + "/" + strings.Repeat("long-", 20)
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	s, err := tpmtest.StartSwtpm(context.Background(), long)
	if err != nil {
		t.Fatal(err)
	}
	ask(t, s.Address())
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

func TestProxyPassesAndSpoils(t *testing.T) {
	p, err := tpmtest.StartProxy(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	if rsp := ask(t, p.Address()); rsp[9] != 0 {
		t.Errorf("answer %x", rsp)
	}
	p.Inject(func(uint32) tpmtest.Fault {
		return tpmtest.Fault{Answer: tpmtest.Response(tpmtest.RCLockout, 1, 2, 3, 4)}
	})
	if rsp := ask(t, p.Address()); rsp[8] != 9 || rsp[9] != 0x21 || p.Commands() != 2 {
		t.Errorf("answer %x after %d commands", rsp, p.Commands())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
