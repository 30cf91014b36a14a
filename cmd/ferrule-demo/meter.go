package main

import (
	"math"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// The input registers of a meter, in one block, so that one request reads them all.
const (
	voltageAt = 0
	currentAt = 2
	powerAt   = 4
	energyAt  = 6
	countAt   = 8 // uint32: how many polls the meter has answered, this one included
)

// values are what a meter measures: V, A, W, kWh.
type values struct{ voltage, current, power, energy float32 }

// meter is a simulated energy meter. What it measures follows from the number of the poll
// alone, so whoever receives a reading can check it against the count that came with it.
type meter struct {
	name    string
	unit    *hwtest.Unit
	every   time.Duration
	base    float64 // W
	swing   float64 // W
	period  float64 // s
	voltage float64 // V
	energy  float64 // kWh at the beginning
}

// meters makes the two meters of the demo, polled every so often.
func meters(every time.Duration) []*meter {
	list := []*meter{
		{name: "meter-a", unit: hwtest.NewUnit(3), base: 1834, swing: 420, period: 23, voltage: 230.1, energy: 47.112},
		{name: "meter-b", unit: hwtest.NewUnit(4), base: 412.5, swing: 95, period: 11, voltage: 229.8, energy: 9.026},
	}
	for _, m := range list {
		m.every = every
		m.unit.Counter(modbus.InputRegisters, countAt)
		m.set(1)
		m.unit.OnRead(func(modbus.Table, uint16, int) { m.set(m.count() + 1) })
	}
	return list
}

// count is how many polls were answered so far.
func (m *meter) count() uint32 {
	words := m.unit.Get(modbus.InputRegisters, countAt, 2)
	return uint32(words[0])<<16 | uint32(words[1])
}

// at is what the meter measures at poll n. The energy is the integral of the power.
func (m *meter) at(n uint32) values {
	t := float64(n) * m.every.Seconds()
	w := 2 * math.Pi / m.period
	power := m.base + m.swing*math.Sin(w*t)
	voltage := m.voltage + 1.4*math.Sin(t/5.3) - 0.3*math.Cos(t/1.7)
	joules := m.base*t + m.swing/w*(1-math.Cos(w*t))
	return values{
		voltage: float32(voltage),
		current: float32(power / voltage / 0.97), // the power factor
		power:   float32(power),
		energy:  float32(m.energy + joules/3.6e6),
	}
}

// set puts what is measured at poll n into the registers.
func (m *meter) set(n uint32) {
	v := m.at(n)
	for at, value := range map[uint16]float32{voltageAt: v.voltage, currentAt: v.current, powerAt: v.power, energyAt: v.energy} {
		bits := math.Float32bits(value)
		m.unit.Set(modbus.InputRegisters, at, uint16(bits>>16), uint16(bits))
	}
}

// polls is the meter's ledger: every poll that it answered.
func (m *meter) polls() []poll {
	var list []poll
	for _, a := range m.unit.Ledger() {
		if a.Counter != 0 {
			list = append(list, poll{unit: m.name, count: a.Counter, at: a.Time})
		}
	}
	return list
}
