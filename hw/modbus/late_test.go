package modbus_test

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/modbus"
)

// lateUnit answers in the order it was asked. Each register it reads holds the number of the
// request, so that the answer to another request than the last is known for what it is.
type lateUnit struct {
	unit    byte
	number  uint16
	free    time.Time
	deaf    bool // hears nothing while it is busy
	every   int  // every so many-th answer is late
	late    func() time.Duration
	mishap  func(frame []byte) []arrival // around an answer, with delays relative to it; nil: none
	refuses func(r modbus.Request) bool
	overTCP bool                // no timing
	echo    bool                // the adapter returns what is sent
	line    modbus.ClientConfig // its framing
}

func (u *lateUnit) react(request []byte) []arrival {
	now, sent := time.Now(), request
	if u.line.Framing == modbus.ASCII {
		request, _ = modbus.DecodeASCII(nil, request, 0)
	}
	r, err := modbus.DecodeRequest(request)
	if err != nil || r.Unit != u.unit || u.deaf && now.Before(u.free) {
		return nil
	}
	u.number++
	delay := 3 * time.Millisecond
	if int(u.number)%u.every == 0 {
		delay += u.late()
	}
	if u.free.Before(now) {
		u.free = now
	}
	u.free = u.free.Add(delay)
	answer := modbus.Response{Unit: r.Unit, Function: r.Function}
	if u.refuses != nil && u.refuses(r) {
		answer.Exception = 2
	}
	for range r.Count {
		answer.Data = binary.BigEndian.AppendUint16(answer.Data, u.number)
	}
	frame := in(u.line.Framing, answer.Append(nil))
	list := []arrival{{u.free.Sub(now), frame}}
	if u.echo {
		list = append(list, arrival{0, sent})
	}
	if u.mishap != nil {
		for _, a := range u.mishap(frame) {
			list = append(list, arrival{u.free.Sub(now) + a.after, a.bytes})
		}
	}
	return list
}

// poll reads n times and returns how many values were right, wrong, and missing.
func (u *lateUnit) poll(t *testing.T, n int, count func(i int) uint16, pause time.Duration) (right, wrong, missing int, stats modbus.Stats) {
	line := newMemoryLine(u.react)
	u.line.Timeout = 100 * time.Millisecond
	if !u.overTCP {
		u.line.Timing = modbus.TimingOf(115200, 11)
	}
	c := line.client(u.line)
	buf := make([]byte, 0, 256)
	for i := range n {
		words := count(i)
		at := modbus.Address{Table: modbus.HoldingRegisters, Offset: uint16(i)}
		b, err := c.Read(t.Context(), u.unit, at, words, buf)
		switch {
		case err != nil && !errors.Is(err, modbus.ErrTimeout):
			t.Fatalf("read %d: %v", i, err)
		case err != nil:
			missing++
		case len(b) != 2*int(words):
			t.Fatalf("read %d: %d bytes for %d registers", i, len(b), words)
		case binary.BigEndian.Uint16(b) == u.number:
			right++
		default:
			wrong++
		}
		time.Sleep(pause)
	}
	time.Sleep(time.Minute) // lets what is under way arrive before the bubble ends
	return right, wrong, missing, c.Stats()
}

