package hw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
	"ferrule/hw/port"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// openAt opens a port for the test's own side of a line.
func openAt(t testing.TB, path string) port.Port {
	t.Helper()
	p, err := port.Open(t.Context(), path, port.Options{Settings: port.Settings{Baud: 115200, DataBits: 8, Parity: 'N', StopBits: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// cable joins two pseudo terminals and returns their paths.
func cable(t testing.TB) (a, b string) {
	t.Helper()
	farA, a := terminal(t)
	farB, b := terminal(t)
	ended := make(chan struct{}, 2)
	join := func(to, from *os.File) {
		_, _ = to.ReadFrom(from) // until the ends are closed
		ended <- struct{}{}
	}
	go join(farA, farB)
	go join(farB, farA)
	t.Cleanup(func() {
		farA.Close()
		farB.Close()
		<-ended
		<-ended
	})
	return a, b
}

// tap is a port whose bytes, in both directions, are heard by another line.
type tap struct {
	port.Port
	heard *os.File
}

func (p tap) Read(b []byte) (int, error) {
	n, err := p.Port.Read(b)
	p.heard.Write(b[:n])
	return n, err
}

func (p tap) Write(b []byte) (int, error) {
	p.heard.Write(b)
	return p.Port.Write(b)
}

// TryRead has its bytes heard, too.
func (p tap) TryRead(b []byte) (int, error) {
	n, err := p.Port.TryRead(b)
	p.heard.Write(b[:n])
	return n, err
}

// A line that somebody else masters: the values come from what passes by.
func TestOverhear(t *testing.T) {
	for _, framing := range []modbus.Framing{modbus.RTU, modbus.ASCII} {
		t.Run(framing.String(), func(t *testing.T) {
			unit := meter(3)
			unit.Set(modbus.InputRegisters, 10, 0, 0)
			unit.Set(modbus.HoldingRegisters, 50, 0xfffe, 1234) // exponent -2
			wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200, Framing: framing})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { wire.Close() })
			wire.Attach(unit)
			unit.Script(func(n int, _ modbus.Request) hwtest.Fault {
				if n == 7 {
					return hwtest.Fault{Flip: []int{64}}
				}
				return hwtest.Fault{}
			})
			far, path := terminal(t)
			c := lineOf(UnitConfig{Name: "a", Address: 3, Points: []profile.Point{
				{Name: "power", At: "input:12", Type: "float32"}, {Name: "voltage", At: "holding:100", Scale: 0.1},
				{Name: "scaled", At: "holding:51", ScaleFactor: "holding:50"}, {Name: "pump", At: "coil:3"}, {Name: "none", At: "holding:999"}}})
			c.Port, c.Role, c.Settings, c.Protocol = path, Listen, "115200 8N1", "modbus-"+framing.String()
			line, polls := runLine(t, c)
			plc := modbus.NewClient(tap{openAt(t, wire.Path()), far}, modbus.ClientConfig{Framing: framing, Timing: modbus.TimingOf(115200, 10), Timeout: time.Second})
			ended := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			go func() { // the master of the line
				defer close(ended)
				for ctx.Err() == nil {
					for _, q := range []struct {
						table   modbus.Table
						from, n uint16
					}{{modbus.InputRegisters, 10, 4}, {modbus.HoldingRegisters, 50, 2}, {modbus.HoldingRegisters, 100, 2}, {modbus.Coils, 3, 1}, {modbus.HoldingRegisters, 999, 1}} {
						plc.Read(ctx, 3, modbus.Address{Table: q.table, Offset: q.from}, q.n, nil)
					}
				}
			}()
			t.Cleanup(func() { cancel(); <-ended })
			t.Log(describe(<-polls))
			for _, want := range []string{"power=230.1", "scaled=12.34", "voltage=230.1", "pump=true", "none=!exception-2"} {
				until(t, polls, "a", want)
			}
			for range 1000 {
				if line.Status().Units[0].LastFrame != "" { // of the eighth answer
					break
				}
				<-polls
			}
			if s := line.Status(); s.Units[0].Errors["crc"] != 1 || !strings.HasPrefix(s.Units[0].LastFrame, "03") || s.Wire.(modbus.SnifferStats).Answered == 0 || s.Wire.(modbus.SnifferStats).Spoilt != 1 || s.Units[0].State != UnitOK {
				t.Errorf("status: %+v", s)
			}
			if _, err := line.Write(t.Context(), "a", "voltage", 1); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("a write on a line that listens: %v", err)
			}
		})
	}
}

