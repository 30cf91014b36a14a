package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The whole path with nothing of ours but the binary: enroll, run, readings at mosquitto
// that equal what libmodbus holds, then status, check, read and write, for this machine and
// for the two ARM builds under emulation.
func TestWholePath(t *testing.T) {
	for _, on := range []target{native, arm64, armv6} {
		t.Run(on.name, func(t *testing.T) { testWholePath(t, on) })
	}
}

func testWholePath(t *testing.T, on target) {
	ferrule := build(t, "ferrule", on)
	w := newWorld(t)
	device := "gw-" + on.name
	config := w.configure(t, device, w.startUnit(t))

	token := w.token(t, device)
	out := mustRun(t, token+"\n", with(ferrule, "enroll", "--config", config, "--token", "-")...)
	if !strings.Contains(out, device) {
		t.Errorf("enroll said %q; it should name the device", out)
	}
	again := mustRun(t, "", with(ferrule, "enroll", "--config", config)...)
	if !strings.Contains(again, "already") {
		t.Errorf("a second enroll said %q", again)
	}

	witness := w.subscriber(t)
	agent := start(t, "ferrule run", with(ferrule, "run", "--config", config)...)
	witness.waitLine(t, "ferrule/"+device+"/status")
	reading := witness.waitLine(t, "ferrule/"+device+"/readings/rs485-1/meter-a")
	checkReading(t, reading)

	w.checkStatus(t, ferrule, config, device)
	w.checkReadAndWrite(t, ferrule, config, witness)
	if out := mustRun(t, "", with(ferrule, "check", "--config", config)...); !strings.Contains(out, "rs485-1") {
		t.Errorf("check said %q", out)
	}
	if code := agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
	offline := witness.waitLine(t, `"online":false`)
	if !strings.HasPrefix(offline, "ferrule/"+device+"/status") {
		t.Errorf("offline was announced as %q", offline)
	}

	// With no agent running, read opens the line itself.
	direct := mustRun(t, "", with(ferrule, "read", "--config", config, "rs485-1", "meter-a", "input:5", "uint16")...)
	if !strings.Contains(direct, "38") {
		t.Errorf("read without an agent said %q; want 38", direct)
	}
	checkKeyIsInTheTPM(t, w)
	for _, said := range []string{out, w.issuing.output(), agent.output()} {
		if strings.Contains(said, token) {
			t.Errorf("the token was written out:\n%s", said)
		}
	}
}

func with(command []string, args ...string) []string {
	return append(append([]string(nil), command...), args...)
}

// startUnit starts the libmodbus unit on one end of a socat pty pair; the other end is the
// gateway's port.
func (w *world) startUnit(t *testing.T) (port string) {
	t.Helper()
	port, far := filepath.Join(w.dir, "gateway-tty"), filepath.Join(w.dir, "unit-tty")
	start(t, "socat", need(t, "socat"), "pty,raw,echo=0,link="+port, "pty,raw,echo=0,link="+far)
	waitFor(t, "the pty pair", func() bool {
		_, first := os.Stat(port)
		_, second := os.Stat(far)
		return first == nil && second == nil
	})
	w.startServer(t, far)
	return port
}

// startServer starts the libmodbus unit, address 3, on a terminal.
func (w *world) startServer(t *testing.T, tty string) {
	t.Helper()
	server := filepath.Join(w.dir, "modbus_server")
	mustRun(t, "", need(t, "cc"), "-o", server, "testdata/modbus_server.c", "-I/usr/include/modbus", "-lmodbus")
	w.unit = start(t, "modbus_server", server, tty, "115200", "3")
	w.unit.waitLine(t, "ready")
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
		pause(t, 20*time.Millisecond) // for the program under test
	}
}

func (w *world) configure(t *testing.T, device, port string) (path string) {
	t.Helper()
	return w.file(t, "ferrule.toml", fmt.Sprintf(`state_dir = %q
[identity]
tpm = %q
[enroll]
method = "registrar"
url = %q
roots = %q
[session]
brokers = ["mqtts://%s"]
reconnect_spread = "200ms"
roots = %[4]q
[local]
socket = %[6]q
[[line]]
name = "rs485-1"
port = %[7]q
settings = "115200 8N1"
protocol = "modbus-rtu"
[[line.unit]]
name = "meter-a"
address = 3
every = "200ms"
timeout = "2s"
[[line.unit.point]]
name = "five"
at = "input:5"
type = "uint16"
[[line.unit.point]]
name = "pair"
at = "input:8"
type = "uint32"
[[line.unit.point]]
name = "tenth"
at = "30022"
type = "int16"
scale = 0.1
[[line.unit.point]]
name = "limit"
at = "holding:100"
type = "int16"
scale = 0.1
write = { min = 0, max = 50 }
`, filepath.Join(w.dir, "state"), w.tpm.Address(), w.registrar, filepath.Join(w.ca, "root.crt"), w.broker,
		filepath.Join(w.dir, "f.sock"), port))
}

