package hw

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/port"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// fakeBus is a line in memory, for tests in a synctest bubble: a transaction takes the time
// that cost says, an unanswered one the unit's timeout.
type fakeBus struct {
	mu      sync.Mutex
	cost    time.Duration
	thinks  time.Duration // of cost, until an answer begins
	quiet   time.Duration // that is kept before the next request
	timeout time.Duration
	units   map[byte]*fakeUnit
	gone    error // of every transaction, and of opening
	asked   []asked
	opened  int
	closed  int
}

// asked is one transaction that the bus saw.
type asked struct {
	at    time.Time
	unit  byte
	addr  modbus.Address
	count uint16
	write bool
}

// fakeUnit has registers and faults; the keys of both are addresses.
type fakeUnit struct {
	regs  map[modbus.Address]uint16
	dead  bool
	fault func(at modbus.Address, n uint16) error
}

func newBus(addresses ...byte) *fakeBus {
	b := &fakeBus{cost: 10 * time.Millisecond, units: make(map[byte]*fakeUnit)}
	for _, a := range addresses {
		b.units[a] = &fakeUnit{regs: make(map[modbus.Address]uint16)}
	}
	return b
}

func (b *fakeBus) open(_ context.Context, l *Line) (attached, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone != nil {
		return attached{}, b.gone
	}
	b.opened++
	l.driver = &registers{master: b, line: l}
	return attached{Closer: b, work: l.poll}, nil
}

func (b *fakeBus) Response(byte) time.Duration { return b.thinks }
func (b *fakeBus) SetTiming(modbus.Timing)     {}

func (b *fakeBus) Stats() modbus.Stats { return modbus.Stats{Requests: 1} }

func (b *fakeBus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed++
	return nil
}

func (b *fakeBus) SetTimeout(d time.Duration) { b.timeout = d }

func (b *fakeBus) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// seen returns all transactions up to now.
func (b *fakeBus) seen() []asked {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

// begin waits as long as the transaction takes and says how it ends.
func (b *fakeBus) begin(ctx context.Context, unit byte, at modbus.Address, n uint16, write bool) error {
	b.mu.Lock()
	b.asked = append(b.asked, asked{time.Now(), unit, at, n, write})
	u, wait := b.units[unit], b.cost+b.quiet
	var err error
	b.quiet = 0
	switch {
	case b.gone != nil:
		err, wait = b.gone, 0
	case u == nil || u.dead:
		err, wait, b.quiet = modbus.ErrTimeout, wait-b.cost+b.timeout, drained(b.thinks)
	case u.fault != nil:
		err = u.fault(at, n)
		if errors.Is(err, modbus.ErrTimeout) {
			wait = b.timeout
		}
	}
	b.mu.Unlock()
	select {
	case <-time.After(wait):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *fakeBus) Read(ctx context.Context, unit byte, at modbus.Address, n uint16, dst []byte) ([]byte, error) {
	if err := b.begin(ctx, unit, at, n, false); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at.Table.Bits() {
		dst = append(dst, make([]byte, (n+7)/8)...)
		for i := range n {
			dst[i/8] |= byte(b.units[unit].regs[modbus.Address{Table: at.Table, Offset: at.Offset + i}]) << (i % 8)
		}
		return dst, nil
	}
	for i := range n {
		v := b.units[unit].regs[modbus.Address{Table: at.Table, Offset: at.Offset + i}]
		dst = append(dst, byte(v>>8), byte(v))
	}
	return dst, nil
}

func (b *fakeBus) Write(ctx context.Context, unit byte, at modbus.Address, mask uint16, words []uint16) error {
	if err := b.begin(ctx, unit, at, uint16(len(words)), true); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range words {
		a := modbus.Address{Table: at.Table, Offset: at.Offset + uint16(i)}
		b.units[unit].regs[a] = b.units[unit].regs[a]&^mask | w&mask
	}
	return nil
}

// pollLog keeps the polls that a line hands over.
type pollLog struct {
	mu     sync.Mutex
	polls  []Poll
	refuse error
}

func (p *pollLog) sink(_ context.Context, poll Poll) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return p.refuse
	}
	poll.Readings = slices.Clone(poll.Readings)
	p.polls = append(p.polls, poll)
	return nil
}

func (p *pollLog) refuseWith(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = err
}

// take returns the polls since the last call.
func (p *pollLog) take() []Poll {
	p.mu.Lock()
	defer p.mu.Unlock()
	polls := p.polls
	p.polls = nil
	return polls
}

// of returns the polls of one unit.
func of(polls []Poll, unit string) []Poll {
	var mine []Poll
	for _, p := range polls {
		if p.Unit == unit {
			mine = append(mine, p)
		}
	}
	return mine
}

// describe is the readings of a poll on one line.
func describe(p Poll) string {
	s := ""
	for i, r := range p.Readings {
		if i > 0 {
			s += " "
		}
		s += r.Point + "="
		if r.Bad != "" {
			s += "!" + r.Bad
		} else {
			s += r.Value.String()
		}
	}
	return s
}

// bench is a line on a fake bus.
type bench struct {
	*Line
	bus   *fakeBus
	polls *pollLog
	logs  *logCounter
	start time.Time
	stop  func()
}

// run starts a line on the bus; the test, or stop, ends it. Only inside a synctest bubble.
func run(t *testing.T, c LineConfig, bus *fakeBus) *bench {
	t.Helper()
	b := build(t, c, bus)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	b.start = time.Now()
	go func() { ended <- b.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

func build(t testing.TB, c LineConfig, bus *fakeBus) *bench {
	t.Helper()
	b := &bench{bus: bus, polls: new(pollLog), logs: new(logCounter)}
	line, err := New(c, b.polls.sink, slog.New(b.logs))
	if err != nil {
		t.Fatal(err)
	}
	line.open = bus.open
	line.await = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	b.Line = line
	return b
}

// logCounter counts log events by their message.
type logCounter struct {
	mu     sync.Mutex
	counts map[string]int
}

func (l *logCounter) Enabled(context.Context, slog.Level) bool { return true }
func (l *logCounter) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logCounter) WithGroup(string) slog.Handler            { return l }
func (l *logCounter) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil {
		l.counts = make(map[string]int)
	}
	l.counts[r.Message]++
	return nil
}

func (l *logCounter) of(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[message]
}

func lineOf(units ...UnitConfig) LineConfig {
	return LineConfig{Name: "rs485-1", Port: "/dev/null", Units: units}
}

func unitOf(name string, address int, every time.Duration, points ...profile.Point) UnitConfig {
	return UnitConfig{Name: name, Address: address, Every: quantity.Duration(every), Points: points}
}

func holding(n uint16) modbus.Address {
	return modbus.Address{Table: modbus.HoldingRegisters, Offset: n}
}

func ptr(f float64) *float64 { return &f }

var errGone = port.ErrGone
