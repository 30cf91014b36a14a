package e2e

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// through has the agent go to its broker by another way while attacked, and the old way again.
func (a *siege) through(t *testing.T, old, way string, scene func(net.Conn), stage, cause string) {
	t.Helper()
	a.rogue.play(scene)
	a.reload(t, old, way)
	defer func() {
		a.rogue.play(nil)
		a.reload(t, way, old)
	}()
	a.failure(t, stage, cause)
}

// upgrade is a WebSocket server up to its 101.
func (r *rogue) upgrade(conn net.Conn) net.Conn {
	secure := tls.Server(conn, r.proper)
	request, err := http.ReadRequest(bufio.NewReader(secure))
	if err != nil {
		return nil
	}
	// RFC 6455, 4.2.2.
	sum := sha1.Sum([]byte(request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, err = fmt.Fprintf(secure, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	if err != nil {
		return nil
	}
	return secure
}

// pour writes the same for ever.
func pour(conn io.Writer, head string, again []byte) {
	if _, err := io.WriteString(conn, head); err != nil {
		return
	}
	for len(again) < 16<<10 {
		again = append(again, again...)
	}
	for {
		if _, err := conn.Write(again); err != nil {
			return
		}
	}
}

// hostileWebSockets are brokers behind wss:// that do not stop, or send what no frame is.
func (a *siege) hostileWebSockets(t *testing.T) {
	t.Helper()
	answer := func(head, again string) func(net.Conn) {
		return func(conn net.Conn) {
			secure := tls.Server(conn, a.rogue.proper)
			if secure.Handshake() == nil {
				pour(secure, head, []byte(again))
			}
		}
	}
	frames := func(head string, again []byte) func(net.Conn) {
		return func(conn net.Conn) {
			if ws := a.rogue.upgrade(conn); ws != nil {
				go drain(ws)
				pour(ws, head, again)
			}
		}
	}
	const mqtts, wss = `brokers = ["mqtts://%s"]`, `brokers = ["wss://%s/mqtt"]`
	for _, c := range []struct {
		name, stage, cause string
		scene              func(net.Conn)
	}{
		{"an answer without an end", "websocket", "not-websocket", answer("HTTP/1.1 101 Switching Protocols\r\nX: ", "x")},
		{"headers without an end", "websocket", "not-websocket", answer("HTTP/1.1 403 No\r\n", "X-A: b\r\n")},
		{"100 Continue without an end", "websocket", "not-websocket", answer("", "HTTP/1.1 100 Continue\r\n\r\n")},
		{"a body without an end", "websocket", "websocket-refused", answer("HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nabcd\r\n")},
		{"a frame of 2^63 bytes", "connack", "too-large", frames("\x82\x7F\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF", []byte{0})},
		{"a packet of 256 MiB in small frames", "connack", "protocol", frames("\x02\x06\x20\xFF\xFF\xFF\x7F\x00", []byte("\x00\x04\x00\x00\x00\x00"))},
		{"pings without an end", "connack", "stalled", frames("", append([]byte{0x89, 125}, make([]byte, 125)...))},
		{"a text frame", "connack", "protocol", frames("", append([]byte{0x81, 125}, make([]byte, 125)...))},
		{"a masked frame", "connack", "protocol", frames("", append([]byte{0x82, 0x80 | 125, 1, 2, 3, 4}, make([]byte, 125)...))},
		{"reserved bits", "connack", "protocol", frames("", []byte{0xF2, 1, 0})},
	} {
		a.attack(t, "WebSocket: "+c.name, func(t *testing.T) {
			a.through(t, fmt.Sprintf(mqtts, a.broker), fmt.Sprintf(wss, a.broker), c.scene, c.stage, c.cause)
		})
	}
}

// hostileProxies answer CONNECT in every way but the right one.
func (a *siege) hostileProxies(t *testing.T) {
	t.Helper()
	answer := func(head, again string) func(net.Conn) {
		return func(conn net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				pour(conn, head, []byte(again))
			}
		}
	}
	const direct = "write_timeout = \"1s\"\n"
	way := direct + fmt.Sprintf("proxy = \"http://user:secret-of-the-proxy@%s\"\n", a.broker)
	for _, c := range []struct {
		name, stage, cause string
		scene              func(net.Conn)
	}{
		{"a header without an end", "proxy", "not-a-proxy", answer("HTTP/1.1 200 OK\r\nX: ", "x")},
		{"headers without an end", "proxy", "not-a-proxy", answer("HTTP/1.1 200 OK\r\n", "X-A: b\r\n")},
		{"100 Continue without an end", "proxy", "proxy-refused", answer("", "HTTP/1.1 100 Continue\r\n\r\n")},
		{"it speaks first", "proxy", "not-a-proxy", answer("HTTP/1.1 200 OK\r\n\r\n", "\x16\x03\x01")},
		{"a body without an end", "proxy", "proxy-refused", answer("HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nabcd\r\n")},
		{"407 in ANSI", "proxy", "proxy-auth", answer("HTTP/1.1 407 \x1b[31mno\r\nProxy-Authenticate: Basic realm=\""+strings.Repeat("r", 4000)+"\"\r\n\r\n", "x")},
		{"no HTTP at all", "proxy", "not-a-proxy", func(conn net.Conn) { pour(conn, "", []byte{0xFF}) }},
	} {
		a.attack(t, "proxy: "+c.name, func(t *testing.T) {
			a.through(t, direct, way, c.scene, c.stage, c.cause)
		})
	}
	if strings.Contains(a.agent.output(), "secret-of-the-proxy") {
		t.Error("the proxy's password is in the log")
	}
}

// stalls is A3: what never answers, stage by stage. Each has a timeout and a name of its own.
func (a *siege) stalls(t *testing.T) {
	t.Helper()
	silent := func(conn net.Conn) { drain(conn) }
	drip := func(conn net.Conn) { // a byte a second of a handshake record
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for _, b := range append([]byte{0x16, 3, 3, 0x40, 0}, make([]byte, 60)...) {
			if _, err := conn.Write([]byte{b}); err != nil {
				return
			}
			<-tick.C
		}
	}
	for _, c := range []struct {
		name, stage string
		scene       func(net.Conn)
	}{
		{"TLS", "tls", silent},
		{"TLS, a byte a second", "tls", drip},
		{"CONNACK", "connack", func(conn net.Conn) { drain(tls.Server(conn, a.rogue.proper)) }},
		{"SUBACK", "suback", func(conn net.Conn) {
			if m := a.rogue.connack(conn, 0); m != nil {
				m.serve(func(kind byte, _ []byte) bool { return kind>>4 == 8 })
			}
		}},
	} {
		a.attack(t, "A3 stalled "+c.name, func(t *testing.T) {
			a.rogue.play(c.scene)
			a.reload(t)
			a.failure(t, c.stage, "stalled")
			a.rogue.play(nil)
			a.reload(t)
		})
	}
	a.attack(t, "A3 stalled TCP", func(t *testing.T) {
		full := fullPort(t)
		old, way := fmt.Sprintf("mqtts://%s", a.broker), "mqtts://"+full
		a.reload(t, old, way)
		a.failure(t, "tcp", "stalled")
		a.reload(t, way, old)
	})
}

// fullPort is a port whose queue is full: the kernel drops what knocks.
func fullPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	for range 4 {
		conn, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	return address
}

// troubledTPM is A21 as far as the session goes: the TPM hangs, goes, and comes back, while every
// connection needs a signature.
func (a *siege) troubledTPM(t *testing.T) {
	t.Helper()
	a.rogue.proper.SessionTicketsDisabled = true
	a.attack(t, "A21 the TPM hangs", func(t *testing.T) {
		pid := a.tpm.Pid()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		a.rogue.cut()
		a.failure(t, "tls", "key")
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	})
	a.attack(t, "A21 the TPM is gone", func(t *testing.T) {
		if err := a.tpm.Kill(); err != nil {
			t.Fatal(err)
		}
		a.rogue.cut()
		a.failure(t, "tls", "key")
		if err := a.tpm.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// signals is A30 as far as there are no updates: a storm of them.
func (a *siege) signals(t *testing.T) {
	t.Helper()
	a.attack(t, "A30 200 reloads", func(t *testing.T) {
		for range 200 {
			a.edit(t, fmt.Sprintf("%dms", 10+a.reloads), fmt.Sprintf("%dms", 11+a.reloads))
			a.reloads++
			if err := a.agent.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			pause(t, 5*time.Millisecond)
		}
		a.reload(t)
	})
	for range 20 {
		_ = a.agent.Process.Signal(syscall.SIGHUP)
		_ = a.agent.Process.Signal(syscall.SIGTERM)
	}
	if code := a.agent.stop(t); code != 0 {
		t.Errorf("after 20 SIGTERM run ended with exit code %d", code)
	}
}

// inventors is A13: talkers that call themselves what no topic may hold, and invent a new name with
// every telegram.
func (a *siege) inventors(t *testing.T) {
	t.Helper()
	a.attack(t, "A13 talkers with names of their own", func(t *testing.T) {
		var telegrams, wrong atomic.Int64
		heard := func(topic string, _ []byte) {
			levels := strings.Split(topic, "/")
			if len(levels) < 3 || levels[2] != "readings" {
				return
			}
			telegrams.Add(1)
			if len(levels) != 5 || strings.ContainsAny(topic, "+#") || strings.ContainsFunc(topic, func(r rune) bool { return r < ' ' || r == 0x7F }) {
				wrong.Add(1)
				t.Errorf("topic %q", topic)
			}
		}
		a.rogue.heard.Store(&heard)
		meter, nmea := newTerminal(t), newTerminal(t)
		lines := fmt.Sprintf("[[line]]\nname = \"p1\"\nport = %q\nprotocol = \"dsmr\"\n[[line]]\nname = \"gnss\"\nport = %q\nprotocol = \"nmea\"\n", meter.path, nmea.path)
		const marker = "# more lines\n"
		a.reload(t, marker, lines)
		until := time.Now().Add(4 * time.Second)
		for n := 0; time.Now().Before(until); n++ {
			odd := []string{"+/#", "../..", "\x00", "\x1b[2J", "%2F", "\u202e", "$SYS/x", strings.Repeat("n", 300)}[n%8]
			say(meter, telegram(fmt.Sprintf("ABC5%s%d", odd, n), "1-0:1.7.0(01.193*kW)", fmt.Sprintf("1-0:%d.7.0(00.001*kW)", n%250)))
			say(nmea, sentence(fmt.Sprintf("P%s%d,1,2,3", odd, n))+sentence(fmt.Sprintf("GP%03X,4807.038,N", n%4096)))
		}
		if telegrams.Load() < 100 {
			t.Errorf("only %d messages", telegrams.Load())
		}
		t.Logf("%d messages; a status of %d bytes", telegrams.Load(), len(a.ask(t, "/status")))
		a.reload(t, lines, marker)
		a.rogue.heard.Store(nil)
	})
}

// say writes as much as the line takes within a moment; the rest is lost, as it is on a wire.
func say(p *terminal, words string) {
	_ = p.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
	_, _ = io.WriteString(p, words)
}
