package dial

import (
	"bytes"
	"crypto/tls"
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

// What a web server is asked for: the path as it was written, and the host without what only this
// machine knows.
func TestUpgradeRequest(t *testing.T) {
	w := newWorld(t)
	asked := make(chan *http.Request, 1)
	address := w.rawWeb(t, func(p *peer) { asked <- p.request; p.accept("mqtt") })
	_, port, _ := net.SplitHostPort(address)
	d := w.dialer()
	d.connect = toward(address)
	if _, err := w.dial(d, "wss://[::1%25lo]:"+port+"/a%20b/c"); err != nil {
		t.Fatal(err)
	}
	r := <-asked
	if r.Host != "[::1]:"+port || r.RequestURI != "/a%20b/c" || r.Header.Get("Sec-WebSocket-Protocol") != "mqtt" || r.Header.Get("Origin") != "" {
		t.Errorf("%s %s %v", r.Host, r.RequestURI, r.Header)
	}
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
