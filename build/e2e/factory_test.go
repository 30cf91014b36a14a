package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/tpm/tpmtest"
)

// swtpmMaker is what the TPM's certificate says of its manufacturer.
const swtpmMaker = "id:00001014"

// newAttested is a factory whose registrar wants a TPM of one maker behind every key. The
// world's TPM is such a one.
func newAttested(t *testing.T, flags ...string) *world {
	t.Helper()
	w := newOffice(t)
	w.tpm = tpmtest.Certified(t)
	w.file(t, "tpm-roots.pem", string(w.tpm.RootsPEM()))
	w.startRegistrar(t, append([]string{"--tpm-roots", w.tpmRoots()}, flags...)...)
	return w
}

// newOffice is a factory with a CA and nothing else.
func newOffice(t *testing.T) *world {
	t.Helper()
	dir := shortDir(t)
	w := &world{dir: dir, ca: filepath.Join(dir, "ca"), factory: build(t, "ferrule-factory", native)}
	mustRun(t, "", with(w.factory, "ca", "init", "--host", "127.0.0.1", w.ca)...)
	w.broker = "127.0.0.1:" + freePort(t)
	return w
}

func (w *world) tpmRoots() string { return filepath.Join(w.dir, "tpm-roots.pem") }
func (w *world) root() string     { return filepath.Join(w.ca, "root.crt") }

// startRegistrar starts a registrar on a port of its own; it becomes the world's.
func (w *world) startRegistrar(t *testing.T, flags ...string) *process {
	t.Helper()
	w.issuing = start(t, "registrar", with(w.factory, append([]string{"registrar", "--ca", w.ca, "--listen", "127.0.0.1:0"}, flags...)...)...)
	line := w.issuing.waitLine(t, "https://127.0.0.1:")
	w.registrar = line[strings.Index(line, "https://"):]
	return w.issuing
}

// enrollee is one gateway: its program, its configuration and its TPM.
type enrollee struct {
	name, config, state string
	ferrule             []string
	tpm                 *tpmtest.Swtpm
}

// plan says how a gateway is configured; only name is needed.
type plan struct {
	name  string
	on    target         // native unless set
	tpm   *tpmtest.Swtpm // nil: the world's
	roots string         // nil: the CA's
	more  string         // more of [identity] and [enroll]
	at    string         // the TPM's address, where it is not its own
	via   string         // the registrar's, likewise
}

func (w *world) gateway(t *testing.T, p plan) *enrollee {
	t.Helper()
	if p.on.name == "" {
		p.on = native
	}
	g := &enrollee{name: p.name, state: filepath.Join(w.dir, p.name), ferrule: build(t, "ferrule", p.on), tpm: p.tpm}
	if g.tpm == nil {
		g.tpm = w.tpm
	}
	g.config = w.file(t, p.name+".toml", fmt.Sprintf(`state_dir = %q
[identity]
tpm = %q
[enroll]
method = "registrar"
url = %q
roots = %q
%s
[session]
brokers = ["mqtts://%s"]
reconnect_spread = "200ms"
roots = %q
[local]
socket = %q
[[line]]
name = "rs485-1"
port = "/dev/null"
settings = "115200 8N1"
protocol = "modbus-rtu"
`, g.state, orElse(p.at, g.tpm.Address()), orElse(p.via, w.registrar), orElse(p.roots, w.root()), p.more, w.broker, w.root(), g.state+".sock"))
	return g
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

func (g *enrollee) certificate() string { return filepath.Join(g.state, "device.crt") }

func (g *enrollee) argv(args ...string) []string {
	return append(with(g.ferrule, args[0], "--config", g.config), args[1:]...)
}

// enroll gets a token for the gateway and uses it; it has to succeed.
func (g *enrollee) enroll(t *testing.T, w *world, flags ...string) {
	t.Helper()
	out := mustRun(t, w.token(t, g.name)+"\n", g.argv(append([]string{"enroll", "--token", "-"}, flags...)...)...)
	if !strings.Contains(out, "enrolled as "+g.name) || strings.Contains(out, "WEAK") {
		t.Errorf("enroll said %q", out)
	}
}

// refused is an enrollment that has to fail with exit code 11 and these words.
func (g *enrollee) refused(t *testing.T, w *world, words ...string) {
	t.Helper()
	_, stderr, code := run(t, w.token(t, g.name)+"\n", g.argv("enroll", "--token", "-")...)
	if code != 11 {
		t.Errorf("%s: exit code %d: %s", g.name, code, stderr)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("%s: %q is not in %s", g.name, word, stderr)
		}
	}
	if _, err := os.Stat(g.certificate()); err == nil {
		t.Errorf("%s has a certificate all the same", g.name)
	}
}

