package dial

import (
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
)

// middlebox passes on connections whose first bytes are no more than limit, and swallows others.
func middlebox(t *testing.T, broker string, limit int) string {
	return serve(t, func(c net.Conn) {
		hello := make([]byte, 4096)
		n, err := c.Read(hello)
		if err != nil {
			return
		}
		if n > limit {
			_, _ = io.Copy(io.Discard, c)
			return
		}
		b, err := net.Dial("tcp", broker)
		if err != nil {
			return
		}
		defer b.Close()
		_, _ = b.Write(hello[:n])
		relay(c, b)
	})
}

// inVain is how long a handshake may take that is to stall.
const inVain = 300 * time.Millisecond

// A way on which a ClientHello of two packets is lost: the third attempt leaves the post-quantum
// share out, says so, and remembers; a day later it is tried again.
func TestClassicGroupsAtTheThirdAttempt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	address := localhost(middlebox(t, w.echo(), 1400))
	state := State{FS: disk.OS(), Path: filepath.Join(t.TempDir(), "ways.json")}
	open := func(change ...func(*Options)) *Dialer {
		return w.dialer(append(change, func(o *Options) { o.State, o.Now = state, func() time.Time { return now } })...)
	}
	stalls := func(d *Dialer, times int) {
		t.Helper()
		d.Timeouts.TLS = inVain
		for range times {
			expect(t, w.failure(d, address), cause.StageTLS, cause.Stalled, cause.SideBroker, "stalled after ClientHello")
		}
		d.Timeouts = DefaultTimeouts()
	}
	d := open()
	stalls(d, 2)
	c := w.connected(d, address)
	if p := c.Path; p.PostQuantum || p.Group != "X25519" || !p.ClassicUntil.After(now.Add(23*time.Hour)) {
		t.Errorf("%+v", p)
	}
	d.Worked(c)
	d = open()
	for range 2 { // a second time there could be a ticket, which makes two packets too
		if c := w.connected(d, address); c.Path.PostQuantum || c.Path.ClassicUntil.IsZero() {
			t.Errorf("after a restart: %+v", c.Path)
		}
	}
	if c := w.connected(d, localhost(w.echo())); !c.Path.PostQuantum || c.Path.Group != "X25519MLKEM768" || !c.Path.ClassicUntil.IsZero() {
		t.Errorf("another broker: %+v", c.Path)
	}
	now = now.Add(24 * time.Hour)
	stalls(d, 1)
	stalls(open(func(o *Options) { o.PostQuantum = PostQuantumRequired }), 3)
	never := open(func(o *Options) { o.PostQuantum = PostQuantumNever })
	for range 2 {
		if c := w.connected(never, address); c.Path.PostQuantum || !c.Path.ClassicUntil.IsZero() {
			t.Errorf("%+v", c.Path)
		}
	}
}

// A broker that knows no post-quantum group is met all the same, or refused where one is required.
func TestBrokerOfClassicGroups(t *testing.T) {
	w := newWorld(t)
	config := w.server.ServerTLS(w.ca)
	config.CurvePreferences = []tls.CurveID{tls.CurveP256}
	address := localhost(tlsEcho(t, config))
	if c := w.connected(w.dialer(), address); c.Path.Group != "CurveP256" || c.Path.PostQuantum {
		t.Errorf("%+v", c.Path)
	}
	f := w.failure(w.dialer(func(o *Options) { o.PostQuantum = PostQuantumRequired }), address)
	expect(t, f, cause.StageTLS, cause.Handshake, cause.SideDevice, "")
	if !strings.Contains(f.Hint, "post_quantum") {
		t.Error(f.Hint)
	}
	if c := w.connected(w.dialer(func(o *Options) { o.PostQuantum = PostQuantumRequired }), localhost(w.echo())); !c.Path.PostQuantum {
		t.Errorf("%+v", c.Path)
	}
}

// Other ends of a handshake than silence are no reason to leave the share out.
func TestOnlySilenceCountsAgainstTheShare(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, handle := range map[string]func(net.Conn){
		"reset": func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_ = c.(*net.TCPConn).SetLinger(0)
		},
		"close": func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) },
		"alert": func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 40})
		},
		"stalls later": func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte{22, 3, 3})
			_, _ = io.Copy(io.Discard, c)
		},
	} {
		d := w.dialer()
		if name == "stalls later" {
			d.Timeouts.TLS = 2 * time.Second
		}
		var shares []int
		d.observe = &Observer{TLS: func(c *tls.Config) { shares = append(shares, len(c.CurvePreferences)) }}
		address := localhost(serve(t, handle))
		for range 3 {
			_ = w.failure(d, address)
		}
		if !slices.Equal(shares, []int{0, 0, 0}) {
			t.Errorf("%s: the groups were %v", name, shares)
		}
	}
}
