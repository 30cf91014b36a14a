package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// signer is a CA of openssl's own for the back end exec. It wants the environment that
// docs/enrollment.md promises.
const signer = `#!/bin/sh
set -eu
[ "$FERRULE_DEVICE" = gw-1 ] && [ "$FERRULE_PURPOSE" = first ] && [ "${#FERRULE_EK}" = 64 ]
cd "$(dirname "$0")"
printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n' >leaf.ext
openssl x509 -req -CA own.crt -CAkey own.key -CAcreateserial -days 2 -extfile leaf.ext 2>/dev/null
cat own.crt
`

// issuer is a CA behind the registrar.
type issuer struct {
	name  string
	root  string   // file
	flags []string // of the registrar, behind all others
}

// Every CA that can stand behind the registrar: the device proves its TPM to the registrar
// and gets a certificate of that CA; openssl believes it.
func TestIssuersBehindTheRegistrar(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *world) issuer{
		"step-jwk": stepByJWK, "step-x5c": stepByX5C, "est-user": estByUser, "est-certificate": estByCertificate, "exec": byExec,
	} {
		t.Run(name, func(t *testing.T) {
			w := newAttested(t)
			behind := begin(t, w)
			w.issuing.stop(t)
			w.startRegistrar(t, append([]string{"--tpm-roots", w.tpmRoots(), "--issuer", behind.name, "--issuer-roots", behind.root}, behind.flags...)...)
			g := w.gateway(t, plan{name: "gw-1", roots: w.both(t, behind.root)})
			g.enroll(t, w)
			g.checkChain(t, g.certificate(), filepath.Join(g.state, "device.key"), behind.root)
			g.checkRecord(t, w, behind.name)
		})
	}
}

// both is a file with the registrar's root and another.
func (w *world) both(t *testing.T, other string) string {
	t.Helper()
	var text []byte
	for _, name := range []string{w.root(), other} {
		one, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, one...)
	}
	return w.file(t, "roots.pem", string(text))
}

