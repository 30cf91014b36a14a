package listener_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/local/listener"
)

func (w *world) connect(t testing.TB) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", w.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// hello is the ClientHello of a real client.
func hello(t testing.TB) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	var ended sync.WaitGroup
	ended.Go(func() { _ = tls.Client(theirs, &tls.Config{InsecureSkipVerify: true}).Handshake() })
	head := make([]byte, 5)
	if _, err := io.ReadFull(ours, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(ours, body); err != nil {
		t.Fatal(err)
	}
	_, _ = ours.Close(), theirs.Close()
	ended.Wait()
	return append(head, body...)
}

// Everything that is no good handshake gets its own reason, and the next client does not notice.
func TestHowStrangersFail(t *testing.T) {
	first := hello(t)
	say := func(text string) func(*testing.T, *net.TCPConn) {
		return func(t *testing.T, c *net.TCPConn) {
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	then := func(all ...func(*testing.T, *net.TCPConn)) func(*testing.T, *net.TCPConn) {
		return func(t *testing.T, c *net.TCPConn) {
			for _, f := range all {
				f(t, c)
			}
		}
	}
	end := func(_ *testing.T, c *net.TCPConn) { _ = c.Close() }
	reset := func(_ *testing.T, c *net.TCPConn) { _, _ = c.SetLinger(0), c.Close() }
	answered := func(_ *testing.T, c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)) }
	for _, c := range []struct {
		name, cause, reason string
		do                  func(*testing.T, *net.TCPConn)
	}{
		{"silence", listener.Silent, "sent nothing for", func(*testing.T, *net.TCPConn) {}},
		{"one byte", listener.Stalled, "before its ClientHello was whole (1 bytes", say("\x16")},
		{"half a ClientHello", listener.Stalled, "before its ClientHello was whole (200 bytes", say(string(first[:200]))},
		{"a ClientHello and no more", listener.Stalled, "stalled after its ClientHello", say(string(first))},
		{"hangs up", listener.HungUp, "without a word", end},
		{"hangs up after its ClientHello", listener.HungUp, "hung up in the handshake", then(say(string(first)), func(t *testing.T, c *net.TCPConn) {
			_ = c.CloseWrite()
		})},
		{"resets after its ClientHello", listener.Reset, "reset the connection", then(say(string(first)), answered, reset)},
		{"plain HTTP", listener.Plaintext, "plain HTTP", say("GET /status HTTP/1.1\r\nHost: gw\r\n\r\n")},
		{"plain MQTT", listener.Plaintext, "plain MQTT", say("\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04gw-1")},
		{"SSH", listener.Plaintext, "no TLS: first bytes 53 53 48 2d 32", say("SSH-2.0-OpenSSH_9.2\r\n")},
		{"an alert", listener.RefusedByClient, "bad certificate", say("\x15\x03\x03\x00\x02\x02\x2a")},
		{"garbage behind a ClientHello", listener.Malformed, "", say(string(first) + strings.Repeat("\x7f", 100))},
		{"a second ClientHello", listener.Malformed, "", say(string(first) + string(first))},
		{"SSL 2", listener.Plaintext, "no TLS", say("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10")},
		{"a handshake that never ends", listener.Malformed, "", func(t *testing.T, c *net.TCPConn) {
			record := "\x16\x03\x01\x40\x00" + "\x01\x00\xff\xff" + strings.Repeat("x", 1<<14-4)
			for range 8 { // the listener may end it at any time
				if _, err := io.WriteString(c, record); err != nil {
					return
				}
				record = "\x16\x03\x01\x40\x00" + strings.Repeat("x", 1<<14)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(o *listener.Options) { o.Patience = 2 * time.Second })
			conn := w.connect(t)
			c.do(t, conn)
			w.anyRefused(t, c.cause, c.reason)
			if got := w.dial(t, w.site.issue(t, nil, nil), nil); got != "" {
				t.Errorf("the next client sees %q", got)
			}
		})
	}
}

