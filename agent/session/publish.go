package session

import (
	"context"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"ferrule/agent/outbox"
)

const (
	// joinBytes is how large a message of several entries gets.
	joinBytes = 16 << 10
	// runEntries is how many entries are taken from the outbox at a time to be joined.
	runEntries = 1024
	// runBytes is how many bytes are taken from it at a time where nothing is joined.
	runBytes = 64 << 10
)

// message is one PUBLISH: one entry, or several joined.
type message struct {
	topic   string
	payload []byte
	parts   [][]byte // of a message that is still being joined
	size    int      // of parts
	first   uint64   // its first entry
	last    uint64   // its last entry
	ack     uint64   // settles all entries up to this one; 0: a later message does
	token   mqtt.Token
}

// chunk is a run of messages that were handed to paho together.
type chunk struct {
	messages []message
}

// feed takes entries from the outbox and publishes them until ctx ends or the link does.
func (l *link) feed(ctx context.Context) {
	defer close(l.flight)
	s := l.session
	topics := 1 // that the last run had
	for {
		caution := s.suspect.caution()
		if caution && !l.aloneAndAlive(ctx) {
			return
		}
		free := l.window.room(ctx)
		if free == 0 {
			return
		}
		entries, bytes := free, runBytes
		if s.join != nil {
			entries, bytes = runEntries, joinBytes*min(topics, free)
		}
		if caution {
			entries = 1
		}
		run, err := s.outbox.Next(ctx, entries, bytes)
		if err != nil {
			return
		}
		messages := s.compose(run)
		topics = len(messages)
		if !l.send(ctx, messages) {
			return
		}
	}
}

// aloneAndAlive waits until nothing is in flight and the broker has answered a ping.
func (l *link) aloneAndAlive(ctx context.Context) bool {
	if !l.window.empty(ctx) {
		return false
	}
	l.conn.forgetPong()
	if _, err := l.conn.Write(pingreq[:]); err != nil {
		return false
	}
	select {
	case <-l.conn.ponged:
		return true
	case <-ctx.Done():
		return false
	}
}

// compose makes messages of a run of entries. Entries of one topic share a message up to
// joinBytes; their order is kept within it and from one to the next. A joined run is settled
// as a whole, by its last message.
func (s *Session) compose(run []outbox.Entry) []message {
	if s.join == nil || len(run) == 1 {
		messages := make([]message, len(run))
		for i, e := range run {
			messages[i] = message{topic: e.Topic, payload: e.Payload, first: e.ID, last: e.ID, ack: e.ID}
		}
		return messages
	}
	var messages []message
	open := make(map[string]int) // the message that takes more of a topic
	for _, e := range run {
		at, ok := open[e.Topic]
		if !ok || messages[at].size+len(e.Payload) > joinBytes {
			at = len(messages)
			messages = append(messages, message{topic: e.Topic, first: e.ID})
			open[e.Topic] = at
		}
		m := &messages[at]
		m.parts = append(m.parts, e.Payload)
		m.size += len(e.Payload) + 1
		m.last = e.ID
	}
	for i := range messages {
		m := &messages[i]
		if m.payload = m.parts[0]; len(m.parts) > 1 {
			m.payload = s.join(make([]byte, 0, m.size+1), m.parts)
		}
		m.parts = nil
	}
	messages[len(messages)-1].ack = run[len(run)-1].ID
	return messages
}

// send publishes messages as the window and the rate allow. What ctx or the link's end keeps
// from being sent is owed, and sent on the next link.
func (l *link) send(ctx context.Context, messages []message) bool {
	s := l.session
	for len(messages) > 0 {
		n := min(l.window.room(ctx), len(messages))
		if n > 0 {
			n = l.pacer.take(ctx, n)
		}
		if n == 0 {
			return false
		}
		c := &chunk{messages: messages[:n:n]}
		l.window.add(n)
		l.conn.expect(n)
		for i := range c.messages {
			m := &c.messages[i]
			m.token = l.publish(m.topic, m.payload, false)
			m.payload = nil
		}
		s.count(func(st *Status) { st.Published += uint64(n) })
		l.flight <- c // has room: it holds as many chunks as the window messages
		messages = messages[n:]
	}
	return true
}

// owed is what was in flight when a link ended.
type owed struct {
	messages int
	first    uint64 // the entry at the head
	last     uint64 // the last entry
}

// reap acknowledges to the outbox what the broker acknowledged, in order. It ends when the
// publisher has ended and nothing is in flight any more, or with the link. It does not wait
// for the publisher then: paho's Publish may hang for a write timeout when its client ends.
func (l *link) reap() {
	for {
		select {
		case c, ok := <-l.flight:
			if !ok {
				return
			}
			l.settle(c)
		case <-l.lost:
			for {
				select {
				case c, ok := <-l.flight:
					if !ok {
						return
					}
					l.settle(c)
				default:
					return
				}
			}
		}
	}
}

// settle waits for the messages of c and acknowledges them up to the first that was not.
func (l *link) settle(c *chunk) {
	// Brokers acknowledge in order (MQTT 3.1.1, 4.6), so the last one wakes us once for all.
	// That the others have ended too is asked, not assumed.
	select {
	case <-c.messages[len(c.messages)-1].token.Done():
	case <-l.lost:
	}
	var ack uint64
	n := 0
	for ; n < len(c.messages) && l.owed.messages == 0; n++ {
		m := &c.messages[n]
		select {
		case <-m.token.Done():
		case <-l.lost:
		}
		if !acknowledged(m.token) {
			l.conn.fail(tokenError(m.token))
			<-l.lost // or a later one might be taken for this one's
			break
		}
		if m.ack != 0 {
			ack = m.ack
		}
	}
	if ack != 0 {
		l.session.outbox.Ack(ack)
		l.session.suspect.acked(ack)
	}
	l.window.done(n)
	l.session.count(func(st *Status) { st.Acked += uint64(n) })
	for _, m := range c.messages[n:] {
		if l.owed.messages == 0 {
			l.owed.first = m.first
		}
		l.owed.messages++
		l.owed.last = max(l.owed.last, m.last)
	}
}

func tokenError(token mqtt.Token) error {
	if err := token.Error(); err != nil {
		return err
	}
	return errDisconnected
}
