package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// A foreign master, mbpoll in the place of a PLC, writes a register of ours, and the reading
// arrives; what ferrule write sets is what the master reads.
func TestUnitOfAForeignMaster(t *testing.T) {
	dir := shortDir(t)
	port, plc := filepath.Join(dir, "gateway-tty"), filepath.Join(dir, "plc-tty")
	start(t, "socat", need(t, "socat"), "pty,raw,echo=0,link="+port, "pty,raw,echo=0,link="+plc)
	waitFor(t, "the pty pair", func() bool {
		_, first := os.Stat(port)
		_, second := os.Stat(plc)
		return first == nil && second == nil
	})
	g := newGateway(t, fmt.Sprintf(`[[line]]
name = "to-plc"
port = %q
settings = "19200 8N1"
role = "unit"
[[line.unit]]
name = "gateway"
address = 17
[[line.unit.point]]
name = "state"
at = "holding:0"
[[line.unit.point]]
name = "limit"
at = "holding:10"
type = "float32"
write = { min = 0, max = 100 }
`, port))
	g.run(t)
	waitFor(t, "the line", func() bool { return g.line(t, "to-plc")["state"] == "up" })
	mbpoll := func(what ...string) (string, int) {
		argv := []string{need(t, "mbpoll"), "-m", "rtu", "-a", "17", "-b", "19200", "-P", "none", "-0", "-1", "-o", "2"}
		stdout, stderr, code := run(t, "", append(argv, what...)...)
		return stdout + stderr, code
	}
	if out, code := mbpoll("-t", "4", "-r", "0", plc, "4711"); code != 0 {
		t.Fatalf("mbpoll writes: exit code %d\n%s", code, out)
	}
	g.hear(t, "what the master wrote", func(e told) bool { return e.Unit == "gateway" && e.Readings["state"] == 4711.0 })

	mustRun(t, "", with(g.ferrule, "write", "--config", g.config, "to-plc", "gateway", "limit", "42.5")...)
	out, code := mbpoll("-t", "4:hex", "-r", "10", "-c", "2", plc)
	if code != 0 || !strings.Contains(out, "0x422A") || !strings.Contains(out, "0x0000") { // 42.5 as IEEE 754
		t.Errorf("mbpoll reads: exit code %d\n%s", code, out)
	}
	if out, _ := mbpoll("-t", "4", "-r", "20", plc); !strings.Contains(out, "Illegal data address") {
		t.Errorf("mbpoll reads a register that is not there:\n%s", out)
	}
	if code := g.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
}

// On a line that somebody else masters, mbpoll and a unit of libmodbus, Ferrule hears the values
// and sends nothing.
func TestListensToForeignMaster(t *testing.T) {
	w := &world{dir: shortDir(t)}
	master, unit, ours := newTerminal(t), newTerminal(t), newTerminal(t)
	wire := join(t, master, unit, ours)
	w.startServer(t, unit.path)
	g := newGateway(t, fmt.Sprintf(`[[line]]
name = "plc-line"
port = %q
settings = "115200 8N1"
role = "listen"
[[line.unit]]
name = "meter"
address = 3
[[line.unit.point]]
name = "six"
at = "input:6"
[[line.unit.point]]
name = "pair"
at = "input:7"
type = "uint32"
`, ours.path))
	g.run(t)
	waitFor(t, "the line", func() bool { return g.line(t, "plc-line")["state"] == "up" })
	start(t, "mbpoll", need(t, "mbpoll"), "-m", "rtu", "-a", "3", "-b", "115200", "-P", "none", "-0", "-r", "5", "-c", "4", "-t", "3", "-l", "100", master.path)
	want := map[string]float64{"six": 45, "pair": 52<<16 | 59} // register i holds 7 i + 3
	heard := 0                                                 // the unit says the same each time, and each time it counts
	g.hear(t, "what the unit answered its master", func(e told) bool {
		if e.Unit == "meter" && len(e.Bad) == 0 && e.Readings["six"] == want["six"] && e.Readings["pair"] == want["pair"] {
			heard++
		}
		return heard == 5
	})
	if n := wire.sent[2].Load(); n != 0 {
		t.Errorf("a line that listens sent %d bytes", n)
	}
	if wire.sent[0].Load() == 0 || wire.sent[1].Load() == 0 {
		t.Error("nobody else spoke: this is no measurement")
	}
}

// cable joins terminals as an RS-485 line does: what one says all others hear.
type cable struct{ sent [3]atomic.Int64 } // bytes that each of them said

func join(t *testing.T, ends ...*terminal) *cable {
	t.Helper()
	c := &cable{}
	ended := make(chan struct{}, len(ends))
	for i, from := range ends {
		go func() { // ends with the terminal
			defer func() { ended <- struct{}{} }()
			var buf [256]byte
			for {
				n, err := from.Read(buf[:])
				if err != nil {
					return
				}
				c.sent[i].Add(int64(n))
				for _, to := range ends {
					if to == from {
						continue
					}
					if _, err := to.Write(buf[:n]); errors.Is(err, os.ErrClosed) {
						return
					}
				}
			}
		}()
	}
	t.Cleanup(func() {
		for _, end := range ends {
			end.unplug()
		}
		for range ends {
			<-ended
		}
	})
	return c
}
