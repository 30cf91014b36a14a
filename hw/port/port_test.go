package port_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"ferrule/hw/port"
	"ferrule/internal/hint"
)

var usual = port.Settings{Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1}

// terminal is a pseudo terminal: the far end of the line, and the path of the port.
func terminal(t *testing.T) (far *os.File, path string) {
	t.Helper()
	far, near, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	t.Cleanup(func() { far.Close() })
	return far, near.Name()
}

func open(t *testing.T, path string) port.Port {
	t.Helper()
	p, err := port.Open(t.Context(), path, port.Options{Settings: usual})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestBytesPassUnchanged(t *testing.T) {
	far, path := terminal(t)
	p := open(t, path)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if n, err := p.Write(all); n != len(all) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	got := make([]byte, 256)
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, all) {
		t.Fatalf("far end has %x, %v", got, err)
	}
	if _, err := far.Write(all); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p, got); err != nil || !bytes.Equal(got, all) {
		t.Fatalf("port reads %x, %v", got, err)
	}
}

// Row "Read timeout": past the deadline there is an error and never 0, nil, which would break
// io.ReadFull; a Write has a deadline, too, which the library's has not.
func TestDeadlines(t *testing.T) {
	_, path := terminal(t)
	p := open(t, path)
	if err := p.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %d, %v; want os.ErrDeadlineExceeded", n, err)
	}
	if err := p.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Write(make([]byte, 1<<20)); n == 0 || n == 1<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write = %d, %v; want a part and os.ErrDeadlineExceeded", n, err)
	}
}

