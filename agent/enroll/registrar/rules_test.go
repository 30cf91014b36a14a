package registrar

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/tpm/attest"
)

func strict(t testing.TB) *desk { return deskOn(t, disktest.New(), caDir, Config{}) }

func must(t testing.TB, refused *wire.Error) {
	t.Helper()
	if refused != nil {
		t.Fatalf("%s: %v (%v)", refused.Code, refused, refused.Logged())
	}
}

// refuses checks code and a word of the text that tells one refusal from another; no refusal
// tells the device what only the log is for.
func refuses(t testing.TB, refused *wire.Error, code, says string) {
	t.Helper()
	switch {
	case refused == nil:
		t.Errorf("it was let in; want %s, %q", code, says)
	case refused.Code != code || !strings.Contains(refused.Text, says):
		t.Errorf("%s: %s (%v); want %s, %q", refused.Code, refused.Text, refused.Logged(), code, says)
	case refused.Hint == "":
		t.Errorf("%s has no hint", refused.Text)
	}
}

func TestAttestedEnrollment(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	got := d.device(t, "gw-1")
	if got.EK != p.hash() || got.Weak || got.FirstUse || got.TPM.Manufacturer != "IBM" || len(got.Certificates) != 1 {
		t.Errorf("the record: %+v", got)
	}
	c := got.Certificates[0]
	if c.Serial != p.serial || c.Fingerprint != fingerprintOf(p.chain) || c.Issuer != LocalName || c.State != records.Current || c.Sealed {
		t.Errorf("the certificate on record: %+v", c)
	}
	if p.chain[0].Subject.CommonName != "gw-1" || len(p.chain) != 2 || ca.HardwareSerial(p.chain[0]) != "" {
		t.Errorf("the certificate: %v", p.chain[0].Subject)
	}
}

// One EK, one device, one way or the other.
func TestOneEKOneDevice(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	refuses(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-2")}), wire.CodeEKTaken, "as another device")
	other := newPretender(t, "two")
	refuses(t, other.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}), wire.CodeEKTaken, "with another TPM")
	if _, err := d.Records.Device("gw-2"); !errors.Is(err, records.ErrUnknown) {
		t.Errorf("a record of the device that was refused: %v", err)
	}
	// The board was replaced: the operator says so.
	if _, err := d.Records.RevokeDevice(t.Context(), "gw-1", true); err != nil {
		t.Fatal(err)
	}
	must(t, other.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-2")}))
}

// Two registrars on one folder, each sure that the TPM is nobody's: one of them is wrong.
func TestOneEKManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	desks := []*desk{deskOn(t, disk.OS(), dir, Config{}), deskOn(t, disk.OS(), dir, Config{})}
	var wait sync.WaitGroup
	refusals := make([]*wire.Error, 8)
	var ready sync.WaitGroup
	ready.Add(len(refusals))
	for n := range refusals {
		p := newPretender(t, "one")
		p.challenge = func() { ready.Done(); ready.Wait() } // all are past every check but the last
		token := desks[0].token(t, fmt.Sprintf("gw-%d", n))
		wait.Go(func() { refusals[n] = p.enroll(t, desks[n%2], wire.Begin{Token: token}) })
	}
	wait.Wait()
	in := 0
	for _, refused := range refusals {
		if refused == nil {
			in++
		} else if refused.Code != wire.CodeEKTaken {
			t.Error(refused.Logged())
		}
	}
	if in != 1 {
		t.Errorf("%d devices have one TPM", in)
	}
}

func TestOneTryAtTheChallenge(t *testing.T) {
	d := strict(t)
	for name, spoil := range map[string]func([]byte) []byte{
		"a bit":   func(a []byte) []byte { a = bytes.Clone(a); a[0] ^= 1; return a },
		"cut":     func(a []byte) []byte { return a[:len(a)-1] },
		"empty":   func([]byte) []byte { return nil },
		"longer":  func(a []byte) []byte { return append(bytes.Clone(a), 0) },
		"guessed": func(a []byte) []byte { return make([]byte, len(a)) },
	} {
		p := newPretender(t, "one")
		p.spoil = spoil
		refuses(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}), wire.CodeAttestation, "did not open the challenge")
		if len(d.sessions.open) > 0 {
			t.Errorf("%s: the session is open for a second try", name)
		}
	}
	if _, err := d.Records.Device("gw-1"); !errors.Is(err, records.ErrUnknown) {
		t.Errorf("something was recorded: %v", err)
	}
	if holder, err := d.Records.Holder(newPretender(t, "one").hash()); err != nil || holder != "" {
		t.Errorf("a TPM that proved nothing is %q, %v", holder, err)
	}
}

