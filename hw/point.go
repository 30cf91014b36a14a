package hw

import (
	"math"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
)

// pointState is one point, its last result, and what was reported of it. It belongs to the
// goroutine of Line.Run.
type pointState struct {
	name       string
	key        string         // the reading it is made of, on lines that are not Modbus
	at         modbus.Address // its registers, on Modbus lines
	codec      point.Codec
	exponent   *pointState // the point that holds the power of ten of its scale; nil: none
	uom        string
	every      time.Duration
	deadband   float64
	maxSilence time.Duration
	write      *profile.Write

	due time.Time // its next slot, where a request of a shorter period reads it along

	round   uint64 // the poll that value and bad belong to
	value   point.Value
	bad     string
	raw     [8]byte // its registers, until the exponent is known
	pending bool    // raw waits for the exponent
	fresh   bits    // of its registers, those that a master has written since the last result

	reported   bool // the three below were taken by the sink
	lastValue  point.Value
	lastBad    string
	lastReport time.Time
}

// fail gives the point the reason why it has no value.
func (p *pointState) fail(bad string) {
	p.value, p.bad, p.pending = noValue, bad, false
}

// decode takes the point's registers as they came over the wire.
func (p *pointState) decode(raw []byte) (ok bool) {
	if p.exponent != nil {
		p.pending = true
		copy(p.raw[:], raw[:2*p.codec.Type().Registers()])
		return true
	}
	return p.settle(p.codec.Decode(raw))
}

// scale decodes the registers that waited for the exponent, which has been read by now or has
// failed.
func (p *pointState) scale() (ok bool) {
	p.pending = false
	if p.exponent.bad != "" {
		p.fail(p.exponent.bad)
		return false
	}
	return p.settle(p.valueOf(p.raw[:], p.exponent.value))
}

func (p *pointState) settle(v point.Value, err error) (ok bool) {
	p.value, p.bad = v, badValue(err)
	return err == nil
}

// take makes a reading of a decoder the result of the point.
func (p *pointState) take(r point.Reading) (ok bool) {
	if r.Bad != "" {
		p.fail(r.Bad)
		return false
	}
	if p.uom == "" {
		p.uom = r.Uom
	}
	return p.settle(p.codec.Convert(r.Value))
}

// wanted reports whether the result of p is to be reported: always without a deadband.
func (p *pointState) wanted(now time.Time) bool {
	switch {
	case !p.reported || p.deadband == 0 || p.bad != p.lastBad:
		return true
	case p.overdue(now):
		return true
	case p.bad != "":
		return false
	}
	value, ok1 := p.value.Float64()
	last, ok2 := p.lastValue.Float64()
	if ok1 && ok2 && p.value.Kind() != point.KindBool {
		return math.Abs(value-last) > p.deadband
	}
	return p.value != p.lastValue
}

// overdue reports whether max_silence would be over before the next poll.
func (p *pointState) overdue(now time.Time) bool {
	return p.maxSilence > 0 && now.Sub(p.lastReport)+p.every > p.maxSilence
}

// report remembers the result as reported, and returns it.
func (p *pointState) report(now time.Time) Reading {
	p.reported, p.lastValue, p.lastBad, p.lastReport = true, p.value, p.bad, now
	return Reading{Point: p.name, Value: p.value, Bad: p.bad, Uom: p.uom}
}
