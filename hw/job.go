package hw

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/internal/hint"
)

const (
	// maxJobs is how many reads and writes may wait for a line.
	maxJobs = 16
	// jobsPerTurn is how many of them go before the next transaction of a poll, so that a
	// flood of writes slows the polls down and never stops them.
	jobsPerTurn = 4
)

// Query says what Line.Read reads.
type Query struct {
	Unit string         // the name of a configured unit, or any Modbus address, "1" to "247"
	At   modbus.Address // the first register, or the bit
	Type point.Type     // says how many registers
}

// Written is what a write came to.
type Written struct {
	Line  string `json:"line"`
	Unit  string `json:"unit"`
	Point string `json:"point"`
	// Value is what was asked for.
	Value point.Value `json:"value"`
	// Read is what the unit answered when asked for the point right afterwards; null where it
	// did not answer with a value, which Problem explains.
	Read point.Value `json:"read"`
	// Verified says that Read is Value, as near as the type of the point can hold it.
	Verified bool   `json:"verified"`
	Problem  string `json:"problem,omitempty"`
}

// job is something to do between two transactions of polls.
type job struct {
	do    func(ctx context.Context) error // on the line's goroutine
	state atomic.Uint32
	done  chan struct{} // closed after err was set
	err   error
}

const (
	jobWaiting uint32 = iota
	jobTaken
	jobAbandoned
)

