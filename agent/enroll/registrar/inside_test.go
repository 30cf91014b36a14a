package registrar

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk/disktest"
	"ferrule/tpm/attest"
)

func csrFor(t testing.TB, device string) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// redeem goes the whole way without a network.
func redeem(t testing.TB, r *desk, token string, csr []byte) (wire.Issued, *wire.Error) {
	begun, refused := r.begin(t.Context(), someone, wire.Begin{Versions: []int{wire.Version}, Token: token})
	if refused != nil {
		return wire.Issued{}, refused
	}
	if _, refused := r.evidence(t.Context(), someone, wire.Evidence{Session: begun.Session, Evidence: []wire.Item{{Kind: wire.KindCSR, Data: csr}}}); refused != nil {
		return wire.Issued{}, refused
	}
	return r.finish(t.Context(), someone, wire.Finish{Session: begun.Session})
}

// A power cut at the registrar: a token that was printed is known, and a certificate that was
// answered is the one that is answered for ever.
func TestPowerCutWhileIssuing(t *testing.T) {
	csr := csrFor(t, "gw-1")
	var token string
	var issued wire.Issued
	states := disktest.Replay(t, func(d *disktest.Disk) {
		r := registrarOn(t, d)
		var err error
		if token, err = r.Records.AddToken("gw-1", time.Hour); err != nil {
			t.Fatal(err)
		}
		d.Mark("token")
		var refused *wire.Error
		if issued, refused = redeem(t, r, token, csr); refused != nil {
			t.Fatal(refused)
		}
		d.Mark("issued")
	}, func(t testing.TB, state *disktest.Disk) {
		reached := len(state.Marks())
		got, refused := redeem(t, registrarOn(t, state), token, csr)
		switch {
		case reached >= 1 && refused != nil:
			t.Errorf("the token that was given out: %v", refused.Logged())
		case reached >= 2 && got != issued:
			t.Error("a second certificate was issued")
		case reached == 0 && refused != nil && refused.Code != wire.CodeTokenUnknown:
			t.Errorf("the token that never left: %v", refused.Logged())
		}
		if refused != nil {
			return
		}
		// What was answered after the cut stands as fast as what was answered before it.
		if again, refused := redeem(t, registrarOn(t, state.PowerCut()), token, csr); refused != nil || again != got {
			t.Errorf("a second cut: %v, another certificate: %v", refused, again != got)
		}
	})
	t.Logf("%d disks", states)
}

// A disk that fails issues nothing that it would forget.
func TestFailingDiskIssuesNothing(t *testing.T) {
	csr := csrFor(t, "gw-1")
	for fail := 0; ; fail++ {
		d := disktest.New()
		r := registrarOn(t, d)
		token, err := r.Records.AddToken("gw-1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		left := fail
		d.Fail(func(op disktest.Op) error {
			if !op.Kind.Changes() && op.Kind != disktest.Sync && op.Kind != disktest.SyncDir {
				return nil
			}
			if left--; left < 0 {
				return errDiskFull
			}
			return nil
		})
		_, refused := redeem(t, r, token, csr)
		d.Fail(nil)
		if refused == nil {
			if left < 0 {
				t.Fatalf("operation %d failed, and a certificate was given out", fail)
			}
			t.Logf("%d operations failed in turn", fail)
			return
		}
		if refused.Code != wire.CodeInternal {
			t.Errorf("operation %d: code %q", fail, refused.Code)
		}
		if refused.Error() == refused.Logged().Error() {
			t.Errorf("operation %d: the registrar's own fault is told to the device: %v", fail, refused)
		}
		if _, refused := redeem(t, r, token, csr); refused != nil {
			t.Errorf("operation %d: afterwards: %v", fail, refused.Logged())
		}
	}
}

type diskFull struct{}

func (diskFull) Error() string { return "no space left on device" }

var errDiskFull = diskFull{}

// Enrollments that were given up are forgotten, and take no more room than their bound.
func TestSessionsAreBoundedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registrarOn(t, disktest.New())
		token, err := r.Records.AddToken("gw-1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		begin := func(source int) (wire.Begun, *wire.Error) {
			return r.begin(t.Context(), caller{source: fmt.Sprint(source)}, wire.Begin{Versions: []int{wire.Version}, Token: token})
		}
		first, refused := begin(1)
		if refused != nil {
			t.Fatal(refused)
		}
		for n := range maxSessions - 1 {
			if _, refused := begin(2 + n/(burst/2)); refused != nil {
				t.Fatal(refused)
			}
		}
		if _, refused := begin(250); refused == nil || len(r.sessions.open) > maxSessions {
			t.Errorf("%d sessions are open", len(r.sessions.open))
		}
		time.Sleep(sessionLife + time.Second) // in the bubble: no time passes
		if _, refused := r.finish(t.Context(), someone, wire.Finish{Session: first.Session}); refused == nil || refused.Code != wire.CodeSession {
			t.Errorf("a session that expired: %v", refused)
		}
		if _, refused := begin(1); refused != nil || len(r.sessions.open) != 1 {
			t.Errorf("after they expired: %v, %d sessions", refused, len(r.sessions.open))
		}
	})
}

