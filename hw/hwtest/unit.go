package hwtest

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"ferrule/hw/modbus"
)

// Fault is what happens to one answer. The zero Fault is a good answer.
type Fault struct {
	Delay          time.Duration    // the answer comes so much later; what is asked meanwhile waits its turn
	Drop           bool             // no answer; the request is executed all the same
	Exception      modbus.Exception // instead of the answer; the request is not executed
	Before, After  []byte           // other bytes around the answer: garbage, a foreign frame
	Truncate       int              // so many bytes are missing at the end
	Flip           []int            // these bits of the answer are turned, 0 being the lowest of its first byte
	Duplicate      int              // the answer comes so many times more
	DuplicateAfter time.Duration    // so long after each other
}

func (f *Fault) spoils() bool {
	return f.Delay != 0 || f.Drop || f.Exception != 0 || len(f.Before) != 0 || len(f.After) != 0 ||
		f.Truncate != 0 || len(f.Flip) != 0 || f.Duplicate != 0
}

// Answer is a ledger entry: an answer whose last byte reached the serial port.
type Answer struct {
	Time     time.Time
	Function modbus.Function
	Address  uint16
	Counter  uint32 // what the counter registers said, 0 if they were not read
	Spoilt   bool   // the script did something to it
}

// Unit is a simulated Modbus unit. Its registers exist where they were Set; elsewhere it answers
// exception 2. All methods may be called from any goroutine, hooks included.
type Unit struct {
	address byte

	mu      sync.Mutex
	tables  [4]map[uint16]uint16
	delay   time.Duration
	script  func(n int, r modbus.Request) Fault
	onRead  func(t modbus.Table, from uint16, n int)
	onWrite func(t modbus.Table, from uint16, values []uint16) error
	asked   int
	counter struct {
		on    bool
		table modbus.Table
		at    uint16
		n     uint32
	}
	ledger []Answer
	free   time.Time // when its last answer was or is due
}

// NewUnit makes a unit that has no registers yet.
func NewUnit(address byte) *Unit {
	u := &Unit{address: address}
	for i := range u.tables {
		u.tables[i] = map[uint16]uint16{}
	}
	return u
}

// Address is the unit's address on the wire.
func (u *Unit) Address() byte { return u.address }

// Set makes registers or bits exist and gives them values; a bit is set by anything but 0.
func (u *Unit) Set(t modbus.Table, from uint16, values ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, v := range values {
		if t.Bits() && v != 0 {
			v = 1
		}
		u.tables[t][from+uint16(i)] = v
	}
}

// Get returns n registers or bits; those that do not exist read 0.
func (u *Unit) Get(t modbus.Table, from uint16, n int) []uint16 {
	u.mu.Lock()
	defer u.mu.Unlock()
	values := make([]uint16, n)
	for i := range values {
		values[i] = u.tables[t][from+uint16(i)]
	}
	return values
}

// Delay is how long the unit thinks before it answers, after the silence that ends the request.
func (u *Unit) Delay(d time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.delay = d
}

// Counter makes the two registers from at on a uint32, high word first, that counts the reads which
// cover it, so that every answer carries the number that the ledger has for it.
func (u *Unit) Counter(t modbus.Table, at uint16) {
	u.Set(t, at, 0, 0)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.counter.on, u.counter.table, u.counter.at = true, t, at
}

// Script says what happens to the answer to the n-th request, counted from 0; nil: nothing.
func (u *Unit) Script(f func(n int, r modbus.Request) Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.script = f
}

// OnRead is called before registers are read; it may Set them.
func (u *Unit) OnRead(f func(t modbus.Table, from uint16, n int)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.onRead = f
}

// OnWrite is called before registers are written. An error refuses: a modbus.Exception as it is,
// any other as exception 4.
func (u *Unit) OnWrite(f func(t modbus.Table, from uint16, values []uint16) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.onWrite = f
}

// Ledger is a copy of all that the unit answered, in order.
func (u *Unit) Ledger() []Answer {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]Answer(nil), u.ledger...)
}

// Asked is how many requests reached the unit.
func (u *Unit) Asked() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked
}

// answer executes r and returns what the unit sends for it, at the earliest at due.
func (u *Unit) answer(r modbus.Request, due time.Time) []transmission {
	u.mu.Lock()
	script, n := u.script, u.asked
	u.asked++
	u.mu.Unlock()
	var f Fault
	if script != nil {
		f = script(n, r)
	}
	response, counter := modbus.Response{Unit: r.Unit, Function: r.Function, Exception: f.Exception}, uint32(0)
	if f.Exception == 0 {
		response, counter = u.execute(r)
	}
	u.mu.Lock()
	at := due.Add(u.delay + f.Delay)
	if at.Before(u.free) {
		at = u.free
	}
	u.free = at
	u.mu.Unlock()
	if f.Drop {
		return nil
	}
	entry := Answer{Function: r.Function, Address: r.Address, Counter: counter, Spoilt: f.spoils()}
	sent := func(t time.Time) {
		entry.Time = t
		u.mu.Lock()
		defer u.mu.Unlock()
		u.ledger = append(u.ledger, entry)
	}
	list := []transmission{{at: at, bytes: f.apply(response.Append(nil)), whole: sent}}
	for i := range f.Duplicate {
		list = append(list, transmission{at: at.Add(time.Duration(i+1) * f.DuplicateAfter), bytes: list[0].bytes})
	}
	return list
}