// Read reads the registers of q, or one bit, in one transaction that goes before the polls,
// and returns their bytes as they came over the wire. It waits for Run to open the port; while
// the line is down it returns ErrDown with the cause.
func (l *Line) Read(ctx context.Context, q Query) ([]byte, error) {
	if err := l.asks(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", q.At, err)
	}
	u, address, err := l.lookup(q.Unit)
	if err != nil {
		return nil, err
	}
	switch n := q.Type.Registers(); {
	case n == 0 || q.At.Table.Bits() != q.Type.Bit():
		return nil, fmt.Errorf("reading %s: the table holds no %s", q.At, q.Type)
	case int(q.At.Offset)+n > 1<<16:
		return nil, fmt.Errorf("reading %s: %s does not fit before the end of the table, 65535", q.At, q.Type)
	}
	var raw []byte
	err = l.submit(ctx, func(ctx context.Context) error {
		answer, err := l.transact(ctx, u, address, q.At, q.Type.Registers())
		raw = slices.Clone(answer)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s of unit %s: %w", q.At, q.Unit, err)
	}
	return raw, nil
}

// asks says why single values cannot be asked for; nil where they can.
func (l *Line) asks() error {
	if l.protocol.registers && l.role == Master {
		return nil
	}
	err := fmt.Errorf("line %s (%s) %s: %w", l.config.Name, l.protocol.name, l.role.describe(), errors.ErrUnsupported)
	return hint.With(err, "single values can be read and written on Modbus lines that ask")
}

// Write sets a configured point to v, before the polls, and reads it back. v is what point.Of
// takes; text is read as point.Codec.Parse does. Refused before anything is sent: points without
// the key write, values outside its bounds or the type's. Without an error the unit has
// acknowledged the write; Written tells what it holds now. After a timeout nobody knows whether
// the unit has executed the write.
//
// On a line that answers a master it sets what the master reads.
func (l *Line) Write(ctx context.Context, unit, name string, v any) (Written, error) {
	if l.role != UnitRole {
		if err := l.asks(); err != nil {
			return Written{}, fmt.Errorf("writing %s of unit %s: %w", name, unit, err)
		}
	}
	u, p, err := l.lookupPoint(unit, name)
	if err != nil {
		return Written{}, err
	}
	w, err := l.write(ctx, u, p, v)
	if err != nil {
		return Written{}, fmt.Errorf("writing %s of unit %s: %w", name, unit, err)
	}
	return w, nil
}

func (l *Line) write(ctx context.Context, u *unit, p *pointState, v any) (w Written, err error) {
	w = Written{Line: l.config.Name, Unit: u.name, Point: p.name}
	if w.Value, err = p.toWrite(v); err != nil {
		return w, err
	}
	if l.role == UnitRole {
		return l.setImage(u, p, w.Value)
	}
	var words []uint16
	if p.exponent == nil { // what does not fit is refused before it waits for the line
		if words, err = p.codec.Encode(w.Value); err != nil {
			return w, err
		}
	}
	err = l.submit(ctx, func(ctx context.Context) error {
		words, err = p.encode(w.Value, func() (point.Value, error) { return l.exponentOf(ctx, u, p) })
		if err == nil {
			err = l.store(ctx, u, p, words)
		}
		if err == nil {
			err = l.readBack(ctx, u, p, words, &w)
		}
		return err
	})
	return w, err
}

// exponentOf reads the power of ten of the point now, since the one of the last poll may be old.
func (l *Line) exponentOf(ctx context.Context, u *unit, p *pointState) (point.Value, error) {
	raw, err := l.transact(ctx, u, u.address, p.exponent.at, p.exponent.codec.Type().Registers())
	if err != nil {
		return noValue, fmt.Errorf("reading the scale factor: %w", err)
	}
	p.exponent.settle(p.exponent.codec.Decode(raw))
	return p.exponent.value, nil
}

// encode turns a value into registers; exponent is asked for the power of ten, where there is one.
func (p *pointState) encode(v point.Value, exponent func() (point.Value, error)) ([]uint16, error) {
	if p.exponent == nil {
		return p.codec.Encode(v)
	}
	e, err := exponent()
	if err != nil {
		return nil, err
	}
	power, err := powerOf(e)
	if err != nil {
		return nil, err
	}
	return p.codec.EncodeScaled(v, power)
}

// toWrite checks v against the bounds of the point.
func (p *pointState) toWrite(v any) (point.Value, error) {
	if p.write == nil {
		return noValue, hint.With(ErrReadOnly, "to allow it, add to the point: write = { min = …, max = … }")
	}
	var value point.Value
	var err error
	if text, ok := v.(string); ok {
		value, err = p.codec.Parse(text)
	} else {
		value, err = point.Of(v)
	}
	if err != nil {
		return noValue, err
	}
	f, number := value.Float64()
	switch low, high := p.write.Min, p.write.Max; {
	case number && low != nil && f < *low:
		return noValue, fmt.Errorf("%w: %s is below write.min, %v", point.ErrRange, value, *low)
	case number && high != nil && f > *high:
		return noValue, fmt.Errorf("%w: %s is above write.max, %v", point.ErrRange, value, *high)
	}
	return value, nil
}

// store is the transaction of a write.
func (l *Line) store(ctx context.Context, u *unit, p *pointState, words []uint16) error {
	d := l.driver.(*registers)
	start := time.Now()
	err := d.address(u)
	if err == nil {
		err = d.Write(ctx, u.address, p.at, p.codec.Mask(), words)
	}
	how, _, fault := judge(err)
	l.account(ctx, u, start, how, fault, err)
	switch {
	case u.broadcast && how == answered: // nobody was heard
	case how == answered || how == refused:
		l.heard(ctx, u)
	case how == broken:
		err = fmt.Errorf("%w: %w", errPort, err)
	default:
		err = hint.With(err, "the unit may have executed the write all the same; read the point")
	}
	return err
}

// readBack asks the unit what it holds after a write. Only the port's errors are errors.
func (l *Line) readBack(ctx context.Context, u *unit, p *pointState, words []uint16, w *Written) error {
	if u.broadcast {
		w.Problem = "nobody answers to a broadcast; read the units one by one"
		return nil
	}
	raw, err := l.transact(ctx, u, u.address, p.at, p.codec.Type().Registers())
	if errors.Is(err, errPort) {
		return err
	}
	var exponent point.Value
	if p.exponent != nil { // read for the write
		exponent = p.exponent.value
	}
	if err == nil {
		w.Read, err = p.valueOf(raw, exponent)
	}
	if err != nil {
		w.Problem = "reading back: " + err.Error()
		return nil
	}
	expected, err := p.held(words, exponent)
	if w.Verified = err == nil && expected == w.Read; !w.Verified {
		w.Problem = "the unit holds another value than was written"
	}
	return nil
}

// held is what a unit holds that was written words.
func (p *pointState) held(words []uint16, exponent point.Value) (point.Value, error) {
	raw := make([]byte, 0, 2*len(words))
	for _, w := range words {
		if !p.at.Table.Bits() {
			raw = append(raw, byte(w>>8))
		}
		raw = append(raw, byte(w))
	}
	return p.valueOf(raw, exponent)
}

// valueOf decodes registers with a power of ten, which points without a scale factor ignore.
func (p *pointState) valueOf(raw []byte, exponent point.Value) (point.Value, error) {
	if p.exponent == nil {
		return p.codec.Decode(raw)
	}
	power, err := powerOf(exponent)
	if err != nil {
		return noValue, err
	}
	return p.codec.DecodeScaled(raw, power)
}

// powerOf is the power of ten that a register holds; what is beyond int16 is none.
func powerOf(v point.Value) (int16, error) {
	power, ok := v.Int64()
	if !ok || power != int64(int16(power)) {
		return 0, fmt.Errorf("the scale factor: %w", point.ErrRange)
	}
	return int16(power), nil
}

// transact is one read that belongs to no poll; u is nil for an address without a unit.
func (l *Line) transact(ctx context.Context, u *unit, address byte, at modbus.Address, n int) ([]byte, error) {
	start := time.Now()
	raw, err := l.driver.(*registers).read(ctx, u, address, at, uint16(n))
	how, _, fault := judge(err)
	l.account(ctx, u, start, how, fault, err)
	if u != nil && (how == answered || how == refused) {
		l.heard(ctx, u)
	}
	if how == broken {
		err = fmt.Errorf("%w: %w", errPort, err)
	}
	return raw, err
}

// errPort marks the errors after which the port has to be opened again.
var errPort = errors.New("using the port")

func (l *Line) lookup(unit string) (*unit, byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, u := range l.units {
		if u.name == unit {
			return u, u.address, nil
		}
		names = append(names, u.name)
	}
	address, err := strconv.ParseUint(unit, 10, 8)
	if err != nil || address < 1 || address > maxAddress {
		return nil, 0, hint.With(fmt.Errorf("unit %q on line %s: %w", unit, l.config.Name, ErrUnknown),
			"units of the line: "+strings.Join(names, ", "))
	}
	for _, u := range l.units {
		if u.address == byte(address) {
			return u, u.address, nil
		}
	}
	return nil, byte(address), nil
}

func (l *Line) lookupPoint(unit, name string) (*unit, *pointState, error) {
	u, _, err := l.lookup(unit)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	if u != nil {
		for _, p := range u.points {
			if p.name == name {
				return u, p, nil
			}
			names = append(names, p.name)
		}
	}
	return nil, nil, hint.With(fmt.Errorf("point %q of unit %s on line %s: %w", name, unit, l.config.Name, ErrUnknown),
		"points of the unit: "+strings.Join(names, ", "))
}

// submit queues do and waits until it is over. A job that has begun is waited for even when
// ctx ends, because its outcome is known within one or two transactions.
func (l *Line) submit(ctx context.Context, do func(context.Context) error) error {
	j := &job{do: do, done: make(chan struct{})}
	if err := l.enqueue(j); err != nil {
		return err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(jobWaiting, jobAbandoned) {
			return ctx.Err()
		}
		<-j.done
	}
	return j.err
}

func (l *Line) enqueue(j *job) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return fmt.Errorf("%w: it is stopped", ErrDown)
	case l.state == StateReopening:
		return fmt.Errorf("%w: %w", ErrDown, l.problem)
	}
	select {
	case l.jobs <- j:
		return nil
	default:
		return hint.With(ErrBusy, "wait for the reads and writes before, or send fewer")
	}
}

// serveJobs does the jobs that wait, up to jobsPerTurn; the error is that of the port.
func (l *Line) serveJobs(ctx context.Context) error {
	for range jobsPerTurn {
		select {
		case j := <-l.jobs:
			if err := l.do(ctx, j); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// do does one job, unless its caller is gone.
func (l *Line) do(ctx context.Context, j *job) error {
	if !j.state.CompareAndSwap(jobWaiting, jobTaken) {
		return nil
	}
	j.err = j.do(ctx)
	close(j.done)
	if errors.Is(j.err, errPort) {
		return j.err
	}
	return nil
}

// rejectJobs answers all jobs that wait; enqueue takes no more by now.
func (l *Line) rejectJobs(reason error) {
	for {
		select {
		case j := <-l.jobs:
			if j.state.CompareAndSwap(jobWaiting, jobTaken) {
				j.err = reason
				close(j.done)
			}
		default:
			return
		}
	}
}
