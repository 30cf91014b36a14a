package hw

import (
	"context"
	"encoding/hex"
	"time"

	"ferrule/hw/frame"
	"ferrule/hw/mbus"
	"ferrule/hw/modbus"
	"ferrule/hw/port"
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
	faultFrame
	faultPort
	faultSink
	faultCount
)

var faultNames = [faultCount]string{faultTimeout: "timeout", faultCRC: "crc", faultMismatch: "mismatch",
	faultException: "exception", faultValue: "value", faultFrame: "frame", faultPort: "port", faultSink: "sink"}

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
	Role     Role      `json:"role"`
	Settings string    `json:"settings"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`             // of the state
	Problem  string    `json:"problem,omitempty"` // why the port is not open
	// Polls counts the polls of all units since the start, probes included.
	Polls uint64 `json:"polls"`
	// Errors counts since the start: timeout, crc, mismatch and exception (transactions, the
	// first try and the second alike), value (points whose registers held no value), frame
	// (frames heard that could not be decoded), port (the port went away or could not be opened, for another reason than before), sink (polls that
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
	// Wire counts what was seen on the wire: a modbus.Stats since Run began, or since the port was
	// opened an mbus.Stats, a modbus.SnifferStats, a modbus.ServerStats, or the frame.Stats of a
	// line that hears talkers.
	Wire any `json:"wire"`
	// UART counts the errors that the port's driver saw since it was loaded; absent where it does not.
	UART *port.Counters `json:"uart,omitempty"`
	// The last frame that could not be decoded, where no unit can be named for it: why, and its
	// bytes in hex.
	LastError   string       `json:"last_error,omitempty"`
	LastErrorAt time.Time    `json:"last_error_at,omitzero"`
	LastFrame   string       `json:"last_frame,omitempty"`
	Units       []UnitStatus `json:"units"`
}

// wire is what was seen on a line, by its protocol.
type wire struct {
	modbus modbus.Stats
	mbus   mbus.Stats
	frames frame.Stats
	heard  modbus.SnifferStats
	served modbus.ServerStats
}

// wrong is the last frame that could not be decoded.
type wrong struct {
	err   error
	at    time.Time
	frame []byte
}

// maxWrong is how many bytes of a frame are kept for people to look at.
const maxWrong = 256

func (w *wrong) note(err error, frame []byte, at time.Time) {
	w.err, w.at = err, at
	if len(frame) > 0 { // silence after a wrong answer leaves that to look at
		w.frame = append(w.frame[:0], frame[:min(len(frame), maxWrong)]...)
	}
}

func (w *wrong) text() (problem, frame string) {
	if w.err == nil {
		return "", ""
	}
	return w.err.Error(), hex.EncodeToString(w.frame)
}

// UnitStatus is a unit as it is now.
type UnitStatus struct {
	Name    string    `json:"name"`
	Address int       `json:"address"`
	State   UnitState `json:"state"`
	Polls   uint64    `json:"polls"`
	// Uom is the unit of measure of each configured point that has one. It is not to be changed.
	Uom map[string]string `json:"uom,omitempty"`
	// Errors counts timeout, crc, mismatch, exception, value and frame, as on the line.
	Errors      map[string]uint64 `json:"errors"`
	LastError   string            `json:"last_error,omitempty"`
	LastErrorAt time.Time         `json:"last_error_at,omitzero"`
	LastFrame   string            `json:"last_frame,omitempty"` // the last wrong answer, in hex
	// TimeoutMilliseconds is how long the unit may take now to begin its answer.
	TimeoutMilliseconds float64 `json:"timeout_ms,omitempty"`
	// Backoff is in seconds, between the last probe of a degraded unit and the next.
	Backoff   float64   `json:"backoff,omitempty"`
	NextProbe time.Time `json:"next_probe,omitzero"`
}

// Status may be called from any goroutine, whatever the line does.
func (l *Line) Status() Status {
	uart := l.uart()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		Name:        l.config.Name,
		Port:        l.config.Port,
		Protocol:    l.protocol.name,
		Role:        l.role,
		Settings:    l.plan.Settings,
		State:       l.state,
		Since:       l.since,
		Polls:       l.polls,
		Errors:      l.errors.byName(faultTimeout, faultSink),
		LoadPercent: l.usage.percent(time.Now()),
		MissedSlots: l.missed,
		Wire:        l.wireOf(),
		UART:        uart,
		LastErrorAt: l.wrong.at,
		Units:       make([]UnitStatus, 0, len(l.units)),
	}
	s.LastError, s.LastFrame = l.wrong.text()
	if l.problem != nil {
		s.Problem = l.problem.Error()
	}
	s.P50Milliseconds, s.P95Milliseconds = l.latency.quantiles()
	for _, u := range l.units {
		s.Units = append(s.Units, u.status())
	}
	return s
}

// uart asks the port for its counters; nil where it has none, or is not open.
func (l *Line) uart() *port.Counters {
	l.mu.Lock()
	p := l.port
	l.mu.Unlock()
	if p == nil {
		return nil
	}
	c, err := p.Counters()
	if err != nil {
		return nil
	}
	return &c
}

// wireOf returns the counts of the line's protocol.
func (l *Line) wireOf() any {
	switch {
	case l.role == UnitRole:
		return l.wire.served
	case l.role == Listen && l.protocol.registers:
		return l.wire.heard
	case l.protocol.registers:
		return l.wire.modbus
	case l.protocol.addressed:
		return l.wire.mbus
	}
	return l.wire.frames
}

func (u *unit) status() UnitStatus {
	s := UnitStatus{
		Name:        u.name,
		Address:     int(u.address),
		State:       u.state,
		Polls:       u.polls,
		Uom:         u.uom,
		Errors:      u.errors.byName(faultTimeout, faultFrame),
		LastErrorAt: u.wrong.at,
	}
	s.LastError, s.LastFrame = u.wrong.text()
	if u.waits > 0 || u.timeout > 0 {
		s.TimeoutMilliseconds = milliseconds(u.patience())
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
	l.driver.count(&l.wire)
	l.usage.add(end, took)
	if how == answered {
		l.latency.add(took)
		return took
	}
	l.errors[kind]++
	if u != nil {
		u.errors[kind]++
		u.wrong.note(err, wrongFrame(err), end)
	}
	return took
}
