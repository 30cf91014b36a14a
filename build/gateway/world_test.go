package gateway

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// host is this machine as the gateway sees it.
const host = "10.0.2.2"

// device is the gateway's id.
const device = "gw-0001"

// world is what stands around the gateway: CA, registrar, broker, and a witness of what the broker
// was told.
type world struct {
	dir, ca           string
	registrar, broker string // ports
	mosquitto         *process
	witness           *process
	operator          struct{ cert, key string }
	commands          int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	tools(t)
	dir, err := os.MkdirTemp("", "gww")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{dir: dir, ca: filepath.Join(dir, "ca"), broker: freePort(t)}
	mustRun(t, made.factory, "ca", "init", "--host", "127.0.0.1", "--host", host, w.ca)
	issuing := start(t, "the registrar", made.factory, "registrar", "--ca", w.ca, "--listen", "127.0.0.1:0", "--trust-ek-on-first-use")
	said, _ := issuing.wait(t, 0, "127.0.0.1:")
	_, port, _ := strings.Cut(said.text, "127.0.0.1:")
	w.registrar = strings.TrimRight(strings.Fields(port)[0], `",}`)
	w.startBroker(t)
	w.operator.cert, w.operator.key = w.certificate(t, "operator")
	return w
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// startBroker starts mosquitto as its users run it, and the witness that writes down what it hands on.
func (w *world) startBroker(t *testing.T) {
	t.Helper()
	config := filepath.Join(w.dir, "mosquitto.conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\ncafile %s/root.crt\ncertfile %s/broker.crt\nkeyfile %s/broker.key\n"+
		"require_certificate true\nuse_identity_as_username true\npersistence false\nmax_inflight_messages 0\nmax_queued_messages 0\nuser root\n",
		w.broker, w.ca, w.ca, w.ca)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.mosquitto = start(t, "mosquitto", need(t, "mosquitto"), "-c", config, "-v")
	w.mosquitto.wait(t, 0, " running")
	cert, key := w.certificate(t, "witness")
	// Without stdbuf a pipe is written 4 KiB at a time.
	w.witness = start(t, "mosquitto_sub", need(t, "stdbuf"), "-oL", need(t, "mosquitto_sub"), "-h", "127.0.0.1", "-p", w.broker, "-q", "1",
		"-t", "ferrule/#", "-i", "witness", "-F", "%t %p", "--cafile", filepath.Join(w.ca, "root.crt"), "--cert", cert, "--key", key)
	w.mosquitto.wait(t, 0, "Sending SUBACK to witness")
}

// certificate has openssl issue a certificate below the device CA.
func (w *world) certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	openssl, base := need(t, "openssl"), filepath.Join(w.dir, name)
	mustRun(t, openssl, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN="+name,
		"-keyout", base+".key", "-out", base+".csr")
	mustRun(t, openssl, "x509", "-req", "-in", base+".csr", "-CA", filepath.Join(w.ca, "device-ca.crt"), "-CAkey", filepath.Join(w.ca, "device-ca.key"),
		"-CAcreateserial", "-days", "1", "-out", base+".only.crt")
	var chain strings.Builder
	for _, file := range []string{base + ".only.crt", filepath.Join(w.ca, "device-ca.crt")} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		chain.Write(text)
	}
	if err := os.WriteFile(base+".crt", []byte(chain.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return base + ".crt", base + ".key"
}

// token gets a one-time token for the gateway.
func (w *world) token(t *testing.T) string {
	t.Helper()
	var answer struct{ Token string }
	out := mustRun(t, made.factory, "token", "add", "--device", device, "--json", w.ca)
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Token == "" {
		t.Fatalf("no token in %q: %v", out, err)
	}
	return answer.Token
}

// configuration is the gateway's, with further tables at its end.
func (w *world) configuration(more string) string {
	return fmt.Sprintf(`state_dir = "/var/lib/ferrule"

[enroll]
method = "registrar"
url = "https://%s:%s"
roots = "/etc/ferrule/root.crt"

[session]
brokers = ["mqtts://%s:%s"]
roots = "/etc/ferrule/root.crt"
keepalive = "5s"
reconnect_spread = "500ms"

[outbox]
sync = "always"

[[line]]
name = "rs485"
port = "/dev/ttyS0"
settings = "115200 8N1"

[[line.unit]]
name = "meter"
address = 1
every = "250ms"
timeout = "1s"

[[line.unit.point]]
name = "counter"
at = "input:0"
type = "uint32"

%s`, host, w.registrar, host, w.broker, more)
}

// provision gives a machine what the factory gives it.
func (w *world) provision(t *testing.T, m *machine, more string, files map[string]string) {
	t.Helper()
	root, err := os.ReadFile(filepath.Join(w.ca, "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"ferrule.toml": w.configuration(more), "root.crt": string(root), "token": w.token(t)}
	for name, text := range files {
		all[name] = text
	}
	m.provision(t, all)
}

// command sends a command to the gateway and returns its reply.
func (w *world) command(t *testing.T, name, args string) string {
	t.Helper()
	w.commands++
	id := fmt.Sprintf("t%d", w.commands)
	from := w.heard()
	text := fmt.Sprintf(`{"id":%q,"expires":%q,"args":%s}`, id, time.Now().Add(10*time.Minute).UTC().Format(time.RFC3339), args)
	mustRun(t, need(t, "mosquitto_pub"), "-h", "127.0.0.1", "-p", w.broker, "-q", "1", "-i", "operator", "-t", "ferrule/"+device+"/command/"+name, "-m", text,
		"--cafile", filepath.Join(w.ca, "root.crt"), "--cert", w.operator.cert, "--key", w.operator.key)
	reply, _ := w.witness.wait(t, from, "ferrule/"+device+"/reply/"+id)
	_, payload, _ := strings.Cut(reply.text, " ")
	return payload
}

// heard is how many lines the witness has written down.
func (w *world) heard() int {
	lines, _ := w.witness.lines(0)
	return len(lines)
}

// entry is one reading as the witness saw it.
type entry struct {
	at        time.Time
	Boot, Seq uint64
	T         time.Time
	Readings  struct{ Counter uint32 }
	Bad       map[string]string
}

// entries are the readings that the broker handed on from line n of the witness on.
func (w *world) entries(t *testing.T, n int) (all []entry) {
	t.Helper()
	lines, _ := w.witness.lines(n)
	for _, l := range lines {
		topic, payload, _ := strings.Cut(l.text, " ")
		if !strings.HasPrefix(topic, "ferrule/"+device+"/readings/") {
			continue
		}
		var some []entry
		one := strings.TrimSpace(payload)
		if !strings.HasPrefix(one, "[") {
			one = "[" + one + "]"
		}
		if err := json.Unmarshal([]byte(one), &some); err != nil {
			t.Fatalf("the witness saw %q: %v", l.text, err)
		}
		for _, e := range some {
			e.at = l.at
			all = append(all, e)
		}
	}
	return all
}

// reading waits for the next reading of a machine that was switched on at since.
func (w *world) reading(t *testing.T, from int) line {
	t.Helper()
	l, _ := w.witness.wait(t, from, "ferrule/"+device+"/readings/")
	return l
}