func gateway(path string) LineConfig {
	c := lineOf(UnitConfig{Name: "gateway", Address: 17, Points: []profile.Point{
		{Name: "state", At: "holding:0"}, {Name: "energy", At: "holding:1", Type: "uint32"}, {Name: "run", At: "coil:2"},
		{Name: "limit", At: "holding:10", Type: "float32", Write: &profile.Write{Min: ptr(0), Max: ptr(100)}},
		{Name: "room", At: "input:5", Type: "int16", Scale: 0.1, Write: &profile.Write{}}}})
	c.Port, c.Role, c.Settings = path, UnitRole, "115200 8N1"
	return c
}

// Our client as a PLC that asks us.
func TestAnswerAPLC(t *testing.T) {
	path, theirs := cable(t)
	line, polls := runLine(t, gateway(path))
	plc := modbus.NewClient(openAt(t, theirs), modbus.ClientConfig{Timing: modbus.TimingOf(115200, 10), Timeout: time.Second})
	ctx := t.Context()
	for _, err := plc.Read(ctx, 17, holding(0), 1, nil); err != nil; _, err = plc.Read(ctx, 17, holding(0), 1, nil) {
		if !errors.Is(err, modbus.ErrTimeout) { // the line is not open yet
			t.Fatal(err)
		}
	}
	write := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if w, err := line.Write(ctx, "gateway", "limit", 12.5); err != nil || w.Read.String() != "12.5" || !w.Verified {
		t.Errorf("setting what the PLC reads: %+v, %v", w, err)
	}
	if w, err := line.Write(ctx, "gateway", "room", 21.57); err != nil || w.Read.String() != "21.6" {
		t.Errorf("setting an input register: %+v, %v", w, err)
	}
	if _, err := line.Write(ctx, "gateway", "state", 1); !errors.Is(err, ErrReadOnly) {
		t.Errorf("setting what the PLC writes: %v", err)
	}
	raw, err := plc.Read(ctx, 17, holding(10), 2, nil)
	if err != nil || !slices.Equal(raw, []byte{0x41, 0x48, 0, 0}) {
		t.Errorf("the PLC reads % x, %v", raw, err)
	}
	if raw, err = plc.Read(ctx, 17, modbus.Address{Table: modbus.InputRegisters, Offset: 5}, 1, nil); err != nil || !slices.Equal(raw, []byte{0, 216}) {
		t.Errorf("the PLC reads % x, %v", raw, err)
	}
	if _, err := plc.Read(ctx, 17, holding(3), 2, nil); !errors.Is(err, modbus.IllegalAddress) {
		t.Errorf("a register of no point: %v", err)
	}
	reports := make(chan error, 1)
	go func() { // each report waits to be taken
		reports <- errors.Join(plc.WriteRegister(ctx, 17, 0, 7), plc.WriteRegister(ctx, 17, 1, 1), plc.WriteRegister(ctx, 17, 2, 0x86a0),
			plc.WriteRegisters(ctx, 17, 1, []uint16{0, 42}), plc.WriteCoil(ctx, 17, 2, true))
	}()
	// The first half of a number is no number.
	for _, want := range []string{"state=7", "energy=100000", "energy=42", "run=true"} {
		p := <-polls
		if got := describe(p); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	write(<-reports)
	if s := line.Status(); s.Wire.(modbus.ServerStats).Requests < 8 || s.Units[0].State != UnitOK {
		t.Errorf("status: %+v", s)
	}
}

// mbpoll, a foreign master, asks us.
func TestAnswerMbpoll(t *testing.T) {
	path, theirs := cable(t)
	line, polls := runLine(t, gateway(path))
	drain(t, polls)
	if _, err := line.Write(t.Context(), "gateway", "limit", 12.5); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("mbpoll", append([]string{"-m", "rtu", "-a", "17", "-b", "115200", "-P", "none", "-0", "-1", "-o", "5"}, args...)...).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			t.Fatal("mbpoll is missing; run: make deps")
		}
		return string(out)
	}
	if out := run("-t", "4:float", "-B", "-r", "10", theirs); !strings.Contains(out, "12.5") {
		t.Errorf("mbpoll reads %s", out)
	}
	if out := run("-t", "4", "-r", "0", theirs, "4711"); !strings.Contains(out, "Written") {
		t.Errorf("mbpoll writes: %s", out)
	}
	if out := run("-t", "4", "-r", "0", theirs); !strings.Contains(out, "4711") {
		t.Errorf("mbpoll reads %s", out)
	}
}