// anyRefused waits for a refusal; where bytes may be lost on the way, two causes are right.
func (w *world) anyRefused(t *testing.T, cause, part string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for w.Status().LastRefusal == nil {
		if time.Now().After(deadline) {
			t.Fatal("nobody was refused")
		}
	}
	last := w.Status().LastRefusal
	if last.Cause != cause && !(cause == listener.Malformed && last.Cause == listener.TooLarge) || !strings.Contains(last.Text, part) {
		t.Errorf("refused for %s: %q; want %s: … %s …", last.Cause, last.Text, cause, part)
	}
}

// Who speaks HTTP to the port is told in its own words.
func TestPlainHTTPIsAnswered(t *testing.T) {
	w := newWorld(t, nil)
	conn := w.connect(t)
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), "400 Bad Request") || !strings.Contains(string(answer), "This port speaks HTTPS") {
		t.Errorf("%q, %v", answer, err)
	}
}

// The alert arrives though the client still sends: our side ends with FIN, not with a reset.
func TestTheAlertSurvivesUnreadBytes(t *testing.T) {
	w := newWorld(t, nil)
	for range 20 {
		conn := w.connect(t)
		old := append([]byte("\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01"), make([]byte, 32)...)
		old = append(old, 0, 0, 2, 0x00, 0x2f, 1, 0) // TLS 1.0, one suite
		if _, err := conn.Write(append(old, make([]byte, 20<<10)...)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || len(answer) < 7 || answer[0] != 21 || answer[6] != 70 {
			t.Fatalf("% x, %v; want alert 70, protocol version", answer, err)
		}
	}
}

// openssl names the alerts by number: 116 in TLS 1.3, 40 in TLS 1.2.
func TestOpensslSeesTheAlert(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	w := newWorld(t, nil)
	good, goodKey := w.site.issue(t, nil, nil).pem(t, w.folder, "good")
	bad, badKey := newAuthority(t, "nobody", nil).issue(t, nil, nil).pem(t, w.folder, "bad")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-tls1_3"}, "alert number 116"},
		{[]string{"-tls1_2"}, "alert number 40"},
		{[]string{"-tls1_3", "-cert", bad, "-key", badKey}, "alert number 48"},
		{[]string{"-tls1_2", "-cert", bad, "-key", badKey}, "alert number 48"},
		{[]string{"-tls1_3", "-alpn", "mqtt"}, "alert number 120"},
		{[]string{"-tls1_3", "-cert", good, "-key", goodKey}, "hello"},
		{[]string{"-tls1_2", "-cert", good, "-key", goodKey}, "hello"},
	} {
		command := exec.CommandContext(t.Context(), openssl, append([]string{"s_client", "-connect", w.Addr().String(), "-ign_eof"}, c.args...)...)
		command.Stdin = strings.NewReader("x")
		out, _ := command.CombinedOutput()
		if !strings.Contains(string(out), c.want) {
			t.Errorf("openssl s_client %v: no %q in:\n%s", c.args, c.want, out)
		}
		if strings.Contains(string(out), "Reused") {
			t.Errorf("openssl resumed a session:\n%s", out)
		}
	}
}

// A thousand strangers that say nothing do not keep a good client waiting, and leave nothing.
func TestAThousandSilentStrangers(t *testing.T) {
	w := newWorld(t, func(o *listener.Options) {
		o.Limits = listener.Limits{Handshaking: 32, Strangers: 8, Guests: 8, PerSource: 24}
	})
	good := w.site.issue(t, nil, nil)
	for n := range 300 {
		w.connect(t)
		if n%50 == 0 {
			if got := w.dial(t, good, nil); got != "" {
				t.Fatalf("after %d strangers a good client sees %q", n, got)
			}
		}
	}
	s := w.Status()
	if s.Handshaking > 24 {
		t.Errorf("%d handshakes of one source at once", s.Handshaking)
	}
	if s.Refused[listener.Displaced] < 200 {
		t.Errorf("refused: %v", s.Refused)
	}
}

