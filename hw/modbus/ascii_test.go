package modbus_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/modbus"
)

// The example of V1.02, appendix B, and both cases of the digits.
func TestASCIIFrames(t *testing.T) {
	if got := modbus.LRC([]byte{2, 7}); got != 0xf7 {
		t.Errorf("LRC(02 07) = %02x; want f7", got)
	}
	request := modbus.Request{Unit: 0x11, Function: 3, Address: 0x6b, Count: 3}
	const line = ":1103006B00037E\r\n"
	if got := modbus.AppendASCII(nil, request.Append(nil), 0); string(got) != line {
		t.Errorf("the request is %q; want %q", got, line)
	}
	for _, s := range []string{line, strings.ToLower(line)} {
		frame, err := modbus.DecodeASCII(nil, []byte(s), 0)
		if r, e := modbus.DecodeRequest(frame); err != nil || e != nil || r.Address != 0x6b {
			t.Errorf("%q is %+v, %v, %v", s, r, err, e)
		}
	}
	if got := modbus.AppendASCII(nil, request.Append(nil), '#'); string(got) != ":1103006B00037E\r#" {
		t.Errorf("with another delimiter the request is %q", got)
	}
	for _, s := range []string{"", ":", ":\r\n", ":11\r\n", ":110\r\n", "1103006B00037E\r\n", ":1103006B00037E\n", ":1103006B00037E\r\r", ":1103006G00037E\r\n"} {
		if frame, err := modbus.DecodeASCII(nil, []byte(s), 0); !errors.Is(err, modbus.ErrFrame) || len(frame) != 0 {
			t.Errorf("%q is %x, %v; want ErrFrame", s, frame, err)
		}
	}
	if frame, err := modbus.DecodeASCII(nil, []byte(":1103006B00037F\r\n"), 0); !errors.Is(err, modbus.ErrCRC) || len(frame) != 8 {
		t.Errorf("a wrong LRC: %x, %v; want ErrCRC and what the frame looks like", frame, err)
	}
}

func FuzzASCII(f *testing.F) {
	f.Add([]byte(":1103006B00037E\r\n"), byte(0))
	f.Add([]byte(":1103006b00037e\r#"), byte('#'))
	f.Fuzz(func(t *testing.T, line []byte, delimiter byte) {
		frame, err := modbus.DecodeASCII(nil, line, delimiter)
		if err != nil {
			return
		}
		if again := modbus.AppendASCII(nil, frame, delimiter); !bytes.EqualFold(again, line) {
			t.Fatalf("%q is %x, which is %q", line, frame, again)
		}
	})
}

// asciiLine is a line on which each answer is what say makes of it.
func asciiLine(t *testing.T, say func(answer []byte) []arrival) *modbus.Client {
	l := newMemoryLine(func(request []byte) []arrival {
		frame, err := modbus.DecodeASCII(nil, request, 0)
		r, e := modbus.DecodeRequest(frame)
		if err != nil || e != nil {
			t.Errorf("the request is %q", request)
		}
		return say(modbus.AppendASCII(nil, modbus.Execute(richUnit(), r).Append(nil), 0))
	})
	return l.client(modbus.ClientConfig{Framing: modbus.ASCII, Timing: modbus.TimingOf(19200, 10), Timeout: 200 * time.Millisecond})
}

// Up to a second may pass between two characters, and no more (V1.02, 2.5.2.1).
func TestASCIICharactersMayDawdle(t *testing.T) {
	for gap, want := range map[time.Duration]error{0: nil, 900 * time.Millisecond: nil, 1200 * time.Millisecond: modbus.ErrTimeout} {
		synctest.Test(t, func(t *testing.T) {
			c := asciiLine(t, func(a []byte) []arrival {
				return []arrival{{time.Millisecond, a[:4]}, {2 * time.Millisecond, a[4:5]}, {3*time.Millisecond + gap, a[5:]}}
			})
			b, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.InputRegisters, Offset: 10}, 2, nil)
			if !errors.Is(err, want) || err == nil && !own(b, 10) {
				t.Errorf("a pause of %v: %x, %v; want %v", gap, b, err, want)
			}
			time.Sleep(time.Minute)
		})
	}
}

