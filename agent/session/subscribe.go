package session

import (
	"errors"
	"fmt"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"ferrule/agent/session/cause"
)

const (
	// The first pause before a subscription is tried again on the same link; it doubles to the last.
	firstResubscribe = 30 * time.Second
	lastResubscribe  = 10 * time.Minute
	// renewSubscription is how often a subscription that stands is asked for again, give or take a
	// quarter: a broker that lost it, as one of a cluster may, says nothing. rareRenewal is for where
	// that brings a quarantined message again.
	renewSubscription = time.Hour
	rareRenewal       = 24 * time.Hour
)

// filters are what is subscribed to.
func (s *Session) filters() (filters []string) {
	for _, f := range []string{s.filter, s.hostFilter} {
		if f != "" {
			filters = append(filters, f)
		}
	}
	return filters
}

// subscribe subscribes to commands, tries again while the broker refuses, and asks again for what it
// has agreed to from time to time: readings flow meanwhile. It ends with the link.
func (l *link) subscribe() {
	s := l.session
	if len(s.filters()) == 0 {
		l.answered(false)
		return
	}
	agreed := false
	for pause := firstResubscribe; ; {
		l.repeated.Store(agreed)
		wait := pause
		held := s.quarantine.heldUntil(time.Now())
		if !held.IsZero() {
			l.answered(false)
			wait = time.Until(held)
		} else if err := l.subscribeAll(); l.over() {
			return
		} else if l.answered(err == nil); err == nil {
			agreed = true
			pause, wait = firstResubscribe, s.renewal()
		} else {
			s.note(cause.Classify(cause.StageSuback, err))
			pause = min(2*pause, lastResubscribe)
		}
		again := time.NewTimer(wait)
		select {
		case <-l.lost:
			again.Stop()
			return
		case <-again.C:
		}
	}
}

// renewal returns when the subscription is asked for again.
func (s *Session) renewal() time.Duration {
	every := s.timeouts.renewal
	if s.quarantine.retained() {
		every = max(every, rareRenewal)
	}
	return time.Duration((0.75 + s.random()/2) * float64(every))
}

// subscribeAll subscribes to one filter after the other.
func (l *link) subscribeAll() error {
	for _, filter := range l.session.filters() {
		if err := l.subscribeOnce(filter); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) subscribeOnce(filter string) error {
	limit := time.NewTimer(l.session.timeouts.suback)
	defer limit.Stop()
	token := l.hand(func() mqtt.Token { return l.client.Subscribe(filter, 1, nil) })
	select {
	case <-token.Done():
	case <-l.lost:
		return l.err
	case <-limit.C:
		return fmt.Errorf("%w within %v", cause.ErrStalled, l.session.timeouts.suback)
	}
	if err := token.Error(); err != nil { // it was not sent, or its connection ends
		l.conn.fail(err)
		<-l.lost
		return l.err
	}
	subscribed, ok := token.(*mqtt.SubscribeToken)
	if !ok {
		return errors.New("not a token of SUBSCRIBE")
	}
	if code, answered := subscribed.Result()[filter]; !answered || code > 2 {
		return fmt.Errorf("%w to %s", cause.ErrSubscription, filter)
	}
	return nil
}

// answered notes whether SUBSCRIBE was agreed to, and lets births go.
func (l *link) answered(subscribed bool) {
	l.session.answered(l, subscribed)
	l.subscribed.Do(func() { close(l.hears) })
}

// matches says whether a topic is one of a filter (MQTT 3.1.1, 4.7).
func matches(filter, topic string) bool {
	for {
		level, filterRest, more := strings.Cut(filter, "/")
		if level == "#" {
			return true
		}
		name, topicRest, deeper := strings.Cut(topic, "/")
		if level != "+" && level != name {
			return false
		}
		if !more || !deeper {
			return more == deeper || more && filterRest == "#"
		}
		filter, topic = filterRest, topicRest
	}
}