// rawConn is a client whose socket was made before there were none left.
type rawConn struct {
	net.Conn // nil: tls.Client asks for nothing else
	fd       int
}

func newRawConn(t *testing.T) *rawConn {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	limit := syscall.NsecToTimeval(patience.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	return &rawConn{fd: fd}
}

func (c *rawConn) connect(t *testing.T, to net.Addr) {
	t.Helper()
	if err := syscall.Connect(c.fd, &syscall.SockaddrInet4{Port: to.(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
}

func (c *rawConn) Read(b []byte) (int, error) {
	n, err := syscall.Read(c.fd, b)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}
func (c *rawConn) Write(b []byte) (int, error)      { return syscall.Write(c.fd, b) }
func (c *rawConn) Close() error                     { return syscall.Close(c.fd) }
func (c *rawConn) SetWriteDeadline(time.Time) error { return nil }

// With no descriptor left a good client is served all the same, though strangers hold what the
// reserve has given; and when there are descriptors again, all is as before.
func TestDescriptorsExhausted(t *testing.T) {
	w := newWorld(t, nil)
	good := w.site.issue(t, nil, nil)
	clients := make([]*rawConn, 30)
	for n := range clients {
		clients[n] = newRawConn(t)
		defer clients[n].Close()
	}
	give := exhaust(t)
	for n, c := range clients {
		c.connect(t, w.Addr())
		if n%10 != 9 {
			continue // a stranger who says nothing
		}
		shown := good.TLS()
		conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{shown}})
		answer := make([]byte, 5)
		if _, err := io.ReadFull(conn, answer); err != nil {
			t.Errorf("behind %d strangers a good client sees %v", n, err)
		}
	}
	give()
	if s := w.Status(); s.AcceptErrors == 0 {
		t.Errorf("there was no want of descriptors: %+v", s)
	}
	if got := w.dial(t, good, nil); got != "" {
		t.Errorf("with descriptors again a good client sees %q", got)
	}
}

// exhaust takes every descriptor that there is, and returns what gives them back.
func exhaust(t *testing.T) (give func()) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = min(limit.Cur, 256)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &less); err != nil {
		t.Fatal(err)
	}
	var held []int
	for {
		fd, err := syscall.Dup(2)
		if err != nil {
			break
		}
		held = append(held, fd)
	}
	return func() {
		for _, fd := range held {
			_ = syscall.Close(fd)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenSaysWhy(t *testing.T) {
	site := newAuthority(t, "site", nil)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	folder := t.TempDir()
	certificate, key := site.issue(t, nil, nil).pem(t, folder, "a")
	_, otherKey := site.issue(t, nil, nil).pem(t, folder, "b")
	w := &world{site: site, other: site}
	for name, c := range map[string]struct {
		o    listener.Options
		want string
	}{
		"port taken":     {listener.Options{Address: taken.Addr().String()}, "address already in use"},
		"no certificate": {listener.Options{Source: listener.Source{Certificate: filepath.Join(folder, "none"), Key: key}}, "reading local.certificate"},
		"no key":         {listener.Options{Source: listener.Source{Certificate: certificate, Key: filepath.Join(folder, "none")}}, "reading local.key"},
		"another's key":  {listener.Options{Source: listener.Source{Certificate: certificate, Key: otherKey}}, "does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Policy, c.o.Log = w.rules(nil), slog.New(slog.DiscardHandler)
			if c.o.Address == "" {
				c.o.Address = "127.0.0.1:0"
			}
			l, err := listener.Open(t.Context(), c.o)
			if err == nil {
				_ = l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want … %s …", err, c.want)
			}
		})
	}
}

// A listening socket that somebody else closes ends Run, so that it is opened again.
func TestALostSocketEndsRun(t *testing.T) {
	site := newAuthority(t, "site", nil)
	w := &world{site: site, other: site}
	l, err := listener.Open(t.Context(), listener.Options{Address: "127.0.0.1:0", Policy: w.rules(nil), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	l.Lose()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run ended with %v", err)
	}
	cancel()
}
