package session

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/internal/quantity"

	"ferrule/agent/session/cause"

	"ferrule/agent/session/dial"
)

// short makes the stages time out soon.
func short(s *Session) *Session {
	d := 300 * time.Millisecond
	s.timeouts.connack, s.timeouts.suback = d, d
	s.dialer.Timeouts = dial.Timeouts{DNS: d, TCP: d, TLS: d}
	return s
}

// failure waits for a failure of a cause.
func failure(t *testing.T, s *Session, what cause.Cause) cause.Failure {
	t.Helper()
	until(t, "a failure "+string(what), func() bool {
		f := s.Status().LastFailure
		return f != nil && f.Cause == what
	})
	return *s.Status().LastFailure
}

// paho completes tokens without a PUBACK when it reconnects by itself; with CleanSession off it
// never completes them. Neither may lose an entry, or hang.
func TestLostConnectionAcknowledgesNothing(t *testing.T) {
	w := newWorld(t)
	var got ledger
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		seen := 0
		p.behave(func(m *packets.PublishPacket) error {
			if !strings.HasPrefix(m.TopicName, "readings/") {
				return nil
			}
			if seen++; p.n <= 3 && seen == 21 {
				p.hangUp()
			}
			if p.n <= 3 && seen > 10 {
				return errWithhold
			}
			_ = got.append(received(m))
			return nil
		})
	})
	w.fill(200, 50)
	s := w.session(r.address)
	w.run(s)
	until(t, "the outbox to drain", w.drained)
	if d := checkSeqs(t, seqs(t, got.of("readings/")), 200); d != 0 {
		t.Errorf("%d entries were sent again after their PUBACK", d)
	}
	if st := s.Status(); st.Resent == 0 || st.SetAside != 0 || st.LastFailure.Cause != cause.Closed {
		t.Errorf("status: %+v", st)
	}
}

func TestBrokerThatNeverAcknowledges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var got ledger
	var first atomic.Int64
	var mended atomic.Bool
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		p.behave(func(m *packets.PublishPacket) error {
			if !mended.Load() && strings.HasPrefix(m.TopicName, "readings/") {
				if p.n == 1 {
					first.Add(1)
				}
				return errWithhold
			}
			_ = got.append(received(m))
			return nil
		})
	})
	w.fill(100, 50)
	s := w.session(r.address, windowOf(16))
	s.config.WriteTimeout = quantity.Duration(400 * time.Millisecond)
	w.run(s)
	f := failure(t, s, cause.NoAck)
	mended.Store(true)
	if f.Stage != cause.StageUp || f.Side != cause.SideBroker {
		t.Errorf("failure: %+v", f)
	}
	if n := first.Load(); n < 15 || n > 16 { // the status may have taken one place
		t.Errorf("%d messages in flight, the window is 16", n)
	}
	until(t, "the outbox to drain", w.drained)
	checkSeqs(t, seqs(t, got.of("readings/")), 100)
}

// With a bounded window nothing is left to write on a frozen link, so no write can time out.
func TestFrozenLinkUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b, got := w.broker()
	f := startFreezer(t, b.Address())
	s := w.session(f.address, writeTimeout(time.Second))
	w.run(s)
	w.fill(500, 200)
	until(t, "the outbox to drain", w.drained)
	f.freeze()
	frozen := time.Now()
	w.fill(500, 200)
	found := failure(t, s, cause.Frozen)
	t.Logf("write_timeout 1s: found after %v", found.At.Sub(frozen))
	until(t, "the outbox to drain", w.drained)
	checkSeqs(t, seqs(t, got.of("readings/")), 1000)
}

// Without load the keepalive finds it.
func TestFrozenIdleLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b, _ := w.broker()
	f := startFreezer(t, b.Address())
	s := w.session(f.address, writeTimeout(time.Second))
	s.config.Keepalive = quantity.Duration(time.Second)
	w.run(s)
	until(t, "an idle session", func() bool {
		st := s.Status()
		return st.Stage == cause.StageUp && st.Published == 1 && st.InFlight == 0
	})
	f.freeze()
	failure(t, s, cause.Frozen)
	until(t, "the next connection", func() bool { return s.Status().Connects == 2 })
}