// Steps in another order, of other sessions, or by somebody else.
func TestSessions(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	begin := func(token string) wire.Begun {
		t.Helper()
		b, refused := d.begin(t.Context(), someone, wire.Begin{Versions: []int{wire.Version}, Token: token})
		must(t, refused)
		return b
	}
	first, second := begin(d.token(t, "gw-1")), begin(d.token(t, "gw-1"))
	other := begin(d.token(t, "gw-2"))
	items, claim := p.items(t, first.Nonce, "gw-1")
	finish := func(session string, answers []wire.Item) *wire.Error {
		_, refused := d.finish(t.Context(), someone, wire.Finish{Session: session, Answers: answers})
		return refused
	}
	evidence := func(session string) ([]wire.Item, *wire.Error) {
		c, refused := d.evidence(t.Context(), someone, wire.Evidence{Session: session, Evidence: items})
		return c.Challenges, refused
	}
	refuses(t, finish(first.Session, nil), wire.CodeEvidence, "no evidence")
	_, refused := evidence(second.Session)
	refuses(t, refused, wire.CodeAttestation, "certify-claim")
	_, refused = evidence(other.Session)
	refuses(t, refused, wire.CodeEvidence, `"CN=gw-1"`)
	_, refused = evidence(second.Session)
	refuses(t, refused, wire.CodeSession, "not open")
	challenges, refused := evidence(first.Session)
	must(t, refused)
	_, refused = evidence(first.Session)
	refuses(t, refused, wire.CodeSession, "taken already")
	stranger := caller{source: "192.0.2.9", chain: []*x509.Certificate{d.CA.Root()}}
	_, refused = d.finish(t.Context(), stranger, wire.Finish{Session: first.Session})
	refuses(t, refused, wire.CodeSession, "not open")
	answer := wire.Item{Kind: wire.KindActivation, Data: claim.Answer(open(t, challenges[0].Data), items[1].Data, challenges[0].Data)}
	must(t, finish(first.Session, []wire.Item{answer}))
	refuses(t, finish(first.Session, []wire.Item{answer}), wire.CodeSession, "not open")
	if got := d.device(t, "gw-1"); len(got.Certificates) != 1 {
		t.Errorf("%d certificates", len(got.Certificates))
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	d := strict(t)
	for _, test := range []struct {
		answers []wire.Item
		says    string
	}{
		{nil, "is missing"},
		{[]wire.Item{{Kind: "other", Data: []byte("x")}}, "is missing"},
		{[]wire.Item{{Kind: wire.KindActivation}, {Kind: wire.KindActivation}}, "more than one answer"},
	} {
		p := newPretender(t, "one")
		b, refused := d.begin(t.Context(), someone, wire.Begin{Versions: []int{wire.Version}, Token: d.token(t, "gw-1")})
		must(t, refused)
		items, _ := p.items(t, b.Nonce, "gw-1")
		_, refused = d.evidence(t.Context(), someone, wire.Evidence{Session: b.Session, Evidence: items})
		must(t, refused)
		_, refused = d.finish(t.Context(), someone, wire.Finish{Session: b.Session, Answers: test.answers})
		refuses(t, refused, wire.CodeAttestation, test.says)
	}
}

// Two who finish one session at the same time get one certificate between them.
func TestFinishTwiceAtOnce(t *testing.T) {
	d, p := registrarOn(t, disktest.New()), newPretender(t, "")
	b, refused := d.begin(t.Context(), someone, wire.Begin{Versions: []int{wire.Version}, Token: d.token(t, "gw-1")})
	must(t, refused)
	items, _ := p.items(t, b.Nonce, "gw-1")
	_, refused = d.evidence(t.Context(), someone, wire.Evidence{Session: b.Session, Evidence: items})
	must(t, refused)
	var wait sync.WaitGroup
	got := make([]*wire.Error, 8)
	for n := range got {
		wait.Go(func() { _, got[n] = d.finish(t.Context(), someone, wire.Finish{Session: b.Session}) })
	}
	wait.Wait()
	if n := len(slices.DeleteFunc(got, func(e *wire.Error) bool { return e != nil })); n != 1 {
		t.Errorf("%d answers", n)
	}
}

func TestEvidenceThatIsNone(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	for name, test := range map[string]struct {
		change     func([]wire.Item) []wire.Item
		code, says string
	}{
		"no request":        {func(i []wire.Item) []wire.Item { return i[1:] }, wire.CodeEvidence, "one certificate request"},
		"two requests":      {func(i []wire.Item) []wire.Item { return append(i, i[0]) }, wire.CodeEvidence, "one certificate request"},
		"no TPM":            {func(i []wire.Item) []wire.Item { return i[:1] }, wire.CodeEvidence, "evidence of a TPM is missing"},
		"two TPMs":          {func(i []wire.Item) []wire.Item { return append(i, i[1]) }, wire.CodeEvidence, "more than one piece"},
		"no JSON":           {func(i []wire.Item) []wire.Item { i[1].Data = []byte("{"); return i }, wire.CodeAttestation, "evidence-form"},
		"an empty TPM":      {func(i []wire.Item) []wire.Item { i[1].Data = nil; return i }, wire.CodeAttestation, ""},
		"another key":       {func(i []wire.Item) []wire.Item { i[0].Data = newPretender(t, "").csr(t, "gw-1"); return i }, wire.CodeAttestation, ""},
		"a giant request":   {func(i []wire.Item) []wire.Item { i[0].Data = make([]byte, maxCSR+1); return i }, wire.CodeEvidence, "has 4097 bytes"},
		"another's request": {func(i []wire.Item) []wire.Item { i[0].Data = p.csr(t, "gw-2"); return i }, wire.CodeEvidence, `"CN=gw-2"`},
	} {
		t.Run(name, func(t *testing.T) {
			b, refused := d.begin(t.Context(), someone, wire.Begin{Versions: []int{wire.Version}, Token: d.token(t, "gw-1")})
			must(t, refused)
			if !slices.Equal(b.Require, []string{wire.KindCSR, wire.KindTPM}) {
				t.Errorf("it requires %v", b.Require)
			}
			items, _ := p.items(t, b.Nonce, "gw-1")
			_, refused = d.evidence(t.Context(), someone, wire.Evidence{Session: b.Session, Evidence: test.change(items)})
			refuses(t, refused, test.code, test.says)
		})
	}
}

// The key of the request must be the one that was certified, whatever the verifier has let pass.
func TestTheKeyIsComparedTwice(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	d.check = func(e attest.Evidence, c attest.Claim, known func(string) bool) (proof, error) {
		got, err := believe(e, c, known)
		if err == nil {
			other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			got = pretended{ek: got.EK(), key: &other.PublicKey}
		}
		return got, err
	}
	refuses(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}), wire.CodeAttestation, "not believed")
}

