package hwtest

import (
	"slices"
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

// Unit is a simulated Modbus unit, for a Wire or for modbus.Serve; faults happen on a Wire alone. Its
// registers exist where they were Set; elsewhere it answers exception 2. All methods may be called from any goroutine, hooks included.
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
	files    map[uint16][]uint16
	queues   map[uint16][]uint16
	identity []modbus.Object
	counted  uint32 // what the counter said to the current request, 0 if it was not read
	ledger   []Answer
	free     time.Time // when its last answer was or is due
}

// NewUnit makes a unit that has no registers yet.
func NewUnit(address byte) *Unit {
	u := &Unit{address: address, files: map[uint16][]uint16{}, queues: map[uint16][]uint16{}}
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

// answer executes r and returns what the unit sends for it, at the earliest at due. A broadcast is
// executed alone.
func (u *Unit) answer(r modbus.Request, due time.Time, f modbus.Framing) []transmission {
	u.mu.Lock()
	script, n := u.script, u.asked
	u.asked++
	u.counted = 0
	u.mu.Unlock()
	var fault Fault
	if script != nil {
		fault = script(n, r)
	}
	response := modbus.Response{Unit: r.Unit, Function: r.Function, Exception: fault.Exception}
	if fault.Exception == 0 {
		response = modbus.Execute(u, r)
	}
	if r.Unit == 0 {
		return nil
	}
	return u.transmit(response, r, fault, due, f)
}

// refuse returns what the unit sends for a request that it cannot read.
func (u *Unit) refuse(r modbus.Request, e modbus.Exception, due time.Time, f modbus.Framing) []transmission {
	return u.transmit(modbus.Response{Unit: r.Unit, Function: r.Function, Exception: e}, r, Fault{}, due, f)
}

func (u *Unit) transmit(response modbus.Response, r modbus.Request, f Fault, due time.Time, framing modbus.Framing) []transmission {
	u.mu.Lock()
	at := due.Add(u.delay + f.Delay)
	if at.Before(u.free) {
		at = u.free
	}
	u.free = at
	entry := Answer{Function: r.Function, Address: r.Address, Counter: u.counted, Spoilt: f.spoils()}
	u.mu.Unlock()
	if f.Drop {
		return nil
	}
	sent := func(t time.Time) {
		entry.Time = t
		u.mu.Lock()
		defer u.mu.Unlock()
		u.ledger = append(u.ledger, entry)
	}
	frame := response.Append(nil)
	if framing == modbus.ASCII {
		frame = modbus.AppendASCII(nil, frame, 0)
	}
	list := []transmission{{at: at, bytes: f.apply(frame), whole: sent}}
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

// Read is the unit's side of functions 1 to 4, for modbus.Execute and modbus.Serve.
func (u *Unit) Read(t modbus.Table, from uint16, values []uint16) error {
	u.mu.Lock()
	hook, n := u.onRead, len(values)
	u.mu.Unlock()
	if hook != nil {
		hook(t, from, n)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.exists(t, from, n) {
		return modbus.IllegalAddress
	}
	if c := &u.counter; c.on && c.table == t && from <= c.at && int(c.at)+2 <= int(from)+n {
		c.n++
		u.counted = c.n
		u.tables[t][c.at], u.tables[t][c.at+1] = uint16(c.n>>16), uint16(c.n)
	}
	for i := range values {
		values[i] = u.tables[t][from+uint16(i)]
	}
	return nil
}

// Write is the unit's side of functions 5, 6, 15 and 16.
func (u *Unit) Write(t modbus.Table, from uint16, values []uint16) error {
	u.mu.Lock()
	hook, ok := u.onWrite, u.exists(t, from, len(values))
	u.mu.Unlock()
	if !ok {
		return modbus.IllegalAddress
	}
	if hook != nil {
		if err := hook(t, from, values); err != nil {
			return err
		}
	}
	u.Set(t, from, values...)
	return nil
}

// SetFile gives a file of functions 20 and 21 its registers.
func (u *Unit) SetFile(file uint16, values ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files[file] = slices.Clone(values)
}

// ReadFile is the unit's side of function 20.
func (u *Unit) ReadFile(file, number uint16, values []uint16) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if int(number)+len(values) > len(u.files[file]) {
		return modbus.IllegalAddress
	}
	copy(values, u.files[file][number:])
	return nil
}

// WriteFile is the unit's side of function 21.
func (u *Unit) WriteFile(file, number uint16, values []uint16) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if int(number)+len(values) > len(u.files[file]) {
		return modbus.IllegalAddress
	}
	copy(u.files[file][number:], values)
	return nil
}

// SetQueue gives the queue at an address its registers.
func (u *Unit) SetQueue(at uint16, values ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queues[at] = slices.Clone(values)
}

// ReadQueue is the unit's side of function 24.
func (u *Unit) ReadQueue(at uint16, values []uint16) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	queue, ok := u.queues[at]
	if !ok {
		return 0, modbus.IllegalAddress
	}
	copy(values, queue)
	return len(queue), nil
}

// SetIdentity gives the unit the objects of function 43/14, in the order of their IDs.
func (u *Unit) SetIdentity(objects ...modbus.Object) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.identity = objects
}

// Identity is the unit's side of function 43/14.
func (u *Unit) Identity() []modbus.Object {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.identity
}
