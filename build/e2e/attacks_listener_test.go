package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crowd is many clients of the listener at once; each comes from an address of its own.
func (a *siege) crowd(count, atOnce int, do func(n int, conn net.Conn)) {
	var all sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for n := range count {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(1+n%250))}, Timeout: 10 * time.Second}
			conn, err := dialer.Dial("tcp", a.address)
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			do(n, conn)
		})
	}
	all.Wait()
}

// served is an attack under which a good client is served within three seconds throughout.
func (a *siege) served(t *testing.T, name string, worst func(t *testing.T)) {
	t.Helper()
	a.attack(t, name, func(t *testing.T) {
		good := &attack{listening: a.listening, good: a.good}
		end := good.asking(100 * time.Millisecond)
		worst(t)
		end()
		good.verdict(t, name)
	})
}

// secure is a TLS client of the listener that shows a certificate.
func secure(conn net.Conn, shown tls.Certificate) *tls.Conn {
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{shown}})
}

// handshakes are A4 and A5: strangers who do not come in, and take as much as they can before.
func (a *siege) handshakes(t *testing.T) {
	t.Helper()
	hello := recordOf(t, &tls.Config{InsecureSkipVerify: true})
	a.served(t, "A5 10,000 TLS connections in a row", func(*testing.T) {
		a.crowd(10_000, 8, func(_ int, conn net.Conn) { tried(conn.(*net.TCPConn), &tls.Config{InsecureSkipVerify: true}) })
	})
	a.served(t, "A4 300 half handshakes, a byte now and then", func(*testing.T) {
		a.crowd(300, 300, func(n int, conn net.Conn) {
			half := hello[:n%len(hello)]
			for at := 0; at < len(half); at += 1 + len(half)/20 {
				if _, err := conn.Write(half[at:min(at+1+len(half)/20, len(half))]); err != nil {
					return
				}
				pause(t, 200*time.Millisecond)
			}
		})
	})
	a.served(t, "A4 handshakes as large as they may be", func(t *testing.T) {
		huge := a.people.issueName(t, pkix.Name{CommonName: "big", OrganizationalUnit: []string{"admins"}}, 45<<10)
		a.crowd(600, 300, func(n int, conn net.Conn) {
			client := tls.Client(stopping{conn.(*net.TCPConn)}, showing(huge))
			_ = client.Handshake()
			drain(conn)
		})
	})
	a.served(t, "A4 ClientHellos as large as they may be", func(*testing.T) {
		first := append([]byte{0x16, 3, 1, 0x40, 0, 1, 0, 0xF0, 0, 3, 3}, make([]byte, 0x4000-6)...)
		more := append([]byte{0x16, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
		a.crowd(600, 300, func(_ int, conn net.Conn) {
			if _, err := conn.Write(first); err == nil {
				pourLimited(conn, string(more), 2*len(more))
				drain(conn)
			}
		})
	})
}

// stopping is a connection whose client sends nothing behind a certificate: the listener has it, and
// waits for the proof.
type stopping struct{ *net.TCPConn }

func (s stopping) Write(b []byte) (int, error) {
	if len(b) > 16<<10 {
		_, _ = s.TCPConn.Write(b[:len(b)-200])
		return 0, errors.New("enough")
	}
	return s.TCPConn.Write(b)
}

// recordOf is the ClientHello that a client with this configuration begins with.
func recordOf(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	var ended sync.WaitGroup
	ended.Go(func() { _ = tls.Client(theirs, config).Handshake() })
	b := make([]byte, 16<<10)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = ours.Close(), theirs.Close()
	ended.Wait()
	return b[:n]
}

// issueName makes the certificate of somebody with any name, and so many bytes of an extension.
func (p *people) issueName(t *testing.T, name pkix.Name, size int) tls.Certificate {
	t.Helper()
	key := newP256(t)
	template := &x509.Certificate{Subject: name, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if size > 0 {
		template.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Value: make([]byte, size)}}
	}
	leaf := p.sign(t, template, p.certificate, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// slowRequests are those of clients who are in, and do not get to the point.
func (a *siege) slowRequests(t *testing.T) {
	t.Helper()
	send := func(text string, then func(conn *tls.Conn)) func(int, net.Conn) {
		return func(_ int, conn net.Conn) {
			c := secure(conn, a.admin)
			if _, err := io.WriteString(c, text); err == nil {
				then(c)
			}
		}
	}
	read := func(c *tls.Conn) { drain(c) }
	a.served(t, "A4 half a header", func(*testing.T) {
		a.crowd(200, 200, send("GET /status HTTP/1.1\r\nHost: a\r\nX-", func(c *tls.Conn) {
			for range 20 {
				if _, err := io.WriteString(c, "y"); err != nil {
					return
				}
				pause(t, 100*time.Millisecond)
			}
		}))
	})
	a.served(t, "headers of 4 MiB", func(*testing.T) {
		line := "X-Header: " + strings.Repeat("h", 8<<10) + "\r\n"
		a.crowd(200, 50, send("GET /status HTTP/1.1\r\nHost: a\r\n", func(c *tls.Conn) { pourLimited(c, line, 4<<20) }))
	})
	a.served(t, "one header line of 4 MiB", func(*testing.T) {
		a.crowd(200, 50, send("GET /", func(c *tls.Conn) { pourLimited(c, strings.Repeat("p", 16<<10), 4<<20) }))
	})
	a.served(t, "bodies without an end", func(*testing.T) {
		a.crowd(200, 50, send("POST /command/config HTTP/1.1\r\nHost: a\r\nX-Ferrule: 1\r\nTransfer-Encoding: chunked\r\n\r\n", func(c *tls.Conn) {
			pourLimited(c, "1000\r\n"+strings.Repeat("[", 0x1000)+"\r\n", 4<<20)
		}))
	})
	a.served(t, "bodies that do not come", func(*testing.T) {
		a.crowd(64, 64, send("POST /command/config HTTP/1.1\r\nHost: a\r\nX-Ferrule: 1\r\nContent-Length: 60000\r\n\r\n"+strings.Repeat("[", 50000), func(*tls.Conn) {
			pause(t, 2*time.Second)
		}))
	})
	a.served(t, "1,000 requests at once, and no answer is taken", func(*testing.T) {
		requests := strings.Repeat("GET /status HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 500)
		a.crowd(128, 128, func(n int, conn net.Conn) {
			_ = conn.(*net.TCPConn).SetReadBuffer(2 << 10)
			send(requests, func(*tls.Conn) { pause(t, 3*time.Second) })(n, conn)
		})
	})
	a.served(t, "commands that are none", func(*testing.T) {
		for _, args := range []string{strings.Repeat("[", 60000), `{"a":"` + strings.Repeat(`\u0000`, 9000) + `"}`, `{"toml":"` + strings.Repeat(`[a]\n`, 12000) + `"}`} {
			for _, name := range []string{"config", "read", "write", "%0a%1b%5b2J", strings.Repeat("n", 8000)} {
				a.crowd(20, 20, send(fmt.Sprintf("POST /command/%s HTTP/1.1\r\nHost: a\r\nX-Ferrule: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", name, len(args), args), read))
			}
		}
	})
	a.served(t, "HTTP/2, which is not spoken", func(t *testing.T) {
		a.crowd(100, 20, func(n int, conn net.Conn) {
			c := secure(conn, a.good)
			if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err == nil {
				if answer, _ := io.ReadAll(io.LimitReader(c, 9)); !bytes.HasPrefix(answer, []byte("HTTP/1.1 ")) && len(answer) > 0 {
					t.Errorf("answered with %q", answer)
				}
			}
		})
	})
	a.served(t, "10,000 tickets", func(*testing.T) {
		request := "POST /ticket HTTP/1.1\r\nHost: a\r\nX-Ferrule: 1\r\nContent-Length: 0\r\n\r\n"
		a.crowd(10, 10, func(_ int, conn net.Conn) {
			c := secure(conn, a.good)
			go drain(c)
			pourLimited(c, request, 1000*len(request))
		})
	})
}

// pourLimited writes text again and again, up to most bytes, or to the first error.
func pourLimited(w io.Writer, text string, most int) {
	for n := 0; n < most; n += len(text) {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
	}
}

// watchers are those of readings and of the status: a thousand, some that never read, and some who
// speak where they should listen.
func (a *siege) watchers(t *testing.T) {
	t.Helper()
	watch := func(path, more string, then func(c *tls.Conn)) func(int, net.Conn) {
		return func(_ int, conn net.Conn) {
			_ = conn.(*net.TCPConn).SetReadBuffer(2 << 10)
			c := secure(conn, a.good)
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, a.address, more); err == nil {
				then(c)
			}
		}
	}
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	a.served(t, "1,000 watchers of readings", func(*testing.T) {
		var seen atomic.Int64
		a.crowd(1000, 250, watch("/readings", "", func(c *tls.Conn) {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 512)); err == nil && seen.Add(1)%100 == 0 {
				if n := a.count(t, "ferrule_local_watchers"); n > 32 {
					t.Errorf("%d watchers at once", n)
				}
			}
			drain(c)
		}))
	})
	a.served(t, "watchers that never read", func(*testing.T) {
		var each sync.WaitGroup
		for _, w := range []func(int, net.Conn){
			watch("/events", "", func(*tls.Conn) { pause(t, 5*time.Second) }),
			watch("/ws", upgrade, func(*tls.Conn) { pause(t, 5*time.Second) }),
		} {
			each.Go(func() { a.crowd(40, 40, w) })
		}
		each.Wait()
	})
	masked := func(head string, body []byte) []byte { return append(append([]byte(head), 0, 0, 0, 0), body...) }
	for name, frame := range map[string][]byte{
		"WebSocket: a frame of 2^63 bytes":         masked("\x82\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF", nil),
		"WebSocket: messages":                      masked("\x81\xFE\x01\x00", make([]byte, 256)),
		"WebSocket: empty fragments without end":   masked("\x01\x80", nil),
		"WebSocket: pings":                         masked("\x89\xFD", make([]byte, 125)),
		"WebSocket: pongs":                         masked("\x8A\xFD", make([]byte, 125)),
		"WebSocket: frames that nobody has masked": []byte("\x81\x01a"),
	} {
		a.served(t, name, func(*testing.T) {
			a.crowd(60, 60, watch("/ws", upgrade, func(c *tls.Conn) {
				_ = c.SetWriteDeadline(time.Now().Add(1500 * time.Millisecond))
				pourLimited(c, string(frame)+strings.Repeat(string(frame[max(0, len(frame)-300):]), 20), 8<<20)
			}))
		})
	}
}

var unprintable = regexp.MustCompile(`[\x00-\x08\x0b-\x1f\x7f]`)

// forgedNames is A29: certificates, requests and topics whose words would be lines of a log, colours
// of a terminal, or samples of a metric, if they were shown as they are.
func (a *siege) forgedNames(t *testing.T) {
	t.Helper()
	a.served(t, "A29 names of ANSI and newlines", func(t *testing.T) {
		shown := []tls.Certificate{
			a.people.issueName(t, pkix.Name{CommonName: spoofed, OrganizationalUnit: []string{spoofed + "\nferrule_forged 1"}}, 0),
			newPeople(t, spoofed).issueName(t, pkix.Name{CommonName: spoofed}, 0),
			a.people.issueName(t, pkix.Name{CommonName: spoofed, OrganizationalUnit: []string{"admins"}}, 0),
		}
		for _, c := range shown {
			_, _, _ = a.get(a.client(c), "/status")
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+a.address+"/command/x%0a%1b%5b31m", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("X-Ferrule", "1")
			if response, err := a.client(c).Do(request); err == nil {
				_ = response.Body.Close()
			}
			pause(t, 1100*time.Millisecond) // a line of the log each
		}
		a.rogue.play(func(conn net.Conn) {
			if m := a.rogue.suback(conn); m != nil {
				_, _ = m.Write(publication(3, strings.Replace(commandTopic, "read", spoofed, 1), 9, []byte(`{"id":"x"}`)))
				_, _ = m.Write(publication(2, commandTopic, 9, []byte(`{"id":"x","args":{"line":"\u001b[31m\n"}}`)))
				_, _ = m.Write(publication(2, spoofed, 10, make([]byte, 300<<10)))
				m.serve(nil)
			}
		})
		waitFor(t, "quarantine", func() bool {
			list, _ := field(a.now(t), "session", "quarantined").([]any)
			return len(list) > 0
		})
		a.rogue.play(nil)
		a.reload(t)
		plain, _, _ := run(t, "", with(a.ferrule, "status", "--config", a.config)...)
		for name, text := range map[string]string{"log": a.agent.output(), "status": plain, "metrics": string(a.ask(t, "/metrics"))} {
			if odd := unprintable.FindString(text); odd != "" {
				t.Errorf("the %s holds %q", name, odd)
			}
			for line := range strings.Lines(text) {
				if strings.HasPrefix(strings.TrimSpace(line), "time=now") || strings.HasPrefix(line, "ferrule_forged") || strings.Contains(line, "\u202e") {
					t.Errorf("the %s holds a line that was forged: %q", name, line)
				}
			}
		}
		if !strings.Contains(a.agent.output(), "local client refused") {
			t.Error("nobody was refused")
		}
	})
}
