package hw

import (
	"context"
	"slices"
	"time"

	"ferrule/hw/modbus"
)

// fault is a kind of error, as it is counted.
type fault uint8

const (
	noFault fault = iota
	faultTimeout
	faultCRC
	faultMismatch
	faultException
	faultValue
	faultPort
	faultSink
	faultCount
)

var faultNames = [faultCount]string{faultTimeout: "timeout", faultCRC: "crc", faultMismatch: "mismatch",
	faultException: "exception", faultValue: "value", faultPort: "port", faultSink: "sink"}

// faults counts by kind.
type faults [faultCount]uint64

// byName returns the counts of the kinds from first to last.
func (f *faults) byName(first, last fault) map[string]uint64 {
	m := make(map[string]uint64)
	for kind := first; kind <= last; kind++ {
		m[faultNames[kind]] = f[kind]
	}
	return m
}

// Status is a line as it is now.
type Status struct {
	Name     string    `json:"name"`
	Port     string    `json:"port"`
	Protocol string    `json:"protocol"`
	Settings string    `json:"settings"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`             // of the state
	Problem  string    `json:"problem,omitempty"` // why the port is not open
	// Polls counts the polls of all units since the start, probes included.
	Polls uint64 `json:"polls"`
	// Errors counts since the start: timeout, crc, mismatch and exception (transactions, the
	// first try and the second alike), value (points whose registers held no value), port (the
	// port went away or could not be opened, for another reason than before), sink (polls that
	// could not be stored).
	Errors map[string]uint64 `json:"errors"`
	// LoadPercent is the share of the last minute, or of the time since the start if that is
	// shorter, in which the line was taken: requests, answers and waiting for them.
	LoadPercent float64 `json:"load_percent"`
	// MissedSlots counts polls that were due and left out because the line was busy.
	MissedSlots uint64 `json:"missed_slots"`
	// P50Milliseconds and P95Milliseconds are of the last 256 answered transactions.
	P50Milliseconds float64 `json:"p50_ms"`
	P95Milliseconds float64 `json:"p95_ms"`
	// Wire counts what was seen on the wire since the start.
	Wire  modbus.Stats `json:"wire"`
	Units []UnitStatus `json:"units"`
}

// UnitStatus is a unit as it is now.
type UnitStatus struct {
	Name    string    `json:"name"`
	Address int       `json:"address"`
	State   UnitState `json:"state"`
	Polls   uint64    `json:"polls"`
	// Errors counts timeout, crc, mismatch, exception and value, as on the line.
	Errors      map[string]uint64 `json:"errors"`
	LastError   string            `json:"last_error,omitempty"`
	LastErrorAt time.Time         `json:"last_error_at,omitzero"`
	// Backoff is in seconds, between the last probe of a degraded unit and the next.
	Backoff   float64   `json:"backoff,omitempty"`
	NextProbe time.Time `json:"next_probe,omitzero"`
}

// Status may be called from any goroutine, whatever the line does.
func (l *Line) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		Name:        l.config.Name,
		Port:        l.config.Port,
		Protocol:    orDefault(l.config.Protocol, defaultProtocol),
		Settings:    l.plan.Settings,
		State:       l.state,
		Since:       l.since,
		Polls:       l.polls,
		Errors:      l.errors.byName(faultTimeout, faultSink),
		LoadPercent: l.usage.percent(time.Now()),
		MissedSlots: l.missed,
		Wire:        l.wire,
		Units:       make([]UnitStatus, 0, len(l.units)),
	}
	if l.problem != nil {
		s.Problem = l.problem.Error()
	}
	s.P50Milliseconds, s.P95Milliseconds = l.latency.quantiles()
	for _, u := range l.units {
		s.Units = append(s.Units, u.status())
	}
	return s
}

func (u *unit) status() UnitStatus {
	s := UnitStatus{
		Name:        u.name,
		Address:     int(u.address),
		State:       u.state,
		Polls:       u.polls,
		Errors:      u.errors.byName(faultTimeout, faultValue),
		LastErrorAt: u.lastErrorAt,
	}
	if u.lastError != nil {
		s.LastError = u.lastError.Error()
	}
	if u.state == UnitDegraded {
		s.Backoff, s.NextProbe = u.backoff.Seconds(), u.probe
	}
	return s
}

// count runs f under the lock.
func (l *Line) count(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// account notes a transaction that began at start and is over, and returns what it took. u is
// nil for an address without a unit.
func (l *Line) account(ctx context.Context, u *unit, start time.Time, how outcome, kind fault, err error) time.Duration {
	end := time.Now()
	took := end.Sub(start)
	if how == broken {
		return took // counted where the port is opened again
	}
	l.carried(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wire = sum(l.wireBefore, l.master.Stats())
	l.usage.add(end, took)
	if how == answered {
		l.latency.add(took)
		return took
	}
	l.errors[kind]++
	if u != nil {
		u.errors[kind]++
		u.lastError, u.lastErrorAt = err, end
	}
	return took
}

// sum adds up what two ports saw.
func sum(a, b modbus.Stats) modbus.Stats {
	return modbus.Stats{
		Requests: a.Requests + b.Requests, Responses: a.Responses + b.Responses, Exceptions: a.Exceptions + b.Exceptions,
		Timeouts: a.Timeouts + b.Timeouts, CRCErrors: a.CRCErrors + b.CRCErrors, Mismatches: a.Mismatches + b.Mismatches,
		Foreign: a.Foreign + b.Foreign, Late: a.Late + b.Late, Barriers: a.Barriers + b.Barriers,
		Echoes: a.Echoes + b.Echoes, Garbage: a.Garbage + b.Garbage, WireTime: a.WireTime + b.WireTime,
	}
}

const window = 60 // seconds that usage looks back

// usage is how long the line was taken in each of the last seconds.
type usage struct {
	start  time.Time // of the first transaction
	taken  [window]time.Duration
	second int64 // of the newest slot, from start
}

// add notes that the line was taken for d until now.
func (u *usage) add(now time.Time, d time.Duration) {
	if u.start.IsZero() {
		u.start = now.Add(-d)
	}
	u.forward(now)
	u.taken[u.second%window] += d
}

// forward empties the slots that time has passed since the last call.
func (u *usage) forward(now time.Time) {
	second := int64(now.Sub(u.start) / time.Second)
	for n := 0; u.second < second && n < window; n++ {
		u.second++
		u.taken[u.second%window] = 0
	}
	u.second = max(u.second, second)
}

func (u *usage) percent(now time.Time) float64 {
	if u.start.IsZero() {
		return 0
	}
	u.forward(now)
	var sum time.Duration
	for _, d := range u.taken {
		sum += d
	}
	past := min(now.Sub(u.start), (window-1)*time.Second+now.Sub(u.start)%time.Second)
	if past <= 0 {
		return 0
	}
	return min(100, 100*float64(sum)/float64(past))
}

// latency is the last transactions that were answered.
type latency struct {
	took [256]time.Duration
	n    uint64
}

func (l *latency) add(d time.Duration) {
	l.took[l.n%uint64(len(l.took))] = d
	l.n++
}

// quantiles returns the median and the 95th percentile in milliseconds.
func (l *latency) quantiles() (p50, p95 float64) {
	n := int(min(l.n, uint64(len(l.took))))
	if n == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(l.took[:n]))
	return milliseconds(sorted[n/2]), milliseconds(sorted[n*95/100])
}