// tpmRun runs a foreign program that talks to the gateway's TPM.
func (g *enrollee) tpmRun(t *testing.T, argv ...string) string {
	t.Helper()
	tcti := "swtpm:path=" + g.tpm.Socket()
	cmd := exec.CommandContext(t.Context(), need(t, argv[0]), argv[1:]...)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti, "TPM2OPENSSL_TCTI="+tcti, "TSS2_LOG=all+NONE")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// checkChain has openssl verify the certificate and its issuers up to a root, the subject,
// and that the TPM holds the key of key, a TSS2 file.
func (g *enrollee) checkChain(t *testing.T, certificate, key, root string) {
	t.Helper()
	openssl := need(t, "openssl")
	mustRun(t, "", openssl, "verify", "-purpose", "sslclient", "-CAfile", root, "-untrusted", certificate, certificate)
	subject := mustRun(t, "", openssl, "x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in", certificate)
	if strings.TrimSpace(subject) != "subject=CN="+g.name {
		t.Errorf("subject %q", subject)
	}
	certified := mustRun(t, "", openssl, "x509", "-noout", "-pubkey", "-in", certificate)
	if held := g.tpmRun(t, "openssl", "pkey", "-provider", "tpm2", "-provider", "default", "-in", key, "-pubout"); held != certified {
		t.Errorf("the TPM holds\n%sthe certificate is for\n%s", held, certified)
	}
}

// registered is the registrar's record of a device.
type registered struct {
	Device   string
	EK       string
	FirstUse bool `json:"first_use"`
	Weak     bool
	TPM      struct{ Manufacturer, Model, Version string }
	// Certificates, the present one last.
	Certificates []struct {
		Serial, Issuer, State, Basis string
		Fingerprint                  string `json:"certificate_sha256"`
		Factory                      bool
	}
}

func (w *world) record(t *testing.T, device string) (r registered) {
	t.Helper()
	text := mustRun(t, "", with(w.factory, "devices", "--json", w.ca, device)...)
	if err := json.Unmarshal([]byte(text), &r); err != nil || len(r.Certificates) == 0 {
		t.Fatalf("record %s: %v", text, err)
	}
	return r
}

// checkRecord compares the registrar's record with the certificate on the gateway, and the EK
// in it with the one that the TPM's own certificate names.
func (g *enrollee) checkRecord(t *testing.T, w *world, issuer string) {
	t.Helper()
	r := w.record(t, g.name)
	if r.FirstUse || r.Weak || r.TPM.Manufacturer != swtpmMaker || r.TPM.Model != "swtpm" || r.TPM.Version == "" {
		t.Errorf("record %+v", r)
	}
	if ek := g.endorsement(t); r.EK != ek {
		t.Errorf("EK %s is on record; the TPM's is %s", r.EK, ek)
	}
	last := r.Certificates[len(r.Certificates)-1]
	if print := fingerprintOf(t, g.certificate()); last.Fingerprint != print || last.Issuer != issuer || last.State != "current" {
		t.Errorf("on record: %+v; on the gateway %s", last, print)
	}
}

// endorsement is the SHA-256 of the EK in the TPM's certificate for P-384, as tpm2-tools and
// openssl read it.
func (g *enrollee) endorsement(t *testing.T) string {
	t.Helper()
	der := filepath.Join(t.TempDir(), "ek.der")
	g.tpmRun(t, "tpm2_nvread", "-C", "o", "-o", der, "0x01c00016")
	public := mustRun(t, "", need(t, "openssl"), "x509", "-inform", "DER", "-in", der, "-noout", "-pubkey")
	sum := sha256.Sum256([]byte(mustRun(t, public, need(t, "openssl"), "pkey", "-pubin", "-outform", "DER")))
	return hex.EncodeToString(sum[:])
}

func fingerprintOf(t *testing.T, certificate string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(mustRun(t, "", need(t, "openssl"), "x509", "-in", certificate, "-outform", "DER")))
	return hex.EncodeToString(sum[:])
}

