package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// plug is a cable behind a name that stays the same, as udev's by-id links do. Every plugging
// gives it another terminal.
type plug struct {
	name string
	wire *hwtest.Wire
}

// wireTo makes a line with a unit in whose register 0 is a number.
func wireTo(t *testing.T, number uint16) *hwtest.Wire {
	t.Helper()
	unit := hwtest.NewUnit(3)
	unit.Set(modbus.HoldingRegisters, 0, number)
	wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	wire.Attach(unit)
	return wire
}

// in plugs the line in.
func (p *plug) in(t *testing.T) (at time.Time) {
	t.Helper()
	if err := os.Symlink(p.wire.Path(), p.name); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// out unplugs the line and makes the one that is plugged in next: before the old one is gone, or
// the kernel would give it the same number.
func (p *plug) out(t *testing.T, next uint16) {
	t.Helper()
	old := p.wire
	p.wire = wireTo(t, next)
	if err := os.Remove(p.name); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if p.wire.Path() == old.Path() {
		t.Fatalf("the terminal is %s again: this is no replug", old.Path())
	}
}

// Unplugged and plugged in again, under load and under another number: the outage is told as
// bad, readings go on soon after, and no descriptor is left behind. The lines beside it go on.
func TestReplug(t *testing.T) {
	dir := shortDir(t)
	meter := &plug{name: filepath.Join(dir, "usb-FTDI_FT232R_A50285BI-if00-port0"), wire: wireTo(t, 1)}
	meter.in(t)
	beside := newTerminal(t)
	beside.talk(t, 50*time.Millisecond, []byte("17.25\r\n"))
	receiver := filepath.Join(dir, "usb-u-blox_GNSS-if00")
	gnss := newTerminal(t)
	gnss.talk(t, 10*time.Millisecond, []byte(sentence("GPZDA,120000.00,21,11,2026,00,00")))
	if err := os.Symlink(gnss.path, receiver); err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, fmt.Sprintf(`[[line]]
name = "rs485-1"
port = %q
settings = "115200 8N1"
[[line.unit]]
name = "meter"
address = 3
every = "20ms"
[[line.unit.point]]
name = "number"
at = "holding:0"
[[line]]
name = "beside"
port = %q
protocol = "text"
[[line]]
name = "gnss"
port = %q
protocol = "nmea"
`, meter.name, beside.path, receiver))
	g.run(t)
	reads := func(number uint16) func(told) bool {
		return func(e told) bool { return e.Unit == "meter" && e.Readings["number"] == float64(number) }
	}
	g.hear(t, "the first readings", reads(1))
	g.hear(t, "the time", func(e told) bool { return e.Unit == "GPZDA" && len(e.Bad) == 0 })
	g.hear(t, "the line beside", func(e told) bool { return e.Line == "beside" })
	before := descriptors(t, g.agent.Process.Pid)

	for number := uint16(2); number <= 4; number++ {
		unplugged := time.Now()
		meter.out(t, number)
		gone := map[string]bool{"meter": true}
		if number == 2 { // that one once, to another terminal as well
			if err := os.Remove(receiver); err != nil {
				t.Fatal(err)
			}
			gnss.unplug()
			gone["GPZDA"] = true
		}
		g.hear(t, "the outage", func(e told) bool {
			if len(e.Bad) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(e.Bad)), func(bad string) bool { return bad != "line" }) {
				delete(gone, e.Unit)
			}
			return len(gone) == 0
		})
		outage := time.Since(unplugged)
		if state := g.line(t, "rs485-1")["state"]; state != "reopening" {
			t.Errorf("the line is %v", state)
		}
		if number == 3 { // once for so long that the pauses between two tries are at their longest
			waitFor(t, "the outage to last", func() bool {
				since, err := time.Parse(time.RFC3339, fmt.Sprint(g.line(t, "rs485-1")["since"]))
				return err == nil && time.Since(since) > 3*time.Second
			})
		}
		plugged := meter.in(t)
		g.hear(t, "readings of the new terminal", reads(number))
		resumed := time.Since(plugged)
		t.Logf("told as bad after %s, resumed after %s, where 2 s are promised", outage.Round(time.Millisecond), resumed.Round(time.Millisecond))
		if resumed > 20*time.Second {
			t.Errorf("the line resumed after %s", resumed)
		}
		if number == 2 {
			again := newTerminal(t)
			again.talk(t, 10*time.Millisecond, []byte(sentence("GPZDA,130000.00,21,11,2026,00,00")))
			if err := os.Symlink(again.path, receiver); err != nil {
				t.Fatal(err)
			}
			g.hear(t, "the receiver again", func(e told) bool {
				at, _ := e.Readings["time"].(string)
				return e.Unit == "GPZDA" && strings.Contains(at, "13:00:00")
			})
		}
		g.hear(t, "the line beside", func(e told) bool { return e.Line == "beside" && e.Readings["line"] == 17.25 })
		waitFor(t, fmt.Sprintf("the descriptors to be again %v", before), func() bool {
			return slices.Equal(descriptors(t, g.agent.Process.Pid), before)
		})
	}
	lines, _ := g.status(t)["lines"].([]any)
	for _, l := range lines {
		if n := field(l.(map[string]any), "errors", "port"); l.(map[string]any)["name"] == "beside" && n != 0.0 {
			t.Errorf("the line beside counts %v errors of its port", n)
		}
	}
	if code := g.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
}

// descriptors are what a process has open, by kind, sorted: a terminal is a terminal, whatever
// its number. Terminals and sockets must be closed in every child (proc(5), fdinfo).
func descriptors(t *testing.T, pid int) (kinds []string) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		kind := regexp.MustCompile(`[0-9]+\]?`).ReplaceAllString(target, "N")
		kinds = append(kinds, kind)
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", e.Name()))
		if err != nil || kind != "/dev/pts/N" && kind != "socket:[N" { // files may come from who started the test
			continue
		}
		_, flags, _ := strings.Cut(string(info), "flags:")
		bits, err := strconv.ParseInt(strings.Fields(flags)[0], 8, 64)
		const closeOnExec = 0o2000000
		if err != nil || bits&closeOnExec == 0 {
			t.Errorf("descriptor %s, %s, is inherited by children: flags %o, %v", e.Name(), target, bits, err)
		}
	}
	slices.Sort(kinds)
	return kinds
}
