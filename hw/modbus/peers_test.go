package modbus_test

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// pair joins two pseudo terminals, as a cable would.
func pair(t *testing.T) (near, far string) {
	t.Helper()
	dir := t.TempDir()
	near, far = filepath.Join(dir, "near"), filepath.Join(dir, "far")
	start(t, "socat", "-d", "-d", "pty,raw,echo=0,link="+near, "pty,raw,echo=0,link="+far)
	return near, far
}

// mbpoll, a foreign master on libmodbus, against our server: all functions it has.
func TestServerAgainstMbpoll(t *testing.T) {
	near, far := pair(t)
	u := hwtest.NewUnit(3)
	for i := range uint16(500) {
		u.Set(modbus.HoldingRegisters, i, i)
		u.Set(modbus.InputRegisters, i, i)
		u.Set(modbus.Coils, i, i%3&1)
		u.Set(modbus.DiscreteInputs, i, i%5&1)
	}
	serve(t, openPort(t, near), modbus.ServerConfig{Timing: modbus.TimingOf(115200, 11)}, u)
	poll := func(args ...string) string {
		t.Helper()
		arguments := []string{"-m", "rtu", "-a", "3", "-b", "115200", "-P", "none", "-0", "-1", "-o", "2"}
		out, err := exec.Command("mbpoll", append(arguments, args...)...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "failed") {
			t.Fatalf("mbpoll is missing; run: make deps\n%v\n%s", err, out)
		}
		return string(out)
	}
	read := func(table string, from, n int, want func(i int) int) {
		t.Helper()
		out := poll("-t", table, "-r", strconv.Itoa(from), "-c", strconv.Itoa(n), far)
		for i := from; i < from+n; i++ {
			if !slices.Contains(strings.Split(out, "\n"), "["+strconv.Itoa(i)+"]: \t"+strconv.Itoa(want(i))) {
				t.Fatalf("mbpoll reading table %s:\n%s", table, out)
			}
		}
	}
	read("0", 3, 100, func(i int) int { return i % 3 & 1 })
	read("1", 3, 100, func(i int) int { return i % 5 & 1 })
	read("3", 7, 125, func(i int) int { return i })
	read("4", 7, 125, func(i int) int { return i })
	for _, args := range [][]string{
		{"-t", "0", "-r", "1", far, "0"},                          // function 5
		{"-t", "0", "-r", "10", far, "1", "1", "0", "1"},          // function 15
		{"-t", "4", "-r", "20", far, "4711"},                      // function 6
		{"-t", "4", "-r", "30", far, "1", "2", "3", "4", "65535"}, // function 16
	} {
		if out := poll(args...); !strings.Contains(out, "Written") {
			t.Errorf("mbpoll %v: %s", args, out)
		}
	}
	if got := u.Get(modbus.HoldingRegisters, 30, 5); !slices.Equal(got, []uint16{1, 2, 3, 4, 65535}) || u.Get(modbus.HoldingRegisters, 20, 1)[0] != 4711 {
		t.Errorf("registers are %v", got)
	}
	if got := u.Get(modbus.Coils, 10, 4); !slices.Equal(got, []uint16{1, 1, 0, 1}) || u.Get(modbus.Coils, 1, 1)[0] != 0 {
		t.Errorf("coils are %v", got)
	}
	if out := poll("-t", "4", "-r", "499", "-c", "2", far); !strings.Contains(out, "Illegal data address") {
		t.Errorf("mbpoll reading past the end: %s", out)
	}
}

const python = "/usr/bin/python3" // whatever else is installed has no pymodbus

// Our client against a unit of pymodbus in ASCII: all functions both share.
func TestAgainstPymodbusInASCII(t *testing.T) {
	near, far := pair(t)
	start(t, python, "testdata/peer.py", "server", far)
	c := modbus.NewClient(openPort(t, near), modbus.ClientConfig{Framing: modbus.ASCII, Timeout: 3 * time.Second})
	ctx := t.Context()
	const unit = 17
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for _, table := range []modbus.Table{modbus.Coils, modbus.DiscreteInputs} {
		b, err := c.Read(ctx, unit, modbus.Address{Table: table, Offset: 3}, 41, nil)
		must("reading bits", err)
		for i := range 41 {
			if got := b[i/8]>>(i%8)&1 == 1; got != (i%3 == 0) {
				t.Errorf("%v:%d is %v", table, 3+i, got)
			}
		}
	}
	for table, base := range map[modbus.Table]uint16{modbus.InputRegisters: 1000, modbus.HoldingRegisters: 2000} {
		b, err := c.Read(ctx, unit, modbus.Address{Table: table, Offset: 100}, 125, nil)
		must("reading registers", err)
		for i := range uint16(125) {
			if got := binary.BigEndian.Uint16(b[2*i:]); got != base+100+i {
				t.Fatalf("%v:%d is %d", table, 100+i, got)
			}
		}
	}
	must("function 5", c.WriteCoil(ctx, unit, 1, true))
	must("function 6", c.WriteRegister(ctx, unit, 1, 0xbeef))
	must("function 15", c.WriteCoils(ctx, unit, 10, []bool{true, true, false, true}))
	must("function 16", c.WriteRegisters(ctx, unit, 20, []uint16{7, 8, 9}))
	must("function 22", c.MaskWrite(ctx, unit, 1, 0xff00, 0x12))
	b, err := c.ReadWrite(ctx, unit, 20, 3, 21, []uint16{99}, nil)
	must("function 23", err)
	if string(b) != "\x00\x07\x00\x63\x00\x09" {
		t.Errorf("function 23 reads %x", b)
	}
	if b, err = c.Read(ctx, unit, modbus.Address{Table: modbus.HoldingRegisters, Offset: 1}, 1, nil); err != nil || string(b) != "\xbe\x12" {
		t.Errorf("register 1 is %x, %v", b, err)
	}
	list, _, err := c.Identify(ctx, unit, modbus.BasicObjects, 0)
	must("function 43", err)
	if len(list) != 3 || string(list[0].Value) != "pymodbus" {
		t.Errorf("identity is %q", list)
	}
	if _, err := c.Read(ctx, unit, modbus.Address{Table: modbus.HoldingRegisters, Offset: 499}, 2, nil); !errors.Is(err, modbus.IllegalAddress) {
		t.Errorf("reading past the end: %v", err)
	}
	if s := c.Stats(); s.Garbage+s.Mismatches+s.CRCErrors+s.Late+s.Foreign != 0 {
		t.Errorf("faults on a clean line: %+v", s)
	}
}

// The client of pymodbus against our server in ASCII.
func TestServerAgainstPymodbusInASCII(t *testing.T) {
	near, far := pair(t)
	u := richUnit()
	serve(t, openPort(t, near), modbus.ServerConfig{Framing: modbus.ASCII, Timing: modbus.TimingOf(19200, 10)}, u)
	out, err := exec.Command(python, "testdata/peer.py", "client", far).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "done") {
		t.Fatalf("python3-pymodbus or python3-serial-asyncio is missing (run: make deps), or it is not content: %v\n%s", err, out)
	}
	if got := u.Get(modbus.HoldingRegisters, 1, 1)[0]; got != 0xbe12 {
		t.Errorf("register 1 is %x", got)
	}
}
