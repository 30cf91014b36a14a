package session

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/internal/quantity"

	"ferrule/agent/session/cause"

	"ferrule/agent/session/dial"
)

func newTestGuard(r io.Reader) *guard { return newGuard(r, 1000, func(byte) {}) }

func TestGuardPassesWhatMayPass(t *testing.T) {
	stream := []byte{
		packetConnack << 4, 2, 0, 0,
		packetSuback << 4, 3, 0, 1, 1,
		packetPuback << 4, 2, 0, 1,
		packetPingresp << 4, 0,
		packetPublish << 4, 0x83, 0x00, 0, 1, 'x', // 3 bytes, in a longer form than needed
		packetPubrel<<4 | 2, 2, 0, 9,
	}
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
	} {
		var kinds []byte
		g := newGuard(r, 1000, func(kind byte) { kinds = append(kinds, kind) })
		got, err := io.ReadAll(g)
		if err != nil || !bytes.Equal(got, stream) || !bytes.Equal(kinds, []byte{2, 9, 4, 13, 3, 6}) {
			t.Errorf("%s: %v % x, types %v", name, err, got, kinds)
		}
	}
}

func TestGuardRefusesByTheLengthAlone(t *testing.T) {
	for length, want := range map[int]error{1000: nil, 1001: cause.ErrTooLarge} {
		head := []byte{packetConnack << 4, 2, 0, 0, packetPublish << 4, byte(length&0x7f | 0x80), byte(length >> 7), 0, 1, 'x'}
		got, err := io.ReadAll(newTestGuard(bytes.NewReader(head)))
		if !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", length, err)
		}
		if want != nil && len(got) != 4 {
			t.Errorf("%d bytes of the packet got out", len(got)-4)
		}
	}
}

// Whatever a broker sends, paho gets packets that it can take.
func FuzzGuard(f *testing.F) {
	f.Add([]byte{packetConnack << 4, 2, 0, 0, packetSuback << 4, 3, 0, 1, 1, packetPublish << 4, 3, 0, 1, 'x'})
	f.Add([]byte{packetConnack << 4, 2, 0, 0, packetPublish<<4 | 2, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{packetConnack << 4, 2, 0, 0, packetSuback << 4, 4, 0, 1, 1, 1})
	f.Add(append([]byte{packetConnack << 4, 2, 0, 0}, append(publishOf(2, "topic", 5, 7, 2000), packetPingresp<<4, 0)...))
	f.Add(append([]byte{packetConnack << 4, 2, 0, 0}, append(publishOf(4, "topic", 5000, 7, 20), packetPingresp<<4, 0)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		for _, skip := range []bool{false, true} {
			g := newTestGuard(bytes.NewReader(stream))
			if skip {
				g.judge = func(p poison) error {
					if len(p.topic) > 3*topicShown || p.malformed && p.id != 0 {
						t.Fatalf("poison %+v", p)
					}
					return nil
				}
				g.skipped = func(poison) error { return nil }
			}
			passes(t, g)
		}
	})
}

func passes(t *testing.T, g *guard) {
	for {
		packet, err := packets.ReadPacket(g)
		if err != nil {
			return
		}
		switch p := packet.(type) {
		case *packets.SubackPacket:
			if len(p.ReturnCodes) != 1 {
				t.Fatalf("SUBACK with %d codes", len(p.ReturnCodes))
			}
		case *packets.PublishPacket:
			if len(p.Payload) > 1000 || p.Qos > 2 {
				t.Fatalf("PUBLISH %v", p.FixedHeader)
			}
		}
	}
}

// pipe is a conn whose writes are counted.
type pipe struct {
	net.Conn
	writes [][]byte
	err    error
}

func (p *pipe) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	p.writes = append(p.writes, bytes.Clone(b))
	return len(b), nil
}
func (p *pipe) SetDeadline(time.Time) error      { return nil }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
func (p *pipe) Read([]byte) (int, error)         { return 0, io.EOF }

