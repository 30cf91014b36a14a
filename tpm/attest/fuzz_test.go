package attest

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
)

func FuzzEvidence(f *testing.F) {
	text, err := json.Marshal(sampleEvidence())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"eks":[{"public":"AQ=="}],"ak":"AQ==","key":"AQ==","certify":"AQ==","signature":"AQ==","x":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvidence(data)
		if err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseEvidence(text)
		if diff := cmp.Diff(e, again); diff != "" || err != nil {
			t.Fatalf("(-first +again) %s %v", diff, err)
		}
		// Whatever it is, it is no proof, and costs no panic.
		if _, err := (&Verifier{TrustOnFirstUse: true}).Check(e, Claim{Nonce: nonce, Device: device, CSR: data}); err == nil {
			t.Fatal("believed")
		}
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add([]byte(`{"ek":1,"credential":"AQ==","secret":"AQ=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseChallenge(data)
		if err != nil {
			return
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseChallenge(text)
		if diff := cmp.Diff(c, again); diff != "" || err != nil {
			t.Fatalf("(-first +again) %s %v", diff, err)
		}
	})
}

func FuzzChip(f *testing.F) {
	f.Add(sanOf(f, oneSet("id:00001014", "swtpm", "id:20191023")))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseChip(data)
		if err != nil {
			return
		}
		for _, s := range []string{c.manufacturer, c.model, c.version} {
			if s == "" || len(s) > maxText || bytes.ContainsFunc([]byte(s), func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q", s)
			}
		}
	})
}

// What is taken for a TPMS_ATTEST is one for go-tpm too, has the same fields and only this form.
func FuzzCertify(f *testing.F) {
	f.Add(tpm2.Marshal(certification(make([]byte, 34), make([]byte, 34), make([]byte, 32), nil)))
	f.Add(tpm2.Marshal(certification(nil, nil, nil, asQuote)))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := readCertify(data)
		if err != nil {
			return
		}
		a, err := tpm2.Unmarshal[tpm2.TPMSAttest](data)
		if err != nil {
			t.Fatal(err)
		}
		if again := tpm2.Marshal(*a); !bytes.Equal(again, data) {
			t.Errorf("marshals to %x", again)
		}
		info, err := a.Attested.Certify()
		if err != nil || !bytes.Equal(info.Name.Buffer, c.name) || !bytes.Equal(a.ExtraData.Buffer, c.extra) {
			t.Errorf("read otherwise: %+v, %v", info, err)
		}
	})
}

// The same for public areas: what matches a template is for go-tpm what it is here.
func FuzzPublic(f *testing.F) {
	m := newMaker(f)
	for kind := range ekNames {
		p := newSoftTPM(f, m, kind).parts(device)
		for _, public := range []tpm2.TPMTPublic{p.ek, p.ak, p.key} {
			f.Add(tpm2.Marshal(public))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readPublic("ek", data)
		if err != nil {
			return
		}
		all := append(append([]template{akTemplate}, keyTemplates[:]...), ekTemplates[:]...)
		if _, err := match("ek", p, all); err != nil {
			return
		}
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](data)
		if err != nil {
			t.Fatal(err)
		}
		if again := tpm2.Marshal(*public); !bytes.Equal(again, data) {
			t.Errorf("marshals to %x", again)
		}
		if objectName, err := tpm2.ObjectName(public); err != nil || p.nameAlg == algSHA256 && !bytes.Equal(objectName.Buffer, name(data)) {
			t.Errorf("named %v, %v", objectName, err)
		}
		key, err := p.key("ek")
		if err != nil {
			return
		}
		theirs, err := tpm2.Pub(*public)
		if err != nil || !key.(interface{ Equal(crypto.PublicKey) bool }).Equal(theirs) {
			t.Errorf("another key: %v, %v", key, err)
		}
	})
}
