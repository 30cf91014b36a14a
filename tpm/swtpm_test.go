package tpm_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
)

var background = context.Background()

// newKey makes a key in d and returns its file.
func newKey(t testing.TB, d *tpm.Device, s tpm.KeySpec) *tpm.KeyFile {
	t.Helper()
	f, err := d.CreateKey(background, s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func load(t testing.TB, d *tpm.Device, f *tpm.KeyFile) *tpm.Key {
	t.Helper()
	k, err := d.LoadKey(background, f)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign signs a fresh digest and verifies it.
func sign(t testing.TB, k crypto.Signer, h crypto.Hash) error {
	t.Helper()
	hash := h.New()
	fmt.Fprint(hash, rand.Text())
	digest := hash.Sum(nil)
	signature, err := k.Sign(nil, digest, h)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest, signature) {
		return errors.New("the signature does not verify")
	}
	return nil
}

func mustSign(t testing.TB, k crypto.Signer) {
	t.Helper()
	if err := sign(t, k, crypto.SHA256); err != nil {
		t.Fatal(err)
	}
}

// spent runs f and returns the commands it cost.
func spent(d *tpm.Device, f func()) map[string]uint64 {
	before := d.Stats().Commands
	f()
	after := d.Stats().Commands
	for name, n := range before {
		after[name] -= n
	}
	maps.DeleteFunc(after, func(_ string, n uint64) bool { return n == 0 })
	return after
}

func TestCommandCensus(t *testing.T) {
	type census = map[string]uint64
	s := tpmtest.Start(t)
	d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	var srk []byte
	var file *tpm.KeyFile
	if diff := cmp.Diff(census{"ReadPublic": 2, "CreatePrimary": 1, "EvictControl": 1, "FlushContext": 1}, spent(d, func() {
		if srk, err = d.EnsureSRK(background, nil); err != nil {
			t.Fatal(err)
		}
	})); diff != "" {
		t.Errorf("first SRK (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(census{"Create": 1}, spent(d, func() { file = newKey(t, d, tpm.KeySpec{}) })); diff != "" {
		t.Errorf("creating a key (-want +got):\n%s", diff)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, s.Address(), tpm.Options{})
	var k *tpm.Key
	if diff := cmp.Diff(census{"ReadPublic": 1, "Load": 1}, spent(d, func() {
		if _, err := d.EnsureSRK(background, srk); err != nil {
			t.Fatal(err)
		}
		k = load(t, d, file)
	})); diff != "" {
		t.Errorf("warm start (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(census{"Sign": 3}, spent(d, func() {
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			if err := sign(t, k, h); err != nil {
				t.Errorf("%v: %v", h, err)
			}
		}
	})); diff != "" {
		t.Errorf("three signatures (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(census{"FlushContext": 1}, spent(d, func() { _ = k.Close(); _ = k.Close() })); diff != "" {
		t.Errorf("closing (-want +got):\n%s", diff)
	}
	if err := sign(t, k, crypto.SHA256); err == nil {
		t.Error("a closed key signs")
	}
}

func TestDeviceKeyHasTheAttributesItNeeds(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	for _, curve := range []elliptic.Curve{nil, elliptic.P256(), elliptic.P384()} {
		f := newKey(t, d, tpm.KeySpec{Curve: curve})
		want := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}
		if got := f.Attributes(); got != want {
			t.Errorf("attributes %+v", got)
		}
		k := load(t, d, f)
		if len(k.Warnings()) != 0 || f.Parent() != tpm.SRKHandle {
			t.Errorf("warnings %q, parent %#x", k.Warnings(), f.Parent())
		}
		if curve != nil && k.Public().(*ecdsa.PublicKey).Curve != curve {
			t.Errorf("asked for %s", curve.Params().Name)
		}
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			if err := sign(t, k, h); err != nil {
				t.Errorf("%v: %v", h, err)
			}
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.CreateKey(background, tpm.KeySpec{Curve: elliptic.P521()}); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("P-521: %v", err)
	}
	if _, err := d.CreateKey(background, tpm.KeySpec{Parent: 0x81000002}); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("foreign parent: %v", err)
	}
}

func TestSignRefusesWhatTheTPMCannotDo(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	if _, err := k.Sign(nil, make([]byte, 20), crypto.SHA1); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("SHA-1: %v", err)
	}
	if _, err := k.Sign(nil, make([]byte, 20), crypto.SHA256); err == nil {
		t.Error("a short digest was signed")
	}
}

func TestKeyBelowTheOwnerHierarchy(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	f := newKey(t, d, tpm.KeySpec{Parent: tpm.OwnerHandle})
	var k *tpm.Key
	want := map[string]uint64{"CreatePrimary": 1, "Load": 1, "FlushContext": 1}
	if diff := cmp.Diff(want, spent(d, func() { k = load(t, d, f) })); diff != "" {
		t.Errorf("loading (-want +got):\n%s", diff)
	}
	mustSign(t, k)
	again, err := tpm.ParseKeyFile(f.MarshalPEM())
	if err != nil || again.Parent() != tpm.OwnerHandle {
		t.Errorf("parent %#x, error %v", again.Parent(), err)
	}
}

