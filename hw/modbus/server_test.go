package modbus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// raw is a frame of any bytes, with its checksum.
func raw(p ...byte) []byte {
	return binary.LittleEndian.AppendUint16(p, modbus.CRC(p))
}

// asked has a server hear bytes, each after its delay, and returns what it sends, frame by frame.
func asked(t *testing.T, c modbus.ServerConfig, u *hwtest.Unit, list ...arrival) (answers [][]byte, stats modbus.ServerStats) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		line := newMemoryLine(func(p []byte) []arrival {
			answers = append(answers, p)
			if c.Echo {
				return []arrival{{time.Millisecond, p}}
			}
			return nil
		})
		s := modbus.NewServer(line, c, modbus.Units{u.Address(): u}.At)
		done := make(chan error)
		go func() { done <- s.Run(context.Background()) }()
		for _, a := range list {
			time.Sleep(a.after)
			line.push(a.bytes)
		}
		time.Sleep(10 * time.Second)
		line.end(modbus.ErrTimeout)
		if err := <-done; err != modbus.ErrTimeout {
			t.Errorf("the server ended with %v", err)
		}
		stats = s.Stats()
		time.Sleep(time.Minute)
	})
	return answers, stats
}

var paced = modbus.ServerConfig{Timing: modbus.TimingOf(19200, 11)}

// Application Protocol V1.1b3, 6 and 7: which exception answers what.
func TestServerRefusesByTheBook(t *testing.T) {
	for name, c := range map[string]struct {
		request []byte
		want    byte // 0: no answer
	}{
		"unknown function":          {raw(3, 99, 1, 2), 1},
		"function 7":                {raw(3, 7), 1},
		"CANopen":                   {raw(3, 43, 13, 0, 0), 1},
		"no registers":              {raw(3, 3, 0, 0, 0, 0), 3},
		"126 registers":             {raw(3, 3, 0, 0, 0, 126), 3},
		"2001 bits":                 {raw(3, 1, 0, 0, 7, 0xd1), 3},
		"a coil half on":            {raw(3, 5, 0, 0, 0x80, 0), 3},
		"byte count of 15":          {raw(3, 15, 0, 0, 0, 9, 1, 0), 3},
		"byte count of 16":          {raw(3, 16, 0, 0, 0, 2, 2, 0, 0), 3},
		"byte count of 23":          {raw(3, 23, 0, 0, 0, 1, 0, 0, 0, 2, 2, 0, 0), 3},
		"one byte too many":         {raw(3, 3, 0, 0, 0, 1, 0xff), 3},
		"past the end of the map":   {raw(3, 3, 0x07, 0xd0, 0, 1), 2},
		"past the end of all maps":  {raw(3, 3, 0xff, 0xff, 0, 2), 2},
		"another reference type":    {raw(3, 20, 7, 5, 0, 4, 0, 0, 0, 1), 2},
		"records cut off":           {raw(3, 20, 6, 6, 0, 4, 0, 0, 0), 3},
		"file 0":                    {raw(3, 20, 7, 6, 0, 0, 0, 0, 0, 1), 2},
		"record 10000":              {raw(3, 20, 7, 6, 0, 4, 0x27, 0x10, 0, 1), 2},
		"no such queue":             {raw(3, 24, 0, 9), 2},
		"a queue of 32":             {raw(3, 24, 0, 8), 3},
		"object code 5":             {raw(3, 43, 14, 5, 0), 3},
		"no such object":            {raw(3, 43, 14, 4, 0x99), 2},
		"another unit":              {raw(4, 3, 0, 0, 0, 1), 0},
		"a broadcast read":          {raw(0, 3, 0, 0, 0, 1), 0},
		"a broadcast of nonsense":   {raw(0, 99), 0},
		"a wrong checksum":          {[]byte{3, 3, 0, 0, 0, 1, 0, 0}, 0},
		"an answer":                 {raw(3, 3, 2, 0, 0), 0},
		"half a request":            {raw(3, 3, 0, 0, 0, 1)[:5], 0},
		"a write past the end":      {raw(3, 6, 0xff, 0xff, 0, 1), 2},
		"a mask past the end":       {raw(3, 22, 0xff, 0xff, 0, 1, 0, 1), 2},
		"read and write past ends":  {raw(3, 23, 0xff, 0xff, 0, 1, 0, 0, 0, 1, 2, 0, 0), 2},
		"a file that is not there":  {raw(3, 20, 7, 6, 0, 9, 0, 0, 0, 1), 2},
		"writing past a file's end": {raw(3, 21, 9, 6, 0, 4, 0, 6, 0, 1, 0, 0), 2},
	} {
		for _, framing := range []modbus.Framing{modbus.RTU, modbus.ASCII} {
			config := paced
			config.Framing = framing
			request := c.request
			if framing == modbus.ASCII {
				if name == "a wrong checksum" || name == "half a request" {
					continue
				}
				request = modbus.AppendASCII(nil, request, 0)
			}
			answers, stats := asked(t, config, richUnit(), arrival{0, request})
			want := in(framing, raw(3, c.request[1]|0x80, c.want))
			switch {
			case framing == modbus.ASCII && name == "one byte too many" && len(answers) == 0: // no silence, no length: no frame
			case c.want == 0 && len(answers) != 0, c.want != 0 && (len(answers) != 1 || !bytes.Equal(answers[0], want)):
				t.Errorf("%s, %v: %x; want exception %d; %+v", name, framing, answers, c.want, stats)
			}
		}
	}
}

