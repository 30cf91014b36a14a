package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
)

var platform = tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}

// defineNV writes an index as a manufacturer does.
func defineNV(t testing.TB, d *tpm.Device, index tpm2.TPMHandle, data []byte, change func(*tpm2.TPMANV)) {
	t.Helper()
	c := d.TPM(background)
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, WriteDefine: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	}
	if change != nil {
		change(&public.Attributes)
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(c); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 512 {
		rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.NVWrite{
			AuthHandle: platform,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: rsp.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]},
			Offset:     uint16(at),
		}).Execute(c); err != nil {
			t.Fatal(err)
		}
	}
}

func undefineNV(t testing.TB, d *tpm.Device, index tpm2.TPMHandle) {
	t.Helper()
	c := d.TPM(background)
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: rsp.NVName}}).Execute(c); err != nil {
		t.Fatal(err)
	}
}

// derive returns the public key that a template gives.
func derive(t testing.TB, d *tpm.Device, template tpm2.TPMTPublic) crypto.PublicKey {
	t.Helper()
	c := d.TPM(background)
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(c); err != nil {
		t.Fatal(err)
	}
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// maker is a manufacturer in Go, for what swtpm_setup does not make.
type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newMaker(t testing.TB) *maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &maker{key, certify(t, "maker", key.Public(), key)}
}

func (m *maker) roots() []*x509.Certificate { return []*x509.Certificate{nil, m.cert} }

func (m *maker) certify(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	template := *m.cert
	template.IsCA = false
	der, err := x509.CreateCertificate(rand.Reader, &template, m.cert, key, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEndorsementKeysOfAllKinds(t *testing.T) {
	high256, highRSA := tpm.HighTemplates()
	m := newMaker(t)
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	padding := bytes.Repeat([]byte{0xFF}, 700)
	defineNV(t, d, 0x01C0000A, append(m.certify(t, derive(t, d, tpm2.ECCEKTemplate)), padding...), nil)
	defineNV(t, d, 0x01C00014, m.certify(t, derive(t, d, high256)), nil)
	defineNV(t, d, 0x01C00002, append(m.certify(t, derive(t, d, tpm2.RSAEKTemplate)), 0, 0, 0), func(a *tpm2.TPMANV) { a.AuthRead = false })
	defineNV(t, d, 0x01C00012, m.certify(t, derive(t, d, highRSA)), func(a *tpm2.TPMANV) { a.OwnerRead, a.NoDA = false, false })
	e := mustAttest(t, k)
	if diff := cmp.Diff([]string{"P-256*", "P-256*", "RSA*", "RSA*"}, kinds(t, e, m.roots())); diff != "" {
		t.Errorf("endorsement keys (-want +got):\n%s", diff)
	}
	mustActivate(t, k, e)
}

func TestNonceAndTemplateIndexes(t *testing.T) {
	m := newMaker(t)
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	withNonce := tpm2.ECCEKTemplate
	withNonce.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: append([]byte("nonce"), make([]byte, 27)...)},
		Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	defineNV(t, d, 0x01C0000B, []byte("nonce"), nil)
	defineNV(t, d, 0x01C0000A, m.certify(t, derive(t, d, withNonce)), nil)
	other := tpm2.RSAEKTemplate
	other.ObjectAttributes.NoDA = true // another key, and another kind of object
	other.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: []byte("template")})
	defineNV(t, d, 0x01C00004, tpm2.Marshal(other), nil)
	defineNV(t, d, 0x01C00003, []byte("not used where there is a template"), nil)
	defineNV(t, d, 0x01C00002, m.certify(t, derive(t, d, other)), nil)
	e := mustAttest(t, k)
	if diff := cmp.Diff([]string{"P-256*", "RSA*"}, kinds(t, e, m.roots())); diff != "" {
		t.Errorf("endorsement keys (-want +got):\n%s", diff)
	}
	mustActivate(t, k, e)
}