// checkReading compares one message with what the unit holds: input register i is i*7+3.
func checkReading(t *testing.T, line string) {
	t.Helper()
	_, payload, _ := strings.Cut(line, " ")
	var got struct {
		Boot, Seq  uint64
		T          time.Time
		Line, Unit string
		Readings   map[string]json.Number
		Bad        map[string]string
	}
	if err := json.Unmarshal([]byte(payload), &got); err != nil {
		t.Fatalf("message %q: %v", payload, err)
	}
	want := map[string]string{
		"five":  "38",                           // 5*7+3
		"pair":  strconv.Itoa((8*7+3)<<16 | 66), // ABCD
		"tenth": "15.0",                         // 30022 is offset 21: 150 × 0.1
		"limit": "10.0",                         // holding register 100 holds 100
	}
	for point, value := range want {
		if string(got.Readings[point]) != value {
			t.Errorf("%s: %s; the unit holds %s", point, got.Readings[point], value)
		}
	}
	if got.Line != "rs485-1" || got.Unit != "meter-a" || got.Seq == 0 || got.Boot == 0 || len(got.Bad) > 0 ||
		time.Since(got.T).Abs() > time.Minute {
		t.Errorf("message %s", payload)
	}
}

func (w *world) checkStatus(t *testing.T, ferrule []string, config, device string) {
	t.Helper()
	var status struct {
		Device   string
		Identity struct {
			Weak     bool `json:"weak"`
			DaysLeft int  `json:"days_left"`
		}
		Session struct {
			Stage      string
			TLSVersion string `json:"tls_version"`
		}
		Outbox struct{ Depth int }
		Lines  []struct {
			Name, State string
			Polls       uint64
		}
	}
	text := mustRun(t, "", with(ferrule, "status", "--json", "--config", config)...)
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatalf("status --json: %v in\n%s", err, text)
	}
	if status.Device != device || status.Identity.Weak || status.Identity.DaysLeft < 1 || status.Session.Stage != "up" ||
		!strings.Contains(status.Session.TLSVersion, "1.3") || len(status.Lines) != 1 || status.Lines[0].Polls == 0 {
		t.Errorf("status:\n%s", text)
	}
	people := mustRun(t, "", with(ferrule, "status", "--config", config)...)
	for _, want := range []string{device, "rs485-1", "TLS 1.3"} {
		if !strings.Contains(people, want) {
			t.Errorf("status for people lacks %q:\n%s", want, people)
		}
	}
}

func (w *world) checkReadAndWrite(t *testing.T, ferrule []string, config string, witness *process) {
	t.Helper()
	read := mustRun(t, "", with(ferrule, "read", "--config", config, "rs485-1", "meter-a", "input:8", "uint32")...)
	if !strings.Contains(read, "3866690") || !strings.Contains(read, "CDAB") {
		t.Errorf("read said %q; ABCD is 3866690", read)
	}
	mustRun(t, "", with(ferrule, "write", "--config", config, "rs485-1", "meter-a", "limit", "12.5")...)
	witness.waitLine(t, `"limit":12.5`)
	_, stderr, code := run(t, "", with(ferrule, "write", "--config", config, "rs485-1", "meter-a", "limit", "51")...)
	if code != 13 || !strings.Contains(stderr, "50") {
		t.Errorf("a write out of range: exit code %d, %q", code, stderr)
	}
}

// checkKeyIsInTheTPM has the file that holds the key say that it holds no key: it is a TSS2
// blob, and no file of the state directory has a private key in it.
func checkKeyIsInTheTPM(t *testing.T, w *world) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "state", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in the state directory: %v", err)
	}
	blob := false
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a directory
		}
		blob = blob || strings.Contains(string(text), "BEGIN TSS2 PRIVATE KEY")
		if strings.Contains(string(text), "BEGIN PRIVATE KEY") || strings.Contains(string(text), "BEGIN EC PRIVATE KEY") {
			t.Errorf("%s holds a private key", file)
		}
	}
	if !blob {
		t.Error("no TSS2 key file in the state directory")
	}
}