func TestSoftwareKeys(t *testing.T) {
	d := registrarOn(t, disktest.New())
	soft := newPretender(t, "")
	must(t, soft.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	if got := d.device(t, "gw-1"); !got.Weak || got.EK != "" {
		t.Errorf("the record: %+v", got)
	}
	// The certificate renews itself, and a TPM makes the device strong for ever.
	soft.shown = soft.chain
	must(t, soft.enroll(t, d, wire.Begin{}))
	if got := d.device(t, "gw-1"); !got.Weak {
		t.Errorf("the record: %+v", got)
	}
	soft.ek, soft.shown = "one", soft.chain
	must(t, soft.enroll(t, d, wire.Begin{}))
	if got := d.device(t, "gw-1"); got.Weak || got.EK != soft.hash() {
		t.Errorf("the record: %+v", got)
	}
	soft.ek, soft.shown = "", soft.chain
	refuses(t, soft.enroll(t, d, wire.Begin{}), wire.CodeEvidence, "evidence of a TPM is missing")
	refuses(t, newPretender(t, "").enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}), wire.CodeEvidence, "evidence of a TPM is missing")
}

// Where keys in files are allowed, a TPM of an unknown maker is not worse than none; a forgery is.
func TestAnUnvouchedTPMIsNoneWhereNoneIsNeeded(t *testing.T) {
	d, p := registrarOn(t, disktest.New()), newPretender(t, "unvouched")
	p.firstUse = true
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	if got := d.device(t, "gw-1"); !got.Weak || got.EK != "" {
		t.Errorf("the record: %+v", got)
	}
	refuses(t, p.enroll(t, strict(t), wire.Begin{Token: "x"}), wire.CodeTokenUnknown, "")
	s := strict(t)
	refuses(t, p.enroll(t, s, wire.Begin{Token: s.token(t, "gw-1")}), wire.CodeAttestation, "ek-certificate-none")
	d.check = func(attest.Evidence, attest.Claim, func(string) bool) (proof, error) {
		return nil, &attest.Refusal{Reason: "signature", Err: errors.New("forged")}
	}
	refuses(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-2")}), wire.CodeAttestation, "signature")
}

func TestFirstUseIsOnRecord(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	p.firstUse = true
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	if got := d.device(t, "gw-1"); !got.FirstUse || got.Weak {
		t.Errorf("the record: %+v", got)
	}
	p.firstUse = false // a maker's certificate was found
	must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	if got := d.device(t, "gw-1"); got.FirstUse || got.TPM.Manufacturer != "IBM" {
		t.Errorf("the record: %+v", got)
	}
	p.firstUse = true // and is not asked for again
	p.rekey(t)
	must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	if got := d.device(t, "gw-1"); got.FirstUse || got.TPM.Manufacturer != "IBM" {
		t.Errorf("the record: %+v", got)
	}
}

// The TPM was cleared, the certificate is gone: the EK is who the device is.
func TestReturn(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	p.rekey(t)
	must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	if got := d.device(t, "gw-1"); len(got.Certificates) != 2 || got.Certificates[0].State != records.Superseded {
		t.Errorf("the record: %+v", got)
	}
	const unknown = "not known as that device"
	refuses(t, newPretender(t, "two").enroll(t, d, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, unknown)
	refuses(t, newPretender(t, "two").enroll(t, d, wire.Begin{Device: "gw-7"}), wire.CodeNotEntitled, unknown)
	refuses(t, p.enroll(t, d, wire.Begin{Device: "../gw-1"}), wire.CodeNotEntitled, "neither a token")
	refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, "neither a token")
	d.NoReturn = true
	refuses(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, "neither a token")
	soft := registrarOn(t, disktest.New())
	weak := newPretender(t, "")
	must(t, weak.enroll(t, soft, wire.Begin{Token: soft.token(t, "gw-1")}))
	refuses(t, weak.enroll(t, soft, wire.Begin{Device: "gw-1"}), wire.CodeEvidence, "TPM is missing")
	refuses(t, p.enroll(t, soft, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, unknown)
}

func TestRenewal(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	first := p.chain
	renew := func(shown []*x509.Certificate) *wire.Error {
		p.shown = shown
		return p.enroll(t, d, wire.Begin{Device: "gw-1"})
	}
	must(t, renew(first))
	second, serial := p.chain, p.serial
	must(t, renew(first)) // the answer was lost: the same key gets the same certificate
	if p.serial != serial {
		t.Error("another certificate for the same request")
	}
	p.rekey(t)
	must(t, renew(first)) // and so was the key
	third := p.chain
	if p.serial == serial {
		t.Error("the certificate of another key")
	}
	refuses(t, renew(second), wire.CodeNotEntitled, "replaced by a newer")
	must(t, renew(third))
	refuses(t, renew(first), wire.CodeNotEntitled, "replaced by a newer")
	p.ek = "two"
	refuses(t, renew(third), wire.CodeEKTaken, "with another TPM")
	p.ek = "one"
	p.shown = third
	refuses(t, p.enroll(t, d, wire.Begin{Device: "gw-2"}), wire.CodeNotEntitled, "another device's")
	if _, err := d.Records.RevokeSerial(t.Context(), p.serial); err != nil {
		t.Fatal(err)
	}
	refuses(t, renew(p.chain), wire.CodeNotEntitled, "was revoked")
	refuses(t, renew(third), wire.CodeNotEntitled, "was revoked") // the one before it is no way round
	refuses(t, renew(nil), wire.CodeNotEntitled, "was revoked")   // and neither is the TPM
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	must(t, renew(p.chain))
}

// A device that was put out comes in by no token of the time before.
func TestRevokedDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := strict(t), newPretender(t, "one")
		used, old := d.token(t, "gw-1"), d.token(t, "gw-1")
		must(t, p.enroll(t, d, wire.Begin{Token: used}))
		p.challenge = func() { // it is put out while it enrolls
			if _, err := d.Records.RevokeDevice(t.Context(), "gw-1", false); err != nil {
				t.Fatal(err)
			}
		}
		refuses(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, "was revoked")
		p.challenge = nil
		for _, token := range []string{used, old} {
			refuses(t, p.enroll(t, d, wire.Begin{Token: token}), wire.CodeNotEntitled, "was revoked")
		}
		time.Sleep(time.Second) // in the bubble: no time passes
		must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
		p.rekey(t)
		must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	})
}