// sunspecUnit describes itself: a common model and a single-phase inverter (models 1 and 101).
func sunspecUnit(address byte) *hwtest.Unit {
	u := hwtest.NewUnit(address)
	words := []uint16{0x5375, 0x6e53, 1, 66}
	common := make([]uint16, 66)
	common[0], common[16], common[64] = 'A'<<8|'c', 'M'<<8|'1', uint16(address)
	words = append(append(words, common...), 101, 50)
	inverter := make([]uint16, 50)
	for i := range inverter {
		inverter[i] = 0x8000
	}
	inverter[0], inverter[4] = 152, 0xffff // A 15.2, its factor -1
	inverter[8], inverter[11] = 2301, 0xffff
	inverter[12], inverter[13] = 350, 1 // W 3500
	words = append(append(words, inverter...), 0xffff, 0)
	u.Set(modbus.HoldingRegisters, 40000, words...)
	return u
}

func TestSunSpecUnitIsAsked(t *testing.T) {
	unit := sunspecUnit(1)
	unit.Set(modbus.HoldingRegisters, 7, 99)
	wire := newWire(t, 115200, unit)
	u := unitOf("inverter", 1, 100*time.Millisecond, profile.Point{Name: "own", At: "holding:7"})
	u.Profile = sunSpec
	line, polls := onWire(t, wire.Path(), "115200 8N1", u)
	timeout := time.After(patience)
	for got := ""; !strings.Contains(got, "=15.2 ") || !strings.Contains(got, "=3500.0 ") || !strings.HasSuffix(got, "own=99"); {
		select {
		case p := <-polls:
			got = describe(p)
		case <-timeout:
			t.Fatalf("the inverter says %q; %+v", got, line.Status())
		}
	}
	unit.Set(modbus.HoldingRegisters, 40070+2+12, 35, 2) // the same with another factor, at once
	for range 5 {
		if got := describe(<-polls); !strings.Contains(got, "=3500.0 ") {
			t.Errorf("the inverter says %q", got)
		}
	}
	if s := line.Status(); s.Errors["port"] != 0 || s.State != StateUp {
		t.Errorf("status: %+v", s)
	}
}

