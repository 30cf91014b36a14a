package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// scan finds who is on a line, and says how far it has come: lines where nobody looks, a bar on
// a terminal.
func TestScan(t *testing.T) {
	ferrule := build(t, "ferrule", native)
	a, b := hwtest.NewUnit(3), hwtest.NewUnit(7)
	a.Set(modbus.HoldingRegisters, 0, 1)
	b.SetIdentity(modbus.Object{ID: 0, Value: []byte("Ferrule")}, modbus.Object{ID: 1, Value: []byte("Tester")}, modbus.Object{ID: 2, Value: []byte("1.0")})
	port := onWire(t, hwtest.WireConfig{Baud: 115200}, a, b)
	argv := with(ferrule, "scan", port, "--addresses", "3-7", "--settings", "115200 8N1", "--timeout", "500ms")

	stdout, stderr, code := run(t, "", argv...)
	// The second has no register 0: that it says so is an answer, too.
	if !regexp.MustCompile(`(?m)^3 +115200 8N1`).MatchString(stdout) || !regexp.MustCompile(`(?m)^7 +115200 8N1 +Ferrule Tester 1.0`).MatchString(stdout) ||
		strings.Count(stdout, "8N1") != 2 || code != 0 {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, "found 3 at 115200 8N1") || !strings.Contains(stderr, "] 100 %") {
		t.Errorf("no progress:\n%s", stderr)
	}

	stdout, screen := onScreen(t, with(argv, "--json")...)
	var found []struct {
		Settings, Identity string
		Address            int
	}
	if err := json.Unmarshal([]byte(stdout), &found); err != nil || len(found) != 2 || found[0].Address != 3 || found[1].Identity != "Ferrule Tester 1.0" {
		t.Errorf("scan --json: %v\n%s", err, stdout)
	}
	var percent []int
	for _, m := range regexp.MustCompile(`\r\x1b\[K\[=* *\] +([0-9]+) %`).FindAllStringSubmatch(screen, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		percent = append(percent, n)
	}
	if len(percent) < 3 || !slices.IsSorted(percent) || percent[len(percent)-1] != 100 {
		t.Errorf("the bar goes %v %%:\n%q", percent, screen)
	}
}

// onScreen runs a command whose standard error is a terminal, and returns what it said there.
func onScreen(t *testing.T, argv ...string) (stdout, screen string) {
	t.Helper()
	tty := newTerminal(t)
	command := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	command.Stderr = tty.keep
	shown := make(chan string)
	go func() { // ends with the terminal
		var all []byte
		buf := make([]byte, 256)
		for {
			n, err := tty.Read(buf)
			if all = append(all, buf[:n]...); err != nil {
				shown <- string(all)
				return
			}
		}
	}()
	out, err := command.Output()
	_ = tty.keep.Close() // the last one, so that reading ends when all is read
	if err != nil {
		t.Errorf("%v: %v", argv, err)
	}
	return string(out), <-shown
}

// check says what will be asked, in milliseconds and per cent; it warns where the line has no
// room left, and refuses what it cannot carry.
func TestCheckPlans(t *testing.T) {
	ferrule := build(t, "ferrule", native)
	check := func(every string, more ...string) (stdout, stderr string, code int) {
		config := filepath.Join(t.TempDir(), "ferrule.toml")
		text := fmt.Sprintf(`profile_dir = %q
[session]
brokers = ["mqtts://127.0.0.1:8883"]
[[line]]
name = "rs485-1"
port = "usb:0403:6001:A50285BI:00"
settings = "9600 8N1"
[[line.unit]]
name = "main"
address = 1
profile = "eastron-sdm630"
select = ["voltage_l*", "current_l*", "power_l*"]
every = %q
`, profiles(t), every)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return run(t, "", with(ferrule, append([]string{"check", "--config", config}, more...)...)...)
	}
	// Nine floats in a row: 8 + 5 + 36 characters of 10 bits, and two silences of 3.5 of 11 bits.
	// At 9600 baud that is 49 × 1.0417 ms and, since silences are 3.5 characters, 7 × 1.0417 ms.
	stdout, stderr, code := check("1s")
	if want := regexp.MustCompile(`main +input:0 +× 18 +every 1s +58\.33 ms +5\.83 %`); !want.MatchString(stdout) || code != 0 || stderr != "" {
		t.Errorf("exit code %d, want %s in\n%s%s", code, want, stdout, stderr)
	}
	stdout, stderr, code = check("60ms")
	if !strings.Contains(stdout, "97.22 %") || !strings.Contains(stderr, "warning: line rs485-1: the plan needs 97 % of the wire") || code != 0 {
		t.Errorf("a full line: exit code %d\n%s%s", code, stdout, stderr)
	}
	stdout, stderr, code = check("50ms")
	if !strings.Contains(stdout, "116.67 %") || !strings.Contains(stderr, "error: line rs485-1: the plan needs 117 % of the wire") || code != 3 {
		t.Errorf("an overloaded line: exit code %d\n%s%s", code, stdout, stderr)
	}
	stdout, _, code = check("50ms", "--json")
	var plans []struct {
		LoadPercent float64 `json:"load_percent"`
		Requests    []struct{ Milliseconds, Percent float64 }
	}
	if err := json.Unmarshal([]byte(stdout), &plans); err != nil || len(plans) != 1 || plans[0].LoadPercent < 116 || plans[0].Requests[0].Milliseconds < 58 || code != 3 {
		t.Errorf("check --json: exit code %d, %v\n%s", code, err, stdout)
	}
	stdout, stderr, code = check("1s", "--profiles")
	own := regexp.MustCompile(`(?m)^workshop-meter +2 +Meter of the workshop.*workshop-meter\.toml`)
	if built := strings.Count(stdout, "\n") - 3; !own.MatchString(stdout) || built < 30 || !strings.Contains(stdout, "\nsunspec ") || code != 0 {
		t.Errorf("check --profiles: exit code %d, %d profiles built in\n%s%s", code, built, stdout, stderr)
	}
}

// ports lists what the kernel says there is, and opens nothing: a port that somebody holds is
// listed like any other.
func TestPorts(t *testing.T) {
	stdout := mustRun(t, "", with(build(t, "ferrule", native), "ports", "--json")...)
	var ports []struct{ Path, Driver string }
	if err := json.Unmarshal([]byte(stdout), &ports); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	for _, p := range ports {
		if info, err := os.Stat(p.Path); err != nil || info.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("%s is no device: %v", p.Path, err)
		}
		if strings.HasPrefix(p.Path, "/dev/pts/") || strings.HasPrefix(p.Path, "/dev/tty0") {
			t.Errorf("%s is no serial port", p.Path)
		}
	}
	t.Logf("%d ports", len(ports))
}
