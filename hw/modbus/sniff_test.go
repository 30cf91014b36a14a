package modbus_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sort"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/modbus"
)

// heard is a transaction in words, so that it outlives the sniffer's buffers and can be compared.
func heard(t modbus.Transaction) string {
	if !t.Answered {
		return fmt.Sprintf("%x -", t.Request.Append(nil))
	}
	return fmt.Sprintf("%x %x", t.Request.Append(nil), t.Response.Append(nil))
}

// sniffAll feeds a stream in chunks of the sizes that next gives.
func sniffAll(stream []byte, f modbus.Framing, next func() int) ([]string, modbus.SnifferStats) {
	var list []string
	s := modbus.NewSniffer(modbus.SnifferConfig{Framing: f}, func(t modbus.Transaction) { list = append(list, heard(t)) })
	at := time.Unix(0, 0)
	for len(stream) > 0 {
		n := min(next(), len(stream))
		s.Feed(stream[:n], at)
		stream = stream[n:]
	}
	s.Silence(at)
	s.Silence(at.Add(time.Hour))
	return list, s.Stats()
}

func in(f modbus.Framing, frame []byte) []byte {
	if f == modbus.ASCII {
		return modbus.AppendASCII(nil, frame, 0)
	}
	return frame
}

// answerTo is what a unit would say.
func answerTo(r modbus.Request) modbus.Response { return modbus.Execute(richUnit(), r) }

// Every function, each in the form where a request and an answer look most alike.
func TestSnifferTellsRequestsFromAnswers(t *testing.T) {
	requests := append(allFunctions(),
		modbus.Request{Unit: 3, Function: 1, Address: 0x300, Count: 24}, // the answer has eight bytes, too
		modbus.Request{Unit: 3, Function: 2, Address: 0x300, Count: 24},
		modbus.Request{Unit: 3, Function: 3, Address: 0x300, Count: 1}, // the request reads as an answer of three bytes
		modbus.Request{Unit: 3, Function: 4, Address: 0x400, Count: 2}, // and here as one of four
		modbus.Request{Unit: 3, Function: 3, Address: 9000, Count: 1},  // exception
		modbus.Request{Unit: 3, Function: 5, Address: 0x1234, Data: []byte{0xff, 0}},
	)
	for _, f := range []modbus.Framing{modbus.RTU, modbus.ASCII} {
		var stream []byte
		var want []string
		for _, r := range requests {
			answer := answerTo(r)
			// Twice with an answer, then once without.
			for range 2 {
				stream = append(append(stream, in(f, r.Append(nil))...), in(f, answer.Append(nil))...)
				want = append(want, fmt.Sprintf("%x %x", r.Append(nil), answer.Append(nil)))
			}
			other := modbus.Request{Unit: 9, Function: 6, Address: 1, Data: []byte{0, 1}}
			stream = append(append(stream, in(f, r.Append(nil))...), in(f, other.Append(nil))...)
			stream = append(stream, in(f, other.Append(nil))...)
			want = append(want, fmt.Sprintf("%x -", r.Append(nil)), fmt.Sprintf("%x %x", other.Append(nil), other.Append(nil)))
			// A different shape, so that what is owed is settled.
			clear := modbus.Request{Unit: 3, Function: 4, Address: 1, Count: 77}
			stream = append(append(stream, in(f, clear.Append(nil))...), in(f, answerTo(clear).Append(nil))...)
			want = append(want, fmt.Sprintf("%x %x", clear.Append(nil), answerTo(clear).Append(nil)))
		}
		for _, size := range []int{1, 7, 8, 64, 1 << 20} {
			got, stats := sniffAll(stream, f, func() int { return size })
			if !reflect.DeepEqual(got, want) {
				for i := range got {
					if i >= len(want) || got[i] != want[i] {
						t.Errorf("%v in chunks of %d, transaction %d: %s; want %s", f, size, i, got[i], want[min(i, len(want)-1)])
						break
					}
				}
			}
			if stats.Garbage+stats.Strays+stats.Late+stats.Unknown+stats.Malformed != 0 {
				t.Errorf("%v: %+v", f, stats)
			}
		}
	}
}

// A master that repeats a request which nobody answered is not taken for its answer.
func TestSnifferIsNotFooledByRepeats(t *testing.T) {
	for name, r := range map[string]modbus.Request{
		"coils":    {Unit: 3, Function: 1, Address: 0x300, Count: 24},
		"register": {Unit: 3, Function: 6, Address: 1, Data: []byte{0, 1}},
		"mask":     {Unit: 3, Function: 22, Address: 1, And: 1},
	} {
		answered := 0
		s := modbus.NewSniffer(modbus.SnifferConfig{Timing: modbus.TimingOf(19200, 11)}, func(t modbus.Transaction) {
			if t.Answered {
				answered++
			}
		})
		at := time.Unix(0, 0)
		for range 10 {
			s.Feed(r.Append(nil), at)
			at = at.Add(300 * time.Millisecond)
			s.Silence(at)
		}
		if st := s.Stats(); answered != 0 || st.Requests != 10 {
			t.Errorf("%s: %d answered, %+v", name, answered, st)
		}
	}
}

