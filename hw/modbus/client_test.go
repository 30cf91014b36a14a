package modbus_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

var inputs = modbus.Address{Table: modbus.InputRegisters, Offset: 10}

// own tells whether the registers hold their own addresses, as those of line do.
func own(b []byte, from uint16) bool {
	for i := 0; i+1 < len(b); i += 2 {
		if binary.BigEndian.Uint16(b[i:]) != from+uint16(i/2) {
			return false
		}
	}
	return true
}

// Each fault on a wire costs that one reading at most, is counted, and yields no value.
func TestFaultsOnTheWire(t *testing.T) {
	foreign := modbus.Response{Unit: 9, Function: 4, Data: []byte{1, 2, 3, 4}}.Append(nil)
	request := modbus.Request{Unit: 9, Function: 4, Address: 1, Count: 2}.Append(nil)
	for _, c := range []struct {
		name  string
		fault hwtest.Fault
		want  error // nil: the reading succeeds in spite of it
		count func(s modbus.Stats) uint64
	}{
		{"drop", hwtest.Fault{Drop: true}, modbus.ErrTimeout, func(s modbus.Stats) uint64 { return s.Timeouts }},
		{"late", hwtest.Fault{Delay: 550 * time.Millisecond}, modbus.ErrTimeout, func(s modbus.Stats) uint64 { return s.Late }},
		{"truncate", hwtest.Fault{Truncate: 3}, modbus.ErrTimeout, func(s modbus.Stats) uint64 { return s.Timeouts }},
		{"flip", hwtest.Fault{Flip: []int{30}}, modbus.ErrCRC, func(s modbus.Stats) uint64 { return s.CRCErrors }},
		{"exception", hwtest.Fault{Exception: 6}, modbus.Exception(6), func(s modbus.Stats) uint64 { return s.Exceptions }},
		{"duplicate", hwtest.Fault{Duplicate: 1}, nil, func(s modbus.Stats) uint64 { return s.Late }},
		{"garbage before", hwtest.Fault{Before: []byte{0xff, 0, 3, 0x84}}, nil, func(s modbus.Stats) uint64 { return s.Garbage }},
		{"false head before", hwtest.Fault{Before: []byte{3, 4, 200}}, nil, func(s modbus.Stats) uint64 { return s.Garbage }},
		{"garbage after", hwtest.Fault{After: []byte{0xff, 0xfe}}, nil, func(s modbus.Stats) uint64 { return s.Garbage }},
		{"foreign answer before", hwtest.Fault{Before: foreign}, nil, func(s modbus.Stats) uint64 { return s.Foreign }},
		{"foreign exchange before", hwtest.Fault{Before: append(request, foreign...)}, nil, func(s modbus.Stats) uint64 { return s.Foreign }},
		{"foreign answer instead", hwtest.Fault{Before: foreign, Truncate: 99}, modbus.ErrTimeout, func(s modbus.Stats) uint64 { return s.Foreign }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client, wire, unit := line(t, 115200)
			client.SetTimeout(500 * time.Millisecond)
			unit.Script(func(n int, _ modbus.Request) hwtest.Fault {
				if n == 2 {
					return c.fault
				}
				return hwtest.Fault{}
			})
			for i := range 6 {
				b, err := client.Read(t.Context(), 3, inputs, 10, nil)
				switch {
				case i == 2 && c.want != nil && !errors.Is(err, c.want):
					t.Errorf("spoilt read: %v; want %v", err, c.want)
				case i != 2 && err != nil || i == 2 && c.want == nil && err != nil:
					t.Errorf("read %d: %v; %+v; %+v", i, err, client.Stats(), wire.Stats())
				case err == nil && (len(b) != 20 || !own(b, 10)):
					t.Errorf("read %d: wrong values %x", i, b)
				}
			}
			if s := client.Stats(); c.count(s) == 0 {
				t.Errorf("not counted: %+v", s)
			}
			// What follows a whole answer may come late where the machine is busy, and then the next
			// request is out already: no master could have waited for it.
			follows := c.fault.Duplicate > 0 || len(c.fault.After) > 0
			if s := wire.Stats(); s.Violations != 0 && !follows {
				t.Errorf("%d requests within t3.5", s.Violations)
			}
		})
	}
}

