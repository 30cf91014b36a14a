package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/agent/session/cause"
)

// publishOf makes a PUBLISH whose topic claims to be of length claimed.
func publishOf(flags byte, topic string, claimed int, id uint16, payload int) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(claimed))
	body = append(body, topic...)
	if flags>>1&3 > 0 {
		body = binary.BigEndian.AppendUint16(body, id)
	}
	body = append(body, make([]byte, payload)...)
	packet := []byte{packetPublish<<4 | flags}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			packet = append(packet, b|0x80)
			continue
		}
		return append(append(packet, b), body...)
	}
}

const commandTopic = "ferrule/device-1/command/read"

// What a broker sends with every SUBSCRIBE, as a retained message, or with every CONNECT, as one that
// is queued: after three connections it goes by, is acknowledged where it can be, and what else comes
// arrives.
func TestPoisonIsQuarantined(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("t", 65535)
	for name, test := range map[string]struct {
		packet []byte
		cause  cause.Cause
		answer byte // what acknowledges it
		topic  string
	}{
		"retained":              {publishOf(1, commandTopic, len(commandTopic), 0, 300<<10), cause.TooLarge, 0, commandTopic},
		"queued":                {publishOf(2, commandTopic, len(commandTopic), 77, 300<<10), cause.TooLarge, packetPuback, commandTopic},
		"QoS 2":                 {publishOf(4, commandTopic, len(commandTopic), 77, 300<<10), cause.TooLarge, packetPubrec, commandTopic},
		"just too large":        {publishOf(2, commandTopic, len(commandTopic), 77, 256<<10), cause.TooLarge, packetPuback, commandTopic},
		"4 MiB":                 {publishOf(2, commandTopic, len(commandTopic), 77, 4<<20-100), cause.TooLarge, packetPuback, commandTopic},
		"topic of 64 KB":        {publishOf(2, long, len(long), 77, 300<<10), cause.TooLarge, packetPuback, long[:topicShown]},
		"topic that lies":       {publishOf(2, "abc", 60000, 77, 10), cause.Protocol, 0, ""},
		"large topic that lies": {publishOf(0, "abc", 65535, 0, 50000), cause.Protocol, 0, ""},
		"no room for a topic":   {[]byte{packetPublish << 4, 1, 0}, cause.Protocol, 0, ""},
		"no room for an id":     {[]byte{packetPublish<<4 | 2, 3, 0, 1, 'x'}, cause.Protocol, 0, ""},
		"nothing":               {[]byte{packetPublish << 4, 0}, cause.Protocol, 0, ""},
		"topic of ESC":          {publishOf(2, "a\x1b[31m\n", 7, 77, 300<<10), cause.TooLarge, packetPuback, "a?[31m?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			answers := make(chan byte, 16)
			r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
				if !p.connack() {
					return
				}
				p.write(test.packet)
				p.publish(9, commandTopic, fmt.Sprint(p.n))
				for {
					switch m := p.read().(type) {
					case nil:
						return
					case *packets.SubscribePacket:
						p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), 1})
					case *packets.PublishPacket:
						p.puback(m.MessageID)
					case *packets.PubackPacket:
						if m.MessageID == 77 {
							answers <- packetPuback
						}
					case *packets.PubrecPacket:
						answers <- packetPubrec
						p.write([]byte{packetPubrel<<4 | 2, 2, 0, 77})
					case *packets.PubcompPacket:
						answers <- packetPubrel
					}
				}
			})
			commanded := make(chan string, 16)
			s := w.session(r.address, commands(func(c Command) (string, []byte) { commanded <- string(c.Payload); return "", nil }))
			w.run(s)
			if got := <-commanded; got != "4" {
				t.Errorf("the command came on connection %s", got)
			}
			if test.answer != 0 {
				if got := <-answers; got != test.answer {
					t.Errorf("answered with %d", got)
				}
			}
			if test.answer == packetPubrec && <-answers != packetPubrel {
				t.Error("PUBREL was not answered")
			}
			st := s.Status()
			if len(st.Quarantined) != 1 {
				t.Fatalf("quarantined: %+v", st.Quarantined)
			}
			q := st.Quarantined[0]
			if q.Topic != test.topic || q.Ended != 3 || q.Skipped != 1 || !st.SubscribeHeld.IsZero() {
				t.Errorf("%+v; %d connections", q, st.Connects)
			}
			if !slices.ContainsFunc(st.History, func(c Change) bool { return c.Cause == test.cause }) {
				t.Errorf("history: %+v", st.History)
			}
			w.fill(10, 50)
			until(t, "the outbox to drain", w.drained)
			if n := r.connections(); n != 4 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// What is too large to be read each time: nothing is subscribed to for an hour, and the broker is told
// to forget what it keeps. Readings flow.
func TestPoisonTooLargeToBeSkipped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var clean, subscribed atomic.Int64
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		connect, ok := p.read().(*packets.ConnectPacket)
		if !ok {
			return
		}
		p.write([]byte{packetConnack << 4, 2, 0, 0})
		if connect.CleanSession {
			clean.Add(1)
		} else if !p.write(publishOf(2, commandTopic, len(commandTopic), 1, 5<<20)) {
			return
		}
		for {
			switch m := p.read().(type) {
			case nil:
				return
			case *packets.SubscribePacket:
				subscribed.Add(1)
				p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), 1})
			case *packets.PublishPacket:
				p.puback(m.MessageID)
			}
		}
	})
	s := w.session(r.address, commands(nil))
	w.run(s)
	until(t, "a clean connection", func() bool { return clean.Load() == 1 })
	w.fill(10, 50)
	until(t, "the outbox to drain", w.drained)
	st := s.Status()
	if left := time.Until(st.SubscribeHeld); left < heldBack-patience || st.Subscribed || st.Stage != cause.StageUp || r.connections() != 4 {
		t.Errorf("%v left; status: %+v", left, st)
	}
	if len(st.Quarantined) != 1 || st.Quarantined[0].Size < 5<<20 || st.Quarantined[0].Skipped != 0 {
		t.Errorf("quarantined: %+v", st.Quarantined)
	}
	if n := subscribed.Load(); n > 3 {
		t.Errorf("it subscribed %d times", n)
	}
}

