package modbus_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"ferrule/hw/modbus"
	"ferrule/internal/hint"
)

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]modbus.Address{
		"input:0x000C": {Table: modbus.InputRegisters, Offset: 12},
		"input:0X000c": {Table: modbus.InputRegisters, Offset: 12},
		"holding:100":  {Table: modbus.HoldingRegisters, Offset: 100},
		"holding:010":  {Table: modbus.HoldingRegisters, Offset: 10},
		"coil:65535":   {Table: modbus.Coils, Offset: 65535},
		"discrete:0":   {Table: modbus.DiscreteInputs},
		"30013":        {Table: modbus.InputRegisters, Offset: 12},
		"300013":       {Table: modbus.InputRegisters, Offset: 12},
		"40101":        {Table: modbus.HoldingRegisters, Offset: 100},
		"465536":       {Table: modbus.HoldingRegisters, Offset: 65535},
		"00001":        {Table: modbus.Coils},
		"10001":        {Table: modbus.DiscreteInputs},
	} {
		got, err := modbus.ParseAddress(s)
		if err != nil || got != want {
			t.Errorf("ParseAddress(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "input", "input:", "input:-1", "input:65536", "input:0x10000", "inputs:1", "Input:1",
		"40000", "400000", "465537", "20001", "4001", "4000001", "4x001", "+0001", "holding:1 ", "holding:1_0", "holding:0x"} {
		got, err := modbus.ParseAddress(s)
		if err == nil {
			t.Errorf("ParseAddress(%q) = %v; want an error", s, got)
		} else if hint.Of(err) == "" {
			t.Errorf("ParseAddress(%q): %v has no hint", s, err)
		}
	}
}

// V1.02, 2.5.1.1.
func TestTimingOf(t *testing.T) {
	for _, c := range []struct {
		baud           int
		char, t15, t35 time.Duration
	}{
		{9600, 1145833, 1718750, 4010416},
		{19200, 572916, 859375, 2005208},
		{38400, 286458, 750 * time.Microsecond, 1750 * time.Microsecond},
		{115200, 95486, 750 * time.Microsecond, 1750 * time.Microsecond},
		{0, 0, 0, 0},
	} {
		if got, want := modbus.TimingOf(c.baud, 11), (modbus.Timing{Char: c.char, T15: c.t15, T35: c.t35}); got != want {
			t.Errorf("TimingOf(%d, 11) = %v; want %v", c.baud, got, want)
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// frames as other masters and units send them.
var exchanges = []struct {
	name          string
	request       modbus.Request
	response      modbus.Response
	requestBytes  string
	responseBytes string
}{
	{"read holding", modbus.Request{Unit: 0x11, Function: 3, Address: 0x6b, Count: 3}, modbus.Response{Unit: 0x11, Function: 3, Data: []byte{0xae, 0x41, 0x56, 0x52, 0x43, 0x40}}, "1103006b00037687", "110306ae415652434049ad"},
	{"coil", modbus.Request{Unit: 0x11, Function: 5, Address: 0xac, Data: []byte{0xff, 0}}, modbus.Response{Unit: 0x11, Function: 5, Address: 0xac, Data: []byte{0xff, 0}}, "110500acff004e8b", "110500acff004e8b"},
	{"registers", modbus.Request{Unit: 0x11, Function: 16, Address: 1, Count: 2, Data: []byte{0, 0x0a, 1, 2}}, modbus.Response{Unit: 0x11, Function: 16, Address: 1, Count: 2}, "11100001000204000a0102c6f0", "1110000100021298"},
	{"exception", modbus.Request{Unit: 0x0a, Function: 1, Address: 0x4a1, Count: 1}, modbus.Response{Unit: 0x0a, Function: 1, Exception: 2}, "0a0104a10001ac63", "0a8102b053"},
}

// The example of V1.02, 6.2.2.
func TestCRC(t *testing.T) {
	if got := modbus.CRC([]byte{2, 7}); got != 0x1241 {
		t.Errorf("CRC(02 07) = %04x; want 1241", got)
	}
}

func TestKnownFrames(t *testing.T) {
	for _, x := range exchanges {
		req, res := unhex(t, x.requestBytes), unhex(t, x.responseBytes)
		if got := x.request.Append(nil); !bytes.Equal(got, req) {
			t.Errorf("%s: request is %x; want %x", x.name, got, req)
		}
		if got := x.response.Append(nil); !bytes.Equal(got, res) {
			t.Errorf("%s: response is %x; want %x", x.name, got, res)
		}
		if got, err := modbus.DecodeRequest(req); err != nil || !reflect.DeepEqual(got, x.request) {
			t.Errorf("%s: DecodeRequest = %+v, %v", x.name, got, err)
		}
		if got, err := modbus.DecodeResponse(x.request, res); err != nil || !reflect.DeepEqual(got, x.response) {
			t.Errorf("%s: DecodeResponse = %+v, %v", x.name, got, err)
		}
	}
}

// allFunctions is one request of each.
func allFunctions() []modbus.Request {
	return []modbus.Request{
		{Unit: 3, Function: 1, Address: 7, Count: 19},
		{Unit: 3, Function: 2, Address: 7, Count: 2000},
		{Unit: 3, Function: 3, Address: 7, Count: 125},
		{Unit: 3, Function: 4, Address: 7, Count: 1},
		{Unit: 3, Function: 5, Address: 7, Data: []byte{0, 0}},
		{Unit: 3, Function: 6, Address: 7, Data: []byte{1, 2}},
		{Unit: 3, Function: 15, Address: 7, Count: 9, Data: []byte{1, 1}},
		{Unit: 3, Function: 16, Address: 7, Count: 2, Data: []byte{1, 2, 3, 4}},
		{Unit: 3, Function: 22, Address: 7, And: 0xf0, Or: 0x25},
		{Unit: 3, Function: 23, Address: 7, Count: 2, WriteAddress: 9, Data: []byte{1, 2}},
		modbus.RecordRequest(modbus.ReadFileRecord, 3, modbus.Record{File: 4, Number: 1, Count: 2}, modbus.Record{File: 5, Number: 9, Count: 1}),
		modbus.RecordRequest(modbus.WriteFileRecord, 3, modbus.Record{File: 4, Number: 1, Count: 1, Data: []byte{7, 8}}),
		{Unit: 3, Function: 24, Address: 7},
		{Unit: 3, Function: 43, Objects: modbus.RegularObjects},
	}
}

func TestNoBitFlipDecodes(t *testing.T) {
	for _, r := range allFunctions() {
		frame := r.Append(nil)
		for bit := range 8 * len(frame) {
			frame[bit/8] ^= 1 << (bit % 8)
			if got, err := modbus.DecodeRequest(frame); err == nil {
				t.Fatalf("function %d with bit %d turned decodes as %+v", r.Function, bit, got)
			}
			frame[bit/8] ^= 1 << (bit % 8)
		}
		if _, err := modbus.DecodeRequest(frame); err != nil {
			t.Errorf("function %d: %v", r.Function, err)
		}
	}
}

func TestDecodeResponseRefusesForeignAnswers(t *testing.T) {
	req := modbus.Request{Unit: 3, Function: 3, Address: 0, Count: 2}
	for name, r := range map[string]modbus.Response{
		"unit":       {Unit: 4, Function: 3, Data: make([]byte, 4)},
		"function":   {Unit: 3, Function: 4, Data: make([]byte, 4)},
		"byte count": {Unit: 3, Function: 3, Data: make([]byte, 2)},
		"exception":  {Unit: 3, Function: 4, Exception: 2},
	} {
		if got, err := modbus.DecodeResponse(req, r.Append(nil)); !errors.Is(err, modbus.ErrMismatch) {
			t.Errorf("other %s: %+v, %v; want ErrMismatch", name, got, err)
		}
	}
	write := modbus.Request{Unit: 3, Function: 6, Address: 1, Data: []byte{0, 7}}
	other := modbus.Response{Unit: 3, Function: 6, Address: 1, Data: []byte{0, 8}}
	if _, err := modbus.DecodeResponse(write, other.Append(nil)); !errors.Is(err, modbus.ErrMismatch) {
		t.Errorf("answer with another value: %v; want ErrMismatch", err)
	}
}

func TestValidateKeepsTheLimits(t *testing.T) {
	for _, r := range []modbus.Request{
		{Unit: 1, Function: 1, Count: 0}, {Unit: 1, Function: 1, Count: 2001}, {Unit: 1, Function: 3, Count: 126},
		{Unit: 1, Function: 5, Data: []byte{1, 0}}, {Unit: 1, Function: 6, Data: []byte{1}}, {Unit: 1, Function: 15, Count: 9, Data: []byte{1}},
		{Unit: 1, Function: 16, Count: 124, Data: make([]byte, 248)}, {Unit: 1, Function: 23, Count: 1}, {Unit: 1, Function: 23, Count: 1, Data: make([]byte, 244)},
		{Unit: 1, Function: 7},
	} {
		if err := r.Validate(); !errors.Is(err, modbus.ErrRequest) {
			t.Errorf("%+v: %v; want ErrRequest", r, err)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for _, r := range allFunctions() {
		f.Add(r.Append(nil))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		r, err := modbus.DecodeRequest(frame)
		if err != nil {
			return
		}
		if again := r.Append(nil); !bytes.Equal(again, frame) {
			t.Fatalf("%x decodes as %+v, which is %x", frame, r, again)
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	for i, r := range allFunctions() {
		f.Add(i, r.Append(nil))
		f.Add(i, modbus.Response{Unit: 3, Function: r.Function, Exception: 2}.Append(nil))
		f.Add(i, modbus.Response{Unit: 3, Function: r.Function, Data: make([]byte, 2*r.Count)}.Append(nil))
	}
	requests := allFunctions()
	f.Fuzz(func(t *testing.T, i int, frame []byte) {
		req := requests[uint(i)%uint(len(requests))]
		r, err := modbus.DecodeResponse(req, frame)
		if err != nil {
			return
		}
		if again := r.Append(nil); !bytes.Equal(again, frame) {
			t.Fatalf("%x decodes as %+v, which is %x", frame, r, again)
		}
		if r.Unit != req.Unit || r.Function != req.Function {
			t.Fatalf("%+v answers %+v", r, req)
		}
	})
}
