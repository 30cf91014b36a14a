package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

const commandTopic = "ferrule/" + siteDevice + "/command/read"

// drain reads until the other side has had enough.
func drain(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// strangeBrokers is A1 and A2: brokers that are not ours, and those that offer less than we ask for.
// None of them hears a byte behind its handshake.
func (a *siege) strangeBrokers(t *testing.T) {
	t.Helper()
	now := time.Now()
	names := []string{"127.0.0.1", "localhost"}
	many := make([]string, 8000)
	for n := range many {
		many[n] = fmt.Sprintf("a-name-that-is-not-the-one-%d.example", n)
	}
	for _, c := range []struct {
		name, cause string
		ca          *agenttest.CA
		leaf        agenttest.Leaf
		change      func(*tls.Config)
	}{
		{name: "A1 another name", cause: "broker-name", leaf: agenttest.Leaf{CommonName: "b", Names: []string{"else.example"}}},
		{name: "A1 8,000 other names", cause: "tls", leaf: agenttest.Leaf{CommonName: "b", Names: many}},
		{name: "A1 unknown CA", cause: "broker-unknown-ca", ca: newCA(t), leaf: agenttest.Leaf{CommonName: "b", Names: names}},
		{name: "A1 expired", cause: "broker-expired", leaf: agenttest.Leaf{CommonName: "b", Names: names, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}},
		{name: "A1 a name of ANSI and newlines", cause: "broker-unknown-ca", ca: newCA(t), leaf: agenttest.Leaf{CommonName: spoofed, Names: names}},
		{name: "A2 TLS 1.1", cause: "tls-version", leaf: agenttest.Leaf{CommonName: "b", Names: names},
			change: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
		{name: "A2 no forward secrecy", cause: "", leaf: agenttest.Leaf{CommonName: "b", Names: names},
			change: func(c *tls.Config) {
				c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
			}},
	} {
		ca := c.ca
		if ca == nil {
			ca = a.rogue.ca
		}
		issued, err := ca.Issue(c.leaf)
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{issued.TLS}, ClientAuth: tls.RequireAnyClientCert}
		if c.change != nil {
			c.change(config)
		}
		a.attack(t, c.name, func(t *testing.T) {
			var tries, heard atomic.Int64
			a.rogue.play(func(conn net.Conn) {
				secure := tls.Server(conn, config)
				n, _ := secure.Read(make([]byte, 512))
				heard.Add(int64(n))
				tries.Add(1)
			})
			a.reload(t)
			waitFor(t, "three attempts", func() bool { return tries.Load() >= 3 })
			if c.cause != "" {
				a.failure(t, "tls", c.cause)
			}
			if heard.Load() != 0 {
				t.Errorf("%d bytes were told to it", heard.Load())
			}
		})
	}
	a.attack(t, "A2 MQTT 3.1 wanted", func(t *testing.T) {
		var tries, old atomic.Int64
		a.rogue.play(func(conn net.Conn) {
			secure := tls.Server(conn, a.rogue.proper)
			head := make([]byte, 11)
			if _, err := io.ReadFull(secure, head); err != nil {
				return
			}
			if !strings.Contains(string(head), "MQTT\x04") {
				old.Add(1)
			}
			tries.Add(1)
			_, _ = secure.Write([]byte{0x20, 2, 0, 1}) // unacceptable protocol version
		})
		a.reload(t)
		waitFor(t, "three attempts", func() bool { return tries.Load() >= 3 })
		if old.Load() != 0 {
			t.Errorf("%d of %d attempts went back to an older protocol", old.Load(), tries.Load())
		}
	})
}

// hugePackets is A12: what a broker announces, and what it sends without an end.
func (a *siege) hugePackets(t *testing.T) {
	t.Helper()
	endless := func(head []byte) func(net.Conn) {
		return func(conn net.Conn) {
			if m := a.rogue.suback(conn); m != nil {
				_, _ = m.Write(head)
				_, _ = io.Copy(m, zeros{})
			}
		}
	}
	topic := append([]byte{0, byte(len(commandTopic))}, commandTopic...)
	for _, c := range []struct {
		name, stage, cause string
		scene              func(net.Conn)
	}{
		{"A12 PUBLISH of 256 MiB", "up", "too-large", endless(append([]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}, topic...))},
		{"A12 a retained one", "up", "too-large", endless(append([]byte{0x31, 0xFF, 0xFF, 0xFF, 0x7F}, topic...))},
		{"A12 1 GB announced", "up", "protocol", endless([]byte{0x31, 0xFF, 0xFF, 0xFF, 0xFF, 0x04})},
		{"A12 CONNACK of 256 MiB", "connack", "protocol", func(conn net.Conn) {
			secure := tls.Server(conn, a.rogue.proper)
			if secure.Handshake() == nil {
				_, _ = secure.Write([]byte{0x20, 0xFF, 0xFF, 0xFF, 0x7F})
				_, _ = io.Copy(secure, zeros{})
			}
		}},
		{"A12 SUBACK of 256 MiB", "suback", "protocol", func(conn net.Conn) {
			if m := a.rogue.connack(conn, 0); m != nil {
				_, _ = m.Write([]byte{0x90, 0xFF, 0xFF, 0xFF, 0x7F})
				_, _ = io.Copy(m, zeros{})
			}
		}},
	} {
		a.attack(t, c.name, func(t *testing.T) {
			a.rogue.play(c.scene)
			a.reload(t)
			a.failure(t, c.stage, c.cause)
		})
	}
	for size, held := range map[int]bool{1 << 20: false, 5 << 20: true} {
		a.attack(t, fmt.Sprintf("A12 retained poison of %d MiB", size>>20), func(t *testing.T) {
			var acked atomic.Int64
			a.rogue.play(func(conn net.Conn) {
				m := a.rogue.connack(conn, 0)
				if m == nil {
					return
				}
				m.serve(func(kind byte, body []byte) bool {
					if kind>>4 == 4 && body[1] == 77 {
						acked.Add(1)
					}
					if kind>>4 == 8 {
						_ = m.answer(kind, body)
						_, _ = m.Write(publication(3, commandTopic, 77, make([]byte, size)))
						return true
					}
					return false
				})
			})
			a.reload(t)
			waitFor(t, "quarantine", func() bool {
				s, _ := field(a.now(t), "session").(map[string]any)
				list, _ := s["quarantined"].([]any)
				until, _ := s["subscribe_held"].(string)
				return s["stage"] == "up" && len(list) == 1 && (acked.Load() > 0 || held && until != "")
			})
			acks := a.rogue.acks.Load()
			waitFor(t, "readings beside the poison", func() bool { return a.rogue.acks.Load() > acks+4 })
			a.rogue.play(nil)
			a.reload(t) // which forgets what was quarantined
		})
	}
}

