package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/agenttest"
)

// ledger is what the broker saw: every entry before its PUBACK, and every connection.
type ledger struct {
	full, resumed atomic.Int64 // TLS handshakes

	mu       sync.Mutex
	audience audience
	arrivals []arrival
	seen     map[entryID]bool
	polls    map[pollID]bool
}

// audience is told what comes, one thing at a time.
type audience interface {
	entry(a arrival, again bool, waited time.Duration)
	connection(c agenttest.Connection)
	online(yes bool)
}

func newLedger() *ledger {
	return &ledger{seen: make(map[entryID]bool), polls: make(map[pollID]bool)}
}

// tell has somebody told from now on.
func (l *ledger) tell(to audience) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.audience = to
}

// connect notes a CONNECT.
func (l *ledger) connect(c agenttest.Connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.audience != nil {
		l.audience.connection(c)
	}
}

// handshake counts one, from the broker's side.
func (l *ledger) handshake(state tls.ConnectionState) error {
	if state.DidResume {
		l.resumed.Add(1)
	} else {
		l.full.Add(1)
	}
	return nil
}

// entry is the JSON of one entry (docs/topics.md).
type entry struct {
	Boot, Seq uint64
	T         time.Time
	Unit      string
	Readings  struct {
		Voltage, Current, Power, Energy float64
		Count                           uint32
	}
}

// take takes one message. What it cannot read it notes as of no unit.
func (l *ledger) take(m agenttest.Message) error {
	if strings.HasSuffix(m.Topic, "/status") {
		l.takeStatus(m.Payload)
		return nil
	}
	entries, err := decode(m.Payload)
	if err != nil {
		entries = []entry{{}}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		r := e.Readings
		a := arrival{
			unit: e.Unit, count: r.Count, boot: e.Boot, seq: e.Seq, at: m.At,
			values: values{float32(r.Voltage), float32(r.Current), float32(r.Power), float32(r.Energy)},
		}
		id := entryID{a.boot, a.seq}
		if l.audience != nil {
			l.audience.entry(a, l.seen[id], m.At.Sub(e.T))
		}
		l.seen[id] = true
		l.polls[pollID{a.unit, a.count}] = true
		l.arrivals = append(l.arrivals, a)
	}
	return nil
}

func (l *ledger) takeStatus(payload []byte) {
	var status struct{ Online bool }
	if json.Unmarshal(payload, &status) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.audience != nil {
		l.audience.online(status.Online)
	}
}

// decode reads one entry, or an array of them.
func decode(payload []byte) (entries []entry, err error) {
	if bytes.HasPrefix(payload, []byte("[")) {
		err = json.Unmarshal(payload, &entries)
		return entries, err
	}
	entries = make([]entry, 1)
	if err := json.Unmarshal(payload, &entries[0]); err != nil {
		return nil, fmt.Errorf("reading an entry: %w", err)
	}
	return entries, nil
}

// list is a copy of the arrivals.
func (l *ledger) list() []arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]arrival(nil), l.arrivals...)
}

// again counts deliveries of entries that had been delivered.
func (l *ledger) again() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.arrivals) - len(l.seen)
}

// boot is the highest that was seen.
func (l *ledger) boot() (highest uint64) {
	for _, a := range l.list() {
		highest = max(highest, a.boot)
	}
	return highest
}

// heardSince counts the units of which an entry of a later boot came.
func (l *ledger) heardSince(boot uint64) int {
	units := make(map[string]bool)
	for _, a := range l.list() {
		if a.boot > boot {
			units[a.unit] = true
		}
	}
	return len(units)
}

// has tells how many of these polls came.
func (l *ledger) has(polls []poll) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, p := range polls {
		if l.polls[pollID{p.unit, p.count}] {
			n++
		}
	}
	return n
}
