package identity_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"ferrule/agent/enroll/wire"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

func order(t testing.TB, device string) []byte {
	t.Helper()
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	text, err := json.Marshal(wire.Order{Version: wire.Version, Device: device, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// deliver is the registrar's part without a network: it checks what was collected, and seals a
// certificate for the TPM that gave it.
func (d *desk) deliver(t testing.TB, collected []byte) []byte {
	t.Helper()
	var in wire.Collected
	if err := json.Unmarshal(collected, &in); err != nil {
		t.Fatal(err)
	}
	csr, evidence := in.Evidence[0].Data, in.Evidence[1].Data
	claim := attest.Claim{Nonce: in.Nonce, Device: in.Device, CSR: csr}
	parsed, err := attest.ParseEvidence(evidence)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := d.verifier.Check(parsed, claim)
	if err != nil {
		t.Fatal(err)
	}
	challenge, secret, err := proof.Challenge(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(challenge)
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := d.issue(in.Device, request)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := claim.Seal(secret, evidence, text, chain)
	if err != nil {
		t.Fatal(err)
	}
	out, _ := json.Marshal(wire.Delivery{
		Version: wire.Version, Device: in.Device, Serial: serialOf(t, chain),
		Challenge: wire.Item{Kind: wire.KindCredential, Data: text}, Sealed: sealed,
	})
	return out
}

func serialOf(t testing.TB, chain []byte) string {
	t.Helper()
	leaf, err := parseLeaf(chain)
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Text(16)
}

func TestEnrollmentByFiles(t *testing.T) {
	s := tpmtest.Certified(t)
	d, dir := attestedDesk(t, s), t.TempDir()
	c, o := inTPM(s.Address()), d.on(options(dir))
	asked := order(t, "gw-1")
	collected, err := identity.Collect(background, c, o, asked)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := identity.Collect(background, c, o, asked); err != nil || !bytes.Equal(again, collected) {
		t.Errorf("the same order again: another answer, %v", err)
	}
	delivery := d.deliver(t, collected)
	result, err := identity.Deliver(background, c, o, d.config(), delivery)
	if err != nil || result.Device != "gw-1" || result.Already {
		t.Fatalf("%+v, %v", result, err)
	}
	if again, err := identity.Deliver(background, c, o, d.config(), delivery); err != nil || !again.Already {
		t.Errorf("delivering again: %+v, %v", again, err)
	}
	if i := mustOpen(t, c, o); i.Device() != "gw-1" || i.Status().Weak {
		t.Errorf("%+v", i.Status())
	}
	if _, err := os.Stat(filepath.Join(dir, "collected.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was collected is still there: %v", err)
	}
}

func TestDeliveriesThatAreRefused(t *testing.T) {
	s := tpmtest.Certified(t)
	d, dir := attestedDesk(t, s), t.TempDir()
	c, o := inTPM(s.Address()), d.on(options(dir))
	first, err := identity.Collect(background, c, o, order(t, "gw-1"))
	if err != nil {
		t.Fatal(err)
	}
	old := d.deliver(t, first)
	second, err := identity.Collect(background, c, o, order(t, "gw-1"))
	if err != nil {
		t.Fatal(err)
	}
	good := d.deliver(t, second)
	change := func(f func(*wire.Delivery)) []byte {
		var in wire.Delivery
		_ = json.Unmarshal(good, &in)
		f(&in)
		out, _ := json.Marshal(in)
		return out
	}
	for name, delivery := range map[string][]byte{
		"for evidence that was collected before": old,
		"for another device":                     change(func(in *wire.Delivery) { in.Device = "gw-2" }),
		"with a flipped bit in the seal":         change(func(in *wire.Delivery) { in.Sealed[len(in.Sealed)/2] ^= 1 }),
		"with a flipped bit in the challenge":    change(func(in *wire.Delivery) { in.Challenge.Data[len(in.Challenge.Data)/2] ^= 1 }),
		"of another kind":                        change(func(in *wire.Delivery) { in.Challenge.Kind = "password" }),
		"of another version":                     change(func(in *wire.Delivery) { in.Version = 9 }),
		"rubbish":                                []byte("{"),
		"with something behind it":               append(bytes.Clone(good), '{'),
		"too large":                              bytes.Repeat([]byte(" "), wire.MaxBody+1),
	} {
		if _, err := identity.Deliver(background, c, o, d.config(), delivery); err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "device.crt")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: there is a certificate", name)
		}
	}
	if _, err := identity.Deliver(background, c, o, d.config(), good); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, err := identity.Deliver(background, inTPM(tpmtest.Other(t).Address()), d.on(options(t.TempDir())), d.config(), good); err == nil {
		t.Error("it was taken on another device")
	}
}

func TestOrdersThatAreRefused(t *testing.T) {
	d := newDesk(t)
	o := d.on(options(t.TempDir()))
	for name, text := range map[string]string{
		"rubbish":         "[",
		"another version": `{"version":2,"device":"gw-1","nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}`,
		"a short nonce":   `{"version":1,"device":"gw-1","nonce":"AAAA"}`,
		"no id":           `{"version":1,"device":"../gw","nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}`,
		"an unknown word": `{"version":1,"device":"gw-1","nonce":"AAAAAAAAAAAAAAAAAAAAAA==","sudo":true}`,
	} {
		if _, err := identity.Collect(background, software(), o, []byte(text)); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	if _, err := identity.Collect(background, software(), o, order(t, "gw-1")); err == nil || hint.Of(err) == "" {
		t.Errorf("a key in a file: %v", err)
	}
}

// The power cut at every TPM command of collecting and delivering.
func TestPowerCutInAnEnrollmentByFiles(t *testing.T) {
	for n := 1; ; n += 5 * every {
		c := newChip(t)
		d, dir := attestedDesk(t, c.Swtpm), t.TempDir()
		asked := order(t, "gw-1")
		var delivery []byte
		run := func(ctx context.Context, fsys disk.FS) error {
			o := d.on(optionsOn(fsys, dir))
			collected, err := identity.Collect(ctx, c.config, o, asked)
			if err != nil {
				return err
			}
			if delivery == nil {
				delivery = d.deliver(t, collected)
			}
			_, err = identity.Deliver(ctx, c.config, o, d.config(), delivery)
			return err
		}
		cut := c.cutAt(n, n/5%2 == 0, run)
		if delivery != nil {
			// The registrar has delivered once: that must do.
			if _, err := identity.Deliver(background, c.config, d.on(options(dir)), d.config(), delivery); err != nil {
				t.Fatalf("cut at command %d: delivering again: %v", n, err)
			}
		} else if err := run(background, disk.OS()); err != nil {
			t.Fatalf("cut at command %d: %v", n, err)
		}
		c.settled(dir)
		_ = c.Stop()
		if !cut {
			t.Logf("%d commands", n-1)
			return
		}
	}
}