// deafBrokers is A25 and A27: brokers that acknowledge nothing, that hang up, refuse or forget.
func (a *siege) deafBrokers(t *testing.T) {
	t.Helper()
	a.attack(t, "A25 never acknowledges", func(t *testing.T) {
		most, flying := 0, 0
		var highest atomic.Int64
		a.rogue.play(func(conn net.Conn) {
			m := a.rogue.connack(conn, 0)
			if m == nil {
				return
			}
			flying = 0
			m.serve(func(kind byte, _ []byte) bool {
				if kind>>4 != 3 {
					return false
				}
				flying++
				most = max(most, flying)
				highest.Store(int64(most))
				return true
			})
		})
		a.reload(t)
		a.failure(t, "up", "no-ack")
		if highest.Load() > 64+1 {
			t.Errorf("%d messages were under way, the window is 64", highest.Load())
		}
	})
	a.attack(t, "A25 hangs up on every second", func(t *testing.T) {
		var n, served atomic.Int64
		a.rogue.play(func(conn net.Conn) {
			if n.Add(1)%2 == 1 {
				return
			}
			if m := a.rogue.connack(conn, 0); m != nil {
				served.Add(1)
				m.serve(func(kind byte, _ []byte) bool {
					if kind>>4 == 3 {
						_ = conn.Close()
					}
					return false
				})
			}
		})
		a.reload(t)
		waitFor(t, "three connections", func() bool { return served.Load() >= 3 })
	})
	a.attack(t, "A27 SUBACK 0x80", func(t *testing.T) {
		a.rogue.play(func(conn net.Conn) {
			if m := a.rogue.connack(conn, 0); m != nil {
				m.serve(func(kind byte, body []byte) bool {
					if kind>>4 == 8 {
						_, _ = m.Write([]byte{0x90, 3, body[0], body[1], 0x80})
					}
					return kind>>4 == 8
				})
			}
		})
		a.reload(t)
		a.failure(t, "suback", "subscription")
		if subscribed := field(a.now(t), "session", "subscribed"); subscribed != false {
			t.Errorf("subscribed: %v", subscribed)
		}
	})
	a.attack(t, "A27 the session is lost", func(t *testing.T) {
		var n atomic.Int64
		a.rogue.play(func(conn net.Conn) {
			flags := byte(0)
			if n.Add(1) == 1 {
				flags = 1 // session present
			}
			if m := a.rogue.connack(conn, flags); m != nil {
				if flags == 1 {
					defer time.AfterFunc(300*time.Millisecond, func() { _ = conn.Close() }).Stop()
				}
				m.serve(nil)
			}
		})
		a.reload(t)
		waitFor(t, "a lost session", func() bool {
			lost, _ := field(a.now(t), "session", "sessions_lost").(float64)
			return lost >= 1 && field(a.now(t), "session", "subscribed") == true
		})
		a.rogue.play(nil)
		a.reload(t)
	})
}