// Messages that are all different and all too large do not go on for ever, either.
func TestPoisonInManyDoses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if p.connack() {
			p.write(publishOf(2, fmt.Sprint(commandTopic, p.n), len(fmt.Sprint(commandTopic, p.n)), 1, 300<<10+p.n))
			p.behave(nil)
		}
	})
	s := w.session(r.address, commands(nil))
	w.run(s)
	until(t, "one to be skipped", func() bool {
		list := s.Status().Quarantined
		return len(list) == 1 && list[0].Skipped == 1
	})
	if n := r.connections(); n != mostStrikes+1 {
		t.Errorf("%d connections", n)
	}
}

func TestQuarantineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuarantine()
		for key := range uint64(100) {
			_ = q.judge(poison{key: key, size: 1 << 20}, 1, time.Now())
			<-time.After(time.Hour)
		}
		if len(q.known) != mostPoison || q.known[99] == nil || q.known[83] != nil {
			t.Errorf("%d are known", len(q.known))
		}
		if err := q.judge(poison{key: 99, size: 1 << 20}, 1, time.Now()); !errors.Is(err, cause.ErrTooLarge) {
			t.Errorf("one an hour is taken for a flood: %v", err)
		}
	})
}

// At a real broker: a retained message, and one that was queued while we were away.
func TestPoisonAtMosquitto(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.startMosquitto()
	w.subscribe(m, "ferrule/+/status", "%t") // makes the certificate that publish shows
	s := w.session(m.address, commands(nil))
	stop := w.run(s)
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	stop()
	for name, retain := range map[string]bool{"kept": true, "queued": false} {
		file := m.file(name)
		if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		m.publishFile(t, "ferrule/device-1/command/"+name, file, retain)
	}
	got := make(chan string, 4)
	s = w.session(m.address, commands(func(c Command) (string, []byte) { got <- c.Name; return "", nil }))
	stop = w.run(s)
	skipped := func(q Quarantined) bool { return q.Skipped > 0 }
	until(t, "both to be skipped", func() bool {
		s.Wake()
		list := s.Status().Quarantined
		return len(list) == 2 && skipped(list[0]) && skipped(list[1])
	})
	w.publish(m, "ferrule/device-1/command/read", "x")
	if name := <-got; name != "read" {
		t.Errorf("command %s", name)
	}
	connects := s.Status().Connects
	w.fill(100, 100)
	until(t, "the outbox to drain", w.drained)
	if n := s.Status().Connects; n != connects {
		t.Errorf("%d connections, then %d", connects, n)
	}
	queued := func(q Quarantined) bool { return strings.HasSuffix(q.Topic, "queued") }
	list := s.Status().Quarantined
	before := list[slices.IndexFunc(list, queued)].Skipped // more than once where a connection ended before its PUBACK
	stop()
	// What was queued was acknowledged, so that only the retained one comes to the next.
	next := w.session(m.address, commands(nil))
	next.quarantine = s.quarantine
	w.run(next)
	until(t, "the retained one again", func() bool {
		for _, q := range next.Status().Quarantined {
			if strings.HasSuffix(q.Topic, "kept") && q.Skipped >= 2 {
				return true
			}
		}
		return false
	})
	for _, q := range next.Status().Quarantined {
		if queued(q) && q.Skipped != before {
			t.Errorf("%+v, and %d times before", q, before)
		}
	}
}

// While a large message goes by, paho hears that the connection lives, and nothing is allocated.
func TestSkippingAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 3 << 20
		stream := append([]byte{packetConnack << 4, 2, 0, 0}, publishOf(2, "t", 1, 5, size)...)
		stream = append(stream, packetPuback<<4, 2, 0, 1)
		slow := readerFunc(func() func(p []byte) (int, error) {
			r := bytes.NewReader(stream)
			return func(p []byte) (int, error) {
				<-time.After(10 * time.Millisecond)
				return r.Read(p)
			}
		}())
		g := newGuard(slow, 1000, func(byte) {})
		var done poison
		g.judge = func(poison) error { return nil }
		g.skipped = func(p poison) error { done = p; return nil }
		out := make([]byte, 4096)
		var got []byte
		_, _ = g.Read(out) // CONNACK
		_, _ = g.Read(out)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for {
			n, err := g.Read(out)
			got = append(got, out[:n]...)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%v", err)
				}
				break
			}
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
			t.Errorf("%d bytes were allocated", grown)
		}
		pongs := bytes.Count(got, []byte{packetPingresp << 4, 0})
		if done.id != 5 || done.size != size+5 || pongs < 2 || !bytes.HasSuffix(got, []byte{packetPuback << 4, 2, 0, 1}) {
			t.Errorf("%+v, %d pongs, % x", done, pongs, got)
		}
	})
}
