package modbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// richUnit is unit 3 with something for every function.
func richUnit() *hwtest.Unit {
	u := hwtest.NewUnit(3)
	for i := range uint16(2000) {
		u.Set(modbus.InputRegisters, i, i)
		u.Set(modbus.HoldingRegisters, i, i)
		u.Set(modbus.Coils, i, i%3&1)
		u.Set(modbus.DiscreteInputs, i, i%5&1)
	}
	u.SetFile(4, 10, 11, 12, 13, 14, 15)
	u.SetFile(5, make([]uint16, 200)...)
	u.SetQueue(7, 1, 2, 3)
	u.SetQueue(8, make([]uint16, 32)...)
	u.SetIdentity(
		modbus.Object{ID: modbus.VendorName, Value: []byte("Ferrule")},
		modbus.Object{ID: modbus.ProductCode, Value: []byte("TEST")},
		modbus.Object{ID: modbus.Revision, Value: []byte("V1.0")},
		modbus.Object{ID: modbus.VendorURL, Value: bytes.Repeat([]byte("u"), 200)},
		modbus.Object{ID: modbus.ProductName, Value: bytes.Repeat([]byte("n"), 100)},
		modbus.Object{ID: 0x80, Value: []byte("own")},
	)
	return u
}

// everyFunction has a client use every function on richUnit, and checks what comes of it.
func everyFunction(t *testing.T, c *modbus.Client, u *hwtest.Unit) {
	t.Helper()
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for table, want := range map[modbus.Table]func(i int) uint16{
		modbus.Coils:            func(i int) uint16 { return uint16(i) % 3 & 1 },
		modbus.DiscreteInputs:   func(i int) uint16 { return uint16(i) % 5 & 1 },
		modbus.InputRegisters:   func(i int) uint16 { return uint16(i) },
		modbus.HoldingRegisters: func(i int) uint16 { return uint16(i) },
	} {
		n := modbus.MaxReadRegisters
		if table.Bits() {
			n = modbus.MaxReadBits
		}
		b, err := c.Read(ctx, 3, modbus.Address{Table: table}, uint16(n), nil)
		must("reading "+table.String(), err)
		for i := range n {
			got := uint16(0)
			if table.Bits() {
				got = uint16(b[i/8]>>(i%8)) & 1
			} else {
				got = uint16(b[2*i])<<8 | uint16(b[2*i+1])
			}
			if got != want(i) {
				t.Fatalf("%s:%d is %d; want %d", table, i, got, want(i))
			}
		}
	}
	must("function 5", c.WriteCoil(ctx, 3, 0, true))
	must("function 6", c.WriteRegister(ctx, 3, 1, 0xbeef))
	must("function 15", c.WriteCoils(ctx, 3, 10, []bool{true, true, false, false, true, true, true, false, true}))
	must("function 16", c.WriteRegisters(ctx, 3, 20, []uint16{7, 8, 9}))
	must("function 22", c.MaskWrite(ctx, 3, 1, 0xff00, 0x12))
	b, err := c.ReadWrite(ctx, 3, 20, 3, 21, []uint16{99}, nil)
	must("function 23", err)
	if !bytes.Equal(b, []byte{0, 7, 0, 99, 0, 9}) {
		t.Errorf("function 23 reads %x", b)
	}
	if got := u.Get(modbus.HoldingRegisters, 1, 1)[0]; got != 0xbe12 {
		t.Errorf("register 1 is %x; want be12", got)
	}
	if got := u.Get(modbus.Coils, 10, 9); got[0] != 1 || got[2] != 0 || got[8] != 1 || u.Get(modbus.Coils, 0, 1)[0] != 1 {
		t.Errorf("coils are %v", got)
	}
	specialFunctions(t, c)
	if s := c.Stats(); s.Garbage+s.Mismatches+s.CRCErrors+s.Late+s.Foreign != 0 {
		t.Errorf("faults on a clean line: %+v", s)
	}
}

func specialFunctions(t *testing.T, c *modbus.Client) {
	t.Helper()
	ctx := t.Context()
	data := bytes.Repeat([]byte{0xab, 0xcd}, 60)
	if err := c.WriteRecords(ctx, 3, []modbus.Record{{File: 5, Number: 100, Count: 60, Data: data}, {File: 4, Number: 1, Count: 1, Data: []byte{1, 2}}}); err != nil {
		t.Fatal(err)
	}
	records := []modbus.Record{{File: 4, Number: 0, Count: 3}, {File: 5, Number: 99, Count: 61}}
	if err := c.ReadRecords(ctx, 3, records); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(records[0].Data, []byte{0, 10, 1, 2, 0, 12}) || !bytes.Equal(records[1].Data, append([]byte{0, 0}, data...)) {
		t.Errorf("records are %x and %x", records[0].Data, records[1].Data)
	}
	if err := c.ReadRecords(ctx, 3, []modbus.Record{{File: 4, Number: 5, Count: 2}}); !errors.Is(err, modbus.IllegalAddress) {
		t.Errorf("reading past the end of a file: %v", err)
	}
	if b, err := c.ReadFIFO(ctx, 3, 7, nil); err != nil || !bytes.Equal(b, []byte{0, 1, 0, 2, 0, 3}) {
		t.Errorf("queue: %x, %v", b, err)
	}
	if _, err := c.ReadFIFO(ctx, 3, 8, nil); !errors.Is(err, modbus.IllegalValue) {
		t.Errorf("a queue of 32: %v; want exception 3", err)
	}
	for objects, want := range map[modbus.Objects]int{modbus.BasicObjects: 3, modbus.RegularObjects: 5, modbus.ExtendedObjects: 6} {
		list, conformity, err := c.Identify(ctx, 3, objects, 0)
		if err != nil || len(list) != want || conformity != 0x83 || string(list[0].Value) != "Ferrule" || list[want-1].Value == nil {
			t.Errorf("objects of kind %d: %d, conformity %x, %v; want %d", objects, len(list), conformity, err, want)
		}
	}
	if list, _, err := c.Identify(ctx, 3, modbus.OneObject, 0x80); err != nil || len(list) != 1 || string(list[0].Value) != "own" {
		t.Errorf("one object: %v, %v", list, err)
	}
	if _, _, err := c.Identify(ctx, 3, modbus.OneObject, 0x81); !errors.Is(err, modbus.IllegalAddress) {
		t.Errorf("an object that is not there: %v", err)
	}
}