func TestCertificatesOfOthers(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	other := deskOn(t, disktest.New(), caDir, Config{})
	foreign, err := other.CA.Device(ca.Leaf{Device: "gw-1", Key: &p.key.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	unrecorded, err := d.CA.Device(ca.Leaf{Device: "gw-1", Key: &p.key.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	odd, err := d.CA.Device(ca.Leaf{Device: "gw 1", Key: &p.key.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		shown []*x509.Certificate
		says  string
	}{
		{"of another CA", foreign, "not on record"},
		{"of this CA, never issued", unrecorded, "not on record"},
		{"of no device", odd, "names no device"},
		{"of the CA itself", []*x509.Certificate{d.CA.DeviceCA()}, "names no device"},
	} {
		p.shown = test.shown
		t.Run(test.name, func(t *testing.T) { refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, test.says) })
	}
	d.FactoryRoots = x509.NewCertPool()
	d.FactoryRoots.AddCert(d.CA.DeviceCA()) // a factory whose devices are not these
	p.shown = foreign
	refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, "not of a factory that is trusted")
}

func TestExpiredCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := strict(t), newPretender(t, "one")
		must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
		time.Sleep(2 * time.Hour) // in the bubble: no time passes
		p.shown = p.chain
		refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, "expired on")
		p.shown = nil
		must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	})
}

