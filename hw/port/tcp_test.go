package port

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// serialServer is the far end of a connection to which a port was opened.
func serialServer(t *testing.T, o Options) (Port, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := Open(t.Context(), "tcp://"+l.Addr().String(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return p, c.(*net.TCPConn)
}

func TestTCPPassesBytes(t *testing.T) {
	p, far := serialServer(t, Options{})
	b := make([]byte, 8)
	if n, err := p.TryRead(b); n != 0 || err != nil {
		t.Errorf("nothing there: %d, %v", n, err)
	}
	if err := p.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(b); n != 0 || err != os.ErrDeadlineExceeded {
		t.Errorf("Read = %d, %v; want os.ErrDeadlineExceeded, bare", n, err)
	}
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, b[:4]); err != nil || string(b[:4]) != "ping" {
		t.Fatalf("server has %q, %v", b[:4], err)
	}
	if _, err := far.Write([]byte("abcd")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p, b[:1]); err != nil || b[0] != 'a' {
		t.Fatalf("port reads %q, %v", b[:1], err)
	}
	if n, err := p.TryRead(b[:1]); n != 1 || err != nil || b[0] != 'b' {
		t.Errorf("TryRead = %d, %v", n, err)
	}
	if err := p.Flush(); err != nil {
		t.Error(err)
	}
	if n, err := p.TryRead(b); n != 0 || err != nil {
		t.Errorf("after Flush: %d, %v; want nothing", n, err)
	}
	if err := p.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Write(make([]byte, 64<<20)); n == 64<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write = %d, %v; want os.ErrDeadlineExceeded", n, err)
	}
}

func TestTCPOptions(t *testing.T) {
	p, _ := serialServer(t, Options{})
	err := p.(*tcpPort).control(func(fd uintptr) error {
		for name, option := range map[string][2]int{
			"TCP_NODELAY": {unix.IPPROTO_TCP, unix.TCP_NODELAY}, "SO_KEEPALIVE": {unix.SOL_SOCKET, unix.SO_KEEPALIVE}, "TCP_KEEPIDLE": {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		} {
			if v, err := unix.GetsockoptInt(int(fd), option[0], option[1]); err != nil || v == 0 || v > 20 {
				t.Errorf("%s is %d, %v", name, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What a connection lacks: nothing fails, and the modem lines are warned of once each.
func TestTCPLacks(t *testing.T) {
	var log bytes.Buffer
	p, _ := serialServer(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil)), RS485: &RS485{}})
	for range 2 {
		if err := errors.Join(p.Configure(usual), p.Drain(), p.SetDTR(true), p.SetRTS(true)); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Counters(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Counters: %v", err)
	}
	if n := strings.Count(log.String(), "lacks a feature"); n != 2 {
		t.Errorf("%d warnings; want 2:\n%s", n, &log)
	}
}

// The server's last words can still be read once it is gone, which is known while nobody reads.
func TestTCPGone(t *testing.T) {
	before := len(descriptors())
	p, far := serialServer(t, Options{})
	if _, err := far.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	far.Close()
	within(t, "Gone", p.Gone())
	b := make([]byte, 3)
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "bye" {
		t.Errorf("the last words are %q, %v", b, err)
	}
	_, read := p.Read(b)
	_, try := p.TryRead(b)
	var write error
	for write == nil { // the first one still finds room
		_, write = p.Write(b)
	}
	for what, err := range map[string]error{"Read": read, "TryRead": try, "Write": write} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v; want ErrGone", what, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if after := len(descriptors()); after != before {
		t.Errorf("%d descriptors; before %d", after, before)
	}
}

func TestTCPReset(t *testing.T) {
	p, far := serialServer(t, Options{})
	ended := make(chan error, 1)
	go func() { _, err := p.Read(make([]byte, 1)); ended <- err }()
	if err := far.SetLinger(0); err != nil { // Close resets
		t.Fatal(err)
	}
	far.Close()
	if err := <-ended; !errors.Is(err, ErrGone) {
		t.Errorf("Read: %v; want ErrGone", err)
	}
	within(t, "Gone", p.Gone())
}

func TestTCPClose(t *testing.T) {
	children := inherited(t)
	p, _ := serialServer(t, Options{})
	if strings.Count(inherited(t), "\n") != strings.Count(children, "\n") {
		t.Error("a child has more descriptors than before")
	}
	ended := make(chan error, 2)
	go func() { _, err := p.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := p.Write(make([]byte, 64<<20)); ended <- err }()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("%v; want ErrClosed", err)
		}
	}
	for what, err := range map[string]error{"Flush": p.Flush(), "Drain": p.Drain(), "SetDTR": p.SetDTR(true), "SetReadDeadline": p.SetReadDeadline(time.Time{})} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v; want ErrClosed", what, err)
		}
	}
	select {
	case <-p.Gone():
		t.Error("closing is told as gone")
	default:
	}
}

func TestTCPRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	name := "tcp://" + l.Addr().String()
	l.Close()
	if _, err := Open(t.Context(), name, Options{}); !errors.Is(err, ErrNotFound) || hint.Of(err) == "" {
		t.Errorf("%v; want ErrNotFound with a hint", err)
	}
}
