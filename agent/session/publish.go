package session

import (
	"context"
	"slices"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"ferrule/agent/outbox"
)

const (
	// joinBytes is how large a message of several entries gets where nobody says.
	joinBytes = 16 << 10
	// runEntries is how many entries are taken from the outbox at a time to be joined.
	runEntries = 1024
	// runBytes is how many bytes are taken from it at a time where nothing is joined.
	runBytes = 64 << 10
)

// message is one PUBLISH: one entry, or several joined.
type message struct {
	topic   string
	run     []outbox.Entry // those that are still to be joined
	payload []byte         // nil: they are
	head    entryKey       // of its first entry
	first   uint64         // its first entry
	entries int
	watched []entryKey // of its entries, the suspect's
	ack     uint64     // settles all entries up to this one; 0: a later message does
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
	if !l.standQuiet(ctx) {
		return
	}
	l.fed.Store(true)
	if !l.begin(ctx) {
		return
	}
	topics := 1 // that the last run had
	for {
		single, last := s.suspect.caution()
		if single && !l.aloneAndAlive(ctx, last) {
			return
		}
		free := l.window.room(ctx)
		if free == 0 {
			return
		}
		if s.format != nil && !l.births(ctx, false) {
			return
		}
		want := s.want(free, topics)
		if single {
			want.Entries, want.MaxAge = 1, 0
		}
		run, err := l.next(ctx, want)
		if err != nil {
			return
		}
		if len(run) == 0 {
			continue // births are due, or a day has ended
		}
		messages := s.compose(run)
		topics = len(messages)
		if !l.send(ctx, messages) {
			return
		}
	}
}

// want says what is taken from the outbox when free places are in the window.
func (s *Session) want(free, topics int) outbox.Want {
	if s.format == nil {
		return outbox.Want{Entries: free, Bytes: runBytes}
	}
	return outbox.Want{
		Entries: runEntries, Bytes: s.batch.MaxBytes * min(topics, free),
		MaxAge: s.batch.MaxAge, BatchBytes: s.batch.MaxBytes,
	}
}

// next waits for a run of entries that the budget allows. It returns none where something else is
// to be looked at first: births, or a new day.
func (l *link) next(ctx context.Context, want outbox.Want) ([]outbox.Entry, error) {
	s := l.session
	s.meter.read()
	some, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := l.interrupt(some, cancel)
	defer stop()
	room, ends := s.budget.room(false)
	if room < leastRun {
		return l.nextUrgent(ctx, some, want, ends)
	}
	want.Bytes = int(min(int64(want.Bytes), room))
	run, err := s.source.Next(some, want)
	if err != nil && ctx.Err() == nil && some.Err() != nil {
		return nil, nil
	}
	return run, err
}

// nextUrgent waits for urgent entries, or until the budget's day ends.
func (l *link) nextUrgent(ctx, some context.Context, want outbox.Want, ends time.Time) ([]outbox.Entry, error) {
	s := l.session
	some, cancel := context.WithTimeout(some, max(min(time.Until(ends), time.Hour), time.Second))
	defer cancel()
	room, _ := s.budget.room(true)
	if room < leastRun {
		<-some.Done()
		return nil, ctx.Err()
	}
	want.Urgent, want.Bytes = true, int(min(int64(want.Bytes), room))
	run, err := s.source.Next(some, want)
	if err != nil && ctx.Err() == nil && some.Err() != nil {
		return nil, nil
	}
	return run, err
}

// interrupt calls cancel when births are due. The function it returns ends that.
func (l *link) interrupt(ctx context.Context, cancel context.CancelFunc) (stop func()) {
	if l.session.hostFilter == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() { // ends with ctx, or when births are due
		defer close(done)
		select {
		case <-l.rebirths:
			cancel()
		case <-ctx.Done():
		}
	}()
	return func() { cancel(); <-done }
}

// suspectQuiet is how long a connection stands without the entry that may be convicted on it.
const suspectQuiet = 5 * time.Second