// Who loses an answer gets it again; who is not helped by a certificate gets another.
func TestAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := deskOn(t, disktest.New(), caDir, Config{Life: 24 * time.Hour}), newPretender(t, "one")
		again := func(q wire.Begin, same bool) {
			t.Helper()
			before := p.serial
			must(t, p.enroll(t, d, q))
			if (p.serial == before) != same {
				t.Errorf("the same certificate: %v, want %v", p.serial == before, same)
			}
		}
		token := wire.Begin{Token: d.token(t, "gw-1")}
		again(token, false)
		time.Sleep(20 * time.Hour)
		again(token, true) // for as long as it is valid
		again(wire.Begin{Device: "gw-1"}, false)
		time.Sleep(askedAgain / 2)
		again(wire.Begin{Device: "gw-1"}, true)
		time.Sleep(askedAgain)
		again(wire.Begin{Device: "gw-1"}, false)
		refuses(t, p.enroll(t, d, token), wire.CodeTokenUsed, "replaced since")
		p.shown = p.chain
		again(wire.Begin{}, false)
		time.Sleep(10 * time.Hour)
		again(wire.Begin{}, true)
		time.Sleep(3 * time.Hour)
		again(wire.Begin{}, false) // less than half of its life is left
		p.shown = nil
		late := wire.Begin{Token: d.token(t, "gw-1")}
		again(late, false)
		time.Sleep(25 * time.Hour)
		refuses(t, p.enroll(t, d, late), wire.CodeTokenExpired, "expired")
	})
}

