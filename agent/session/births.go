package session

import (
	"context"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"ferrule/agent/encode"
)

// rebirthEvery is the shortest time between births that somebody asks for.
const rebirthEvery = time.Second

// begin publishes what must go before the first reading of a connection. Hosts may ask for it again
// as soon as they see it, so SUBSCRIBE comes first.
func (l *link) begin(ctx context.Context) bool {
	s := l.session
	if s.format == nil {
		return true
	}
	if s.hostFilter != "" {
		select {
		case <-l.hears:
		case <-ctx.Done():
			return false
		}
	}
	return l.births(ctx, true)
}

// births publishes what the format wants known before readings go on, in order, and waits until it
// is acknowledged.
func (l *link) births(ctx context.Context, connected bool) bool {
	for list := l.session.format.Births(connected); len(list) > 0; {
		n := min(l.window.room(ctx), len(list))
		if n == 0 || !l.bear(ctx, list[:n]) {
			return false
		}
		list = list[n:]
	}
	return true
}

// bear publishes a window of births and waits for their acknowledgements.
func (l *link) bear(ctx context.Context, list []encode.Message) bool {
	l.window.add(len(list))
	defer l.window.done(len(list))
	l.conn.expect(len(list))
	tokens := make([]mqtt.Token, len(list))
	for i, m := range list {
		tokens[i] = l.hand(func() mqtt.Token { return l.client.Publish(m.Topic, m.QoS, m.Retained, m.Payload) })
	}
	l.session.count(func(st *Status) { st.Published += uint64(len(list)) })
	for _, token := range tokens {
		select {
		case <-token.Done():
		case <-l.lost:
			return false
		case <-ctx.Done():
			return false
		}
		if token.Error() != nil {
			return false
		}
		l.session.count(func(st *Status) { st.Acked++ })
	}
	return true
}

// fromHost takes what came on the format's own subscription. What the broker had kept is old.
func (l *link) fromHost(m mqtt.Message) {
	defer m.Ack()
	if m.Retained() || !l.session.format.Receive(m.Topic(), m.Payload()) {
		return
	}
	l.reborn.Do(func() {
		l.session.stale.Go(l.rebear)
	})
	ask(l.wanted)
}

// rebear lets births that hosts ask for go, one time in rebirthEvery. It ends with the link.
func (l *link) rebear() {
	for {
		select {
		case <-l.wanted:
			ask(l.rebirths)
		case <-l.lost:
			return
		}
		select {
		case <-time.After(rebirthEvery):
		case <-l.lost:
			return
		}
	}
}