func newAgentCA(t *testing.T, name string) *agenttest.CA {
	t.Helper()
	ca, err := agenttest.NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// startStep starts step-ca; it ends with the test.
func startStep(t *testing.T, factory *agenttest.CA) *agenttest.StepCA {
	t.Helper()
	program, err := agenttest.StepCAProgram()
	if err != nil {
		t.Fatal(err)
	}
	step, err := agenttest.StartStepCA(t.Context(), program, shortDir(t), agenttest.StepOptions{Factory: factory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(step.Stop)
	return step
}

func stepByJWK(t *testing.T, w *world) issuer {
	step := startStep(t, nil)
	der, err := x509.MarshalPKCS8PrivateKey(step.Key())
	if err != nil {
		t.Fatal(err)
	}
	key := w.file(t, "jwk.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return issuer{"step", w.file(t, "step.crt", string(step.RootPEM())), []string{
		"--step-url", step.URL(), "--step-provisioner", agenttest.StepJWK, "--step-kid", agenttest.StepKeyID, "--step-key", key}}
}

// registrarPair is a certificate of the registrar's own, which a CA behind it believes.
func registrarPair(t *testing.T, w *world, ca *agenttest.CA) (certificate, key string) {
	t.Helper()
	pair, err := ca.Device("the-registrar")
	if err != nil {
		t.Fatal(err)
	}
	return w.file(t, "own.crt", string(pair.ChainPEM)), w.file(t, "own.key", string(pair.KeyPEM))
}

func stepByX5C(t *testing.T, w *world) issuer {
	office := newAgentCA(t, "office")
	step := startStep(t, office)
	certificate, key := registrarPair(t, w, office)
	return issuer{"step", w.file(t, "step.crt", string(step.RootPEM())), []string{
		"--step-url", step.URL(), "--step-provisioner", agenttest.StepX5C, "--step-x5c-cert", certificate, "--step-x5c-key", key}}
}

// startEST starts an EST server; it ends with the test.
func startEST(t *testing.T, c agenttest.ESTConfig) *agenttest.EST {
	t.Helper()
	est, err := agenttest.StartEST(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(est.Close)
	return est
}

func estByUser(t *testing.T, w *world) issuer {
	ca := newAgentCA(t, "est")
	est := startEST(t, agenttest.ESTConfig{CA: ca, Users: map[string]string{"registrar": "secret"}, Label: "gateways"})
	return issuer{"est", w.file(t, "est.crt", string(ca.RootPEM())), []string{
		"--est-url", est.URL(), "--est-user", w.file(t, "user", "registrar:secret\n")}}
}

func estByCertificate(t *testing.T, w *world) issuer {
	ca, office := newAgentCA(t, "est"), newAgentCA(t, "office")
	est := startEST(t, agenttest.ESTConfig{CA: ca, Factory: office})
	certificate, key := registrarPair(t, w, office)
	return issuer{"est", w.file(t, "est.crt", string(ca.RootPEM())), []string{
		"--est-url", est.URL(), "--est-cert", certificate, "--est-key", key}}
}

func byExec(t *testing.T, w *world) issuer {
	root := filepath.Join(w.dir, "own.crt")
	mustRun(t, "", need(t, "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", filepath.Join(w.dir, "own.key"), "-out", root, "-subj", "/CN=own root", "-days", "2")
	program := w.file(t, "sign", signer)
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	return issuer{"exec", root, []string{"--", program}}
}

// A factory gives every device a certificate for life; with it the device gets its first
// operational one from step-ca, from an EST server, or from another registrar, where its owner
// never handed out a token.
func TestOperationalByFactoryCertificate(t *testing.T) {
	maker, owner := newAgentCA(t, "factory"), newAgentCA(t, "owner")
	w := newAttested(t)
	w.issuing.stop(t)
	mill := startEST(t, agenttest.ESTConfig{CA: maker, Users: map[string]string{"registrar": "secret"}, Life: 20 * 365 * 24 * time.Hour})
	makerRoot := w.file(t, "factory.crt", string(maker.RootPEM()))
	w.startRegistrar(t, "--tpm-roots", w.tpmRoots(), "--factory", "--issuer", "est", "--issuer-roots", makerRoot,
		"--est-url", mill.URL(), "--est-user", w.file(t, "user", "registrar:secret\n"))
	factory := "\n[enroll.factory]\nmethod = \"registrar\"\nurl = \"" + w.registrar + "\"\nroots = \"" + w.both(t, makerRoot) + "\"\n"
	g := w.gateway(t, plan{name: "gw-1", more: factory})
	g.enroll(t, w, "--factory")
	g.checkChain(t, filepath.Join(g.state, "factory.crt"), filepath.Join(g.state, "factory.key"), makerRoot)
	if r := w.record(t, "gw-1"); !r.Certificates[0].Factory || r.FirstUse {
		t.Errorf("record %+v", r)
	}
	text, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	step := startStep(t, maker)
	est := startEST(t, agenttest.ESTConfig{CA: owner, Factory: maker})
	other := newOffice(t) // the owner's registrar knows nothing of this device
	other.startRegistrar(t, "--tpm-roots", w.tpmRoots(), "--factory-ca", makerRoot)
	for name, service := range map[string]struct{ method, url, root string }{
		"step":      {"step\"\nprovisioner = \"" + agenttest.StepX5C, step.URL(), w.file(t, "step.crt", string(step.RootPEM()))},
		"est":       {"est", est.URL(), w.file(t, "est.crt", string(owner.RootPEM()))},
		"registrar": {"registrar", other.registrar, other.root()},
	} {
		t.Run(name, func(t *testing.T) {
			mine := *g
			// The operational identity below a folder of its own, the factory's where it is.
			changed := strings.NewReplacer(`method = "registrar"`+"\nurl = \""+w.registrar+"\"\nroots = \""+w.root()+"\"\n\n",
				`method = "`+service.method+"\"\nurl = \""+service.url+"\"\nroots = \""+service.root+"\"\n\n",
				"[identity]", "[identity]\nkey = \"tpm2:file="+name+".key\"\ncertificate = \""+name+".crt\"").Replace(string(text))
			mine.config = w.file(t, name+".toml", changed)
			out := mustRun(t, "", mine.argv("enroll")...)
			if !strings.Contains(out, "enrolled as gw-1") {
				t.Errorf("enroll said %q", out)
			}
			mine.checkChain(t, filepath.Join(g.state, name+".crt"), filepath.Join(g.state, name+".key"), service.root)
		})
	}
}