// A frozen link on which more is written than the sockets take.
func TestFrozenLinkWithBlockedWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	block := make(chan struct{})
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if p.connack() && p.n > 1 {
			p.behave(nil)
		}
		<-block // reads nothing any more
	})
	t.Cleanup(func() { close(block) })
	w.fill(200, 120<<10)
	s := w.session(r.address, windowOf(200), writeTimeout(time.Second))
	stop := w.run(s)
	failure(t, s, cause.Frozen)
	r.drop()
	stop()
}

func TestHugePublishIsRefusedBeforeItIsAllocated(t *testing.T) {
	w := newWorld(t)
	var most atomic.Uint64
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		if p.n == 1 {
			p.write([]byte{packetPublish << 4, 0xff, 0xff, 0xff, 0x7f, 0, 1, 'x'}) // 268,435,455 bytes
		}
		p.behave(nil)
	})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := w.session(r.address)
	w.run(s)
	f := failure(t, s, cause.TooLarge)
	runtime.ReadMemStats(&after)
	most.Store(after.TotalAlloc - before.TotalAlloc)
	if f.Side != cause.SideBroker || most.Load() > 16<<20 {
		t.Errorf("%d bytes were allocated; failure: %+v", most.Load(), f)
	}
	w.fill(10, 50)
	until(t, "the outbox to drain on the next connection", w.drained)
}

// paho indexes the topics of a SUBSCRIBE with the codes of its SUBACK, and panics where there
// are more.
func TestMalformedPacketsEndTheConnection(t *testing.T) {
	for name, packet := range map[string][]byte{
		"SUBACK with two codes": {packetSuback << 4, 4, 0, 1, 1, 1},
		"SUBACK without a code": {packetSuback << 4, 2, 0, 1},
		"CONNACK again":         {packetConnack << 4, 2, 0, 0},
		"CONNECT":               {1 << 4, 2, 0, 0},
		"type 0":                {0, 0},
		"type 15":               {0xf0, 0},
		"QoS 3":                 {packetPublish<<4 | 6, 5, 0, 1, 'x', 0, 1},
		"length of five bytes":  {packetPublish << 4, 0xff, 0xff, 0xff, 0xff, 1},
		"PUBACK of 3 bytes":     {packetPuback << 4, 3, 0, 1, 0},
		"PINGRESP with a body":  {packetPingresp << 4, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
				if p.connack() && p.n == 1 {
					p.write(packet)
				}
				p.behave(nil)
			})
			s := w.session(r.address, commands(nil))
			w.run(s)
			failure(t, s, cause.Protocol)
			until(t, "the next connection", func() bool { return s.Status().Connects == 2 })
		})
	}
}

// A broker that keeps a session delivers what it kept at once, before SUBSCRIBE.
func TestCommandBeforeSubscribe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	acked := make(chan uint16, 1)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if _, ok := p.read().(*packets.ConnectPacket); !ok {
			return
		}
		p.write([]byte{
			packetConnack << 4, 2, 1, 0,
			packetPublish<<4 | 2, 34, 0, 29, 'f', 'e', 'r', 'r', 'u', 'l', 'e', '/', 'd', 'e', 'v', 'i', 'c', 'e', '-', '1', '/', 'c', 'o', 'm', 'm', 'a', 'n', 'd', '/', 'r', 'e', 'a', 'd', 0, 7, 'c',
		})
		for {
			packet := p.read()
			if packet == nil {
				return
			}
			if ack, ok := packet.(*packets.PubackPacket); ok {
				acked <- ack.MessageID
			}
		}
	})
	taken := make(chan Command, 1)
	s := w.session(r.address, commands(func(c Command) (string, []byte) { taken <- c; return "", nil }))
	w.run(s)
	if c := <-taken; c.Name != "read" || string(c.Payload) != "c" {
		t.Errorf("command: %+v", c)
	}
	if id := <-acked; id != 7 {
		t.Errorf("PUBACK %d", id)
	}
}

