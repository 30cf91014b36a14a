package enroll_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll"
	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// attester stands in for a TPM; it notes what it was asked.
type attester struct {
	nonce  string
	device string
	csr    []byte
	broken error
}

func (a *attester) Evidence(_ context.Context, nonce []byte, device string, csr []byte) ([]byte, error) {
	a.nonce, a.device, a.csr = string(nonce), device, csr
	return []byte("the evidence"), a.broken
}

func (a *attester) Answer(_ context.Context, challenge []byte) ([]byte, error) {
	return append([]byte("answer to "), challenge...), nil
}

func attesting(f *fake, require ...string) {
	f.answer[wire.PathBegin] = func(w http.ResponseWriter) {
		send(w, wire.Begun{Version: wire.Version, Session: "s", Device: "gw-1", Nonce: []byte("a nonce of sixteen"), Require: require})
	}
	f.answer[wire.PathEvidence] = func(w http.ResponseWriter) {
		send(w, wire.Challenged{Challenges: []wire.Item{{Kind: wire.KindCredential, Data: []byte("challenge")}}})
	}
}

// items reads what was sent to path.
func items(t *testing.T, f *fake, path string) map[string]string {
	t.Helper()
	sent := f.sent(path)
	if len(sent) != 1 {
		t.Fatalf("%d requests to %s", len(sent), path)
	}
	var body struct{ Evidence, Answers []wire.Item }
	if err := json.Unmarshal([]byte(sent[0]), &body); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, item := range append(body.Evidence, body.Answers...) {
		all[item.Kind] = string(item.Data)
	}
	return all
}

func TestAttestedEnrollment(t *testing.T) {
	f, d, a := newFake(t), &device{t: t}, &attester{}
	attesting(f, wire.KindCSR, wire.KindTPM)
	r := d.request()
	r.Token, r.Device, r.Purpose, r.Attest = "", "gw-1", enroll.Return, a
	result, err := enroll.Enroll(t.Context(), f.config, r)
	if err != nil || string(result.Chain) != "the chain" || result.Unattested != nil {
		t.Fatalf("%+v, %v", result, err)
	}
	if begin := f.sent(wire.PathBegin)[0]; !strings.Contains(begin, `"device":"gw-1"`) || strings.Contains(begin, "token") {
		t.Errorf("begin: %s", begin)
	}
	if a.nonce != "a nonce of sixteen" || a.device != "gw-1" || !bytes.Equal(a.csr, d.csrs[0]) {
		t.Errorf("the evidence is for %+v", a)
	}
	if sent := items(t, f, wire.PathEvidence); sent[wire.KindTPM] != "the evidence" || sent[wire.KindCSR] != string(d.csrs[0]) || len(sent) != 2 {
		t.Errorf("evidence %q", sent)
	}
	if sent := items(t, f, wire.PathFinish); sent[wire.KindActivation] != "answer to challenge" || len(sent) != 1 {
		t.Errorf("answers %q", sent)
	}
}

// A registrar that does not insist gets no evidence of a TPM that cannot give any, and the
// caller hears why; one that insists is not asked on.
func TestEvidenceThatCannotBeGiven(t *testing.T) {
	broken := errors.New("the endorsement hierarchy is locked")
	f, d := newFake(t), &device{t: t}
	attesting(f, wire.KindCSR)
	delete(f.answer, wire.PathEvidence)
	r := d.request()
	r.Attest = &attester{broken: broken}
	if result, err := enroll.Enroll(t.Context(), f.config, r); err != nil || !errors.Is(result.Unattested, broken) {
		t.Errorf("not required: %+v, %v", result, err)
	}
	if sent := items(t, f, wire.PathEvidence); len(sent) != 1 {
		t.Errorf("evidence %q", sent)
	}
	f = newFake(t)
	attesting(f, wire.KindCSR, wire.KindTPM)
	if _, err := enroll.Enroll(t.Context(), f.config, r); !errors.Is(err, broken) || len(f.sent(wire.PathEvidence)) != 0 {
		t.Errorf("required: %v", err)
	}
	r.Attest = nil
	if _, err := enroll.Enroll(t.Context(), f.config, r); !errors.Is(err, enroll.ErrRefused) || !strings.Contains(hint.Of(err), "identity.key") {
		t.Errorf("a key in a file: %v (%s)", err, hint.Of(err))
	}
}

