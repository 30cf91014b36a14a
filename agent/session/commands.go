package session

import (
	"context"
	"log/slog"
	"sync/atomic"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"ferrule/agent/encode"

	"ferrule/agent/session/cause"
)

const (
	// inboxCommands and inboxBytes bound the commands that wait; brokers have 10 to 100
	// unacknowledged ones under way.
	inboxCommands = 128
	inboxBytes    = 1 << 20
)

// delivery is a command and the link it came on.
type delivery struct {
	link    *link
	name    string
	message mqtt.Message
}

// inbox is where commands wait for the one goroutine that executes them.
type inbox struct {
	queue chan delivery
	bytes atomic.Int64
}

// put takes a command, or says that there is no room.
func (b *inbox) put(d delivery) bool {
	size := int64(len(d.message.Payload()))
	if b.bytes.Add(size) > inboxBytes+size {
		b.bytes.Add(-size)
		return false
	}
	select {
	case b.queue <- d:
		return true
	default:
		b.bytes.Add(-size)
		return false
	}
}

// receive is called by paho for everything that comes, and must not wait: paho reads nothing,
// not even acknowledgements, until it returns. A command is acknowledged after it was handled
// and its reply was acknowledged, so that a lost reply brings it again.
func (l *link) receive(_ mqtt.Client, m mqtt.Message) {
	s := l.session
	if m.Retained() && l.repeated.Load() {
		m.Ack() // it came with an earlier SUBSCRIBE, and comes again with every one
		return
	}
	name, ok := s.commandName(m.Topic())
	if !ok && s.hostFilter != "" && matches(s.hostFilter, m.Topic()) {
		l.fromHost(m)
		return
	}
	if !ok {
		m.Ack() // of a subscription that an earlier configuration left at the broker
		return
	}
	if s.inbox.put(delivery{l, name, m}) {
		return
	}
	s.count(func(st *Status) { st.CommandsDropped++ })
	if m.Qos() > 0 {
		l.conn.fail(cause.ErrFlood) // the broker keeps it and delivers it again
	}
}

// commandName returns the name of the command that a topic stands for.
func (s *Session) commandName(topic string) (string, bool) {
	template := s.config.Topics.Command
	if template == "" || s.handle == nil {
		return "", false
	}
	name, ok := encode.Extract(template, topic, "name")
	if !ok || name == "" {
		return "", false
	}
	expected, err := encode.ExpandTopic(template, map[string]string{"device": s.device, "name": name})
	return name, err == nil && expected == topic
}

// execute handles commands one after the other until quit is closed. ctx ends what a command
// does, and the wait for its reply's acknowledgement.
func (s *Session) execute(ctx context.Context, quit <-chan struct{}) {
	for {
		select {
		case <-quit:
			return
		default:
		}
		select {
		case <-quit:
			return
		case d := <-s.inbox.queue:
			s.inbox.bytes.Add(-int64(len(d.message.Payload())))
			s.answer(ctx, d)
		}
	}
}

// answer handles one command. What is not acknowledged here comes again on the next link, and
// the journal behind handle then knows the answer.
func (s *Session) answer(ctx context.Context, d delivery) {
	select {
	case <-d.link.lost:
		return
	default:
	}
	s.count(func(st *Status) { st.Commands++ })
	id, reply := s.handle(ctx, Command{
		Name: d.name, Payload: d.message.Payload(),
		Retained: d.message.Retained(), Duplicate: d.message.Duplicate(),
	})
	if id != "" && len(reply) > 0 {
		topic, err := encode.ExpandTopic(s.config.Topics.Reply, map[string]string{"device": s.device, "id": id})
		if err == nil {
			err = d.link.deliver(ctx, notice{topic, reply, 1, false})
		}
		if err != nil {
			s.log.LogAttrs(ctx, slog.LevelInfo, "reply not delivered; the command will come again",
				slog.String("name", d.name), slog.Any("err", err))
			return
		}
	}
	d.message.Ack()
}

// announce publishes the status, and again whenever it is asked to, until ctx ends or the
// link does.
func (l *link) announce(ctx context.Context) {
	s := l.session
	for {
		message := s.online()
		if err := l.deliver(ctx, notice{s.topics.status, message, 1, true}); err != nil {
			return
		}
		if s.heardOf != nil {
			s.heardOf(message)
		}
		select {
		case <-s.announcements:
		case <-ctx.Done():
			return
		}
	}
}