// A unit that is none is asked again with back-off, and its own points are bad.
func TestSunSpecUnitThatIsNone(t *testing.T) {
	wire := newWire(t, 115200, meter(1))
	u := unitOf("inverter", 1, 50*time.Millisecond, profile.Point{Name: "own", At: "holding:100"})
	u.Profile = sunSpec
	line, polls := onWire(t, wire.Path(), "115200 8N1", u)
	for range 10 {
		if got := describe(<-polls); got != "own=!exception-2" && got != "own=!invalid" {
			t.Errorf("got %q", got)
		}
	}
	if s := line.Status().Units[0]; s.State != UnitOK || s.LastError == "" || s.Errors["exception"]+s.Errors["frame"] == 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestScaleFactors(t *testing.T) {
	unit := hwtest.NewUnit(1)
	unit.Set(modbus.HoldingRegisters, 0, 1234, 0xfffe, 500, 0x8000)
	wire := newWire(t, 115200, unit)
	line, polls := onWire(t, wire.Path(), "115200 8N1", unitOf("a", 1, 50*time.Millisecond,
		profile.Point{Name: "x", At: "holding:0", ScaleFactor: "sf", Write: &profile.Write{Max: ptr(100)}},
		profile.Point{Name: "sf", At: "holding:1", Type: "int16", Every: quantity.Duration(time.Hour)},
		profile.Point{Name: "y", At: "holding:2", ScaleFactor: "holding:3", Write: &profile.Write{}}))
	until(t, polls, "a", "x=12.34 sf=-2 y=!nan")
	until(t, polls, "a", "x=12.34 y=!nan")
	unit.Set(modbus.HoldingRegisters, 0, 123, 0xffff) // both at once
	until(t, polls, "a", "x=12.3 y=!nan")
	drain(t, polls)
	if w, err := line.Write(t.Context(), "a", "x", 45.6); err != nil || !w.Verified || unit.Get(modbus.HoldingRegisters, 0, 1)[0] != 456 {
		t.Errorf("%+v, %v, the register holds %d", w, err, unit.Get(modbus.HoldingRegisters, 0, 1))
	}
	unit.Set(modbus.HoldingRegisters, 1, 0xfffe) // what the last poll read is old
	if w, err := line.Write(t.Context(), "a", "x", 45.6); err != nil || !w.Verified || unit.Get(modbus.HoldingRegisters, 0, 1)[0] != 4560 {
		t.Errorf("%+v, %v, the register holds %d", w, err, unit.Get(modbus.HoldingRegisters, 0, 1))
	}
	if _, err := line.Write(t.Context(), "a", "y", 1); err == nil {
		t.Error("a point without a factor was written")
	}
	if s := line.Status(); s.Errors["port"] != 0 {
		t.Errorf("status: %+v", s)
	}
}

// atSpeed has a unit answer only while the port runs at its speed, as on a real line.
func atSpeed(u *hwtest.Unit, path string, baud int) {
	u.Script(func(int, modbus.Request) hwtest.Fault {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return hwtest.Fault{Drop: true}
		}
		defer f.Close()
		mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS) // qemu-user knows no TCGETS2
		code := map[int]uint32{9600: unix.B9600, 19200: unix.B19200}[baud]
		return hwtest.Fault{Drop: err != nil || mode.Cflag&unix.CBAUD != code}
	})
}

func TestUnitsWithSettingsOfTheirOwn(t *testing.T) {
	slow, quick := meter(3), meter(4)
	wire := newWire(t, 0, slow, quick)
	atSpeed(slow, wire.Path(), 9600)
	atSpeed(quick, wire.Path(), 19200)
	a, b := meterConfig("slow", 3), meterConfig("quick", 4)
	a.Settings = "9600 8N1"
	line, polls := onWire(t, wire.Path(), "19200 8N1", a, b)
	const good = "power=230.1 voltage=230.1 signed=-2 target=0 pump=true flag=false"
	for range 5 {
		until(t, polls, "slow", good)
		until(t, polls, "quick", good)
	}
	drain(t, polls)
	if w, err := line.Write(t.Context(), "slow", "voltage", 12); err != nil || !w.Verified {
		t.Errorf("%+v, %v", w, err)
	}
	if s := line.Status(); s.Errors["timeout"] != 0 {
		t.Errorf("errors: %v", s.Errors)
	}
}

