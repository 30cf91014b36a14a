package dial

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"ferrule/agent/session/cause"
)

// webBroker is a web server that speaks WebSocket as gorilla does, and gives back the bytes of
// every message in pieces of its own.
func (w *world) webBroker(t testing.TB, version uint16) string {
	config := w.server.ServerTLS(w.ca)
	config.MaxVersion = version
	upgrader := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
	return w.web(t, config, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/mqtt" {
			http.NotFound(rw, r)
			return
		}
		ws, err := upgrader.Upgrade(rw, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for {
			_, message, err := ws.ReadMessage()
			if err != nil {
				return
			}
			for len(message) > 0 { // messages that split and join what was sent
				n := min(len(message), 7)
				if ws.WriteMessage(websocket.BinaryMessage, message[:n]) != nil {
					return
				}
				message = message[n:]
			}
		}
	}))
}

// web serves HTTPS until the test ends.
func (w *world) web(t testing.TB, config *tls.Config, h http.Handler) string {
	l := must[net.Listener](t)(tls.Listen("tcp", "127.0.0.1:0", config))
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

// wss is the URL of a WebSocket at address, by name.
func wss(address, path string) string {
	_, port, _ := net.SplitHostPort(address)
	return "wss://localhost:" + port + path
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	each(t, func(t *testing.T, version uint16) {
		w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
		c := w.connected(w.dialer(), wss(w.webBroker(t, version), ""))
		if !c.Path.WebSocket || c.TLS.ConnectionState().Version != version {
			t.Errorf("%+v", c.Path)
		}
		if err := c.Prove(t.Context()); err != nil {
			t.Error(err)
		}
		echo(t, c, strings.Repeat("0123456789abcdef", 16<<10)) // 256 KiB in one write
		if c.TCP() == nil {
			t.Error("no TCP connection")
		}
		if sent, received := c.Wire(); sent < 256<<10 || received < 256<<10 {
			t.Errorf("%d and %d bytes on the wire", sent, received)
		}
	})
}

// A deadline that passes ends the read, and nothing else; one that is set while a read waits
// counts too.
func TestWebSocketDeadlines(t *testing.T) {
	w := newWorld(t)
	c := w.connected(w.dialer(), wss(w.webBroker(t, 0), ""))
	for range 3 {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || !cause.IsTimeout(err) {
			t.Fatal(err)
		}
	}
	_ = c.SetReadDeadline(time.Time{})
	echo(t, c, "still there")
	_, _ = io.WriteString(c, "x")
	_ = c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Read(make([]byte, 1)); !cause.IsTimeout(err) {
		t.Error("a deadline of the past lets through what is there:", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Error("and it was lost:", err)
	}
	ended := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	_ = c.SetDeadline(time.Unix(1, 0)) // as the session ends a connection that it gives up
	if err := <-ended; !cause.IsTimeout(err) {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); !cause.IsTimeout(err) {
		t.Error("written behind the deadline:", err)
	}
	if n, err := c.Read(nil); n != 0 || !cause.IsTimeout(err) {
		t.Error(n, err)
	}
	_ = c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := c.SetReadDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A write that is stuck ends when the session gives the connection up.
func TestWebSocketStuckWrite(t *testing.T) {
	w := newWorld(t)
	address := w.rawWeb(t, func(c *peer) { c.accept("mqtt"); <-c.over })
	c, err := w.dial(w.dialer(), wss(address, ""))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	var last uint64
	until(t, "the write to be stuck", func() bool {
		sent, _ := c.Wire()
		stuck := sent == last && sent > 1<<20
		last = sent
		return stuck
	})
	_ = c.SetDeadline(time.Unix(1, 0))
	if err := <-ended; !cause.IsTimeout(err) {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("written again")
	}
}

// peer is a web server of our own making, behind its handshake.
type peer struct {
	net.Conn
	r       *bufio.Reader
	request *http.Request
	over    chan struct{} // the test is over
}

// accept answers the upgrade as it should be.
func (p *peer) accept(subprotocol string, headers ...string) {
	sum := sha1.Sum([]byte(p.request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	headers = append(headers, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:]))
	if subprotocol != "" {
		headers = append(headers, "Sec-WebSocket-Protocol: "+subprotocol)
	}
	p.say("HTTP/1.1 101 Switching Protocols\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n")
}

func (p *peer) say(text string) { _, _ = io.WriteString(p, text) }

// frame sends one (RFC 6455, 5.2); its first byte is as it is given.
func (p *peer) frame(first byte, payload string) {
	head := []byte{first, byte(len(payload))}
	if len(payload) > 125 {
		head = binary.BigEndian.AppendUint16([]byte{first, 126}, uint16(len(payload)))
	}
	_, _ = p.Write(append(head, payload...))
}

// rawWeb answers every upgrade with handle, and then reads until the client has gone.
func (w *world) rawWeb(t testing.TB, handle func(p *peer)) string {
	over := make(chan struct{})
	address := serve(t, func(c net.Conn) {
		s := tls.Server(c, w.server.ServerTLS(w.ca))
		if s.Handshake() != nil {
			return
		}
		p := &peer{Conn: s, r: bufio.NewReader(s), over: over}
		var err error
		if p.request, err = http.ReadRequest(p.r); err != nil {
			return
		}
		handle(p)
		_, _ = io.Copy(io.Discard, p.r)
	})
	t.Cleanup(func() { close(over) })
	return address
}

// What answers the upgrade wrongly is named.
func TestHostileUpgrades(t *testing.T) {
	w := newWorld(t)
	says := func(text string) func(*peer) { return func(p *peer) { p.say(text) } }
	answers := func(status string) func(*peer) { return says("HTTP/1.1 " + status + "\r\nContent-Length: 0\r\n\r\n") }
	for name, test := range map[string]struct {
		handle func(p *peer)
		cause  cause.Cause
		text   string
	}{
		"401":              {answers("401 Unauthorized"), cause.WebSocketRefused, "401"},
		"403":              {answers("403 Forbidden"), cause.WebSocketRefused, "403"},
		"404":              {answers("404 Not Found"), cause.WebSocketPath, "404"},
		"400":              {answers("400 Bad Request"), cause.NotWebSocket, "400"},
		"426":              {answers("426 Upgrade Required"), cause.NotWebSocket, "426"},
		"200":              {answers("200 OK"), cause.NotWebSocket, "200"},
		"301":              {answers("301 Moved\r\nLocation: https://other.test/"), cause.NotWebSocket, "301"},
		"503":              {answers("503 Service \x1b[2JUnavailable"), cause.Unavailable, "503"},
		"a body for ever":  {says("HTTP/1.1 404 Not Found\r\nContent-Length: 999999999\r\n\r\n" + strings.Repeat("x", 4096)), cause.WebSocketPath, "404"},
		"wrong accept key": {says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"), cause.NotWebSocket, "answer to the upgrade is wrong"},
		"no upgrade":       {says("HTTP/1.1 101 Switching Protocols\r\n\r\n"), cause.NotWebSocket, "answer to the upgrade is wrong"},
		"no subprotocol":   {func(p *peer) { p.accept("") }, cause.NotWebSocket, `subprotocol is ""`},
		"another":          {func(p *peer) { p.accept("mqttv3.1") }, cause.NotWebSocket, `subprotocol is "mqttv3.1"`},
		"compression": {func(p *peer) {
			p.accept("mqtt", "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover")
		}, cause.NotWebSocket, "extension"},
		"other extension": {func(p *peer) { p.accept("mqtt", "Sec-WebSocket-Extensions: x-evil") }, cause.NotWebSocket, "extension"},
		"not HTTP":        {says("\x20\x02\x00\x00\r\n\r\n"), cause.NotWebSocket, "malformed HTTP"},
		"endless header": {func(p *peer) {
			p.say("HTTP/1.1 101 Switching Protocols\r\n")
			for {
				if _, err := io.WriteString(p, "X-Y: "+strings.Repeat("z", 1000)+"\r\n"); err != nil {
					return
				}
			}
		}, cause.NotWebSocket, "longer than 32768 bytes"},
		"closes":              {func(p *peer) { _ = p.Close() }, cause.Closed, "in the WebSocket handshake"},
		"silence":             {func(p *peer) {}, cause.Stalled, "the WebSocket handshake was not answered in time"},
		"stops in the header": {says("HTTP/1.1 101 Switch"), cause.Stalled, "not answered in time"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
			d := w.dialer()
			if test.cause == cause.Stalled {
				d.Timeouts.WebSocket = 300 * time.Millisecond
			}
			f := w.failure(d, wss(w.rawWeb(t, test.handle), "/mqtt"))
			side := cause.SideBroker
			expect(t, f, cause.StageWebSocket, test.cause, side, test.text)
			if strings.ContainsAny(f.Text, "\x1b\r\n") {
				t.Errorf("%q", f.Text)
			}
		})
	}
}

// What comes behind the upgrade, however it is cut, is the stream that was sent; and what may
// not come ends it with a name.
func TestHostileFrames(t *testing.T) {
	w := newWorld(t)
	const text, binary, ping, goodbye, fin = 1, 2, 9, 8, 0x80
	for name, test := range map[string]struct {
		send func(p *peer)
		want string // what is read
		is   func(error) bool
	}{
		"fragments": {func(p *peer) {
			p.frame(binary, "ab")
			p.frame(0, "c")
			p.frame(0, "")
			p.frame(fin, "d")
			p.frame(fin|goodbye, "")
		}, "abcd", cause.IsClosed},
		"pings between": {func(p *peer) {
			p.frame(binary, "ab")
			p.frame(fin|ping, "hello")
			p.frame(fin, "c")
			p.frame(fin|goodbye, "\x03\xe8bye")
		}, "abc", cause.IsClosed},
		"empty messages": {func(p *peer) {
			for range 5000 {
				p.frame(fin|binary, "")
			}
			p.frame(fin|binary, "a")
			p.frame(fin|goodbye, "")
		}, "a", cause.IsClosed},
		"masked":            {func(p *peer) { _, _ = p.Write([]byte{fin | binary, 0x81, 0, 0, 0, 0, 'a'}) }, "", isProtocol},
		"text":              {func(p *peer) { p.frame(fin|binary, "a"); p.frame(fin|text, "b") }, "a", isProtocol},
		"reserved bit":      {func(p *peer) { p.frame(fin|0x40|binary, "a") }, "", isProtocol},
		"unknown kind":      {func(p *peer) { p.frame(fin|3, "a") }, "", isProtocol},
		"continues nothing": {func(p *peer) { p.frame(fin, "a") }, "", isProtocol},
		"begins twice":      {func(p *peer) { p.frame(binary, "a"); p.frame(fin|binary, "b") }, "a", isProtocol},
		"long ping":         {func(p *peer) { p.frame(fin|ping, strings.Repeat("x", 126)) }, "", isProtocol},
		"ping in two":       {func(p *peer) { p.frame(ping, "a") }, "", isProtocol},
		"bad close code":    {func(p *peer) { p.frame(fin|goodbye, "\x00\x01") }, "", isProtocol},
		"giant": {func(p *peer) {
			_, _ = p.Write([]byte{fin | binary, 127, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 'a'})
		}, "", isTooLarge},
		"above all bounds": {func(p *peer) {
			_, _ = p.Write([]byte{fin | binary, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'a'})
		}, "", isTooLarge},
		"end in a frame":      {func(p *peer) { _, _ = p.Write([]byte{fin | binary, 10, 'a', 'b'}); _ = p.Close() }, "ab", cause.IsClosed},
		"end in a head":       {func(p *peer) { _, _ = p.Write([]byte{fin | binary, 127, 0}); _ = p.Close() }, "", cause.IsClosed},
		"close in mid-packet": {func(p *peer) { p.frame(fin|binary, "\x30\x7fa"); p.frame(fin|goodbye, "\x03\xf1\x1b[2Jtoo much") }, "\x30\x7fa", cause.IsClosed},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
			c, err := w.dial(w.dialer(), wss(w.rawWeb(t, func(p *peer) { p.accept("mqtt"); test.send(p) }), ""))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			got, err := io.ReadAll(io.MultiReader(c, io.LimitReader(c, 1)))
			if err == nil {
				err = readAgain(c)
			}
			if string(got) != test.want || !test.is(err) {
				t.Errorf("got %q, %v", got, err)
			}
			for range 2000 { // gorilla panics when it is asked too often
				if again := readAgain(c); again == nil || again.Error() != err.Error() {
					t.Fatalf("%v, then %v", err, again)
				}
			}
			if f := cause.Classify(cause.StageUp, err); strings.ContainsAny(f.Text, "\x1b") || f.Cause == cause.Unknown {
				t.Errorf("%+v", f)
			}
		})
	}
}

func readAgain(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }

func isProtocol(err error) bool { return errors.Is(err, cause.ErrProtocol) }
func isTooLarge(err error) bool { return errors.Is(err, cause.ErrTooLarge) }

// A message that has no end, or that nobody reads, costs a buffer.
func TestWebSocketMemory(t *testing.T) {
	w := newWorld(t)
	piece := strings.Repeat("x", 60000)
	c, err := w.dial(w.dialer(), wss(w.rawWeb(t, func(p *peer) {
		p.accept("mqtt")
		p.frame(2, piece)
		for range 2 * maxFrames / len(piece) {
			p.frame(0, piece)
		}
	}), ""))
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_ = c.SetDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	runtime.ReadMemStats(&after)
	if !isTooLarge(err) || n > maxFrames {
		t.Errorf("%d bytes, %v", n, err)
	}
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 8<<20 {
		t.Errorf("%d bytes more", grown)
	}
}

// An alert, which tells that our certificate was refused, is not lost in the WebSocket: with TLS
// 1.3 it comes where the answer to the upgrade is waited for.
func TestWebSocketRefusesOurCertificate(t *testing.T) {
	o := newOurs(t)
	w := newWorld(t)
	config := &tls.Config{Certificates: []tls.Certificate{o.server.chain()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(o.root)}
	each(t, func(t *testing.T, version uint16) {
		c := config.Clone()
		c.MaxVersion = version
		address := w.web(t, c, http.NotFoundHandler())
		w := &world{t: t, ca: w.ca, log: w.log}
		d := w.dialer(trusting(o.root))
		stage := cause.StageTLS
		if version == tls.VersionTLS13 {
			stage = cause.StageWebSocket
		}
		expect(t, w.failureAs(d, wss(address, ""), credential(t, encodePEM(o.expired), o.expired.keyPEM(t))), stage, cause.CertificateExpired, cause.SideDevice, "expired certificate")
	})
}

// The whole of it against mosquitto's own WebSockets, with client certificates, where CONNECT is
// written byte by byte and answered.
func TestMosquittoWebSocket(t *testing.T) {
	o, w := newOurs(t), newWorld(t)
	port, dir := freePort(t), t.TempDir()
	log := start(t, "mosquitto", "-c", writeFile(t, filepath.Join(dir, "mosquitto.conf"), fmt.Appendf(nil,
		// mosquitto 2.0 ends where it has none but WebSockets.
		"listener 0 "+filepath.Join(dir, "socket")+"\nlistener %s 127.0.0.1\nprotocol websockets\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\nuser root\n", port, o.ca, o.crt, o.key)))
	listens(t, "127.0.0.1:"+port)
	each(t, func(t *testing.T, version uint16) {
		w := &world{t: t, ca: w.ca, log: w.log}
		d := w.dialer(atMost(version), trusting(o.root))
		c, err := w.dialAs(d, wss("x:"+port, "/mqtt"), credential(t, encodePEM(o.good), o.good.keyPEM(t)))
		if err != nil {
			t.Fatal(err, log)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		for _, b := range []byte("\x10\x14\x00\x04MQTT\x04\x02\x00\x3c\x00\x08device-1") {
			if _, err := c.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		connack := make([]byte, 4)
		if _, err := io.ReadFull(c, connack); err != nil || !bytes.Equal(connack, []byte{0x20, 2, 0, 0}) {
			t.Errorf("% x, %v", connack, err)
		}
	})
}

// pipeStream is a stream, and the other end beneath it.
func pipeStream(t testing.TB) (*stream, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	go func() { // ends with the request
		p := &peer{Conn: far, r: bufio.NewReader(far)}
		var err error
		if p.request, err = http.ReadRequest(p.r); err == nil {
			p.accept("mqtt")
		}
	}()
	under := &underlay{Conn: near, left: maxUpgrade}
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, NetDialTLSContext: func(context.Context, string, string) (net.Conn, error) { return under, nil }}
	ws, answer, err := d.Dial("wss://broker.test/mqtt", nil)
	if err = upgraded(answer, under, err); err != nil {
		t.Fatal(err)
	}
	return newStream(ws, under), far
}

// Whatever frames come, what is read is bounded and ends with a name.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x82, 1, 'a', 0x88, 0})
	f.Add([]byte{0x02, 1, 'a', 0x89, 2, 'h', 'i', 0x80, 1, 'b'})
	f.Add([]byte{0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, frames []byte) {
		s, far := pipeStream(t)
		go func() { _, _ = io.Copy(io.Discard, far) }() // ends with far
		go func() {                                     // ends with s
			_, _ = far.Write(frames)
			_ = far.Close()
		}()
		n, err := io.Copy(io.Discard, struct{ io.Reader }{s})
		if int(n) > len(frames) || err == nil && readAgain(s) == nil {
			t.Errorf("%d bytes of %d, %v", n, len(frames), err)
		}
		if err == nil {
			err = readAgain(s)
		}
		if f := cause.Classify(cause.StageUp, err); f.Text == "" || f.Cause == cause.Unknown {
			t.Errorf("% x: %+v", frames, f)
		}
		_ = s.Close()
	})
}
