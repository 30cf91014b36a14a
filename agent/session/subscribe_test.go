package session

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/agent/session/cause"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/bc", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"a/+", "a/b", true}, {"a/+", "a/", true}, {"a/+", "a", false}, {"a/+/c", "a/b/c", true}, {"a/+", "a/b/c", false},
		{"a/#", "a/b/c", true}, {"a/#", "a", true}, {"a/#", "b", false}, {"#", "a/b", true}, {"+/+", "/a", true}, {"", "", true},
		{"spBv1.0/g/NCMD/d", "spBv1.0/g/NCMD/d", true}, {"spBv1.0/g/NCMD/d", "spBv1.0/g/NCMD/e", false},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("%q of %q: %t", c.topic, c.filter, got)
		}
	}
}

// A subscription that the broker has lost, without a word, is repaired by asking again; one that it
// takes back is seen, and tried again. What it had retained is taken once.
func TestSubscriptionIsRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var subscribes atomic.Int64
	var refuse atomic.Bool
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		for {
			switch m := p.read().(type) {
			case nil:
				return
			case *packets.SubscribePacket:
				code := byte(1)
				if refuse.Load() {
					code = 0x80
				}
				subscribes.Add(1)
				p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), code})
				p.write(publishOf(1, "ferrule/device-1/command/kept", 29, 0, 10))
				p.publish(5, "ferrule/device-1/command/live", "x")
			case *packets.PublishPacket:
				p.puback(m.MessageID)
			}
		}
	})
	var kept, live atomic.Int64
	s := w.session(r.address, commands(func(c Command) (string, []byte) {
		if c.Retained {
			kept.Add(1)
		} else {
			live.Add(1)
		}
		return "", nil
	}))
	s.timeouts.renewal = 20 * time.Millisecond
	w.run(s)
	until(t, "the subscription to be renewed", func() bool { return subscribes.Load() > 3 && live.Load() > 3 })
	if n := kept.Load(); n != 1 {
		t.Errorf("what was retained was taken %d times", n)
	}
	refuse.Store(true)
	f := failure(t, s, cause.Subscription)
	until(t, "the status", func() bool { return !s.Status().Subscribed })
	if st := s.Status(); f.Stage != cause.StageSuback || st.Stage != cause.StageUp || st.Connects != 1 {
		t.Errorf("failure %+v, status %+v", f, st)
	}
	w.fill(10, 50)
	until(t, "the outbox to drain", w.drained)
}

// A broker that has lost the session that it should have kept is noted.
func TestLostSessionIsNoted(t *testing.T) {
	w := newWorld(t)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if _, ok := p.read().(*packets.ConnectPacket); ok {
			p.write([]byte{packetConnack << 4, 2, byte(p.n % 2), 0}) // kept on 1, lost on 2
			if p.n < 3 {
				p.untilSubscribe()
				return
			}
			p.behave(nil)
		}
	})
	s := w.session(r.address, commands(nil))
	w.run(s)
	until(t, "the third connection", func() bool { return s.Status().Connects == 3 && s.Status().Subscribed })
	if st := s.Status(); !st.SessionPresent || st.SessionsLost != 1 {
		t.Errorf("present %t, lost %d", st.SessionPresent, st.SessionsLost)
	}
}

// The history tells the stages in their order, names the failures, and is bounded.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker()
	s := w.session(b.Address(), commands(nil))
	stop := w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
	b.Cut()
	failure(t, s, cause.Refused)
	stop()
	var story []string
	for _, c := range s.Status().History {
		step := string(c.Stage)
		if c.Cause != "" {
			step += "=" + string(c.Cause)
		}
		story = append(story, step)
		if c.Broker != "mqtts://"+b.Address() || c.At.IsZero() {
			t.Errorf("%+v", c)
		}
	}
	if text := strings.Join(story, " "); !strings.HasPrefix(text, "dns tcp tls connack suback up up=closed waiting dns tcp tcp=refused") {
		t.Errorf("%s", text)
	}
	var h history
	for i := range 3*mostChanges + 7 {
		h.add(Change{At: time.Unix(int64(i), 0)})
	}
	list := h.list()
	if len(list) != mostChanges || list[0].At.Unix() != 2*mostChanges+7 || !slices.IsSortedFunc(list, func(a, b Change) int { return a.At.Compare(b.At) }) {
		t.Errorf("%d changes from %v", len(list), list[0].At)
	}
	st := s.Status()
	if st.Path == nil || st.Path.Address != b.Address() || st.Path.Family != "ipv4" || st.Wire.Sent < 500 || st.Wire.Received < 500 {
		t.Errorf("path %+v, wire %+v", st.Path, st.Wire)
	}
}