// malformed are packets that no broker sends behind SUBACK (MQTT 3.1.1, 2.2), by type.
func malformed() map[string][]byte {
	all := map[string][]byte{
		"PUBLISH QoS 3":             {0x36, 4, 0, 0, 0, 1},
		"PUBLISH without a topic":   {0x30, 0},
		"PUBLISH with half a topic": {0x30, 3, 0, 9, 'x'},
		"PUBLISH without its id":    {0x32, 3, 0, 1, 'x'},
		"length of five bytes":      {0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F},
		"length without an end":     {0x40, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80},
		"CONNACK again":             {0x20, 2, 0, 0},
		"CONNACK of one byte":       {0x20, 1, 0},
		"PUBACK of one byte":        {0x40, 1, 0},
		"PUBACK of three bytes":     {0x40, 3, 0, 1, 0},
		"PUBREC":                    {0x50, 2, 0, 1},
		"PUBCOMP":                   {0x70, 2, 0, 1},
		"SUBACK of many codes":      append([]byte{0x90, 100}, make([]byte, 100)...),
		"SUBACK without a code":     {0x90, 2, 0, 1},
		"PINGRESP with a body":      {0xD0, 2, 0, 0},
	}
	for kind, name := range map[byte]string{0: "reserved 0", 1: "CONNECT", 8: "SUBSCRIBE", 10: "UNSUBSCRIBE", 11: "UNSUBACK", 12: "PINGREQ", 14: "DISCONNECT", 15: "reserved 15"} {
		all[name] = []byte{kind << 4, 0}
	}
	return all
}