// apply does to the frame what the fault says.
func (f *Fault) apply(frame []byte) []byte {
	for _, bit := range f.Flip {
		if bit/8 < len(frame) {
			frame[bit/8] ^= 1 << (bit % 8)
		}
	}
	frame = frame[:max(len(frame)-f.Truncate, 0)]
	all := append(append(append([]byte(nil), f.Before...), frame...), f.After...)
	if len(all) == 0 {
		return []byte{0}
	}
	return all
}

// execute is the unit's side of the protocol (Application Protocol V1.1b3, 6).
func (u *Unit) execute(r modbus.Request) (modbus.Response, uint32) {
	response := modbus.Response{Unit: r.Unit, Function: r.Function}
	var err error
	var counter uint32
	switch r.Function {
	case modbus.ReadCoils:
		response.Data, counter, err = u.read(modbus.Coils, r.Address, int(r.Count))
	case modbus.ReadDiscreteInputs:
		response.Data, counter, err = u.read(modbus.DiscreteInputs, r.Address, int(r.Count))
	case modbus.ReadHoldingRegisters:
		response.Data, counter, err = u.read(modbus.HoldingRegisters, r.Address, int(r.Count))
	case modbus.ReadInputRegisters:
		response.Data, counter, err = u.read(modbus.InputRegisters, r.Address, int(r.Count))
	case modbus.WriteSingleCoil, modbus.WriteCoils:
		response.Address, response.Count, response.Data = r.Address, r.Count, r.Data
		err = u.write(modbus.Coils, r.Address, bits(r))
	case modbus.WriteSingleRegister, modbus.WriteRegisters:
		response.Address, response.Count, response.Data = r.Address, r.Count, r.Data
		err = u.write(modbus.HoldingRegisters, r.Address, words(r.Data))
	case modbus.MaskWriteRegister:
		response.Address, response.And, response.Or = r.Address, r.And, r.Or
		old := u.Get(modbus.HoldingRegisters, r.Address, 1)[0]
		err = u.write(modbus.HoldingRegisters, r.Address, []uint16{old&r.And | r.Or&^r.And})
	case modbus.ReadWriteRegisters:
		if err = u.write(modbus.HoldingRegisters, r.WriteAddress, words(r.Data)); err == nil {
			response.Data, counter, err = u.read(modbus.HoldingRegisters, r.Address, int(r.Count))
		}
	}
	if err != nil {
		response.Exception = 4
		errors.As(err, &response.Exception)
	}
	return response, counter
}

func words(data []byte) []uint16 {
	w := make([]uint16, len(data)/2)
	for i := range w {
		w[i] = binary.BigEndian.Uint16(data[2*i:])
	}
	return w
}

func bits(r modbus.Request) []uint16 {
	if r.Function == modbus.WriteSingleCoil {
		return []uint16{uint16(r.Data[0] & 1)}
	}
	b := make([]uint16, r.Count)
	for i := range b {
		b[i] = uint16(r.Data[i/8] >> (i % 8) & 1)
	}
	return b
}

const illegalAddress modbus.Exception = 2

// exists tells whether the unit has all of these registers.
func (u *Unit) exists(t modbus.Table, from uint16, n int) bool {
	if int(from)+n > 65_536 {
		return false
	}
	for i := range n {
		if _, ok := u.tables[t][from+uint16(i)]; !ok {
			return false
		}
	}
	return true
}

func (u *Unit) read(t modbus.Table, from uint16, n int) ([]byte, uint32, error) {
	u.mu.Lock()
	hook := u.onRead
	u.mu.Unlock()
	if hook != nil {
		hook(t, from, n)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.exists(t, from, n) {
		return nil, 0, illegalAddress
	}
	counter := uint32(0)
	if c := &u.counter; c.on && c.table == t && from <= c.at && int(c.at)+2 <= int(from)+n {
		c.n++
		counter = c.n
		u.tables[t][c.at], u.tables[t][c.at+1] = uint16(c.n>>16), uint16(c.n)
	}
	if !t.Bits() {
		data := make([]byte, 0, 2*n)
		for i := range n {
			data = binary.BigEndian.AppendUint16(data, u.tables[t][from+uint16(i)])
		}
		return data, counter, nil
	}
	data := make([]byte, (n+7)/8)
	for i := range n {
		data[i/8] |= byte(u.tables[t][from+uint16(i)]) << (i % 8)
	}
	return data, counter, nil
}

func (u *Unit) write(t modbus.Table, from uint16, values []uint16) error {
	u.mu.Lock()
	hook, ok := u.onWrite, u.exists(t, from, len(values))
	u.mu.Unlock()
	if !ok {
		return illegalAddress
	}
	if hook != nil {
		if err := hook(t, from, values); err != nil {
			return err
		}
	}
	u.Set(t, from, values...)
	return nil
}