// Every fourth answer comes after its timeout, and looks like the answer to what was asked since.
func TestLateAnswersAreNeverValues(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	upTo := func(longest time.Duration) func() time.Duration {
		return func() time.Duration { return time.Duration(random.Int64N(int64(longest))) }
	}
	for _, c := range []struct {
		name  string
		late  func() time.Duration
		deaf  bool
		pause time.Duration
		count func(int) uint16
	}{
		{"just after the timeout", func() time.Duration { return 100 * time.Millisecond }, false, 0, func(int) uint16 { return 2 }},
		{"within the next request", func() time.Duration { return 130 * time.Millisecond }, false, 0, func(int) uint16 { return 2 }},
		{"seconds later", func() time.Duration { return 4 * time.Second }, false, 1500 * time.Millisecond, func(int) uint16 { return 2 }},
		{"any time", upTo(2 * time.Second), false, 0, func(int) uint16 { return 2 }},
		{"any time, one register", upTo(2 * time.Second), false, 0, func(int) uint16 { return 1 }},
		{"any time, deaf meanwhile", upTo(2 * time.Second), true, 0, func(int) uint16 { return 2 }},
		{"any time, polled with pauses", upTo(time.Second), false, 500 * time.Millisecond, func(int) uint16 { return 10 }},
		{"any time, any length", upTo(2 * time.Second), false, 0, func(int) uint16 { return uint16(1 + random.IntN(4)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &lateUnit{unit: 3, every: 4, late: c.late, deaf: c.deaf}
				right, wrong, missing, stats := u.poll(t, 10_000, c.count, c.pause)
				t.Logf("%d right, %d wrong, %d missing; %+v", right, wrong, missing, stats)
				if wrong != 0 {
					t.Errorf("%d wrong values", wrong)
				}
				if stats.Late == 0 || right == 0 {
					t.Errorf("%d right values with %d late answers dropped; want some", right, stats.Late)
				}
			})
		})
	}
}

// The same in ASCII, over TCP, and with an adapter that returns what is sent.
func TestLateAnswersAreNeverValuesAnywhere(t *testing.T) {
	for name, u := range map[string]*lateUnit{
		"ASCII":           {line: modbus.ClientConfig{Framing: modbus.ASCII}},
		"ASCII with echo": {line: modbus.ClientConfig{Framing: modbus.ASCII}, echo: true},
		"over TCP":        {overTCP: true},
		"RTU with echo":   {echo: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(7, 8))
				u.unit, u.every = 3, 4
				u.late = func() time.Duration { return time.Duration(random.Int64N(int64(time.Second))) }
				right, wrong, missing, stats := u.poll(t, 10_000, func(int) uint16 { return 2 }, 0)
				t.Logf("%d right, %d wrong, %d missing; %+v", right, wrong, missing, stats)
				if wrong != 0 || right == 0 || stats.Late == 0 || stats.Echoes > 0 != u.echo {
					t.Errorf("%d wrong values, %d right, %+v", wrong, right, stats)
				}
			})
		})
	}
}

func TestStrayFramesAreNeverValues(t *testing.T) {
	foreign := modbus.Response{Unit: 4, Function: 3, Data: []byte{0xde, 0xad, 0xde, 0xad}}.Append(nil)
	random := rand.New(rand.NewPCG(3, 4))
	for name, mishap := range map[string]func([]byte) []arrival{
		"answers come twice":         func(f []byte) []arrival { return []arrival{{0, f}} },
		"answers come thrice":        func(f []byte) []arrival { return []arrival{{0, f}, {0, f}} },
		"twice with a gap":           func(f []byte) []arrival { return []arrival{{time.Millisecond, f}} },
		"another unit speaks before": func(f []byte) []arrival { return []arrival{{-time.Millisecond, foreign}} },
		"another unit speaks after":  func(f []byte) []arrival { return []arrival{{time.Millisecond, foreign}} },
		"another unit quotes an answer": func([]byte) []arrival {
			inner := modbus.Response{Unit: 3, Function: 3, Data: []byte{0xba, 0xd0, 0xba, 0xd0}}.Append(nil)
			return []arrival{{-time.Millisecond, modbus.Response{Unit: 4, Function: 3, Data: append(inner, 0)}.Append(nil)}}
		},
		"noise before": func([]byte) []arrival {
			noise := make([]byte, 1+random.IntN(20))
			for i := range noise {
				noise[i] = byte(random.Uint32())
			}
			return []arrival{{-time.Millisecond, noise}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &lateUnit{unit: 3, every: 4, late: func() time.Duration { return 120 * time.Millisecond }, mishap: mishap}
				right, wrong, missing, stats := u.poll(t, 10_000, func(int) uint16 { return 2 }, 0)
				t.Logf("%d right, %d wrong, %d missing; %+v", right, wrong, missing, stats)
				if wrong != 0 {
					t.Errorf("%d wrong values", wrong)
				}
				if right < 5_000 {
					t.Errorf("%d right values; want the others' at least", right)
				}
			})
		})
	}
}