// The factory makes an IDevID; the site takes it for a first certificate, for that TPM alone.
func TestFactoryCertificate(t *testing.T) {
	factory := deskOn(t, disktest.New(), caDir, Config{Factory: true, Life: ca.FactoryLife})
	p := newPretender(t, "one")
	must(t, p.enroll(t, factory, wire.Begin{Token: factory.token(t, "gw-1")}))
	idevid := p.chain
	if ca.HardwareSerial(idevid[0]) != p.hash() || time.Until(idevid[0].NotAfter) < 19*365*24*time.Hour {
		t.Errorf("the factory certificate names %q and ends on %v", ca.HardwareSerial(idevid[0]), idevid[0].NotAfter)
	}
	roots := x509.NewCertPool()
	roots.AddCert(factory.CA.Root())
	site := deskOn(t, disktest.New(), caDir, Config{FactoryRoots: roots})
	p.shown = idevid
	p.rekey(t)
	must(t, p.enroll(t, site, wire.Begin{}))
	operational := p.chain
	if got := site.device(t, "gw-1"); got.EK != p.hash() || got.Certificates[0].Basis.Kind() != "factory" || got.Certificates[0].Factory {
		t.Errorf("the record: %+v", got)
	}
	stolen := newPretender(t, "two")
	stolen.shown = idevid
	refuses(t, stolen.enroll(t, site, wire.Begin{}), wire.CodeEKTaken, "")
	refuses(t, stolen.enroll(t, deskOn(t, disktest.New(), caDir, Config{FactoryRoots: roots}), wire.Begin{}), wire.CodeEKTaken, "names another TPM")
	refuses(t, p.enroll(t, strict(t), wire.Begin{}), wire.CodeNotEntitled, "not on record")
	lenient := deskOn(t, disktest.New(), caDir, Config{FactoryRoots: roots, AllowSoftwareKeys: true})
	soft := newPretender(t, "")
	soft.shown = idevid
	refuses(t, soft.enroll(t, lenient, wire.Begin{}), wire.CodeEvidence, "TPM is missing")
	// Renewed since, it comes back by the same factory certificate, again and again.
	for range 2 {
		p.shown = operational
		must(t, p.enroll(t, site, wire.Begin{}))
		p.shown = idevid
		p.rekey(t)
		must(t, p.enroll(t, site, wire.Begin{}))
		operational = p.chain
	}
	if _, err := site.Records.RevokeDevice(t.Context(), "gw-1", false); err != nil {
		t.Fatal(err)
	}
	refuses(t, p.enroll(t, site, wire.Begin{}), wire.CodeNotEntitled, "was revoked")
}

// One folder may be factory and site: kinds of certificates are kept apart.
func TestFactoryAndSiteInOneFolder(t *testing.T) {
	disk := disktest.New()
	factory := deskOn(t, disk, caDir, Config{Factory: true, Life: ca.FactoryLife})
	site := deskOn(t, disk, caDir, Config{})
	p := newPretender(t, "one")
	must(t, p.enroll(t, factory, wire.Begin{Token: factory.token(t, "gw-1")}))
	idevid := p.chain
	for range 3 { // an operational certificate never pushes the other aside
		p.shown = idevid
		p.rekey(t)
		must(t, p.enroll(t, site, wire.Begin{}))
		p.shown = p.chain
		must(t, p.enroll(t, site, wire.Begin{}))
	}
	p.shown = p.chain
	refuses(t, p.enroll(t, factory, wire.Begin{}), wire.CodeNotEntitled, "does not entitle to one of the factory")
	p.shown = idevid
	must(t, p.enroll(t, factory, wire.Begin{}))
	if got := site.device(t, "gw-1"); !got.Current(true).Factory || got.Current(false).Factory {
		t.Errorf("%+v", got)
	}
}