// aloneAndAlive waits until nothing is in flight and the broker has answered a ping; for the last
// try, until the connection has stood for a while so.
func (l *link) aloneAndAlive(ctx context.Context, last bool) bool {
	if !l.window.empty(ctx) {
		return false
	}
	if last {
		quiet := time.NewTimer(l.session.timeouts.alone)
		defer quiet.Stop()
		select {
		case <-quiet.C:
		case <-ctx.Done():
			return false
		}
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

// compose makes messages of a run of entries, which are joined when their turn comes. Entries of
// one topic share a message up to batch.MaxBytes; their order is kept within it and from one to the
// next. A joined run is settled as a whole, by its last message.
func (s *Session) compose(run []outbox.Entry) []message {
	if s.format == nil {
		messages := make([]message, len(run))
		for i, e := range run {
			messages[i] = message{topic: e.Topic, payload: e.Payload, head: keyOf(e), first: e.ID, entries: 1, ack: e.ID, watched: s.suspect.watched(run[i : i+1])}
			if e.Payload == nil {
				messages[i].payload = []byte{}
			}
		}
		return messages
	}
	watched := s.suspect.watched(run)
	var messages []message
	sizes := make([]int, 0, 8)
	open := make(map[string]int) // the message that takes more of a topic
	for _, e := range run {
		at, ok := open[e.Topic]
		if !ok || sizes[at]+len(e.Payload)+1 > s.batch.MaxBytes { // with what closes an array
			at = len(messages)
			messages = append(messages, message{topic: e.Topic, head: keyOf(e), first: e.ID})
			sizes = append(sizes, 0)
			open[e.Topic] = at
		}
		m := &messages[at]
		m.run = append(m.run, e)
		sizes[at] += len(e.Payload) + 1
		m.entries++
		if slices.Contains(watched, keyOf(e)) {
			m.watched = append(m.watched, keyOf(e))
		}
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
		ready := s.join(messages[:n])
		l.pacer.give(n - ready)
		if ready == 0 {
			var ok bool
			if messages, ok = l.unjoined(ctx, messages); !ok {
				return false
			}
			continue
		}
		c := &chunk{messages: messages[:ready:ready]}
		l.window.add(ready)
		l.conn.expect(ready)
		for i := range c.messages {
			m := &c.messages[i]
			m.token = l.publish(m.topic, m.payload, false)
			m.payload, m.run = nil, nil
		}
		s.count(func(st *Status) { st.Published += uint64(ready) })
		l.flight <- c // has room: it holds as many chunks as the window messages
		messages = messages[ready:]
	}
	return true
}

// join makes the payloads of messages, in order, and returns how many it made. What follows waits
// for births, or is too large.
func (s *Session) join(messages []message) int {
	for i := range messages {
		m := &messages[i]
		if m.payload != nil {
			continue
		}
		parts, size := make([][]byte, len(m.run)), 1
		for k, e := range m.run {
			parts[k] = e.Payload
			size += len(e.Payload) + 1
		}
		if m.payload = s.format.Join(make([]byte, 0, size), m.topic, parts); len(m.payload) == 0 {
			m.payload = nil
			return i
		}
	}
	return len(messages)
}

// unjoined sees to the first of messages, which could not be joined: it publishes the births that are
// due, or halves it. One entry alone that makes no message at all would hold up everything: it is
// sent as it is.
func (l *link) unjoined(ctx context.Context, messages []message) ([]message, bool) {
	if !l.births(ctx, false) {
		return nil, false
	}
	m := &messages[0]
	if l.session.join(messages[:1]) == 1 {
		return messages, true
	}
	if len(m.run) == 1 {
		m.payload = append([]byte{}, m.run[0].Payload...)
		return messages, true
	}
	half := len(m.run) / 2
	rest := *m // what is watched of it counts for both: it is cleared once either is acknowledged
	rest.run, m.run = m.run[half:], m.run[:half:half]
	rest.head, rest.first = keyOf(rest.run[0]), rest.run[0].ID
	m.entries, rest.entries, m.ack = half, m.entries-half, 0
	return slices.Insert(messages, 1, rest), true
}

// owed is what was in flight when a link ended.
type owed struct {
	messages int
	entries  int
	head     entryKey // of the entry at the head
	first    uint64   // the entry at the head
}

// reap acknowledges to the outbox what the broker acknowledged, in order. It ends when the
// publisher has ended and nothing is in flight any more. A publisher whose link has ended is on its way
// out, perhaps with messages in hand that the broker has acknowledged; paho may hold it up for a
// moment, and a disk for longer than is waited for.
func (l *link) reap() {
	lost := l.lost
	var late <-chan time.Time
	for {
		select {
		case c, ok := <-l.flight:
			if !ok {
				return
			}
			l.settle(c)
		case <-lost:
			lost = nil
			patience := time.NewTimer(4 * handOver)
			defer patience.Stop()
			late = patience.C
		case <-late:
			return
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
	n, entries := 0, 0
	var watched []entryKey
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
		entries += m.entries
		watched = append(watched, m.watched...)
	}
	if ack != 0 {
		l.session.source.Ack(ack)
	}
	if entries > 0 {
		l.session.suspect.acked(entries, watched)
	}
	l.window.done(n)
	l.session.count(func(st *Status) { st.Acked += uint64(n) })
	for _, m := range c.messages[n:] {
		if l.owed.messages == 0 {
			l.owed.head, l.owed.first = m.head, m.first
		}
		l.owed.messages++
		l.owed.entries += m.entries
	}
}

func tokenError(token mqtt.Token) error {
	if err := token.Error(); err != nil {
		return err
	}
	return errDisconnected
}