// A unit whose map ends where a barrier would read refuses it; that too proves the order.
func TestBarrierMayBeRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &lateUnit{unit: 3, every: 4, late: func() time.Duration { return 200 * time.Millisecond },
			refuses: func(r modbus.Request) bool { return r.Count > 1 }}
		right, wrong, missing, stats := u.poll(t, 10_000, func(int) uint16 { return 1 }, 0)
		t.Logf("%d right, %d wrong, %d missing; %+v", right, wrong, missing, stats)
		if wrong != 0 || right < 5_000 || stats.Barriers == 0 {
			t.Errorf("%d wrong, %d right, %d barriers", wrong, right, stats.Barriers)
		}
	})
}

// A unit that comes back after it was away answers at once, and one that answers no barrier at all
// does when its debts are written off.
func TestUnitComesBack(t *testing.T) {
	for name, ignores := range map[string]bool{"answers barriers": false, "ignores barriers": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				away := false
				line := newMemoryLine(func(request []byte) []arrival {
					r, err := modbus.DecodeRequest(request)
					if err != nil || away || ignores && r.Count != 2 {
						return nil
					}
					return []arrival{{3 * time.Millisecond, modbus.Response{Unit: 3, Function: r.Function, Data: make([]byte, 2*r.Count)}.Append(nil)}}
				})
				c := line.client(modbus.ClientConfig{Timing: modbus.TimingOf(9600, 11), Timeout: 100 * time.Millisecond})
				poll := func() error {
					_, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.HoldingRegisters}, 2, nil)
					return err
				}
				if err := poll(); err != nil {
					t.Fatal(err)
				}
				away = true
				for range 30 {
					if err := poll(); !errors.Is(err, modbus.ErrTimeout) {
						t.Fatalf("unit away: %v; want ErrTimeout", err)
					}
				}
				away = false
				back := time.Now()
				for poll() != nil {
					time.Sleep(time.Second)
				}
				took := time.Since(back)
				if limit := 12 * time.Second; took > limit || !ignores && took > 1200*time.Millisecond {
					t.Errorf("answered %v after it came back", took)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// A write that was given up is not confirmed by the answer to an earlier one of the same shape.
func TestLateAnswerConfirmsNoOtherWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written, asked, free := []uint16{}, 0, time.Now()
		line := newMemoryLine(func(request []byte) []arrival {
			r, err := modbus.DecodeRequest(request)
			if err != nil {
				return nil
			}
			delay := time.Millisecond
			answer := modbus.Response{Unit: 3, Function: r.Function, Address: r.Address, Count: r.Count, Data: r.Data}
			if r.Function == modbus.WriteRegisters {
				if asked++; asked == 2 {
					return nil // lost
				}
				written = append(written, binary.BigEndian.Uint16(r.Data))
				delay = 150 * time.Millisecond
			} else {
				answer.Data = make([]byte, 2*r.Count)
			}
			if free.Before(time.Now()) {
				free = time.Now()
			}
			free = free.Add(delay)
			return []arrival{{time.Until(free), answer.Append(nil)}}
		})
		c := line.client(modbus.ClientConfig{Timing: modbus.TimingOf(115200, 11), Timeout: 100 * time.Millisecond})
		first := c.WriteRegisters(t.Context(), 3, 5, []uint16{1})
		second := c.WriteRegisters(t.Context(), 3, 5, []uint16{2})
		if !errors.Is(first, modbus.ErrTimeout) || !errors.Is(second, modbus.ErrTimeout) || len(written) != 1 {
			t.Errorf("writes end with %v and %v, unit has %v; want timeouts, as the second was lost", first, second, written)
		}
		time.Sleep(time.Minute)
	})
}

func TestContextEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newMemoryLine(func([]byte) []arrival { return nil })
		c := line.client(modbus.ClientConfig{Timing: modbus.TimingOf(9600, 11), Timeout: time.Minute})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := c.Read(ctx, 3, modbus.Address{}, 1, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v; want the context's error", err)
		}
		if took := time.Since(begin); took > 1300*time.Millisecond {
			t.Errorf("ended %v after its context", took-time.Second)
		}
		time.Sleep(time.Hour)
	})
}