// Noise, other functions and cut-off frames cost what they spoil, and no more.
func TestSnifferResynchronises(t *testing.T) {
	good := modbus.Request{Unit: 3, Function: 3, Address: 5, Count: 2}
	answer := modbus.Response{Unit: 3, Function: 3, Data: []byte{1, 2, 3, 4}}.Append(nil)
	exchange := append(good.Append(nil), answer...)
	vendor := []byte{3, 0x64, 1, 2, 3}
	vendor = binary.LittleEndian.AppendUint16(vendor, modbus.CRC(vendor))
	spoilt := bytes.Clone(answer)
	spoilt[4] ^= 1
	for name, c := range map[string]struct {
		before []byte
		count  func(modbus.SnifferStats) uint64
	}{
		"a glitch":         {[]byte{0}, func(s modbus.SnifferStats) uint64 { return s.Garbage }},
		"noise":            {[]byte{0xff, 0x55, 0xaa, 3, 9}, func(s modbus.SnifferStats) uint64 { return s.Garbage }},
		"half an answer":   {answer[3:], func(s modbus.SnifferStats) uint64 { return s.Garbage }},
		"an answer":        {answer, func(s modbus.SnifferStats) uint64 { return s.Strays }},
		"other functions":  {vendor, func(s modbus.SnifferStats) uint64 { return s.Unknown }},
		"a spoilt answer":  {append(good.Append(nil), spoilt...), func(s modbus.SnifferStats) uint64 { return s.Spoilt }},
		"a broadcast":      {modbus.Request{Function: 6, Address: 1, Data: []byte{0, 1}}.Append(nil), func(s modbus.SnifferStats) uint64 { return s.Broadcasts }},
		"126 registers":    {modbus.Request{Unit: 3, Function: 3, Count: 126}.Append(nil), func(s modbus.SnifferStats) uint64 { return s.Malformed }},
		"an unasked reply": {modbus.Response{Unit: 77, Function: 4, Data: answer[3:7]}.Append(nil), func(s modbus.SnifferStats) uint64 { return s.Strays }},
	} {
		for _, size := range []int{1, 3, 1000} {
			got, stats := sniffAll(append(append(bytes.Clone(c.before), exchange...), exchange...), modbus.RTU, func() int { return size })
			want := fmt.Sprintf("%x %x", good.Append(nil), answer)
			if n := len(got); n < 2 || got[n-1] != want || got[n-2] != want {
				t.Errorf("after %s in chunks of %d: %q, %+v", name, size, got, stats)
			}
			if c.count(stats) == 0 {
				t.Errorf("after %s: not counted: %+v", name, stats)
			}
		}
	}
}

// The sniffer has no say in what is asked, so late answers are worse for it than for the client. The
// master here is the worst there is: it asks for another address of the same shape every time, and
// goes on after its timeout whatever happens.
func TestSnifferTakesNoLateAnswers(t *testing.T) {
	type event struct {
		at    time.Duration
		bytes []byte
	}
	random := rand.New(rand.NewPCG(5, 6))
	for name, mishap := range map[string]func(frame []byte) []event{
		"late":       nil,
		"duplicates": func(f []byte) []event { return []event{{time.Millisecond, f}} },
		"foreign frames": func([]byte) []event {
			return []event{{-time.Millisecond, modbus.Response{Unit: 4, Function: 3, Data: make([]byte, 4)}.Append(nil)}}
		},
		"quotes of an answer": func(f []byte) []event {
			return []event{{-time.Millisecond, modbus.Response{Unit: 4, Function: 3, Data: append(f, 0)}.Append(nil)}}
		},
	} {
		var events []event
		free := time.Duration(0)
		for i := range 10_000 {
			at := time.Duration(i) * 200 * time.Millisecond
			r := modbus.Request{Unit: 3, Function: 3, Address: uint16(i), Count: 2}
			if i%10 == 9 { // now and then something else, as on any line
				r = modbus.Request{Unit: 3, Function: 4, Address: uint16(i), Count: 1}
			}
			events = append(events, event{at, r.Append(nil)})
			delay := 10 * time.Millisecond
			if i%4 == 0 {
				delay += time.Duration(random.Int64N(int64(900 * time.Millisecond)))
			}
			free = max(free, at) + delay
			answer := modbus.Response{Unit: 3, Function: r.Function, Data: binary.BigEndian.AppendUint16(nil, uint16(i))}
			if r.Count == 2 {
				answer.Data = append(answer.Data, 0, 0)
			}
			events = append(events, event{free, answer.Append(nil)})
			if mishap != nil {
				for _, e := range mishap(answer.Append(nil)) {
					events = append(events, event{free + e.at, e.bytes})
				}
			}
		}
		sort.SliceStable(events, func(i, j int) bool { return events[i].at < events[j].at })
		right, wrong := 0, 0
		s := modbus.NewSniffer(modbus.SnifferConfig{Timing: modbus.TimingOf(115200, 11)}, func(t modbus.Transaction) {
			switch {
			case !t.Answered:
			case binary.BigEndian.Uint16(t.Response.Data) == t.Request.Address:
				right++
			default:
				wrong++
			}
		})
		start := time.Unix(0, 0)
		for _, e := range events {
			s.Feed(e.bytes, start.Add(e.at))
		}
		t.Logf("%s: %d right, %d wrong, %+v", name, right, wrong, s.Stats())
		if wrong != 0 || right < 1000 {
			t.Errorf("%s: %d wrong, %d right", name, wrong, right)
		}
	}
}

