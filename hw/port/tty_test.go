package port

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"
)

// A deadline that is set while somebody waits ends the wait, and one that is moved does not.
func TestDeadlineReachesWhoWaits(t *testing.T) {
	_, path := newLine(t)
	f, err := openTTY(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range []struct {
		name string
		set  func(time.Time) error
		wait func() error
		side *side
	}{
		{"read", f.SetReadDeadline, func() error { _, err := f.Read(make([]byte, 1)); return err }, &f.in},
		{"write", f.SetWriteDeadline, func() error { _, err := f.Write(make([]byte, 1<<20)); return err }, &f.out},
	} {
		if err := do.set(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		result := make(chan error)
		go func() { result <- do.wait() }()
		for !do.side.waiting.Load() {
			runtime.Gosched()
		}
		if err := errors.Join(do.set(time.Now().Add(time.Minute)), do.set(time.Now())); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v; want os.ErrDeadlineExceeded", do.name, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closing again: %v", err)
	}
}

func TestWaitingAllocatesNothing(t *testing.T) {
	_, path := newLine(t)
	f, err := openTTY(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if n := testing.AllocsPerRun(100, func() {
		f.SetReadDeadline(time.Now().Add(100 * time.Microsecond))
		f.Read(b)
	}); n != 0 {
		t.Errorf("%v allocations per wait", n)
	}
}