// rawKey makes a key below the SRK by go-tpm alone, with a template of the test's choice.
func rawKey(t testing.TB, s *tpmtest.Swtpm, change func(*tpm2.TPMTPublic)) *tpm.KeyFile {
	t.Helper()
	d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	name, err := d.EnsureSRK(background, nil)
	if err != nil {
		t.Fatal(err)
	}
	template := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	}
	change(&template)
	rsp, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(tpm.SRKHandle), Name: tpm2.TPM2BName{Buffer: name}, Auth: tpm2.PasswordAuth(nil)},
		InPublic:     tpm2.New2B(template),
	}.Execute(d.TPM(background))
	if err != nil {
		t.Fatal(err)
	}
	f, err := tpm.NewKeyFile(tpm.SRKHandle, rsp.OutPublic, rsp.OutPrivate)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestForeignTemplates(t *testing.T) {
	s := tpmtest.Start(t)
	type public = tpm2.TPMTPublic
	rsaKey := func(p *public) {
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})
	}
	scheme := func(p *public) {
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		})
	}
	for name, c := range map[string]struct {
		change  func(*public)
		refused string
		warned  string
	}{
		"sign and decrypt": {change: func(p *public) { p.ObjectAttributes.Decrypt = true }},
		"fixed scheme":     {change: scheme, warned: "SHA-256 digests only"},
		"restricted":       {change: func(p *public) { scheme(p); p.ObjectAttributes.Restricted = true }, refused: "restricted"},
		"decrypt only":     {change: func(p *public) { p.ObjectAttributes.Decrypt, p.ObjectAttributes.SignEncrypt = true, false }, refused: "sign attribute"},
		"policy only":      {change: func(p *public) { p.ObjectAttributes.UserWithAuth = false }, refused: "policy"},
		"duplicable":       {change: func(p *public) { p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false }, warned: "duplicated"},
		"RSA":              {change: rsaKey},
	} {
		t.Run(name, func(t *testing.T) {
			f := rawKey(t, s, c.change)
			d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			k, err := d.LoadKey(background, f)
			if c.refused != "" {
				if !errors.Is(err, tpm.ErrUnsupported) || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(k.Warnings(), "; "); !strings.Contains(got, c.warned) || c.warned == "" && got != "" {
				t.Errorf("warnings %q", got)
			}
			if _, ok := k.Public().(*ecdsa.PublicKey); ok {
				mustSign(t, k)
			}
			if err := sign384(k); c.warned == "SHA-256 digests only" && !errors.Is(err, tpm.ErrUnsupported) {
				t.Errorf("SHA-384 with a key bound to SHA-256: %v", err)
			}
		})
	}
}

func sign384(k *tpm.Key) error {
	_, err := k.Sign(nil, make([]byte, crypto.SHA384.Size()), crypto.SHA384)
	return err
}

// TestKilledAgentsDoNotFillTheTPM: a process that is killed leaves its key loaded in a TPM
// without resource manager, which has three slots.
func TestSlotsAtExitEqualSlotsAtStart(t *testing.T) {
	s := tpmtest.Start(t)
	free := func() uint32 {
		d := open(t, s.Address(), tpm.Options{})
		defer d.Close()
		h, err := d.Health(background)
		if err != nil {
			t.Fatal(err)
		}
		return h.TransientFree
	}
	start := free()
	for _, spec := range []tpm.KeySpec{{}, {Parent: tpm.OwnerHandle}} {
		d := open(t, s.Address(), tpm.Options{})
		f := newKey(t, d, spec)
		if _, err := d.LoadKey(background, f.CorruptPrivate(func(b []byte) []byte { return b[:20] })); err == nil {
			t.Error("half a key was loaded")
		}
		if k := load(t, d, f); k.Close() != nil {
			t.Error("closing a key")
		}
		load(t, d, f) // left for Device.Close
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := free(); got != start || start == 0 {
		t.Errorf("%d free slots at the start, %d at the end", start, got)
	}
}

func TestHealth(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	h, err := d.Health(background)
	if err != nil {
		t.Fatal(err)
	}
	if h.Manufacturer != "IBM" || !strings.Contains(h.Vendor, "TPM") || h.Firmware == "0.0.0.0" ||
		h.ResourceManager || h.Path != s.Address() || h.MaxAuthFail == 0 {
		t.Errorf("%+v", h)
	}
}

func TestNameIsTheTPMsOwn(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	if n := k.Name(); len(n) != 2+sha256.Size || n[0] != 0 || n[1] != 0x0B {
		t.Errorf("name %x", n)
	}
}