// A device proves its TPM to the registrar, on this machine and on both ARMs.
func TestAttestedEnrollment(t *testing.T) {
	for _, on := range []target{native, arm64, armv6} {
		t.Run(on.name, func(t *testing.T) {
			w := newAttested(t)
			g := w.gateway(t, plan{name: "gw-1", on: on})
			g.enroll(t, w)
			g.checkChain(t, g.certificate(), filepath.Join(g.state, "device.key"), w.root())
			g.checkRecord(t, w, "local")
		})
	}
}

// What a registrar that wants a TPM's proof lets in, and what it does not.
func TestWhoIsRefused(t *testing.T) {
	w := newAttested(t)
	first := w.gateway(t, plan{name: "gw-1"})
	first.enroll(t, w)

	twin := w.gateway(t, plan{name: "gw-2"}) // the TPM of the first
	twin.refused(t, w, "ek-taken", "hint:")
	if said := w.issuing.output(); !strings.Contains(said, "gw-1") || !strings.Contains(said, "gw-2") {
		t.Errorf("the log does not name both devices:\n%s", said)
	}
	sibling := w.gateway(t, plan{name: "gw-3", tpm: tpmtest.Other(t)}) // of the same maker
	sibling.enroll(t, w)

	bare := w.gateway(t, plan{name: "gw-4", tpm: tpmtest.Start(t)})
	bare.refused(t, w, "ek-certificate-none", "hint:")

	software := w.gateway(t, plan{name: "gw-5"})
	text, err := os.ReadFile(software.config)
	if err != nil {
		t.Fatal(err)
	}
	w.file(t, "gw-5.toml", strings.Replace(string(text), "[identity]", "[identity]\nkey = \"file:device.pem\"\nallow_software_key = true", 1))
	software.refused(t, w, "hint:")

	for _, device := range []string{"gw-2", "gw-4", "gw-5"} {
		if _, _, code := run(t, "", with(w.factory, "devices", w.ca, device)...); code == 0 {
			t.Errorf("%s is on record", device)
		}
	}
}

// A TPM whose maker's root was not given is refused with its reason; and trusting first use
// does not let it in either, for it has a certificate that does not verify.
func TestTPMOfAnotherMaker(t *testing.T) {
	w := newOffice(t)
	w.tpm = tpmtest.Certified(t)
	w.file(t, "tpm-roots.pem", string(foreignMaker(t)))
	for _, flags := range [][]string{nil, {"--trust-ek-on-first-use"}} {
		issuing := w.startRegistrar(t, append([]string{"--tpm-roots", w.tpmRoots()}, flags...)...)
		g := w.gateway(t, plan{name: fmt.Sprint("gw-", len(flags))})
		g.refused(t, w, "ek-certificate-issuer", "hint:")
		if said := issuing.output(); !strings.Contains(said, "ek-certificate-issuer") || !strings.Contains(said, "--tpm-roots") {
			t.Errorf("the registrar's log says neither why nor what to do:\n%s", said)
		}
	}
}

// foreignMaker is a file with the root of a maker of whom there is no TPM here.
func foreignMaker(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	key, root := filepath.Join(dir, "key"), filepath.Join(dir, "root")
	mustRun(t, "", need(t, "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", key, "-out", root, "-subj", "/CN=another maker", "-days", "2")
	text, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A chip without a certificate is taken as it comes where that was asked for, and the record
// says so for good; from then on it is that chip and no other.
func TestTrustOnFirstUse(t *testing.T) {
	w := newOffice(t)
	w.tpm = tpmtest.Start(t)
	w.startRegistrar(t, "--trust-ek-on-first-use")
	g := w.gateway(t, plan{name: "gw-1"})
	g.enroll(t, w)
	r := w.record(t, "gw-1")
	if !r.FirstUse || r.Weak || r.EK == "" || r.TPM.Manufacturer != "" {
		t.Errorf("record %+v", r)
	}
	if list := mustRun(t, "", with(w.factory, "devices", w.ca)...); !strings.Contains(list, "first use") {
		t.Errorf("the list does not tell first use:\n%s", list)
	}
	w.gateway(t, plan{name: "gw-2"}).refused(t, w, "ek-taken")
	w.gateway(t, plan{name: "gw-3", tpm: tpmtest.Start(t)}).enroll(t, w)
}
