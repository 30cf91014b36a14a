package registrar

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

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