func TestASCIIFaults(t *testing.T) {
	lower := func(a []byte) []byte { return bytes.ToLower(a) }
	at := func(p []byte) []arrival { return []arrival{{time.Millisecond, p}} }
	for name, c := range map[string]struct {
		say  func(a []byte) []arrival
		want error
	}{
		"lower case":        {func(a []byte) []arrival { return at(lower(a)) }, nil},
		"noise before":      {func(a []byte) []arrival { return at(append([]byte("\x00\xff\r\n"), a...)) }, nil},
		"half a frame":      {func(a []byte) []arrival { return at(append(bytes.Clone(a[:8]), a...)) }, nil},
		"a byte at a time":  {eachByte, nil},
		"a wrong LRC":       {func(a []byte) []arrival { a[9] ^= 1; return at(a) }, modbus.ErrCRC},
		"another function":  {func([]byte) []arrival { return at([]byte(":030304000A000BE1\r\n")) }, modbus.ErrMismatch},
		"no line end":       {func(a []byte) []arrival { return at(a[:len(a)-1]) }, modbus.ErrTimeout},
		"another unit's":    {func([]byte) []arrival { return at([]byte(":040404000A000BDF\r\n")) }, modbus.ErrTimeout},
		"no hexadecimals":   {func(a []byte) []arrival { a[9] = 'x'; return at(a) }, modbus.ErrTimeout},
		"another unit's, 2": {func(a []byte) []arrival { return at(append([]byte(":040404000A000BDF\r\n"), a...)) }, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			c1 := asciiLine(t, c.say)
			b, err := c1.Read(t.Context(), 3, modbus.Address{Table: modbus.InputRegisters, Offset: 10}, 2, nil)
			if !errors.Is(err, c.want) || err == nil && !own(b, 10) {
				t.Errorf("%s: %x, %v; want %v; %+v", name, b, err, c.want, c1.Stats())
			}
			if bad, ok := errors.AsType[*modbus.FrameError](err); c.want != nil && c.want != modbus.ErrTimeout && (!ok || len(bad.Frame) == 0) {
				t.Errorf("%s: %v has no frame", name, err)
			}
			time.Sleep(time.Minute)
		})
	}
}

func eachByte(a []byte) (list []arrival) {
	for i := range a {
		list = append(list, arrival{time.Duration(i) * time.Millisecond, a[i : i+1]})
	}
	return list
}

// An answer that is wrong shows its bytes, at most a frame of them.
func TestFrameErrorShowsTheFrame(t *testing.T) {
	good := modbus.Response{Unit: 3, Function: 4, Data: []byte{0, 10, 0, 11}}.Append(nil)
	spoilt := bytes.Clone(good)
	spoilt[4] ^= 1
	other := modbus.Response{Unit: 3, Function: 3, Data: []byte{0, 10, 0, 11}}.Append(nil)
	for name, c := range map[string]struct {
		answer, frame []byte
		want          error
	}{
		"checksum": {spoilt, spoilt, modbus.ErrCRC},
		"function": {other, other, modbus.ErrMismatch},
		"cut off":  {good[:6], good[:6], modbus.ErrTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newMemoryLine(func([]byte) []arrival { return []arrival{{time.Millisecond, c.answer}} })
			client := l.client(modbus.ClientConfig{Timing: modbus.TimingOf(19200, 11), Timeout: 50 * time.Millisecond})
			_, err := client.Read(t.Context(), 3, inputs, 2, nil)
			bad, ok := errors.AsType[*modbus.FrameError](err)
			if !errors.Is(err, c.want) || !ok || !bytes.Equal(bad.Frame, c.frame) {
				t.Errorf("%s: %v, %+v", name, err, bad)
			}
			time.Sleep(time.Minute)
		})
	}
}

// What a unit owes outlives its port, and its wish for silence is kept.
func TestResumeAndTurnaround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		number, asked := uint16(0), []time.Time{}
		answer := func(delay time.Duration) func([]byte) []arrival {
			return func(request []byte) []arrival {
				asked = append(asked, time.Now())
				r, err := modbus.DecodeRequest(request)
				if err != nil {
					return nil
				}
				number++
				data := make([]byte, 2*r.Count)
				binary.BigEndian.PutUint16(data, number)
				return []arrival{{delay, modbus.Response{Unit: 3, Function: r.Function, Data: data}.Append(nil)}}
			}
		}
		c := newMemoryLine(answer(time.Second)).client(modbus.ClientConfig{Timing: modbus.TimingOf(19200, 11), Timeout: 100 * time.Millisecond})
		at := modbus.Address{Table: modbus.HoldingRegisters}
		if _, err := c.Read(t.Context(), 3, at, 2, nil); !errors.Is(err, modbus.ErrTimeout) {
			t.Fatal(err)
		}
		if c.Response(3) != 0 {
			t.Errorf("a unit that never answered takes %v", c.Response(3))
		}
		next := newMemoryLine(answer(30 * time.Millisecond))
		c.Resume(next)
		next.push(modbus.Response{Unit: 3, Function: 3, Data: []byte{0xba, 0xd0, 0, 0}}.Append(nil)) // what the adapter held
		if b, err := c.Read(t.Context(), 3, at, 2, nil); err != nil || binary.BigEndian.Uint16(b) != number {
			t.Errorf("%x, %v", b, err)
		}
		if r := c.Response(3); r < 20*time.Millisecond || r > 40*time.Millisecond {
			t.Errorf("the unit takes %v; want 30ms less what the frames last", r)
		}
		c.SetTurnaround(3, 70*time.Millisecond)
		done := time.Now()
		if _, err := c.Read(t.Context(), 3, at, 2, nil); err != nil {
			t.Error(err)
		}
		if rested := asked[len(asked)-1].Sub(done); rested < 70*time.Millisecond {
			t.Errorf("the line rested %v before the unit was addressed", rested)
		}
		time.Sleep(time.Minute)
	})
}