func TestScanFindsUnits(t *testing.T) {
	a, b := meter(2), meter(5)
	a.SetIdentity(modbus.Object{ID: 0, Value: []byte("Acme")}, modbus.Object{ID: 1, Value: []byte("M1")}, modbus.Object{ID: 2, Value: []byte("1.0")})
	wire := newWire(t, 0, a, b)
	atSpeed(a, wire.Path(), 19200)
	atSpeed(b, wire.Path(), 19200)
	settings := []port.Settings{{Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}, {Baud: 19200, DataBits: 8, Parity: 'N', StopBits: 1}}
	last := ScanProgress{}
	found, err := Scan(t.Context(), ScanConfig{Port: wire.Path(), Settings: settings, First: 1, Last: 6, Timeout: 300 * time.Millisecond},
		func(p ScanProgress) { last = p }, slog.New(slog.DiscardHandler))
	want := []Found{{Settings: "19200 8N1", Address: 2, Identity: "Acme M1 1.0"}, {Settings: "19200 8N1", Address: 5}}
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("found %+v, %v, want %+v", found, err, want)
	}
	if last.Done != 1 || last.Settings != "19200 8N1" {
		t.Errorf("the progress ends with %+v", last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	if _, err := Scan(ctx, ScanConfig{Port: wire.Path()}, func(ScanProgress) {
		if n++; n == 3 {
			cancel()
		}
	}, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) || n > 4 {
		t.Errorf("a scan that is broken off: %v after %d addresses", err, n)
	}
}

func TestScanFindsMeters(t *testing.T) {
	far, path := terminal(t)
	mbusMeters(t, far, map[byte]string{2: "\x0c\x06\x45\x23\x01\x00"})
	found, err := Scan(t.Context(), ScanConfig{Port: path, Protocol: "mbus", First: 1, Last: 3,
		Settings: []port.Settings{{Baud: 9600, DataBits: 8, Parity: 'E', StopBits: 1}}}, nil, slog.New(slog.DiscardHandler))
	if err != nil || len(found) != 1 || found[0].Address != 2 || !strings.Contains(found[0].Secondary, "12345678") || found[0].Problem != "" {
		t.Errorf("found %+v, %v", found, err)
	}
}

func TestASCII(t *testing.T) {
	wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200, BitsPerChar: 10, Framing: modbus.ASCII})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wire.Close() })
	wire.Attach(meter(3))
	c := lineOf(meterConfig("a", 3))
	c.Port, c.Settings, c.Protocol = wire.Path(), "115200 7E1", "modbus-ascii"
	line, polls := runLine(t, c)
	until(t, polls, "a", "power=230.1 voltage=230.1 signed=-2 target=0 pump=true flag=false")
	drain(t, polls)
	if w, err := line.Write(t.Context(), "a", "voltage", 12); err != nil || !w.Verified {
		t.Errorf("%+v, %v", w, err)
	}
}

// Modbus RTU over TCP: a listener in front of a unit, which is restarted under the line.
func TestRTUOverTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	units := modbus.Units{3: meter(3)}
	serving, stop := context.WithCancel(t.Context())
	conns, ended := make(chan net.Conn, 10), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns <- conn
			modbus.Serve(serving, conn, modbus.ServerConfig{}, units.At)
			conn.Close()
		}
	}()
	t.Cleanup(func() { stop(); listener.Close(); <-ended })
	c := lineOf(meterConfig("a", 3))
	c.Port = "tcp://127.0.0.1:" + strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	line, polls := runLine(t, c)
	const good = "power=230.1 voltage=230.1 signed=-2 target=0 pump=true flag=false"
	until(t, polls, "a", good)
	(<-conns).Close()
	until(t, polls, "a", "power=!line voltage=!line signed=!line target=!line pump=!line flag=!line")
	until(t, polls, "a", good)
	if s := line.Status(); s.UART != nil || s.Errors["port"] != 1 {
		t.Errorf("status: %+v", s)
	}
}

// Everybody on the line executes a broadcast, and nobody answers.
func TestBroadcast(t *testing.T) {
	a, b := meter(3), meter(4)
	wire := newWire(t, 115200, a, b)
	all := UnitConfig{Name: "all", Broadcast: true, Points: []profile.Point{{Name: "limit", At: "holding:110", Type: "uint16", Write: &profile.Write{Max: ptr(100)}}}}
	line, polls := onWire(t, wire.Path(), "115200 8N1", meterConfig("a", 3), all)
	drain(t, polls)
	w, err := line.Write(t.Context(), "all", "limit", 50)
	if err != nil || w.Verified || w.Problem == "" {
		t.Errorf("%+v, %v", w, err)
	}
	if got := fmt.Sprint(a.Get(modbus.HoldingRegisters, 110, 1), b.Get(modbus.HoldingRegisters, 110, 1)); got != "[50] [50]" {
		t.Errorf("the units hold %s", got)
	}
}