func TestAnnouncedMessagesShareAWrite(t *testing.T) {
	p := &pipe{}
	c := newConn(p, 1000, time.Second)
	publish := func(n int) {
		t.Helper()
		if _, err := c.Write(append([]byte{packetPublish << 4}, make([]byte, n-1)...)); err != nil {
			t.Fatal(err)
		}
	}
	publish(10) // not announced: at once
	c.expect(3)
	publish(10)
	publish(10)
	if len(p.writes) != 1 {
		t.Fatalf("%d writes before the last announced message", len(p.writes))
	}
	publish(10)
	c.expect(2)
	publish(10)
	if _, err := c.Write([]byte{12 << 4, 0}); err != nil { // a ping takes what waits with it
		t.Fatal(err)
	}
	publish(10)
	c.expect(2)
	publish(flushAt)
	publish(10)
	var sizes []int
	for _, w := range p.writes {
		sizes = append(sizes, len(w))
	}
	if want := []int{10, 30, 12, 10, flushAt, 10}; !slices.Equal(sizes, want) {
		t.Errorf("writes of %v bytes, want %v", sizes, want)
	}
	p.err = errors.New("broken")
	if _, err := c.Write([]byte{12 << 4, 0}); err == nil || c.failed() == nil {
		t.Error("a failed write went unnoticed")
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, p.err) {
		t.Errorf("the reader hears %v", err)
	}
}

// A refusal must not be taken for a broken pipe when CONNECT meets a closed socket.
func TestRefusalBehindAFailedWrite(t *testing.T) {
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: expired certificate")}
	c := newConn(&refusing{alert: alert}, 1000, time.Second)
	if _, err := c.Write([]byte{1 << 4, 0}); cause.Classify(cause.StageConnack, err).Cause != cause.CertificateExpired {
		t.Errorf("%v", err)
	}
}

type refusing struct {
	pipe
	alert error
}

func (r *refusing) Write([]byte) (int, error) { return 0, errors.New("write: broken pipe") }
func (r *refusing) Read([]byte) (int, error)  { return 0, r.alert }

func TestConfig(t *testing.T) {
	good := Default()
	good.Brokers = []string{"mqtts://broker.example:8883", "mqtts://[::1]", "mqtts://broker.example/"}
	if err := good.Validate(); err != nil {
		t.Errorf("%v", err)
	}
	for text, change := range map[string]func(c *Config){
		"session.brokers: there is none":                 func(c *Config) { c.Brokers = nil },
		`session.brokers: "mqtt://a": the scheme`:        func(c *Config) { c.Brokers = []string{"mqtt://a"} },
		`there is no password here`:                      func(c *Config) { c.Brokers = []string{"mqtts://u:p@a"} },
		`the host is missing`:                            func(c *Config) { c.Brokers = []string{"mqtts://:8883"} },
		`"70000" is not a port`:                          func(c *Config) { c.Brokers = []string{"mqtts://a:70000"} },
		`there is something behind #`:                    func(c *Config) { c.Brokers = []string{"mqtts://a:1#x"} },
		`session.client_id`:                              func(c *Config) { c.ClientID = "{line}" },
		`session.keepalive: 1ms`:                         func(c *Config) { c.Keepalive = quantity.Duration(time.Millisecond) },
		`session.window: 0`:                              func(c *Config) { c.Window = 0 },
		`session.write_timeout: 0s`:                      func(c *Config) { c.WriteTimeout = 0 },
		`session.daily_bytes: 1KiB`:                      func(c *Config) { c.DailyBytes = 1 << 10 },
		`session.reconnect_spread: 1h0m0s`:               func(c *Config) { c.ReconnectSpread = quantity.Duration(time.Hour) },
		`session.rate: -1`:                               func(c *Config) { c.Rate = -1 },
		`session.max_inbound: 256MiB`:                    func(c *Config) { c.MaxInbound = 256 << 20 },
		`session.topics.status: "a/#"`:                   func(c *Config) { c.Topics.Status = "a/#" },
		`session.topics.command: "a/b" has no level`:     func(c *Config) { c.Topics.Command = "a/b" },
		`session.topics.readings: "{x}": unknown variab`: func(c *Config) { c.Topics.Readings = "{x}" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %s", err, text)
		}
	}
	if _, err := dial.ReadRoots("/no/such/file"); err == nil {
		t.Error("roots that are not there")
	}
	w := newWorld(t)
	w.write("empty.pem", []byte("nothing"))
	if _, err := dial.ReadRoots(w.dir + "/empty.pem"); err == nil {
		t.Error("roots that hold nothing")
	}
}