// Row "2 ms timeout × 200": each ends by its deadline, with the one error.
func TestShortDeadlines(t *testing.T) {
	_, path := terminal(t)
	p := open(t, path)
	for range 200 {
		if err := p.SetReadDeadline(time.Now().Add(2 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := p.Read(make([]byte, 1)); n != 0 || err != os.ErrDeadlineExceeded {
			t.Fatalf("Read = %d, %v; want os.ErrDeadlineExceeded", n, err)
		}
	}
}

// Row "partial write": the library may return n < len without an error. Ours goes on until all of
// it is written, however little the other end takes at a time.
func TestWriteIsWhole(t *testing.T) {
	far, path := terminal(t)
	p := open(t, path)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
	got := make(chan []byte, 1)
	go func() {
		var all []byte
		for b := make([]byte, 100); len(all) < len(sent); {
			n, err := far.Read(b)
			if err != nil {
				break
			}
			all = append(all, b[:n]...)
		}
		got <- all
	}()
	if n, err := p.Write(sent); n != len(sent) || err != nil {
		t.Errorf("Write = %d, %v; want %d", n, err, len(sent))
	}
	if all := <-got; !bytes.Equal(all, sent) {
		t.Errorf("%d bytes arrived; want the %d that were sent", len(all), len(sent))
	}
}

func TestTryReadDoesNotWait(t *testing.T) {
	far, path := terminal(t)
	p := open(t, path)
	b := make([]byte, 8)
	if n, err := p.TryRead(b); n != 0 || err != nil {
		t.Errorf("nothing there: %d, %v; want 0, nil", n, err)
	}
	if _, err := far.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(p, b[:1]); n != 1 || err != nil { // waits for the arrival
		t.Fatal(err)
	}
	if n, err := p.TryRead(b); n != 1 || err != nil || b[0] != 'b' {
		t.Errorf("one byte there: %d, %v", n, err)
	}
	if n := testing.AllocsPerRun(100, func() { p.TryRead(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Row "Write after Close": go.bug.st/serial's own lands in whatever file has taken the number.
func TestWriteAfterCloseReachesNothing(t *testing.T) {
	_, path := terminal(t)
	p := open(t, path)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for i := range 16 { // these take the freed numbers
		f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	for what, err := range map[string]error{
		"Write":   second(p.Write([]byte("astray"))),
		"Read":    second(p.Read(make([]byte, 1))),
		"TryRead": second(p.TryRead(make([]byte, 1))),
		"Flush":   p.Flush(), "Drain": p.Drain(), "SetDTR": p.SetDTR(true), "SetRTS": p.SetRTS(true),
		"SetReadDeadline": p.SetReadDeadline(time.Now()),
	} {
		if !errors.Is(err, port.ErrClosed) {
			t.Errorf("%s after Close: %v; want ErrClosed", what, err)
		}
	}
	for _, f := range files {
		if s, err := f.Stat(); err != nil || s.Size() != 0 {
			t.Errorf("%s has %d bytes, %v", f.Name(), s.Size(), err)
		}
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func second(_ int, err error) error { return err }

// Rows "Close while Read blocks" and "Close while Write blocks": the library leaves the Write behind.
func TestCloseFreesReadAndWrite(t *testing.T) {
	_, path := terminal(t)
	p := open(t, path)
	if _, err := p.Write(fill(t, p)); !errors.Is(err, os.ErrDeadlineExceeded) { // now the next Write blocks
		t.Fatal(err)
	}
	if err := p.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 3)
	go func() { _, err := p.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := p.Write(make([]byte, 1<<20)); ended <- err }()
	go func() { ended <- p.Drain() }()
	waitBlocked(t, ended)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for range cap(ended) {
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, port.ErrClosed) {
				t.Errorf("%v; want ErrClosed", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("Close left a call behind")
		}
	}
}

// fill is more than the terminal holds.
func fill(t *testing.T, p port.Port) []byte {
	t.Helper()
	if err := p.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	return make([]byte, 1<<20)
}

// waitBlocked gives calls the time to begin; they must not end by themselves.
func waitBlocked(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("a call ended before Close: %v", err)
		}
		ended <- nil // Drain may find nothing to wait for
	case <-time.After(50 * time.Millisecond):
	}
}

// Row "child processes": the library opens without O_CLOEXEC; an update helper would hold the line for ever.
func TestChildInheritsNothing(t *testing.T) {
	inherited := func() string {
		out, err := exec.Command("sh", "-c", "for f in /proc/$$/fd/*; do echo ${f##*/}; done").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	_, path := terminal(t)
	before := inherited()
	for range 3 {
		p := open(t, path)
		if after := inherited(); after != before {
			t.Errorf("a child has the descriptors %q; want %q", after, before)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Row "second Open as root": root ignores TIOCEXCL, so it is the lock that counts.
func TestSecondOpenerIsRefused(t *testing.T) {
	_, path := terminal(t)
	p := open(t, path)
	_, err := port.Open(t.Context(), path, port.Options{Settings: usual})
	if !errors.Is(err, port.ErrInUse) || hint.Of(err) == "" {
		t.Errorf("second Open: %v; want ErrInUse with a hint", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := port.Open(t.Context(), path, port.Options{Settings: usual})
	if err != nil {
		t.Fatalf("Open after Close: %v", err)
	}
	again.Close()
}

// Row "fd ≥ 1024": go.bug.st/serial's own Read panics above FD_SETSIZE.
func TestDescriptorsAbove1024(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max < 1200 {
		t.Fatalf("limit of descriptors is %d, %v; want at least 1200", limit.Max, err)
	}
	limit.Cur = max(limit.Cur, 1200)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Fd() > 1030 {
			break
		}
	}
	TestBytesPassUnchanged(t)
	TestDeadlines(t)
}

// Row "peer hangup": Read, Write and TryRead say the same. See TestReplugUnderLoad for the return.
func TestHangupIsGone(t *testing.T) {
	far, path := terminal(t)
	p := open(t, path)
	ended := make(chan error, 1)
	go func() { _, err := p.Read(make([]byte, 1)); ended <- err }()
	waitBlocked(t, ended)
	far.Close()
	if err := <-ended; !errors.Is(err, port.ErrGone) {
		t.Errorf("waiting Read: %v; want ErrGone", err)
	}
	for what, err := range map[string]error{
		"Read":    second(p.Read(make([]byte, 1))),
		"TryRead": second(p.TryRead(make([]byte, 1))),
		"Write":   second(p.Write([]byte("x"))),
	} {
		if !errors.Is(err, port.ErrGone) {
			t.Errorf("%s: %v; want ErrGone", what, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Row "GetModemStatusBits, SetDTR, SetRTS": a pseudo terminal has no modem lines: one warning, no failure.
func TestMissingFeaturesWarnOnce(t *testing.T) {
	_, path := terminal(t)
	var log bytes.Buffer
	p, err := port.Open(t.Context(), path, port.Options{Settings: usual, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if log.Len() != 0 {
		t.Errorf("opening warns: %s", &log)
	}
	for range 3 {
		if err := errors.Join(p.SetDTR(true), p.SetRTS(false), p.Drain(), p.Flush()); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "serial port lacks a feature"); n != 2 {
		t.Errorf("%d warnings; want one for DTR, one for RTS:\n%s", n, &log)
	}
}

func TestOldInputIsDropped(t *testing.T) {
	far, path := terminal(t)
	keep, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	if _, err := far.Write([]byte("old\n")); err != nil {
		t.Fatal(err)
	}
	p := open(t, path)
	if n, err := p.TryRead(make([]byte, 8)); n != 0 || err != nil {
		t.Errorf("TryRead = %d, %v; want nothing", n, err)
	}
}

// Row "Drain, Reset…, SetMode": every rate that termios itself knows works without termios2, which emulators lack.
func TestUsualRates(t *testing.T) {
	_, path := terminal(t)
	for _, baud := range []int{300, 1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600} {
		for _, form := range []string{"8N1", "8E1", "8O2", "7E1", "8M1", "8S1"} {
			s, err := port.ParseSettings(fmt.Sprintf("%d %s", baud, form))
			if err != nil {
				t.Fatal(err)
			}
			p, err := port.Open(t.Context(), path, port.Options{Settings: s})
			if err != nil {
				t.Fatalf("%s: %v", s, err)
			}
			p.Close()
		}
	}
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, path := terminal(t)
	for name, want := range map[string]error{
		"/dev/ttyNOWHERE":                   port.ErrNotFound,
		"by-id/nothing":                     port.ErrNotFound,
		"by-path/nothing":                   port.ErrNotFound,
		file:                                unix.ENOTTY,
		"":                                  nil,
		"ttyUSB0":                           nil,
		"by-id/../../null":                  nil,
		"usb:ffff:ffff:NOWHERE:0":           port.ErrNotFound,
		path + "\x00":                       nil,
		"/dev/serial/by-id/../../ttyNOTHIN": port.ErrNotFound,
	} {
		p, err := port.Open(t.Context(), name, port.Options{Settings: usual})
		if err == nil {
			p.Close()
			t.Errorf("%q opens", name)
			continue
		}
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v; want %v", name, err, want)
		}
		if want != unix.ENOTTY && hint.Of(err) == "" && !strings.Contains(name, "\x00") {
			t.Errorf("%q: %v has no hint", name, err)
		}
	}
	if _, err := port.Open(t.Context(), path, port.Options{Settings: port.Settings{}}); err == nil {
		t.Error("opens with no settings")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := port.Open(ended, path, port.Options{Settings: usual}); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

// Row "1.5 stop bits": refused before any port is asked.
func TestParseSettings(t *testing.T) {
	for s, want := range map[string]struct {
		settings port.Settings
		bits     int
	}{
		"19200 8E1":    {usual, 11},
		" 9600   8n1 ": {port.Settings{Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}, 10},
		"2400 7O2":     {port.Settings{Baud: 2400, DataBits: 7, Parity: 'O', StopBits: 2}, 11},
		"250000 8N2":   {port.Settings{Baud: 250000, DataBits: 8, Parity: 'N', StopBits: 2}, 11},
	} {
		got, err := port.ParseSettings(s)
		if err != nil || got != want.settings || got.BitsPerChar() != want.bits {
			t.Errorf("ParseSettings(%q) = %v (%d bits), %v", s, got, got.BitsPerChar(), err)
		}
	}
	for _, s := range []string{"", "9600", "8N1 9600", "9600 9N1", "9600 8X1", "9600 8N3", "9600 8N", "0 8N1", "-5 8N1", "9600 8N1 x", "5000000 8N1", "96e2 8N1"} {
		if got, err := port.ParseSettings(s); err == nil || hint.Of(err) == "" {
			t.Errorf("ParseSettings(%q) = %v, %v; want an error with a hint", s, got, err)
		}
	}
}

// Row "SetMode 250000": other rates go by termios2: where that is missing the error says what to do.
func TestUnusualRate(t *testing.T) {
	far, path := terminal(t)
	s := usual
	s.Baud = 250_000
	p, err := port.Open(t.Context(), path, port.Options{Settings: s})
	if err != nil {
		if hint.Of(err) == "" {
			t.Errorf("%v has no hint", err)
		}
		return
	}
	defer p.Close()
	if mode, err := unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS2); err != nil || mode.Ospeed != 250_000 {
		t.Errorf("speed is %d, %v; want 250000", mode.Ospeed, err)
	}
}
