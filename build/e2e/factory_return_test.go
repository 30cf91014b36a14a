package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A TPM that was cleared has lost the device's key and kept its EK: the device comes back
// under its name with a new key and without a token, by run as by enroll. With the registrar
// told not to do that, it stays out.
func TestTPMClearedComesBack(t *testing.T) {
	for name, back := range map[string]func(*testing.T, *enrollee){
		"run": func(t *testing.T, g *enrollee) {
			lost, err := os.ReadFile(g.certificate())
			if err != nil {
				t.Fatal(err)
			}
			agent := start(t, "ferrule run", g.argv("run")...)
			waitFor(t, "the return", func() bool {
				now, err := os.ReadFile(g.certificate())
				return err == nil && string(now) != string(lost)
			})
			agent.stop(t)
		},
		"enroll": func(t *testing.T, g *enrollee) {
			if out := mustRun(t, "", g.argv("enroll")...); !strings.Contains(out, "enrolled as gw-1") {
				t.Errorf("enroll said %q", out)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAttested(t)
			g := w.gateway(t, plan{name: "gw-1"})
			g.enroll(t, w)
			before, lost := w.record(t, "gw-1"), publicKey(t, g.certificate())
			g.tpmRun(t, "tpm2_clear", "-c", "p")

			back(t, g)
			g.checkChain(t, g.certificate(), filepath.Join(g.state, "device.key"), w.root())
			g.checkRecord(t, w, "local")
			after := w.record(t, "gw-1")
			if after.EK != before.EK || len(after.Certificates) != 2 || after.Certificates[1].Basis != "return" {
				t.Errorf("record %+v", after)
			}
			if publicKey(t, g.certificate()) == lost {
				t.Error("the new certificate is for the key that was lost")
			}
		})
	}
}

func publicKey(t *testing.T, certificate string) string {
	t.Helper()
	return mustRun(t, "", need(t, "openssl"), "x509", "-noout", "-pubkey", "-in", certificate)
}

func TestNoReturn(t *testing.T) {
	w := newAttested(t, "--no-return")
	g := w.gateway(t, plan{name: "gw-1"})
	g.enroll(t, w)
	g.tpmRun(t, "tpm2_clear", "-c", "p")
	_, stderr, code := run(t, "", g.argv("enroll", "--force")...)
	if code != 11 || !strings.Contains(stderr, "not-entitled") || !strings.Contains(stderr, "token add") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	g.enroll(t, w, "--force") // a token lets it in, as the same device
	if r := w.record(t, "gw-1"); len(r.Certificates) != 2 {
		t.Errorf("record %+v", r)
	}
}

// A certificate that ran out while the gateway lay on a shelf, in the hands of a device that
// has nothing else but its TPM.
func TestExpiredOnTheShelf(t *testing.T) {
	w := newAttested(t, "--life", "2s")
	g := w.gateway(t, plan{name: "gw-1"})
	g.enroll(t, w)
	pause(t, 2500*time.Millisecond) // the least life that leaves time to enroll
	if out := mustRun(t, "", g.argv("enroll")...); !strings.Contains(out, "enrolled as gw-1") {
		t.Errorf("enroll said %q", out)
	}
	if r := w.record(t, "gw-1"); len(r.Certificates) != 2 || r.Certificates[1].Basis != "return" {
		t.Errorf("record %+v", r)
	}
}

// Taken back: mosquitto and openssl refuse the certificate by the list, the registrar refuses the device
// whatever it shows, until it is let in again by a new token.
func TestRevokedStaysOut(t *testing.T) {
	w := newAttested(t)
	g := w.gateway(t, plan{name: "gw-1"})
	g.enroll(t, w)
	w.startMosquitto(t)
	agent := start(t, "ferrule run", g.argv("run")...)
	waitFor(t, "a session", func() bool { return strings.Contains(w.mosquitto.output(), "Sending CONNACK to") })
	agent.stop(t)
	mustRun(t, "", with(w.factory, "revoke", w.ca, "gw-1")...)
	w.refusedByMosquitto(t, g)

	root, err := os.ReadFile(w.root())
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(w.ca, "device-ca.crl"))
	if err != nil {
		t.Fatal(err)
	}
	trusted := w.file(t, "trusted.pem", string(root)+string(list))
	_, stderr, code := run(t, "", need(t, "openssl"), "verify", "-crl_check", "-CAfile", trusted, "-untrusted", g.certificate(), g.certificate())
	if code == 0 || !strings.Contains(stderr, "certificate revoked") {
		t.Errorf("openssl: exit code %d: %s", code, stderr)
	}
	_, stderr, code = run(t, "", g.argv("enroll", "--force")...)
	if code != 11 || !strings.Contains(stderr, "hint:") {
		t.Errorf("the TPM alone: exit code %d: %s", code, stderr)
	}
	g.enroll(t, w, "--force")
}

// refusedByMosquitto gives the broker the list, as docs/factory.md has it.
func (w *world) refusedByMosquitto(t *testing.T, g *enrollee) {
	t.Helper()
	path := filepath.Join(w.dir, "mosquitto.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.file(t, "mosquitto.conf", strings.Replace(string(text), "cafile ", "crlfile "+filepath.Join(w.ca, "device-ca.crl")+"\ncafile ", 1))
	w.mosquitto.stop(t)
	w.mosquitto = start(t, "mosquitto", need(t, "mosquitto"), "-c", path, "-v")
	w.waitPort(t, w.broker)
	agent := start(t, "ferrule run", g.argv("run")...)
	waitFor(t, "the refusal", func() bool { return strings.Contains(w.mosquitto.output(), "verify failed") })
	agent.stop(t)
	if strings.Contains(w.mosquitto.output(), "Sending CONNACK to") {
		t.Error("mosquitto took a revoked certificate")
	}
}