// TestSpoiltEndorsement: what is wrong with a certificate is said, and costs no more than it.
func TestSpoiltEndorsement(t *testing.T) {
	m := newMaker(t)
	s := tpmtest.Start(t)
	var log bytes.Buffer
	d := open(t, s.Address(), tpm.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	good := m.certify(t, derive(t, d, tpm2.ECCEKTemplate))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signing := tpm2.ECCEKTemplate
	signing.ObjectAttributes.Decrypt, signing.ObjectAttributes.SignEncrypt = false, true
	odd := tpm2.ECCEKTemplate
	odd.AuthPolicy.Buffer = make([]byte, 32)
	for name, c := range map[string]struct {
		index   tpm2.TPMHandle
		data    []byte
		change  func(*tpm2.TPMANV)
		warning string
		kept    bool // the certificate, with its key
	}{
		"for another key":       {index: 0x01C0000A, data: m.certify(t, m.key.Public()), warning: "another key"},
		"for an RSA key":        {index: 0x01C0000A, data: m.certify(t, rsaKey.Public()), warning: "another key"},
		"zeros":                 {index: 0x01C0000A, data: make([]byte, 600), warning: "SEQUENCE"},
		"erased flash":          {index: 0x01C0000A, data: bytes.Repeat([]byte{0xFF}, 600), warning: "SEQUENCE"},
		"half a certificate":    {index: 0x01C0000A, data: good[:len(good)/2], warning: "SEQUENCE"},
		"damaged":               {index: 0x01C0000A, data: append(bytes.Clone(good[:30]), good[31:]...), warning: "unusable certificate"},
		"empty":                 {index: 0x01C0000A, warning: "nothing was written"},
		"nobody may read it":    {index: 0x01C0000A, data: good, change: func(a *tpm2.TPMANV) { a.OwnerRead, a.AuthRead = false, false }, warning: "authority"},
		"a counter":             {index: 0x01C0000A, data: nil, change: func(a *tpm2.TPMANV) { a.NT = tpm2.TPMNTCounter }, warning: "no ordinary"},
		"a template of another": {index: 0x01C0000C, data: tpm2.Marshal(tpm2.RSAEKTemplate), warning: "not that of a P-256", kept: true},
		"one that signs":        {index: 0x01C0000C, data: tpm2.Marshal(signing), warning: "not that of a P-256", kept: true},
		"one of odd policy":     {index: 0x01C0000C, data: tpm2.Marshal(odd), warning: "policy", kept: true},
		"a torn template":       {index: 0x01C0000C, data: tpm2.Marshal(tpm2.ECCEKTemplate)[:40], warning: "malformed", kept: true},
		"a long nonce":          {index: 0x01C0000B, data: make([]byte, 33), warning: "nonce of 33 bytes", kept: true},
		"a large index":         {index: 0x01C0000A, data: append(bytes.Clone(good), make([]byte, 1500)...), kept: true},
	} {
		log.Reset()
		size := c.data
		if size == nil {
			size = make([]byte, 8)
		}
		if c.data == nil {
			defineEmpty(t, d, c.index, c.change)
		} else {
			defineNV(t, d, c.index, size, c.change)
		}
		if c.index != 0x01C0000A {
			defineNV(t, d, 0x01C0000A, good, nil)
		}
		want := "P-256"
		if c.kept {
			want += "*"
		}
		e := mustAttest(t, k)
		if got := kinds(t, e, m.roots()); len(got) != 1 || got[0] != want {
			t.Errorf("%s: endorsement keys %q", name, got)
		}
		if !strings.Contains(log.String(), c.warning) || c.warning == "" && log.Len() > 0 {
			t.Errorf("%s: log %q", name, log.String())
		}
		mustActivate(t, k, e)
		undefineNV(t, d, c.index)
		if c.index != 0x01C0000A {
			undefineNV(t, d, 0x01C0000A)
		}
	}
}

func defineEmpty(t testing.TB, d *tpm.Device, index tpm2.TPMHandle, change func(*tpm2.TPMANV)) {
	t.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	}
	if change != nil {
		change(&public.Attributes)
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
}

func TestEndorsementHierarchyWithAPassword(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	endorse := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: endorse, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Attest(background, nil); !errors.Is(err, tpm.ErrUnsupported) || !strings.Contains(err.Error(), "endorsement hierarchy has a password") {
		t.Errorf("attesting: %v", err)
	}
	if _, err := d.EndorsementName(background); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("naming: %v", err)
	}
	mustSign(t, k)
}

func TestQualifyingDataIsBounded(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	if _, err := k.Attest(background, make([]byte, 65)); err == nil || d.Stats().Commands["Certify"] != 0 {
		t.Errorf("65 bytes: %v", err)
	}
}

// TestPolicies computes what ekkind.go states.
func TestPolicies(t *testing.T) {
	for _, hash := range []tpm2.TPMIAlgHash{tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384} {
		a, b, c := tpm.Policies(hash)
		p, err := tpm2.NewPolicyCalculator(hash)
		if err != nil {
			t.Fatal(err)
		}
		if err := (tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement}).Update(p); err != nil || !bytes.Equal(p.Hash().Digest, a) {
			t.Errorf("policy A: %x, %v", p.Hash().Digest, err)
		}
		or := tpm2.PolicyOr{PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: a}, {Buffer: c}}}}
		if err := or.Update(p); err != nil || !bytes.Equal(p.Hash().Digest, b) {
			t.Errorf("policy B: %x, %v", p.Hash().Digest, err)
		}
	}
}

// TestKeysNamedWithTheirUse: some makers certify their RSA keys for OAEP alone, a name of
// keys that crypto/x509 does not know.
func TestKeysNamedWithTheirUse(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := newMaker(t).certify(t, key.Public())
	common, _ := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1})
	oaep, _ := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7})
	if bytes.Count(der, common) != 1 {
		t.Fatal("no certificate for an RSA key")
	}
	der = bytes.Replace(der, common, oaep, 1)
	if got, err := tpm.CertifiedKey(der); err != nil || !key.PublicKey.Equal(got) {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzEndorsementCertificate: whatever a manufacturer, or a thief, has left in NV.
func FuzzEndorsementCertificate(f *testing.F) {
	m := newMaker(f)
	f.Add(append(m.certify(f, m.key.Public()), 0xFF, 0xFF))
	f.Add([]byte{0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 8<<10 {
			return
		}
		der, err := tpm.TrimCertificate(data)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(data, der) {
			t.Fatal("not what is in the index")
		}
		again, err := tpm.TrimCertificate(der)
		if err != nil || !bytes.Equal(again, der) {
			t.Fatal("cut twice")
		}
		_, _ = tpm.CertifiedKey(der)
	})
}