// oddPackets is A28: malformed packets of each type, and well-formed ones that nobody asked for.
func (a *siege) oddPackets(t *testing.T) {
	t.Helper()
	a.attack(t, "A28 malformed packets of each type", func(t *testing.T) {
		n := 0
		for name, packet := range malformed() {
			ended := make(chan struct{}, 100)
			a.rogue.play(func(conn net.Conn) {
				if m := a.rogue.suback(conn); m != nil {
					_, _ = m.Write(packet)
					m.serve(nil) // until the agent hangs up
					ended <- struct{}{}
				}
			})
			if n++; n%4 == 1 {
				a.reload(t)
			}
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Errorf("%s did not end the connection", name)
			}
		}
		a.failure(t, "up", "protocol")
		a.reload(t)
	})
	flood := func(packets ...[]byte) func(net.Conn) {
		return func(conn net.Conn) {
			m := a.rogue.suback(conn)
			if m == nil {
				return
			}
			go drain(conn)
			var all []byte
			for len(all) < 64<<10 {
				for _, p := range packets {
					all = append(all, p...)
				}
			}
			for range 1000 {
				if _, err := m.Write(all); err != nil {
					return
				}
			}
		}
	}
	for name, scene := range map[string]func(net.Conn){
		"A28 PUBACK for unknown ids": flood([]byte{0x40, 2, 0, 9}, []byte{0x40, 2, 0xFF, 0xFF}, []byte{0x40, 2, 0, 0}),
		"A28 PINGRESP nobody asked":  flood([]byte{0xD0, 0}),
		"A28 PUBREL for unknown ids": flood([]byte{0x62, 2, 0, 9}),
		"A28 SUBACK nobody asked":    flood([]byte{0x90, 3, 0, 9, 1}),
		"A28 QoS 2, ids used again":  flood(publication(4, commandTopic, 7, []byte("{}")), publication(12, commandTopic, 7, []byte("[]")), []byte{0x62, 2, 0, 7}),
		"A28 topics nobody wants":    flood(publication(2, strings.Repeat("x/", 30000), 7, nil), publication(2, "\x00#/+", 7, nil)),
		"a flood of commands":        flood(publication(2, commandTopic, 1, []byte(`{"id":"a","args":{}}`)), publication(2, commandTopic, 2, []byte(`{"id":"b","args":{}}`))),
		"a flood of QoS 0":           flood(publication(0, commandTopic, 0, []byte(`{"id":"q0","args":{}}`))),
		"a flood of large commands":  flood(publication(2, commandTopic, 1, []byte(strings.Repeat("[", 250<<10)))),
		"a flood of large QoS 0":     flood(publication(0, commandTopic, 1, []byte(`{"id":"`+strings.Repeat("x", 250<<10)))),
		"a flood of configurations": flood(publication(2, strings.Replace(commandTopic, "read", "config", 1), 1,
			[]byte(`{"id":"c","expires":"2199-01-01T00:00:00Z","args":{"toml":"`+strings.Repeat(`[a]\n`, 50<<10)+`"}}`))),
	} {
		a.attack(t, name, func(t *testing.T) {
			a.rogue.play(scene)
			came := a.rogue.came.Load()
			a.reload(t)
			until := time.Now().Add(2500 * time.Millisecond)
			waitFor(t, "the flood", func() bool { return a.rogue.came.Load() > came && time.Now().After(until) })
			a.rogue.play(nil)
			a.reload(t)
		})
	}
}

// rivals is A20: another client with the same id, at a broker that serves the last that came.
func (a *siege) rivals(t *testing.T) {
	t.Helper()
	a.attack(t, "A20 a rival with the same client id", func(t *testing.T) {
		a.rogue.play(func(conn net.Conn) {
			m := a.rogue.connack(conn, 1)
			if m == nil {
				return // a witness stays as long as it likes
			}
			rival := time.AfterFunc(400*time.Millisecond, func() { _ = conn.Close() })
			defer rival.Stop()
			m.serve(nil)
		})
		a.reload(t)
		a.failure(t, "up", "duplicate-identity")
		held, _ := field(a.now(t), "session", "held_off").(string)
		until, err := time.Parse(time.RFC3339Nano, held)
		if left := time.Until(until); err != nil || left < 4*time.Minute || left > 15*time.Minute {
			t.Errorf("held off until %q", held)
		}
		a.rogue.play(nil)
		a.reload(t)
	})
}
