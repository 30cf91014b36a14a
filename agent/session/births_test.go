package session

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/agent/agenttest"
	"ferrule/agent/encode"
)

// hostly is a format that speaks to a host, as Sparkplug does: it counts its messages, wants births
// before them, and can be asked for births again.
type hostly struct {
	mu     sync.Mutex
	deaths int
	next   int
	due    int // births
	most   int // entries in a message
}

func (h *hostly) Will() (topic string, payload []byte, qos byte, retained bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deaths++
	return "death", fmt.Append(nil, h.deaths), 1, false
}

func (h *hostly) Births(connected bool) (list []encode.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if connected {
		h.next, h.due = 0, 3
	}
	for range h.due {
		list = append(list, encode.Message{Topic: "birth", Payload: h.number("birth"), QoS: 1})
	}
	h.due = 0
	return list
}

func (h *hostly) number(text string) []byte {
	h.next++
	return fmt.Appendf(nil, `%d:%s`, h.next-1, text)
}

func (h *hostly) Join(dst []byte, topic string, entries [][]byte) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next == 20 { // now something new has become known
		h.due = 1
		h.next++ // once
		return dst
	}
	if h.due > 0 || len(entries) > h.most {
		return dst
	}
	return append(append(dst, h.number("")...), bytes.Join(entries, []byte(","))...)
}

func (h *hostly) Filter() string { return "host/device-1" }

func (h *hostly) Receive(_ string, payload []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if string(payload) != "rebirth" {
		return false
	}
	h.due = 2
	return true
}

// Births are acknowledged before the first reading of every connection, come again when they are
// asked for, however quiet it is, and everything goes in the order in which it was made.
func TestBirthsGoBeforeReadings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	var story []string // of one connection
	subscribed, unborn := false, 0
	var host peer
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		connect, ok := p.read().(*packets.ConnectPacket)
		if !ok {
			return
		}
		if connect.WillTopic != "death" || string(connect.WillMessage) != fmt.Sprint(p.n) {
			t.Errorf("will %q %q", connect.WillTopic, connect.WillMessage)
		}
		mu.Lock()
		story, subscribed, unborn, host = nil, false, 0, p
		mu.Unlock()
		p.write([]byte{packetConnack << 4, 2, 0, 0})
		for {
			switch m := p.read().(type) {
			case nil:
				return
			case *packets.SubscribePacket:
				mu.Lock()
				subscribed = true
				mu.Unlock()
				p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), 1})
			case *packets.PublishPacket:
				mu.Lock()
				if m.TopicName == "birth" {
					unborn++
				}
				if strings.HasPrefix(m.TopicName, "readings/") && unborn > 0 {
					t.Error("a reading goes before a birth was acknowledged")
				}
				if !strings.HasPrefix(m.TopicName, "ferrule/") {
					if !subscribed {
						t.Error("a birth goes before SUBSCRIBE was answered")
					}
					story = append(story, m.TopicName+" "+string(m.Payload))
				}
				if m.TopicName == "birth" {
					unborn--
				}
				n := len(story)
				mu.Unlock()
				p.puback(m.MessageID)
				if p.n == 1 && n == 30 {
					return
				}
			}
		}
	})
	h := &hostly{most: 5}
	w.fill(400, 50, "a", "b")
	s := w.session(r.address, func(o *Options) { o.Format = h })
	stop := w.run(s)
	until(t, "the outbox to drain", w.drained)
	mu.Lock()
	host.publish(1, "host/device-1", "rebirth")
	mu.Unlock()
	until(t, "the rebirth", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(story) > 5 && strings.HasPrefix(story[len(story)-1], "birth") && strings.HasPrefix(story[len(story)-2], "birth")
	})
	w.fill(1, 50)
	until(t, "the outbox to drain", w.drained)
	stop()
	mu.Lock()
	defer mu.Unlock()
	if !strings.HasPrefix(story[0], "birth 0:") || !strings.HasPrefix(story[2], "birth 2:") || !strings.HasPrefix(story[3], "readings/a 3:") {
		t.Errorf("it begins with %q", story[:4])
	}
	last := -1
	for _, m := range story[:len(story)-1] {
		var n int
		_, number, _ := strings.Cut(m, " ")
		if _, err := fmt.Sscanf(number, "%d:", &n); err != nil || n <= last {
			t.Fatalf("%q after %d", m, last)
		}
		last = n
	}
	if end := story[len(story)-1]; end != "death 2" {
		t.Errorf("it ends with %q", end)
	}
	if !slices.ContainsFunc(story, func(m string) bool { return strings.Contains(m, `{"seq":401,`) }) {
		t.Error("the reading after the rebirth is missing")
	}
}

// A format that makes no message of a single entry must not hold up what follows.
func TestEntryThatMakesNoMessage(t *testing.T) {
	w := newWorld(t)
	b, got := w.broker(func(*agenttest.BrokerConfig) {})
	s := w.session(b.Address(), func(o *Options) { o.Format = &hostly{most: 0} })
	w.fill(7, 50)
	w.run(s)
	until(t, "the outbox to drain", w.drained)
	checkSeqs(t, seqs(t, got.of("readings/")), 7)
}