// No bit of an answer can be turned without its being noticed, and none costs more than one reading.
func TestNoBitFlipIsAValue(t *testing.T) {
	good := modbus.Response{Unit: 3, Function: 4, Data: []byte{0, 10, 0, 11, 0, 12}}.Append(nil)
	synctest.Test(t, func(t *testing.T) {
		bit := -1
		l := newMemoryLine(func(request []byte) []arrival {
			r, err := modbus.DecodeRequest(request)
			if err != nil {
				t.Error(err)
			}
			frame := modbus.Response{Unit: 3, Function: 4, Data: good[3 : 3+2*r.Count]}.Append(nil)
			if bit >= 0 {
				frame[bit/8] ^= 1 << (bit % 8)
			}
			return []arrival{{time.Millisecond, frame}}
		})
		c := l.client(modbus.ClientConfig{Timing: modbus.TimingOf(19200, 11), Timeout: 50 * time.Millisecond})
		for bit = range 8 * len(good) {
			if b, err := c.Read(t.Context(), 3, inputs, 3, nil); err == nil {
				t.Fatalf("bit %d turned: %x is taken", bit, b)
			} else if !errors.Is(err, modbus.ErrCRC) && !errors.Is(err, modbus.ErrTimeout) && !errors.Is(err, modbus.ErrMismatch) {
				t.Fatalf("bit %d turned: %v", bit, err)
			}
			turned := bit
			bit = -1
			if b, err := c.Read(t.Context(), 3, inputs, 3, nil); err != nil || !own(b, 10) {
				t.Fatalf("after bit %d was turned: %x, %v", turned, b, err)
			}
			bit = turned
		}
	})
}

// An adapter that returns what is sent is found out, also when the very first request is a write,
// whose answer is the same as its echo.
func TestEcho(t *testing.T) {
	for _, told := range []bool{false, true} {
		for _, baud := range []int{0, 115200} {
			w, err := hwtest.NewWire(hwtest.WireConfig{Baud: baud, Echo: true})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			u := hwtest.NewUnit(3)
			u.Set(modbus.HoldingRegisters, 0, 0, 1, 2, 3)
			u.Set(modbus.Coils, 0x300, make([]uint16, 24)...)
			w.Attach(u)
			c := modbus.NewClient(openPort(t, w.Path()), modbus.ClientConfig{Timing: modbus.TimingOf(baud, 11), Timeout: 500 * time.Millisecond, Echo: told})
			if err := c.WriteRegister(t.Context(), 9, 1, 7); !errors.Is(err, modbus.ErrTimeout) {
				t.Errorf("writing to a unit that is not there: %v; want ErrTimeout", err)
			}
			if err := c.WriteRegister(t.Context(), 3, 1, 7); err != nil {
				t.Errorf("%v; %+v; %+v", err, c.Stats(), w.Stats())
			}
			if b, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.HoldingRegisters}, 4, nil); err != nil || !bytes.Equal(b, []byte{0, 0, 0, 7, 0, 2, 0, 3}) {
				t.Errorf("reading: %x, %v", b, err)
			}
			// This request could itself be read as an answer of three bytes.
			if b, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.Coils, Offset: 0x300}, 24, nil); err != nil || !bytes.Equal(b, []byte{0, 0, 0}) {
				t.Errorf("reading coils: %x, %v", b, err)
			}
			if got := u.Get(modbus.HoldingRegisters, 1, 1)[0]; got != 7 {
				t.Errorf("register is %d; want 7", got)
			}
			if s := c.Stats(); s.Echoes == 0 || w.Stats().Violations != 0 {
				t.Errorf("%+v; %d requests within t3.5", s, w.Stats().Violations)
			}
		}
	}
}

func TestTwoUnitsOnOneWire(t *testing.T) {
	c, w, _ := line(t, 0)
	other := hwtest.NewUnit(4)
	other.Set(modbus.InputRegisters, 10, 7, 7)
	w.Attach(other)
	for range 50 {
		if b, err := c.Read(t.Context(), 3, inputs, 2, nil); err != nil || !own(b, 10) {
			t.Fatalf("unit 3: %x, %v", b, err)
		}
		if b, err := c.Read(t.Context(), 4, inputs, 2, nil); err != nil || !bytes.Equal(b, []byte{0, 7, 0, 7}) {
			t.Fatalf("unit 4: %x, %v", b, err)
		}
	}
}

