package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/agent/agenttest"
	"ferrule/internal/quantity"

	"ferrule/agent/session/cause"
)

func TestCommandGetsItsReply(t *testing.T) {
	w := newWorld(t)
	b, got := w.broker()
	s := w.session(b.Address(), commands(func(c Command) (string, []byte) {
		return "id-" + string(c.Payload), []byte(fmt.Sprintf("%s retained=%t", c.Name, c.Retained))
	}))
	if err := b.Publish("ferrule/device-1/command/write", []byte("0"), true); err != nil {
		t.Fatal(err)
	}
	w.run(s)
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	for i := 1; i <= 20; i++ {
		if err := b.Publish("ferrule/device-1/command/read", fmt.Append(nil, i), false); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the replies", func() bool { return len(got.of("ferrule/device-1/reply/")) == 21 })
	replies := got.of("ferrule/device-1/reply/")
	slices.Sort(replies)
	if replies[0] != "read retained=false" || replies[20] != "write retained=true" {
		t.Errorf("replies: %q", replies)
	}
	if st := s.Status(); st.Commands != 21 || st.CommandsDropped != 0 {
		t.Errorf("status: %+v", st)
	}
}

// What was sent while the device was away arrives when it is back, since the session is kept.
func TestCommandsSentWhileAway(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker()
	var taken atomic.Int64
	change := commands(func(Command) (string, []byte) { taken.Add(1); return "", nil })
	s := w.session(b.Address(), change)
	stop := w.run(s)
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	stop()
	if err := b.Publish("ferrule/device-1/command/read", []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	w.run(w.session(b.Address(), change))
	until(t, "the command", func() bool { return taken.Load() == 1 })
}

// A command that takes its time holds up neither readings nor acknowledgements.
func TestSlowCommandBlocksNothing(t *testing.T) {
	w := newWorld(t)
	b, got := w.broker()
	release := make(chan struct{})
	s := w.session(b.Address(), commands(func(Command) (string, []byte) {
		<-release
		return "slow", []byte("done")
	}))
	w.run(s)
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	for range 3 {
		if err := b.Publish("ferrule/device-1/command/write", []byte("x"), false); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the command to begin", func() bool { return s.Status().Commands == 1 })
	w.fill(500, 50)
	until(t, "the outbox to drain", w.drained)
	close(release)
	until(t, "the replies", func() bool { return len(got.of("ferrule/device-1/reply/slow")) == 3 })
}

// A reply that was not acknowledged when the connection ended brings the command again.
func TestLostReplyBringsTheCommandAgain(t *testing.T) {
	w := newWorld(t)
	var replies atomic.Int64
	acked := make(chan int, 10)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() || !p.publish(9, "ferrule/device-1/command/write", "x") {
			return
		}
		for {
			switch m := p.read().(type) {
			case nil:
				return
			case *packets.SubscribePacket:
				p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), 1})
			case *packets.PubackPacket:
				acked <- p.n
			case *packets.PublishPacket:
				if strings.Contains(m.TopicName, "/reply/") {
					if replies.Add(1) == 1 {
						return // the reply is lost
					}
				}
				p.puback(m.MessageID)
			}
		}
	})
	var handled atomic.Int64
	s := w.session(r.address, commands(func(Command) (string, []byte) {
		handled.Add(1)
		return "c1", []byte("reply")
	}))
	w.run(s)
	if n := <-acked; n != 2 || handled.Load() != 2 || replies.Load() != 2 {
		t.Errorf("acknowledged on connection %d, handled %d times, %d replies", n, handled.Load(), replies.Load())
	}
}

// A flood of commands must not fill the memory. What the broker has to deliver again, it does.
func TestFloodOfCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if !p.connack() {
			return
		}
		for i := range uint16(1000) {
			if p.n > 1 || !p.publish(i+1, "ferrule/device-1/command/read", strings.Repeat("x", 1000)) {
				break
			}
		}
		p.behave(nil)
	})
	release := make(chan struct{})
	s := w.session(r.address, commands(func(Command) (string, []byte) { <-release; return "", nil }))
	w.run(s)
	failure(t, s, cause.Commands)
	close(release)
	until(t, "the next connection", func() bool { return s.Status().Subscribed })
	if st := s.Status(); st.CommandsDropped == 0 || st.Commands > inboxCommands+1 {
		t.Errorf("status: %+v", st)
	}
}

// Messages of a subscription that an earlier configuration left are acknowledged and ignored.
func TestForeignTopicsAreIgnored(t *testing.T) {
	w := newWorld(t)
	s := w.session("127.0.0.1:1", commands(nil))
	for topic, want := range map[string]string{
		"ferrule/device-1/command/read": "read",
		"ferrule/device-2/command/read": "",
		"ferrule/device-1/command":      "",
		"ferrule/device-1/command/":     "",
		"ferrule/device-1/command/a/b":  "",
		"ferrule/device-1/command/a%b":  "",
		"":                              "",
	} {
		name, ok := s.commandName(topic)
		if ok != (want != "") || ok && name != want {
			t.Errorf("%q: %q, %t", topic, name, ok)
		}
	}
}

