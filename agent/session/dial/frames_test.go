package dial

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"ferrule/agent/session/cause"
)

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

// upgradeCase is a wrong answer to the upgrade.
type upgradeCase struct {
	handle func(p *peer)
	cause  cause.Cause
	text   string
}

func hostileUpgrades() map[string]upgradeCase {
	says := func(text string) func(*peer) { return func(p *peer) { p.say(text) } }
	answers := func(status string) func(*peer) { return says("HTTP/1.1 " + status + "\r\nContent-Length: 0\r\n\r\n") }
	return map[string]upgradeCase{
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
	}
}

// What answers the upgrade wrongly is named.
func TestHostileUpgrades(t *testing.T) {
	w := newWorld(t)
	for name, test := range hostileUpgrades() {
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

// frameCase is what a server sends behind the upgrade, and what comes of it.
type frameCase struct {
	send func(p *peer)
	want string // what is read
	is   func(error) bool
}

func hostileFrames() map[string]frameCase {
	const text, binary, ping, goodbye, fin = 1, 2, 9, 8, 0x80
	return map[string]frameCase{
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
	}
}

// What comes behind the upgrade, however it is cut, is the stream that was sent; and what may
// not come ends it with a name.
func TestHostileFrames(t *testing.T) {
	w := newWorld(t)
	for name, test := range hostileFrames() {
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