// FuzzSniffer: any bytes in any chunks give the same transactions, and a good exchange after them is
// heard once the line was silent.
func FuzzSniffer(f *testing.F) {
	good := modbus.Request{Unit: 3, Function: 3, Count: 2}
	answer := modbus.Response{Unit: 3, Function: 3, Data: []byte{1, 2, 3, 4}}
	f.Add(append(good.Append(nil), answer.Append(nil)...), uint64(1), false)
	f.Add([]byte{3, 3, 200, 3, 0x64, 0, 0}, uint64(2), false)
	f.Add([]byte(":030300000002F8\r\n:0303040102"), uint64(3), true)
	for i, r := range allFunctions() {
		f.Add(append(r.Append(nil), answerTo(r).Append(nil)...), uint64(i), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, ascii bool) {
		framing := modbus.RTU
		if ascii {
			framing = modbus.ASCII
		}
		random := rand.New(rand.NewPCG(seed, 0))
		whole, _ := sniffAll(stream, framing, func() int { return 1 << 20 })
		chunks, stats := sniffAll(stream, framing, func() int { return 1 + random.IntN(40) })
		if !reflect.DeepEqual(whole, chunks) {
			t.Fatalf("%q in one, %q in chunks; %+v", whole, chunks, stats)
		}
		var list []string
		s := modbus.NewSniffer(modbus.SnifferConfig{Framing: framing}, func(t modbus.Transaction) { list = append(list, heard(t)) })
		at := time.Unix(0, 0)
		s.Feed(stream, at)
		s.Silence(at.Add(2 * time.Second))
		at = at.Add(time.Minute)
		other := modbus.Request{Unit: 3, Function: 4, Address: 7, Count: 125} // that nothing in the stream looks like
		last := modbus.Response{Unit: 3, Function: 4, Data: make([]byte, 250)}
		s.Feed(in(framing, other.Append(nil)), at)
		s.Feed(in(framing, last.Append(nil)), at)
		s.Silence(at.Add(time.Minute))
		if n := len(list); n == 0 || list[n-1] != fmt.Sprintf("%x %x", other.Append(nil), last.Append(nil)) {
			t.Fatalf("the exchange at the end is not heard: %q", list)
		}
	})
}

// Sniff listens beside our client on a simulated wire.
func TestSniffOnALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tap := newMemoryLine(func([]byte) []arrival { return nil })
		u := &lateUnit{unit: 3, every: 1 << 30}
		line := newMemoryLine(func(request []byte) []arrival {
			tap.push(request)
			list := u.react(request)
			for _, a := range list {
				time.AfterFunc(a.after, func() { tap.push(a.bytes) })
			}
			return list
		})
		c := line.client(modbus.ClientConfig{Timing: modbus.TimingOf(19200, 11), Timeout: 100 * time.Millisecond})
		answered := 0
		done := make(chan error)
		go func() {
			done <- modbus.Sniff(t.Context(), tap, modbus.SnifferConfig{Timing: modbus.TimingOf(19200, 11)}, func(x modbus.Transaction) {
				if x.Answered && binary.BigEndian.Uint16(x.Response.Data) == x.Request.Address+1 && x.Took > 0 {
					answered++
				}
			})
		}()
		for i := range uint16(100) {
			if _, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.HoldingRegisters, Offset: i}, 2, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		tap.end(modbus.ErrTimeout)
		if err := <-done; err != modbus.ErrTimeout || answered != 100 {
			t.Errorf("%d transactions, %v", answered, err)
		}
		time.Sleep(time.Minute)
	})
}
