package registrar

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// address is a connection from somewhere.
type address struct {
	net.Conn
	from string
}

func (a address) RemoteAddr() net.Addr { return addr(a.from) }

type addr string

func (a addr) Network() string { return "tcp" }
func (a addr) String() string  { return string(a) }

// queue is a listener whose connections are made up.
type queue struct {
	net.Listener
	next chan net.Conn
}

func (q *queue) Accept() (net.Conn, error) {
	c, ok := <-q.next
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// One source cannot have every connection, and gets its share back.
func TestConnectionsOfOneSource(t *testing.T) {
	q := &queue{next: make(chan net.Conn, maxConns+1)}
	l := limit(q)
	push := func(from string) net.Conn {
		here, there := net.Pipe()
		q.next <- address{here, from}
		return there
	}
	var open []net.Conn
	for range maxConnsOfSource {
		push("192.0.2.1:1")
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	refused := push("192.0.2.1:2")
	push("192.0.2.2:1")
	c, err := l.Accept()
	if err != nil || c.RemoteAddr().String() != "192.0.2.2:1" {
		t.Errorf("%v, %v", c.RemoteAddr(), err)
	}
	if _, err := refused.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection beyond the bound is open: %v", err)
	}
	for _, c := range append(open, c) {
		_ = c.Close()
		_ = c.Close() // twice is once
	}
	if len(l.of) != 0 || len(l.open) != 0 {
		t.Errorf("%d sources, %d connections are counted", len(l.of), len(l.open))
	}
	push("192.0.2.1:3")
	if _, err := l.Accept(); err != nil {
		t.Error(err)
	}
	close(q.next)
	if _, err := l.Accept(); err == nil || len(l.open) != 1 {
		t.Errorf("closed: %v, %d are counted", err, len(l.open))
	}
}

// Who begins and begins is told to wait, and keeps nobody else out.
func TestRateOfOneSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := strict(t)
		begin := func(source string) *wire.Error {
			_, refused := d.begin(t.Context(), caller{source: source}, wire.Begin{Versions: []int{wire.Version}, Token: "wrong"})
			return refused
		}
		for range burst {
			refuses(t, begin("192.0.2.1"), wire.CodeTokenUnknown, "")
		}
		refuses(t, begin("192.0.2.1"), wire.CodeBackend, "too many")
		refuses(t, begin("192.0.2.2"), wire.CodeTokenUnknown, "")
		time.Sleep(time.Second) // in the bubble: no time passes
		for range perSecond {
			refuses(t, begin("192.0.2.1"), wire.CodeTokenUnknown, "")
		}
		refuses(t, begin("192.0.2.1"), wire.CodeBackend, "too many")
		for n := range maxSources + 10 {
			begin(fmt.Sprint(n))
		}
		if n := len(d.sessions.rate.sources); n > maxSources {
			t.Errorf("%d sources are remembered", n)
		}
		time.Sleep(time.Minute)
		refuses(t, begin("203.0.113.1"), wire.CodeTokenUnknown, "")
	})
}

func TestSources(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:4711": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1": "fe80::/64", "@": "@",
	} {
		if got := sourceOf(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

// Nobody resumes: who a device is, is judged on every connection.
func TestNoTickets(t *testing.T) {
	d := deskOn(t, disk.OS(), t.TempDir(), Config{AllowSoftwareKeys: true})
	if err := d.CA.Server(serverName, nil); err != nil {
		t.Fatal(err)
	}
	l, err := d.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	config := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4), ServerName: "localhost"}
	for range 3 {
		served := make(chan struct{})
		go func() { // ends with its one connection
			defer close(served)
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte("x"))
				_ = c.Close()
			}
		}()
		c, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = c.Close()
		<-served
	}
}

// A certificate that came by files is nobody's business until the device shows it.
func TestSealedUntilShown(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	order, err := NewOrder("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	items, claim := p.items(t, order.Nonce, "gw-1")
	delivery, err := d.Deliver(t.Context(), order, time.Now(), collected(t, order, items))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := claim.Unseal(open(t, delivery.Challenge.Data), items[1].Data, delivery.Challenge.Data, delivery.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.device(t, "gw-1"); !got.Certificates[0].Sealed {
		t.Errorf("the record: %+v", got)
	}
	p.shown = parse(t, string(plain))
	must(t, p.enroll(t, d, wire.Begin{}))
	if got := d.device(t, "gw-1"); got.Certificates[0].Sealed || got.Certificates[1].Sealed {
		t.Errorf("the record: %+v", got)
	}
	// Without a TPM there is nobody to seal for.
	soft := deskOn(t, disktest.New(), caDir, Config{AllowSoftwareKeys: true})
	items, _ = newPretender(t, "").items(t, order.Nonce, "gw-1")
	_, err = soft.Deliver(t.Context(), order, time.Now(), collected(t, order, items))
	refused, _ := err.(*wire.Error)
	refuses(t, refused, wire.CodeEvidence, "TPM is missing")
}

func collected(t testing.TB, order wire.Order, items []wire.Item) []byte {
	t.Helper()
	text, err := json.Marshal(wire.Collected{Order: order, Evidence: items})
	if err != nil {
		t.Fatal(err)
	}
	return text
}