func TestStatusCanBeSwitchedOffAndAnnounced(t *testing.T) {
	w := newWorld(t)
	b, got := w.broker()
	s := w.session(b.Address(), func(o *Options) { o.Topics.Status = "" })
	stop := w.run(s)
	w.fill(1, 50)
	until(t, "the outbox to drain", w.drained)
	s.Announce()
	stop()
	if n := len(got.of("ferrule/")); n != 0 {
		t.Errorf("%d status messages", n)
	}
	s = w.session(b.Address())
	stop = w.run(s)
	until(t, "the status", func() bool { return len(got.of("ferrule/")) == 1 })
	s.Announce()
	until(t, "the status again", func() bool { return len(got.of("ferrule/")) == 2 })
	stop()
	if all := got.of("ferrule/"); len(all) != 3 || !strings.Contains(all[2], `"online":false`) || !strings.Contains(all[2], `"boot":`) {
		t.Errorf("status messages: %q", all)
	}
}

// Announced hears of the messages that the broker has acknowledged, and of no other.
func TestAnnouncedIsWhatTheBrokerAcknowledged(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	refused := 0
	keep := func(m agenttest.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(string(m.Payload), `"n":1}`) {
			refused++
			return errors.New("no PUBACK for it")
		}
		return nil
	}
	b, _ := w.broker(func(c *agenttest.BrokerConfig) { c.Ledger = keep })
	announced := make(chan string, 8)
	n := 0
	s := w.session(b.Address(), func(o *Options) {
		o.Online = func() []byte { n++; return fmt.Appendf(nil, `{"n":%d}`, n) }
		o.Announced = func(message []byte) { announced <- string(message) }
		o.WriteTimeout = quantity.Duration(time.Second)
	})
	stop := w.run(s)
	if got := <-announced; got != `{"n":2}` {
		t.Errorf("announced %s", got)
	}
	s.Announce()
	if got := <-announced; got != `{"n":3}` {
		t.Errorf("announced %s", got)
	}
	stop()
	mu.Lock()
	defer mu.Unlock()
	if refused == 0 || len(announced) != 0 {
		t.Errorf("%d were refused, %d more announced", refused, len(announced))
	}
}

// The end of Run waits for what is in flight and for the command that is being executed.
func TestEndDrainsTheWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	hold := true
	release := sync.NewCond(&mu)
	b, got := w.broker(func(c *agenttest.BrokerConfig) {
		keep := c.Ledger
		c.Ledger = func(m agenttest.Message) error {
			mu.Lock()
			for hold && strings.HasPrefix(m.Topic, "readings/") {
				release.Wait()
			}
			mu.Unlock()
			return keep(m)
		}
	})
	executing := make(chan struct{})
	finish := make(chan struct{})
	s := w.session(b.Address(), func(o *Options) {
		o.ShutdownGrace = patience
		o.Handle = func(context.Context, Command) (string, []byte) {
			close(executing)
			<-finish
			return "c1", []byte("done")
		}
	})
	stop, ended := w.run(s), make(chan struct{})
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	if err := b.Publish("ferrule/device-1/command/write", []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	<-executing
	w.fill(100, 50)
	until(t, "a full window", func() bool { return s.Status().InFlight >= 64 })
	go func() { defer close(ended); stop() }()
	until(t, "the end to begin", func() bool { return s.Status().Stage == cause.StageStopping })
	mu.Lock()
	hold = false
	release.Broadcast()
	mu.Unlock()
	close(finish)
	<-ended
	n := len(got.of("readings/"))
	if st := w.outbox.Status(); n < 64 || st.Acked != uint64(n) {
		t.Errorf("%d readings came, %d were acknowledged", n, st.Acked)
	}
	if all := got.of("ferrule/device-1/status"); len(got.of("ferrule/device-1/reply/c1")) != 1 || all[len(all)-1] != string(s.offline) {
		t.Errorf("the reply or the last status is missing: %q", all)
	}
}

// Where the grace is not enough, no DISCONNECT is sent, so that the will speaks.
func TestEndWithoutGraceLeavesTheWill(t *testing.T) {
	w := newWorld(t)
	disconnected := make(chan bool, 1)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		connect, ok := p.read().(*packets.ConnectPacket)
		if !ok || !connect.WillFlag || !connect.WillRetain || connect.WillTopic != "ferrule/device-1/status" ||
			string(connect.WillMessage) != fmt.Sprintf(`{"online":false,"boot":%d}`, w.outbox.Boot()) ||
			connect.CleanSession || connect.ProtocolVersion != 4 || connect.ClientIdentifier != "device-1" {
			t.Errorf("CONNECT: %+v", connect)
		}
		p.write([]byte{packetConnack << 4, 2, 0, 0})
		saw := false
		for packet := p.read(); packet != nil; packet = p.read() {
			_, saw = packet.(*packets.DisconnectPacket)
		}
		disconnected <- saw
	})
	w.fill(1, 50)
	s := w.session(r.address, func(o *Options) { o.ShutdownGrace = 50 * time.Millisecond })
	stop := w.run(s)
	until(t, "the entry in flight", func() bool { return s.Status().InFlight == 2 })
	stop()
	if <-disconnected {
		t.Error("DISCONNECT was sent, so nobody hears that the device is gone")
	}
}