// FuzzCSR: whatever a device sends as its request, it is refused, or asks for a key on a known
// curve and for nothing but the device's name.
func FuzzCSR(f *testing.F) {
	f.Add(csrFor(f, "gw-1"))
	f.Add(csrFor(f, "gw-2"))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := checkCSR(der, "gw-1")
		if err != nil {
			return
		}
		if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || csr.Subject.CommonName != "gw-1" {
			t.Errorf("%T for %v", csr.PublicKey, csr.Subject)
		}
	})
}

// FuzzRequests: no body makes the registrar panic, fail by itself, or issue anything, at whatever
// step a session is.
func FuzzRequests(f *testing.F) {
	d := deskOn(f, disktest.New(), caDir, Config{AllowSoftwareKeys: true, TPMs: attest.Verifier{TrustOnFirstUse: true}})
	d.check = d.verify
	token := d.token(f, "gw-1")
	p := newPretender(f, "one")
	items, _ := p.items(f, make([]byte, nonceBytes), "gw-1")
	for _, body := range []any{
		wire.Begin{Versions: []int{wire.Version}, Token: "t"},
		wire.Begin{Versions: []int{wire.Version}, Device: "gw-1"},
		wire.Evidence{Session: "begun", Evidence: items},
		wire.Evidence{Session: "begun", Evidence: items[:1]},
		wire.Finish{Session: "challenged", Answers: []wire.Item{{Kind: wire.KindActivation, Data: make([]byte, 32)}}},
		wire.Finish{Session: "begun"},
	} {
		text, err := json.Marshal(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	handler := d.handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		d.sessions = newSessions()
		e := entitlement{device: "gw-1", basis: records.ByToken(records.TokenDigest(token)), ends: time.Now().Add(time.Hour)}
		open := func(name string, s state) {
			d.sessions.open[name] = &session{entitlement: e, nonce: make([]byte, nonceBytes), state: s,
				answer: bytes.Repeat([]byte{7}, 32), expires: time.Now().Add(time.Hour)}
		}
		for _, path := range []string{wire.PathBegin, wire.PathEvidence, wire.PathFinish} {
			open("begun", begun)
			open("challenged", challenged)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body)))
			if w.Code >= 500 || w.Code < 400 && path == wire.PathFinish {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
			if len(d.sessions.open) > 3 {
				t.Errorf("%d sessions", len(d.sessions.open))
			}
		}
		if _, err := d.Records.Device("gw-1"); !errors.Is(err, records.ErrUnknown) {
			t.Errorf("something was issued: %v", err)
		}
	})
}

// FuzzCollected: no file makes the registrar panic or fail by itself.
func FuzzCollected(f *testing.F) {
	d := deskOn(f, disktest.New(), caDir, Config{})
	order, err := NewOrder("gw-1")
	if err != nil {
		f.Fatal(err)
	}
	items, _ := newPretender(f, "one").items(f, order.Nonce, "gw-1")
	d.check = d.verify
	text, err := json.Marshal(wire.Collected{Order: order, Evidence: items})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := d.Deliver(t.Context(), order, time.Now(), text)
		refused, ok := errors.AsType[*wire.Error](err)
		if !ok || refused.Code == wire.CodeInternal || refused.Code == wire.CodeBackend {
			t.Errorf("%v", err)
		}
		_, _ = ReadOrder("gw-1", text)
	})
}