// What the registrar answers when it cannot issue, and what may be done then.
func TestRegistrarCannotIssue(t *testing.T) {
	answer := func(status int, after, code string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(status)
			send(w, wire.Error{Code: code, Text: "it \x1b[31m\ncannot", Hint: "do \x07this"})
		}
	}
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter)
		after  time.Duration // -1: refused
	}{
		"backend":     {answer(503, "120", wire.CodeBackend), 2 * time.Minute},
		"internal":    {answer(500, "", wire.CodeInternal), 0},
		"overloaded":  {answer(429, "7200", "slow-down"), 2 * time.Hour},
		"ek taken":    {answer(403, "", wire.CodeEKTaken), -1},
		"attestation": {answer(422, "5", wire.CodeAttestation), -1},
		"new code":    {answer(422, "", "something-new\n"), -1},
	} {
		f, d := newFake(t), &device{t: t}
		f.answer[wire.PathFinish] = test.answer
		_, err := enroll.Enroll(t.Context(), f.config, d.request())
		later, ok := errors.AsType[*enroll.ErrLater](err)
		if errors.Is(err, enroll.ErrRefused) != (test.after < 0) || ok != (test.after >= 0) || ok && later.After != test.after {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil || strings.ContainsAny(err.Error()+hint.Of(err), "\x1b\n\x07") || !strings.Contains(hint.Of(err), "this") {
			t.Errorf("%s: %q (%q)", name, err, hint.Of(err))
		}
	}
}

// A registrar that was restarted in between knows nothing of the enrollment: it is begun anew.
func TestRegistrarForgets(t *testing.T) {
	f, d := newFake(t), &device{t: t}
	times := 0
	f.answer[wire.PathEvidence] = func(w http.ResponseWriter) {
		if times++; times == 1 {
			w.WriteHeader(http.StatusUnprocessableEntity)
			send(w, wire.Error{Code: wire.CodeSession, Text: "not open"})
			return
		}
		send(w, wire.Challenged{})
	}
	result, err := enroll.Enroll(t.Context(), f.config, d.request())
	if err != nil || string(result.Chain) != "the chain" || len(d.csrs) != 1 || len(f.sent(wire.PathBegin)) != 2 {
		t.Errorf("%+v, %v", result, err)
	}
}

// An id from the registrar becomes the name of files and part of topics.
func TestRegistrarGivesABadID(t *testing.T) {
	for _, id := range []string{"", "../../etc/passwd", "a/b", "+", "gw 1", "gw-\x1b[2J", strings.Repeat("a", 65), ".", "-x", "gw-\u00e9"} {
		f, d := newFake(t), &device{t: t}
		f.answer[wire.PathBegin] = func(w http.ResponseWriter) { send(w, wire.Begun{Version: wire.Version, Device: id}) }
		_, err := enroll.Enroll(t.Context(), f.config, d.request())
		if !errors.Is(err, enroll.ErrRefused) || len(d.csrs) != 0 || strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// registrarSite is the real registrar, for keys in files.
func registrarSite(t *testing.T) *site {
	t.Helper()
	dir, factory := t.TempDir(), newCA(t, "factory")
	authority, err := ca.Init(disk.OS(), dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Server("registrar", []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	book, err := records.Open(disk.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := registrar.New(registrar.Config{CA: authority, Records: book, AllowSoftwareKeys: true, FactoryRoots: factory.Pool()}, slog.New(slog.DiscardHandler))
	listener, err := r.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	roots := filepath.Join(dir, "root.crt")
	if _, err := os.Stat(roots); err != nil {
		t.Fatal(err)
	}
	return &site{
		config:  enroll.Config{Method: enroll.MethodRegistrar, URL: "https://" + listener.Addr().String(), Roots: roots},
		factory: deviceOf(t, factory, "gw-1"),
		token: func(t *testing.T) string {
			token, err := book.AddToken("gw-1", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			return token
		},
	}
}

func TestRealRegistrar(t *testing.T) {
	s := registrarSite(t)
	s.lifeOf(t)
	stranger := deviceOf(t, newCA(t, "stranger"), "gw-1")
	for name, present := range map[string]*agenttest.Issued{"nothing": nil, "a stranger's certificate": stranger} {
		r := asking(newKey(t))
		r.Purpose, r.Device = enroll.Renew, "gw-1"
		if present != nil {
			r.Present = &present.TLS
		} else {
			r.Purpose = enroll.Return
		}
		if _, err := enroll.Enroll(t.Context(), s.config, r); !errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The first certificate by that of the factory.
func TestRealRegistrarByFactoryCertificate(t *testing.T) {
	s, key := registrarSite(t), newKey(t)
	r := asking(key)
	r.Present = &s.factory.TLS
	result, err := enroll.Enroll(t.Context(), s.config, r)
	s.good(t, result, err, key)
}