func TestRefusedSubscriptionIsVisibleAndReadingsFlow(t *testing.T) {
	w := newWorld(t)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		for {
			switch m := p.read().(type) {
			case nil:
				return
			case *packets.SubscribePacket:
				p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), 0x80})
			case *packets.PublishPacket:
				p.puback(m.MessageID)
			}
		}
	})
	s := w.session(r.address, commands(nil))
	w.run(s)
	f := failure(t, s, cause.Subscription)
	if f.Stage != cause.StageSuback || f.Hint == "" {
		t.Errorf("failure: %+v", f)
	}
	w.fill(10, 50)
	until(t, "the outbox to drain", w.drained)
	if st := s.Status(); st.Stage != cause.StageUp || st.Subscribed || st.Connects != 1 {
		t.Errorf("status: %+v", st)
	}
}

func TestStalledStages(t *testing.T) {
	t.Parallel()
	block := make(chan struct{})
	defer close(block)
	for _, test := range []struct {
		stage  cause.Stage
		script func(p peer)
		plain  bool
	}{
		{cause.StageTLS, func(peer) { <-block }, true},
		{cause.StageConnack, func(p peer) { p.read(); p.read() }, false},
		{cause.StageSuback, func(p peer) {
			if p.connack() {
				for p.read() != nil {
				}
			}
		}, false},
	} {
		t.Run(string(test.stage), func(t *testing.T) {
			w := newWorld(t)
			config := w.server.ServerTLS(w.ca)
			script := test.script
			if test.plain {
				config = nil
				script = func(p peer) { p.Read(make([]byte, 4096)); p.Read(make([]byte, 1)) }
			}
			r := startRogue(t, config, script)
			s := short(w.session(r.address, commands(nil)))
			w.run(s)
			f := failure(t, s, cause.Stalled)
			if f.Stage != test.stage || !strings.Contains(f.Text, "300ms") {
				t.Errorf("failure: %+v", f)
			}
		})
	}
}

// An entry that the broker cannot stomach must not keep the others from arriving.
func TestEntryThatEndsConnectionsIsSetAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var got ledger
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		p.behave(func(m *packets.PublishPacket) error {
			if strings.Contains(string(m.Payload), `{"seq":50,`) {
				return errStop
			}
			_ = got.append(received(m))
			return nil
		})
	})
	w.fill(100, 50)
	s := w.session(r.address, joining)
	w.run(s)
	until(t, "the outbox to drain", w.drained)
	have := seqs(t, got.of("readings/"))
	seen := make(map[uint64]bool)
	for _, n := range have {
		seen[n] = true
	}
	if len(seen) != 99 || seen[50] {
		t.Errorf("%d entries came, want all 100 but the 50th", len(seen))
	}
	if w.outbox.Status().SetAside != 1 || s.Status().SetAside != 1 || s.Status().Takeovers != 0 {
		t.Errorf("set aside: %+v", w.outbox.Status())
	}
}

// A broker that hangs up on everybody is no proof against an entry.
func TestBrokerThatHangsUpSetsNothingAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() || p.n > 5 {
			p.behave(nil)
		}
	})
	w.fill(1, 50)
	s := w.session(r.address)
	w.run(s)
	until(t, "the outbox to drain", w.drained)
	if n := w.outbox.Status().SetAside; n != 0 {
		t.Errorf("%d entries set aside", n)
	}
}

func TestNothingOfTheOutboxIsSentTwiceAtOnce(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	flight, most := map[uint16]bool{}, 0
	var pending []uint16
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		p.behave(func(m *packets.PublishPacket) error {
			if !strings.HasPrefix(m.TopicName, "readings/") {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			flight[m.MessageID] = true
			pending = append(pending, m.MessageID)
			most = max(most, len(flight))
			if len(pending) == 8 { // acknowledge in lots of the whole window
				for _, id := range pending {
					p.puback(id)
					delete(flight, id)
				}
				pending = nil
			}
			return errWithhold
		})
	})
	w.fill(800, 50)
	s := w.session(r.address, windowOf(8))
	w.run(s)
	until(t, "the outbox to drain", w.drained)
	if most > 8 {
		t.Errorf("%d messages in flight, the window is 8", most)
	}
}