func TestLateOnTheWire(t *testing.T) {
	c, w, u := line(t, 115200)
	c.SetTimeout(20 * time.Millisecond)
	u.Counter(modbus.InputRegisters, 10)
	u.Script(func(n int, _ modbus.Request) hwtest.Fault {
		if n%4 == 3 {
			return hwtest.Fault{Delay: time.Duration(15+n%7) * 5 * time.Millisecond}
		}
		return hwtest.Fault{}
	})
	right := 0
	for range 100 {
		b, err := c.Read(t.Context(), 3, inputs, 2, nil)
		if err != nil {
			continue
		}
		now := u.Get(modbus.InputRegisters, 10, 2)
		if got, want := binary.BigEndian.Uint32(b), uint32(now[0])<<16|uint32(now[1]); got != want {
			t.Fatalf("answer %d is taken for answer %d", got, want)
		}
		right++
	}
	if s := c.Stats(); right == 0 || s.Late == 0 {
		t.Errorf("%d right, %+v, %+v", right, s, w.Stats())
	}
}

func TestRequestsThatCannotBe(t *testing.T) {
	c, w, _ := line(t, 0)
	_, tooMany := c.Read(t.Context(), 3, inputs, 126, nil)
	_, none := c.Read(t.Context(), 3, inputs, 0, nil)
	_, broadcast := c.Read(t.Context(), 0, inputs, 1, nil)
	_, both := c.ReadWrite(t.Context(), 3, 0, 1, 0, make([]uint16, 122), nil)
	for _, err := range []error{tooMany, none, broadcast, both,
		c.WriteRegisters(t.Context(), 3, 0, make([]uint16, 124)), c.WriteCoils(t.Context(), 3, 0, nil), c.WriteCoils(t.Context(), 3, 0, make([]bool, 1969))} {
		if !errors.Is(err, modbus.ErrRequest) {
			t.Errorf("%v; want ErrRequest", err)
		}
	}
	if s := w.Stats(); s.BytesIn != 0 {
		t.Errorf("%d bytes were sent", s.BytesIn)
	}
}

// FuzzClient feeds a client whatever bytes in whatever chunks: it ends, and takes nothing for a value
// but a sound frame of the right shape.
func FuzzClient(f *testing.F) {
	good := modbus.Response{Unit: 3, Function: 3, Data: []byte{1, 2, 3, 4}}.Append(nil)
	request := modbus.Request{Unit: 3, Function: 3, Count: 2}.Append(nil)
	f.Add(good, byte(3), false)
	f.Add(append(request, good...), byte(1), false)
	f.Add(append([]byte{3, 3, 200}, good...), byte(7), false)
	f.Add(append(append([]byte{4, 3, 11}, good...), 0, 0), byte(64), false)
	f.Add(bytes.Repeat([]byte{3}, 3000), byte(255), false)
	f.Add(modbus.AppendASCII(nil, good, 0), byte(3), true)
	f.Add(modbus.AppendASCII([]byte(":0303"), good, 0), byte(3), true)
	f.Add(bytes.Repeat([]byte{':'}, 3000), byte(255), true)
	f.Fuzz(func(t *testing.T, stream []byte, chunk byte, ascii bool) {
		framing := modbus.RTU
		if ascii {
			framing = modbus.ASCII
		}
		synctest.Test(t, func(t *testing.T) {
			size := int(chunk) + 1
			l := newMemoryLine(func([]byte) (list []arrival) {
				for i := 0; len(stream) > 0 && i < 40; i++ {
					n := min(size, len(stream))
					list = append(list, arrival{time.Duration(i) * time.Millisecond, stream[:n]})
					stream = stream[n:]
				}
				return list
			})
			whole := stream
			c := l.client(modbus.ClientConfig{Framing: framing, Timing: modbus.TimingOf(19200, 11), Timeout: 30 * time.Millisecond})
			for range 4 {
				b, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.HoldingRegisters}, 2, nil)
				sent := in(framing, modbus.Response{Unit: 3, Function: 3, Data: b}.Append(nil))
				if err == nil && !bytes.Contains(bytes.ToUpper(whole), bytes.ToUpper(sent)) {
					t.Fatalf("%x was never sent", b)
				}
			}
			time.Sleep(time.Minute)
		})
	})
}