// serve runs a server until the test ends.
func serve(t testing.TB, p modbus.Port, c modbus.ServerConfig, u *hwtest.Unit) *modbus.Server {
	t.Helper()
	s := modbus.NewServer(p, c, modbus.Units{u.Address(): u}.At)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the server ended with %v", err)
		}
	})
	return s
}

func TestEveryFunctionOnTheWire(t *testing.T) {
	for _, f := range []modbus.Framing{modbus.RTU, modbus.ASCII} {
		for _, baud := range []int{0, 115200} {
			w, err := hwtest.NewWire(hwtest.WireConfig{Baud: baud, Framing: f})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			u := richUnit()
			w.Attach(u)
			c := modbus.NewClient(openPort(t, w.Path()), modbus.ClientConfig{Framing: f, Timing: modbus.TimingOf(baud, 11), Timeout: 300 * time.Millisecond})
			everyFunction(t, c, u)
			if s := w.Stats(); s.Violations != 0 || s.Broken != 0 {
				t.Errorf("%v at %d: %+v", f, baud, s)
			}
		}
	}
}

// terminal is a pseudo terminal: one end open, the other by its path.
func terminal(t testing.TB) (*os.File, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if e := raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return f, fmt.Sprintf("/dev/pts/%d", n)
}

// Our client against our server over a pseudo terminal, in both framings, with and without silences.
func TestEveryFunctionOfTheServer(t *testing.T) {
	for _, f := range []modbus.Framing{modbus.RTU, modbus.ASCII} {
		for _, timing := range []modbus.Timing{{}, modbus.TimingOf(115200, 11)} {
			far, path := terminal(t)
			u := richUnit()
			p := openPort(t, path) // makes both ends raw
			serve(t, far, modbus.ServerConfig{Framing: f, Timing: timing}, u)
			everyFunction(t, modbus.NewClient(p, modbus.ClientConfig{Framing: f, Timing: timing, Timeout: time.Second}), u)
		}
	}
}

// halting is a connection whose writes arrive in segments of a few bytes.
type halting struct{ net.Conn }

func (h halting) Write(p []byte) (int, error) {
	for i := 0; i < len(p); i += 3 {
		if n, err := h.Conn.Write(p[i:min(i+3, len(p))]); err != nil {
			return i + n, err
		}
	}
	return len(p), nil
}

func TestEveryFunctionOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	u := richUnit()
	serve(t, halting{far}, modbus.ServerConfig{}, u)
	everyFunction(t, modbus.NewClient(near, modbus.ClientConfig{Timeout: time.Second}), u)
}

// Nobody answers a broadcast, all do what it says, and the line rests afterwards.
func TestBroadcast(t *testing.T) {
	for _, echo := range []bool{false, true} {
		w, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200, Echo: echo})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		a, b := richUnit(), hwtest.NewUnit(4)
		b.Set(modbus.HoldingRegisters, 1, 0)
		w.Attach(a)
		w.Attach(b)
		c := modbus.NewClient(openPort(t, w.Path()), modbus.ClientConfig{Timing: modbus.TimingOf(115200, 11), Timeout: 300 * time.Millisecond, Turnaround: 100 * time.Millisecond})
		begin := time.Now()
		if err := c.WriteRegister(t.Context(), 0, 1, 4711); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 100*time.Millisecond {
			t.Errorf("the turnaround delay was %v", took)
		}
		for _, u := range []*hwtest.Unit{a, b} {
			if got := u.Get(modbus.HoldingRegisters, 1, 1)[0]; got != 4711 {
				t.Errorf("unit %d has %d", u.Address(), got)
			}
		}
		if b, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.HoldingRegisters}, 2, nil); err != nil || !bytes.Equal(b, []byte{0, 0, 0x12, 0x67}) {
			t.Errorf("reading afterwards: %x, %v", b, err)
		}
		if s := c.Stats(); s.Timeouts+s.Garbage+s.Foreign != 0 || w.Stats().Violations != 0 {
			t.Errorf("%+v; %+v", s, w.Stats())
		}
	}
}
