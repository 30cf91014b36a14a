package modbus_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/hw/modbus"
)

// libmodbus starts a unit built on libmodbus, at address 17 behind a pair of pseudo terminals, and
// returns a client on the other end.
func libmodbus(t *testing.T) *modbus.Client {
	t.Helper()
	dir := t.TempDir()
	server := filepath.Join(dir, "server")
	out, err := exec.Command("cc", "-o", server, "testdata/server.c", "-I/usr/include/modbus", "-lmodbus").CombinedOutput()
	if err != nil {
		t.Fatalf("a C compiler or libmodbus-dev is missing; run: make deps\n%v\n%s", err, out)
	}
	near, far := filepath.Join(dir, "near"), filepath.Join(dir, "far")
	start(t, "socat", "-d", "-d", "pty,raw,echo=0,link="+near, "pty,raw,echo=0,link="+far)
	start(t, server, far, "17")
	return clientOn(t, near, 0)
}

// start runs a program until the test ends, and returns when it said that it is ready.
func start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if _, err := cmd.StdinPipe(); err != nil { // closed by Wait; its end ends the server
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatalf("%s is missing; run: make deps\n%v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			t.Fatalf("%s did not start: %v", name, lines.Err())
		}
		if strings.Contains(lines.Text(), "ready") || strings.Contains(lines.Text(), "starting data transfer loop") {
			return
		}
	}
}

// Every function both sides know, the values being those that the foreign unit holds.
func TestAgainstLibmodbus(t *testing.T) {
	c, ctx := libmodbus(t), t.Context()
	const unit = 17
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	registers := func(table modbus.Table, from, n uint16, want func(i uint16) uint16) {
		t.Helper()
		b, err := c.Read(ctx, unit, modbus.Address{Table: table, Offset: from}, n, nil)
		must("reading", err)
		for i := range n {
			if got := binary.BigEndian.Uint16(b[2*i:]); got != want(from+i) {
				t.Errorf("%s:%d is %d; want %d", table, from+i, got, want(from+i))
			}
		}
	}
	bits := func(table modbus.Table, from, n uint16, want func(i uint16) bool) {
		t.Helper()
		b, err := c.Read(ctx, unit, modbus.Address{Table: table, Offset: from}, n, nil)
		must("reading", err)
		for i := range n {
			if got := b[i/8]>>(i%8)&1 == 1; got != want(from+i) {
				t.Errorf("%s:%d is %v; want %v", table, from+i, got, want(from+i))
			}
		}
	}
	third := func(i uint16) bool { return i%3 == 0 }
	must("function 5 first of all", c.WriteCoil(ctx, unit, 1, true))
	bits(modbus.Coils, 0, 500, func(i uint16) bool { return third(i) || i == 1 })
	bits(modbus.DiscreteInputs, 3, 21, third)
	registers(modbus.InputRegisters, 0, 125, func(i uint16) uint16 { return i + 1000 })
	registers(modbus.HoldingRegisters, 375, 125, func(i uint16) uint16 { return i + 2000 })
	must("function 6", c.WriteRegister(ctx, unit, 10, 0xbeef))
	must("function 16", c.WriteRegisters(ctx, unit, 20, []uint16{1, 2, 3}))
	must("function 15", c.WriteCoils(ctx, unit, 100, []bool{true, true, false, true, false, false, false, false, true, true}))
	bits(modbus.Coils, 100, 10, func(i uint16) bool { return strings.ContainsRune("0138 9", rune('0'+i-100)) })
	must("function 22", c.MaskWrite(ctx, unit, 10, 0xff00, 0x0012))
	registers(modbus.HoldingRegisters, 10, 1, func(uint16) uint16 { return 0xbe12 })
	b, err := c.ReadWrite(ctx, unit, 20, 3, 21, []uint16{7, 8}, nil)
	must("function 23", err)
	if got := [3]uint16{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(b[4:])}; got != [3]uint16{1, 7, 8} {
		t.Errorf("function 23 reads %v; want [1 7 8]", got)
	}
	most := make([]uint16, modbus.MaxWriteRegisters)
	must("the longest function 16", c.WriteRegisters(ctx, unit, 300, most))
	registers(modbus.HoldingRegisters, 300, uint16(len(most)), func(uint16) uint16 { return 0 })
	_, err = c.Read(ctx, unit, modbus.Address{Table: modbus.HoldingRegisters, Offset: 499}, 2, nil)
	if e, ok := errors.AsType[modbus.Exception](err); !ok || e != 2 {
		t.Errorf("reading past the end: %v; want exception 2", err)
	}
	if err := c.WriteCoil(ctx, unit, 500, true); !errors.Is(err, modbus.Exception(2)) {
		t.Errorf("writing past the end: %v; want exception 2", err)
	}
	must("a broadcast", c.WriteRegister(ctx, 0, 15, 77))
	registers(modbus.HoldingRegisters, 15, 1, func(uint16) uint16 { return 77 })
	registers(modbus.InputRegisters, 400, 100, func(i uint16) uint16 { return i + 1000 })
	// Last, because libmodbus takes the next request for the answer of the other unit.
	if _, err = c.Read(ctx, 18, modbus.Address{}, 1, nil); !errors.Is(err, modbus.ErrTimeout) {
		t.Errorf("reading a unit that is not there: %v; want ErrTimeout", err)
	}
	if s := c.Stats(); s.Garbage+s.Mismatches+s.CRCErrors+s.Late != 0 {
		t.Errorf("faults on a clean line: %+v", s)
	}
}
