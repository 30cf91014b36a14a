package listener

import (
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"ferrule/agent/local/role"
)

// scripted is a client that has said everything it will ever say.
type scripted struct {
	net.Conn
	in *strings.Reader
}

func (s *scripted) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *scripted) Write(b []byte) (int, error)      { return len(b), nil }
func (s *scripted) Close() error                     { return nil }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }
func (s *scripted) CloseWrite() error                { return io.ErrClosedPipe }
func (s *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)} }

// FuzzStranger gives the listener whatever a client may say first: it ends, nobody comes in
// by it, and the reason is one line of ASCII.
func FuzzStranger(f *testing.F) {
	m := newMachine(f)
	l := over(&broken{closed: make(chan struct{})}, slog.New(slog.DiscardHandler))
	l.options = Options{Now: time.Now, Patience: time.Second}
	l.identity = m.open(f)
	policy, err := role.New(nil, "", func(string) ([]*x509.Certificate, error) { return nil, nil })
	if err != nil {
		f.Fatal(err)
	}
	l.policy.Store(policy)
	l.base = l.baseConfig()
	close(l.closing)
	f.Add("GET / HTTP/1.1\r\n\r\n")
	f.Add("\x10\x10\x00\x04MQTT")
	f.Add("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
	f.Add("\x15\x03\x03\x00\x02\x02\x2a")
	f.Fuzz(func(t *testing.T, said string) {
		c := &Conn{Conn: &scripted{in: strings.NewReader(said)}, listener: l, source: sourceOf(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)})}
		c.reading.Store(maxHandshake)
		l.table.add(c)
		l.shake(c)
		_, last, _ := l.refusals.snapshot()
		if c.grant.Role != role.None || last == nil {
			t.Fatalf("% x came in", said)
		}
		for _, r := range last.Text {
			if r < ' ' || r > '~' {
				t.Fatalf("reason %q", last.Text)
			}
		}
		if shaking, strangers, guests := l.table.counts(); shaking+strangers+guests != 0 {
			t.Fatal("a connection is left")
		}
	})
}