// What else is said on the line, and how the bytes come, makes no difference.
func TestServerAmongOthers(t *testing.T) {
	request := raw(3, 3, 0, 5, 0, 2)
	answer := raw(3, 3, 4, 0, 5, 0, 6)
	quote := modbus.Response{Unit: 4, Function: 3, Data: append(bytes.Clone(request), 0, 0)}.Append(nil)
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, c := range map[string]struct {
		list []arrival
		want int // answers
	}{
		"at once":                    {[]arrival{{0, request}}, 1},
		"in pieces":                  {[]arrival{{0, request[:1]}, {ms(1), request[1:6]}, {ms(1), request[6:]}}, 1},
		"in pieces with pauses":      {[]arrival{{0, request[:3]}, {ms(15), request[3:]}}, 1},
		"cut off, then whole":        {[]arrival{{0, request[:6]}, {ms(100), request}}, 1},
		"after noise":                {[]arrival{{0, append([]byte{0xff, 3, 3}, request...)}}, 1},
		"before a glitch":            {[]arrival{{0, append(bytes.Clone(request), 0)}}, 1},
		"after others":               {[]arrival{{0, raw(4, 3, 0, 0, 0, 1)}, {ms(3), raw(4, 3, 2, 0, 0)}, {ms(3), request}}, 1},
		"glued to others":            {[]arrival{{0, append(append(raw(4, 3, 0, 0, 0, 1), raw(4, 3, 2, 0, 0)...), request...)}}, 1},
		"after an exchange of coils": {[]arrival{{0, raw(4, 1, 3, 0, 0, 24)}, {ms(3), raw(4, 1, 3, 0, 0, 24)}, {ms(3), request}}, 1},
		"quoted by another unit":     {[]arrival{{0, quote}}, 0},
		"somebody else spoke since":  {[]arrival{{0, append(bytes.Clone(request), raw(4, 3, 0, 0, 0, 1)...)}}, 0},
		"twice":                      {[]arrival{{0, request}, {ms(50), request}}, 2},
	} {
		answers, stats := asked(t, paced, richUnit(), c.list...)
		if len(answers) != c.want || c.want > 0 && !bytes.Equal(answers[0], answer) {
			t.Errorf("%s: %x; want %d answers; %+v", name, answers, c.want, stats)
		}
	}
}

// Own answers heard are no requests, not even those of function 6, and a line without an echo is not
// taken for one with.
func TestServerHearsItself(t *testing.T) {
	write, read := raw(3, 6, 0, 1, 0, 7), raw(3, 3, 0, 1, 0, 1)
	for _, echo := range []bool{true, false} {
		c := paced
		c.Echo = echo
		list := []arrival{{0, write}, {100 * time.Millisecond, write}, {100 * time.Millisecond, read}, {100 * time.Millisecond, write}}
		answers, stats := asked(t, c, richUnit(), list...)
		if len(answers) != len(list) || stats.Echoes > 0 != echo {
			t.Errorf("echo %v: %x, %+v", echo, answers, stats)
		}
	}
}

// Several requests in one segment are each answered where there are no silences.
func TestServerOverTCPAnswersAll(t *testing.T) {
	request := raw(3, 3, 0, 5, 0, 2)
	answers, stats := asked(t, modbus.ServerConfig{}, richUnit(), arrival{0, bytes.Repeat(request, 5)})
	if len(answers) != 5 {
		t.Errorf("%x, %+v", answers, stats)
	}
}

// The silence of t3.5 is kept before an answer.
func TestServerKeepsTheSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answered := make(chan time.Time, 1)
		line := newMemoryLine(func([]byte) []arrival { answered <- time.Now(); return nil })
		timing := modbus.TimingOf(9600, 11)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- modbus.Serve(ctx, line, modbus.ServerConfig{Timing: timing}, modbus.Units{3: richUnit()}.At)
		}()
		time.Sleep(time.Second)
		line.push(raw(3, 3, 0, 5, 0, 2))
		sent := time.Now()
		if took := (<-answered).Sub(sent); took < timing.T35 || took > timing.T35+2*time.Millisecond {
			t.Errorf("answered after %v; t3.5 is %v", took, timing.T35)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		time.Sleep(time.Minute)
	})
}

// FuzzServer: whatever is heard, the server lives, and answers a good request afterwards.
func FuzzServer(f *testing.F) {
	for i, r := range allFunctions() {
		f.Add(r.Append(nil), byte(i), i%2 == 0)
		f.Add(modbus.AppendASCII(nil, r.Append(nil), 0), byte(i), true)
	}
	f.Add(raw(3, 99, 1, 2), byte(3), false)
	f.Fuzz(func(t *testing.T, stream []byte, chunk byte, ascii bool) {
		if len(stream) > 4096 {
			return
		}
		c := paced
		if ascii {
			c.Framing = modbus.ASCII
		}
		var list []arrival
		for len(stream) > 0 {
			n := min(int(chunk)+1, len(stream))
			list = append(list, arrival{time.Millisecond, stream[:n]})
			stream = stream[n:]
		}
		list = append(list, arrival{5 * time.Second, in(c.Framing, raw(3, 3, 0, 1, 0, 1))})
		u := hwtest.NewUnit(3)
		u.Set(modbus.HoldingRegisters, 1, 4711)
		answers, stats := asked(t, c, u, list...)
		if n := len(answers); n == 0 || u.Get(modbus.HoldingRegisters, 1, 1)[0] == 4711 && !bytes.Equal(answers[n-1], in(c.Framing, raw(3, 3, 2, 0x12, 0x67))) {
			t.Fatalf("%x, %+v", answers, stats)
		}
	})
}
