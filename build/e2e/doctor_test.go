package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// patient is a gateway whose broker and certificates a test makes as bad as it likes.
type patient struct {
	dir     string
	ferrule []string
	env     []string
	ca      *agenttest.CA
	server  *agenttest.Issued
	device  *agenttest.Issued
	broker  string // URL
	session string // more lines of [session]
	more    string // more sections
	key     string // lines of [identity]
}

const day = 24 * time.Hour

func newPatient(t *testing.T) *patient {
	t.Helper()
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	p := &patient{dir: shortDir(t), ferrule: build(t, "ferrule", native), ca: ca,
		key: "tpm = \"none\"\nkey = \"file:device.pem\"\nallow_software_key = true\n"}
	p.server = p.issue(t, agenttest.Leaf{CommonName: "broker", Names: []string{"127.0.0.1", "localhost"}})
	p.device = p.issue(t, agenttest.Leaf{CommonName: "device-1", NotBefore: time.Now().Add(-300 * day)})
	return p
}

func (p *patient) issue(t *testing.T, l agenttest.Leaf) *agenttest.Issued {
	t.Helper()
	issued, err := p.ca.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

// write writes the configuration and what it names.
func (p *patient) write(t *testing.T) (config string) {
	t.Helper()
	files := map[string][]byte{"root.pem": p.ca.RootPEM()}
	if p.device != nil {
		files["state/device.crt"], files["state/device.pem"] = p.device.ChainPEM, p.device.KeyPEM
	}
	files["ferrule.toml"] = fmt.Appendf(nil, `state_dir = "%s/state"
[identity]
%s[session]
brokers = [%q]
roots = "%s/root.pem"
%s
[local]
socket = "%s/s"
%s
[[line]]
name = "meter"
port = "tcp://127.0.0.1:1"
[[line.unit]]
name = "m"
address = 3
[[line.unit.point]]
name = "p"
at = "input:1"
type = "int16"
`, p.dir, p.key, p.broker, p.dir, p.session, p.dir, p.more)
	if err := os.MkdirAll(filepath.Join(p.dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(p.dir, "ferrule.toml")
}

// doctor runs ferrule doctor and returns what it printed.
func (p *patient) doctor(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	words := append([]string{"env"}, p.env...)
	words = append(append(words, p.ferrule...), "doctor", "--config", p.write(t))
	return run(t, "", append(words, args...)...)
}

// examined is the part of the report that tests look at.
type examined struct {
	State   string
	Failing string
	By      string
	Checks  []struct {
		Layer, State, Cause, Side, Text, Repair string
		Saw                                     []string
		Warnings                                []struct{ Text, Repair string }
	}
	Comparison *struct {
		First *struct{ Layer, What, Ours, Theirs string }
	}
}

func (p *patient) examine(t *testing.T, args ...string) (r examined, code int) {
	t.Helper()
	out, stderr, code := p.doctor(t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s%s", err, out, stderr)
	}
	return r, code
}

// answering answers each connection by handle.
func answering(t *testing.T, handle func(net.Conn)) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			all.Go(func() { defer conn.Close(); handle(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return "mqtts://" + listener.Addr().String()
}

// cloud starts a good broker with the patient's server certificate, for clients of ca.
func (p *patient) cloud(t *testing.T, change ...func(*tls.Config)) *agenttest.Broker {
	t.Helper()
	config := p.server.ServerTLS(p.ca)
	for _, f := range change {
		f(config)
	}
	b, err := agenttest.StartBroker(agenttest.BrokerConfig{Address: "127.0.0.1:0", TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	p.broker = "mqtts://" + b.Address()
	return b
}

// The built program names the layer that fails, with cause, side and repair, and ends with its code.
func TestDoctorNamesTheLayer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		break_ func(t *testing.T, p *patient)
		layer  string
		cause  string
		side   string
		code   int
	}{
		"wrong name": {func(t *testing.T, p *patient) {
			p.server = p.issue(t, agenttest.Leaf{Names: []string{"other.example"}})
			p.cloud(t)
		}, "tls", "broker-name", "broker", 12},
		"expired broker": {func(t *testing.T, p *patient) {
			p.server = p.issue(t, agenttest.Leaf{Names: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(-day)})
			p.cloud(t)
		}, "tls", "broker-expired", "broker", 12},
		"foreign broker": {func(t *testing.T, p *patient) {
			p.cloud(t)
			other, err := agenttest.NewCA("other")
			if err != nil {
				t.Fatal(err)
			}
			p.ca = other
		}, "tls", "broker-unknown-ca", "device", 12},
		"nothing listens": {func(t *testing.T, p *patient) { p.broker = "mqtts://127.0.0.1:" + freePort(t) }, "tcp", "refused", "broker", 12},
		"no such name":    {func(_ *testing.T, p *patient) { p.broker = "mqtts://no-such-host.invalid:8883" }, "dns", "", "", 12},
		"plaintext": {func(t *testing.T, p *patient) {
			p.broker = answering(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 64)); _, _ = io.WriteString(c, "220 ready\r\n") })
		}, "tls", "plaintext", "broker", 12},
		"stalled": {func(t *testing.T, p *patient) {
			p.broker = answering(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		},
			"tls", "stalled", "broker", 12},
		"not enrolled": {func(t *testing.T, p *patient) { p.cloud(t); p.device = nil }, "identity", "not-enrolled", "device", 11},
		"expired ours": {func(t *testing.T, p *patient) { p.cloud(t); p.device = p.issue(t, old("device-1")) }, "identity", "certificate-expired", "device", 11},
		"software key": {func(t *testing.T, p *patient) { p.cloud(t); p.key = "key = \"file:device.pem\"\n" }, "configuration", "configuration", "device", 3},
		"no TPM":       {func(t *testing.T, p *patient) { p.cloud(t); p.key = "tpm = \"/dev/no-such-tpm\"\n" }, "tpm", "tpm-missing", "device", 10},
		"no roots":     {func(t *testing.T, p *patient) { p.cloud(t); p.session = "proxy_roots = \"/no/such/file\"" }, "dns", "", "", 12},
		"proxy is gone": {func(t *testing.T, p *patient) {
			p.cloud(t)
			p.session = `proxy = "http://127.0.0.1:` + freePort(t) + `"`
		}, "tcp", "proxy-unreachable", "network", 12},
		"wrong clock": {func(t *testing.T, p *patient) {
			p.cloud(t)
			p.ferrule, p.env = shifted(t), []string{"FERRULE_TEST_CLOCK=-864000", "FERRULE_TEST_SYNCED=1"} // ten days behind, and vouched for
		}, "tls", "clock", "device", 12},
		"a line is missing": {func(t *testing.T, p *patient) {
			p.cloud(t)
			p.more = "[[line]]\nname = \"gone\"\nport = \"/dev/no-such-port\"\n[[line.unit]]\nname = \"m\"\naddress = 3\n[[line.unit.point]]\nname = \"p\"\nat = \"input:1\"\ntype = \"int16\"\n"
		}, "lines", "port-missing", "device", 13},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			test.break_(t, p)
			r, code := p.examine(t)
			if code != test.code || r.Failing != test.layer || r.State != "failed" || r.By != "command" {
				out, _, _ := p.doctor(t)
				t.Fatalf("exit code %d, failing %q; want %d and %q:\n%s", code, r.Failing, test.code, test.layer, out)
			}
			for _, c := range r.Checks {
				if c.State != "failed" {
					continue
				}
				if test.cause != "" && c.Cause != test.cause || test.side != "" && c.Side != test.side || c.Text == "" || c.Repair == "" {
					t.Errorf("%+v", c)
				}
				break
			}
			if test.cause == "stalled" {
				return // another sixteen seconds would say the same
			}
			out, _, code := p.doctor(t)
			if code != test.code || strings.Count(out, "\n        repair  ") == 0 || strings.Contains(out, "\x1b") {
				t.Errorf("exit code %d, printed:\n%s", code, out)
			}
		})
	}
}

func old(device string) agenttest.Leaf {
	return agenttest.Leaf{CommonName: device, NotBefore: time.Now().Add(-3 * day), NotAfter: time.Now().Add(-day)}
}

// Where everything works the code is 0, warnings or not, and nothing on the disk is another than before.
func TestDoctorChangesNothing(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	broker := p.cloud(t)
	p.write(t)
	before := listing(t, filepath.Join(p.dir, "state"))
	out, _, code := p.doctor(t, "--explain")
	if code != 0 || !strings.Contains(out, "everything works") || !strings.Contains(out, "ClientHello") || !strings.Contains(out, "CertificateVerify") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	p.write(t)
	if after := listing(t, filepath.Join(p.dir, "state")); after != before {
		t.Errorf("the state directory was:\n%s\nand is:\n%s", before, after)
	}
	for _, c := range broker.Connections() {
		if c.ClientID != "device-1-doctor" {
			t.Errorf("client id %q", c.ClientID)
		}
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		fmt.Fprintln(&b, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Beside a running agent it is the agent that looks, and its session goes on.
func TestDoctorAsksTheAgent(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	broker := p.cloud(t)
	agent := start(t, "agent", append(append([]string{}, p.ferrule...), "run", "--config", p.write(t))...)
	waitFor(t, "the session", func() bool { return len(broker.Connections()) == 1 })
	var r examined
	waitFor(t, "the agent's word", func() bool {
		r, _ = p.examine(t)
		return r.By == "agent" && strings.Contains(fmt.Sprint(r.Checks), "the running session stands")
	})
	if r.Failing != "" && r.Failing != "lines" { // nobody listens at its serial server
		out, _, _ := p.doctor(t)
		t.Errorf("failing %q:\n%s", r.Failing, out)
	}
	if n := broker.Connections(); len(n) != 1 {
		t.Errorf("the broker saw %v", n)
	}
	if _, stderr, code := p.doctor(t, "--broker", "mqtts://127.0.0.1:1"); code != 12 || !strings.Contains(stderr, "session.brokers") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if code := agent.stop(t); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}
}

// What a run that worked says names the difference that explains the failure.
func TestDoctorCompares(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.cloud(t)
	out, _, code := p.doctor(t, "--json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	good := filepath.Join(p.dir, "good.json")
	if err := os.WriteFile(good, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	p.server = p.issue(t, agenttest.Leaf{Names: []string{"other.example"}})
	p.cloud(t)
	r, code := p.examine(t, "--compare", good)
	if code != 12 || r.Comparison == nil || r.Comparison.First == nil || !strings.Contains(r.Comparison.First.What, "names of the broker's certificate") {
		t.Errorf("exit code %d: %+v", code, r.Comparison)
	}
	if text, _, _ := p.doctor(t, "--compare", good); !strings.Contains(text, "first difference: tls, names of the broker's certificate") {
		t.Errorf("printed:\n%s", text)
	}
	if _, stderr, code := p.doctor(t, "--compare", filepath.Join(p.dir, "ferrule.toml")); code != 2 || !strings.Contains(stderr, "hint: ") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// A planted secret in each place is in no byte of the archive, with an agent and without one.
func TestDoctorArchiveHoldsNoSecret(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	broker := p.cloud(t)
	const canary = "CANARY4711"
	p.env = []string{"HTTPS_PROXY=http://envuser-" + canary + ":env-" + canary + "@127.0.0.1:9", "NO_PROXY=127.0.0.1", "SSLKEYLOGFILE=" + p.dir + "/keys"}
	p.session = "# a comment with " + canary + "\nproxy = \"env\""
	p.more = "[enroll]\nroots = \"" + p.dir + "/root.pem\"\nmethod = \"exec\"\ncommand = [\"/bin/false\", \"--pin\", \"" + canary + "-arg\"]\nproxy = \"http://user-" + canary + ":pass-" + canary + "@127.0.0.1:9\"\n"
	p.write(t)
	for name, text := range map[string]string{"state/token": canary, "state/enroll.json": `{"token":"` + canary + `"}`, "state/journal-" + "x": canary} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secrets := []string{canary}
	for _, line := range strings.Split(string(p.device.KeyPEM), "\n") {
		if len(line) > 20 && !strings.Contains(line, "-----") {
			secrets = append(secrets, line)
		}
	}
	path := filepath.Join(p.dir, "one.tar.gz")
	_, stderr, code := p.doctor(t, "--archive", path)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	checkArchive(t, path, secrets, "report.json", "report.txt", "handshake.txt", "configuration.txt", "files.txt", "system.txt", "README.txt")
	if _, err := os.Stat(filepath.Join(p.dir, "keys")); err == nil {
		t.Error("the keys of TLS were written down by a program that was not built for it")
	}
	if _, stderr, code := p.doctor(t, "--archive", path); code == 0 || !strings.Contains(stderr, "is there already") {
		t.Errorf("overwritten: exit code %d: %s", code, stderr)
	}
	agent := start(t, "agent", append(append([]string{"env"}, p.env...), append(p.ferrule, "run", "--config", p.write(t))...)...)
	waitFor(t, "the session", func() bool { return strings.Contains(fmt.Sprint(broker.Connections()), "{device-1 ") })
	second := filepath.Join(p.dir, "two.tar.gz")
	_, _, _ = p.doctor(t, "--archive", second)
	checkArchive(t, second, secrets, "status.json", "metrics.txt", "report.json")
	agent.stop(t)
	p.more += "broken = " // and where the configuration cannot be read
	third := filepath.Join(p.dir, "three.tar.gz")
	if _, _, code := p.doctor(t, "--archive", third); code != 3 {
		t.Errorf("exit code %d", code)
	}
	checkArchive(t, third, secrets, "configuration.txt", "system.txt")
}

// checkArchive reads an archive, which must hold files and no secret.
func checkArchive(t *testing.T, path string, secrets []string, files ...string) {
	t.Helper()
	packed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range secrets {
		if at := bytes.Index(all, []byte(secret)); at >= 0 {
			t.Errorf("%s: a secret is in it: %q", path, all[max(0, at-100):min(len(all), at+100)])
		}
	}
	inside := make(map[string]bool)
	for r := tar.NewReader(bytes.NewReader(all)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		inside[filepath.Base(h.Name)] = h.Size > 0
	}
	for _, name := range files {
		if !inside[name] {
			t.Errorf("%s: %s is missing or empty: %v", path, name, inside)
		}
	}
}