func TestWhatAnIssuerGivesIsChecked(t *testing.T) {
	other := deskOn(t, disktest.New(), caDir, Config{})
	for name, test := range map[string]struct {
		issue func(d *desk, q Request) ([]*x509.Certificate, error)
		says  string
	}{
		"another key": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			return d.CA.Device(ca.Leaf{Device: q.Device, Key: &k.PublicKey, Life: q.Life})
		}, "another key"},
		"another name": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return d.CA.Device(ca.Leaf{Device: "gw-2", Key: q.CSR.PublicKey, Life: q.Life})
		}, `for "gw-2"`},
		"another CA": {func(_ *desk, q Request) ([]*x509.Certificate, error) {
			return other.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life})
		}, "does not lead to a trusted root"},
		"too short": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return d.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: 10 * time.Minute})
		}, "in less than an hour"},
		"nothing": {func(*desk, Request) ([]*x509.Certificate, error) { return nil, nil }, "0 certificates"},
		"an endless": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			c, err := d.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life})
			return slices.Repeat(c, 9), err
		}, "18 certificates"},
		"broken chain": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			c, err := d.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life})
			return append(c, other.CA.Root()), err
		}, "did not sign the one before it"},
		"an authority": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return []*x509.Certificate{selfSigned(t, q, true)}, nil
		}, "is an authority's"},
		"signed by itself": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return []*x509.Certificate{selfSigned(t, q, false)}, nil
		}, "another key"},
		"an error": {func(*desk, Request) ([]*x509.Certificate, error) { return nil, errors.New("it is asleep") }, "it is asleep"},
	} {
		t.Run(name, func(t *testing.T) {
			d, p := strict(t), newPretender(t, "one")
			d.Life = 24 * time.Hour
			d.Issuer = issuerFunc(func(q Request) ([]*x509.Certificate, error) { return test.issue(d, q) })
			token := d.token(t, "gw-1")
			refused := p.enroll(t, d, wire.Begin{Token: token})
			refuses(t, refused, wire.CodeBackend, "did not issue")
			if refused != nil && !strings.Contains(refused.Logged().Error(), test.says) {
				t.Errorf("the log says %v, want %q", refused.Logged(), test.says)
			}
			if _, err := d.Records.Device("gw-1"); !errors.Is(err, records.ErrUnknown) {
				t.Errorf("it is on record: %v", err)
			}
			d.Issuer = &local{d.CA} // mended: the token is not spent
			must(t, p.enroll(t, d, wire.Begin{Token: token}))
		})
	}
}

type issuerFunc func(Request) ([]*x509.Certificate, error)

func (f issuerFunc) Name() string { return "test" }
func (f issuerFunc) Issue(_ context.Context, q Request) ([]*x509.Certificate, error) {
	return f(q)
}

func selfSigned(t testing.TB, q Request, authority bool) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: q.Device}, IsCA: authority, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(24 * time.Hour)}
	public := any(&k.PublicKey)
	if authority {
		public = q.CSR.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An attested enrollment cut anywhere ends as one device with one TPM and one certificate.
func TestPowerCutWhileAttesting(t *testing.T) {
	p := newPretender(t, "one")
	var token, serial string
	states := disktest.Replay(t, func(disk *disktest.Disk) {
		d := deskOn(t, disk, caDir, Config{})
		token = d.token(t, "gw-1")
		disk.Mark("token")
		must(t, p.enroll(t, d, wire.Begin{Token: token}))
		serial = p.serial
		disk.Mark("issued")
	}, func(t testing.TB, state *disktest.Disk) {
		d, reached := deskOn(t, state, caDir, Config{}), len(state.Marks())
		if reached == 0 {
			return
		}
		must(t, p.enroll(t, d, wire.Begin{Token: token}))
		if reached == 2 && p.serial != serial {
			t.Error("a second certificate was issued")
		}
		got := d.device(t, "gw-1")
		if len(got.Certificates) != 1 || got.EK != p.hash() {
			t.Errorf("the record: %+v", got)
		}
		refuses(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-2")}), wire.CodeEKTaken, "")
	})
	t.Logf("%d disks", states)
}

// Who begins and begins is told to wait, and keeps nobody else out.
func TestRateOfOneSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := strict(t)
		begin := func(source string) *wire.Error {
			_, refused := d.begin(t.Context(), caller{source: source}, wire.Begin{Versions: []int{wire.Version}, Token: "wrong"})
			return refused
		}
		for range burst {
			refuses(t, begin("192.0.2.1"), wire.CodeTokenUnknown, "")
		}
		refuses(t, begin("192.0.2.1"), wire.CodeBackend, "too many")
		refuses(t, begin("192.0.2.2"), wire.CodeTokenUnknown, "")
		time.Sleep(time.Second) // in the bubble: no time passes
		for range perSecond {
			refuses(t, begin("192.0.2.1"), wire.CodeTokenUnknown, "")
		}
		refuses(t, begin("192.0.2.1"), wire.CodeBackend, "too many")
		for n := range maxSources + 10 {
			begin(fmt.Sprint(n))
		}
		if n := len(d.sessions.rate.sources); n > maxSources {
			t.Errorf("%d sources are remembered", n)
		}
		time.Sleep(time.Minute)
		refuses(t, begin("203.0.113.1"), wire.CodeTokenUnknown, "")
	})
}

func TestSources(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:4711": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1": "fe80::/64", "@": "@",
	} {
		if got := sourceOf(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}
