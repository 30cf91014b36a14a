package listener

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// broken is a listening socket whose every accept fails.
type broken struct {
	err    error
	calls  int
	closed chan struct{}
	once   sync.Once
}

func (b *broken) Accept() (net.Conn, error) {
	select {
	case <-b.closed:
		return nil, net.ErrClosed
	default:
		b.calls++
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", b.err)}
	}
}

func (b *broken) Close() error   { b.once.Do(func() { close(b.closed) }); return nil }
func (b *broken) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// over is a listener over any socket.
func over(tcp net.Listener, log *slog.Logger) *Listener {
	return &Listener{
		tcp: tcp, log: log, table: newTable(Limits{8, 8, 8, 8}), reserve: &reserve{},
		ready: make(chan net.Conn), closing: make(chan struct{}),
	}
}

// Whatever accept says, for however long: the loop goes on, and it does not spin.
func TestAcceptErrorsNeitherEndNorSpinTheLoop(t *testing.T) {
	for _, err := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EHOSTUNREACH, syscall.EPERM} {
		t.Run(err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				tcp := &broken{err: err, closed: make(chan struct{})}
				l := over(tcp, slog.New(slog.NewTextHandler(&log, nil)))
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- l.accept(ctx) }()
				<-ctx.Done()
				if got := <-ended; !errors.Is(got, context.DeadlineExceeded) {
					t.Errorf("the loop ended with %v", got)
				}
				// A second of pauses that double, then one call a second.
				if tcp.calls < 3600 || tcp.calls > 3620 {
					t.Errorf("%d calls of accept in an hour", tcp.calls)
				}
				if n := log.count(); n < 300 || n > 361 {
					t.Errorf("%d lines in an hour, want one in ten seconds", n)
				}
			})
		})
	}
}

type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

func (l *lines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// from is a connection of one source that remembers whether it was taken away.
func from(l *Listener, address string) *Conn {
	ours, theirs := net.Pipe()
	_ = theirs.Close()
	a := netip.MustParseAddr(address)
	return &Conn{Conn: ours, listener: l, source: sourceOf(&net.TCPAddr{IP: a.AsSlice()})}
}

// Nobody is locked out: the newest comes in, and whoever holds the most pays for it.
func TestWhoGivesWay(t *testing.T) {
	l := over(&broken{closed: make(chan struct{})}, slog.New(slog.DiscardHandler))
	l.table = newTable(Limits{Handshaking: 6, Strangers: 2, Guests: 2, PerSource: 4})
	add := func(address string) *Conn {
		c := from(l, address)
		l.table.add(c)
		return c
	}
	a1, a2, a3, a4 := add("10.0.0.1"), add("10.0.0.1"), add("10.0.0.1"), add("10.0.0.1")
	b1 := add("10.0.0.2")
	a5 := add("10.0.0.1") // beyond its own limit: its oldest goes
	c1 := add("10.0.0.3") // six are there now
	d1 := add("10.0.0.4") // beyond the limit of all: the greediest's oldest goes
	for n, c := range []struct {
		conn    *Conn
		evicted bool
	}{{a1, true}, {a2, true}, {a3, false}, {a4, false}, {a5, false}, {b1, false}, {c1, false}, {d1, false}} {
		if c.conn.evicted.Load() != c.evicted {
			t.Errorf("connection %d: evicted %t", n, !c.evicted)
		}
	}
	if shaking, _, _ := l.table.counts(); shaking != 6 {
		t.Errorf("%d handshakes, want 6", shaking)
	}
	l.table.move(b1, stranger)
	l.table.move(c1, stranger)
	l.table.move(d1, guest)
	l.table.move(a2, stranger) // was evicted: does not come back
	if shaking, strangers, guests := l.table.counts(); shaking != 3 || strangers != 2 || guests != 1 {
		t.Errorf("%d, %d, %d", shaking, strangers, guests)
	}
	for range 5 {
		l.table.evictStranger()
	}
	if l.table.evictStranger() || d1.evicted.Load() {
		t.Error("a guest was taken for a stranger")
	}
	for _, c := range []*Conn{a1, a2, a3, a4, a5, b1, c1, d1} {
		_ = c.Close()
		_ = c.Close()
	}
	if shaking, strangers, guests := l.table.counts(); shaking+strangers+guests != 0 {
		t.Error("connections that were closed are still counted")
	}
}

// A /64 is one source, and so is an IPv4 address however it is written.
func TestSources(t *testing.T) {
	at := func(text string) netip.Prefix { return sourceOf(&net.TCPAddr{IP: net.ParseIP(text)}) }
	if at("2001:db8:1:2::1") != at("2001:db8:1:2:ffff::2") || at("2001:db8:1:2::1") == at("2001:db8:1:3::1") {
		t.Error("IPv6 sources are not /64")
	}
	if at("10.0.0.1") != at("::ffff:10.0.0.1") || at("10.0.0.1") == at("10.0.0.2") {
		t.Error("IPv4 sources are not addresses")
	}
}

// One line per source and second, so many in all, and no memory of every source that ever came.
func TestLinesOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		var f refusals
		l := over(&broken{closed: make(chan struct{})}, nil)
		refuse := func(address string) {
			c := from(l, address)
			f.note(slog.New(slog.NewTextHandler(&log, nil)), c, reason{cause: Silent, text: "sent nothing"})
			_ = c.Close()
		}
		for range 1000 {
			refuse("10.0.0.1")
		}
		if n := log.count(); n != 1 {
			t.Errorf("%d lines of one source in one second", n)
		}
		time.Sleep(linePause)
		refuse("10.0.0.1")
		if n := log.count(); n != 2 || !strings.Contains(log.all[1], "lines_left_out=999") {
			t.Errorf("%d lines: %s", n, log.all)
		}
		time.Sleep(linePause)
		for n := range 100_000 {
			refuse(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}).String())
		}
		if n := log.count(); n > 2+maxLines {
			t.Errorf("%d lines of 100,000 sources in one second", n-2)
		}
		if len(f.sources) > maxSources {
			t.Errorf("%d sources are remembered", len(f.sources))
		}
		if f.causes[Silent] != 101_001 {
			t.Errorf("%d refusals counted", f.causes[Silent])
		}
		time.Sleep(linePause)
		refuse("10.9.9.9")
		if last := log.all[len(log.all)-1]; !strings.Contains(last, "lines_left_out=") {
			t.Errorf("what was left out is not told: %s", last)
		}
	})
}
