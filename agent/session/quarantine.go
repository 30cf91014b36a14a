package session

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"ferrule/agent/session/cause"
)

const (
	// swallowMost is the largest message that is read to be forgotten; a larger one costs too much,
	// each time that it comes.
	swallowMost = 4 << 20
	// swallowFor is how long that may take.
	swallowFor = 10 * time.Minute
	// heldBack is how long nothing is subscribed to after a message larger than swallowMost.
	heldBack = time.Hour
	// mostPoison bounds what is remembered.
	mostPoison = 16
	// So many connections may end in strikesIn, by whatever messages: then all that is too large
	// is poison at once, for as long.
	mostStrikes = 2 * strikes
	strikesIn   = time.Hour
)

// Quarantined is a message that ended three connections. It is skipped, and acknowledged so that
// the broker forgets it.
type Quarantined struct {
	// Topic, its first 200 bytes; empty where its length is wrong.
	Topic string `json:"topic"`
	Size  int64  `json:"size"` // of the packet, in bytes
	// Retained messages come again with every subscription, until somebody removes them.
	Retained bool      `json:"retained,omitempty"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	// Ended is how many connections it ended, Skipped how often it was skipped since.
	Ended   int    `json:"ended"`
	Skipped uint64 `json:"skipped"`
}

// quarantine remembers the messages of the broker that end connections, so that they do not end
// all: a retained one comes with every SUBSCRIBE, and one that is queued with every CONNECT.
type quarantine struct {
	seed maphash.Seed

	mu      sync.Mutex
	known   map[uint64]*Quarantined
	strikes []time.Time // the last mostStrikes
	until   time.Time   // nothing is subscribed to before
}

func newQuarantine() *quarantine {
	return &quarantine{seed: maphash.MakeSeed(), known: make(map[uint64]*Quarantined)}
}

// judge is asked about p, which cannot be taken: nil says that it is to be skipped, and an error
// what the connection ends with. max is the limit.
func (q *quarantine) judge(p poison, max int64, now time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	known := q.known[p.key]
	if known == nil {
		known = &Quarantined{Topic: p.topic, Size: p.size, First: now, Last: now}
		q.forget()
		q.known[p.key] = known
	}
	known.Last, known.Retained = now, known.Retained || p.retained
	guilty := known.Ended >= strikes || q.flooded(now)
	if guilty && p.size <= swallowMost {
		return nil
	}
	if guilty {
		q.until = now.Add(heldBack)
	}
	if known.Ended++; known.Ended >= strikes && p.size > swallowMost {
		q.until = now.Add(heldBack)
	}
	q.strikes = append(q.strikes, now)
	if len(q.strikes) > mostStrikes {
		q.strikes = q.strikes[1:]
	}
	return p.refusal(max)
}

// flooded says whether mostStrikes connections ended of late.
func (q *quarantine) flooded(now time.Time) bool {
	return len(q.strikes) == mostStrikes && now.Sub(q.strikes[0]) < strikesIn
}

// forget makes room for one more: it drops what came longest ago.
func (q *quarantine) forget() {
	if len(q.known) < mostPoison {
		return
	}
	var oldest uint64
	var at time.Time
	for key, known := range q.known {
		if at.IsZero() || known.Last.Before(at) {
			oldest, at = key, known.Last
		}
	}
	delete(q.known, oldest)
}

// skipped counts, and says whether it was the first time.
func (q *quarantine) skipped(p poison) (first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	known := q.known[p.key]
	if known == nil {
		return false
	}
	known.Skipped++
	return known.Skipped == 1
}

// heldUntil returns when subscribing goes on; the zero time: it may.
func (q *quarantine) heldUntil(now time.Time) time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Before(q.until) {
		return q.until
	}
	return time.Time{}
}

// retained says whether a message is known that would come again with another SUBSCRIBE.
func (q *quarantine) retained() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, known := range q.known {
		if known.Retained {
			return true
		}
	}
	return false
}

// list returns what is quarantined, what came last first.
func (q *quarantine) list() []Quarantined {
	q.mu.Lock()
	defer q.mu.Unlock()
	var all []Quarantined
	for _, known := range q.known {
		if known.Ended >= strikes || known.Skipped > 0 {
			all = append(all, *known)
		}
	}
	slices.SortFunc(all, func(a, b Quarantined) int { return b.Last.Compare(a.Last) })
	return all
}

// quarantined is told of a PUBLISH that was skipped, and answers it so that the broker forgets
// it. The rest of QoS 2 is paho's: it answers PUBREL by itself.
func (l *link) quarantined(p poison) error {
	s := l.session
	if s.quarantine.skipped(p) {
		s.note(cause.Failure{Stage: cause.StageUp, Cause: cause.Poison, Side: cause.SideBroker,
			Text: fmt.Sprintf("a message of %d bytes on %q ended three connections and is skipped from now on", p.size, p.topic),
			Hint: "find who publishes it, and remove it from the broker where it is retained"})
	}
	if p.malformed || p.qos == 0 {
		return nil
	}
	kind := byte(packetPuback)
	if p.qos == 2 {
		kind = packetPubrec
	}
	_, err := l.conn.Write([]byte{kind << 4, 2, byte(p.id >> 8), byte(p.id)})
	return err
}
