package authorize_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/command/authorize"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	store  = "/state/authorized"
	device = "gw-17"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

type clock struct {
	now       time.Time
	untrusted bool
}

func (c *clock) Now() time.Time { return c.now }
func (c *clock) Trusted() bool  { return !c.untrusted }

// counted counts what a key signs, as a TPM would.
type counted struct {
	crypto.Signer
	count atomic.Int64
	fail  atomic.Bool
}

func (c *counted) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if c.count.Add(1); c.fail.Load() {
		return nil, errors.New("TPM_RC_LOCKOUT")
	}
	return c.Signer.Sign(r, digest, o)
}

// world is a device and two issuers that it trusts.
type world struct {
	t          testing.TB
	disk       disk.FS
	clock      *clock
	config     authorize.Config
	ec         *ecdsa.PrivateKey
	ed         ed25519.PrivateKey
	key        *counted // the device's
	thumbprint string
	also       []string // thumbprints of a staged key
	*authorize.Authority
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func thumbprint(t testing.TB, key crypto.Signer) string {
	t.Helper()
	text, err := jws.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// newWorld makes a device that has enforced for an hour.
func newWorld(t testing.TB) *world {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := disktest.New()
	w := &world{t: t, disk: d, clock: &clock{now: noon.Add(-time.Hour)}, ec: p256(t), ed: ed, key: &counted{Signer: p256(t)}}
	w.thumbprint = thumbprint(t, w.key)
	if err := d.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	w.pin("ec.pem", w.ec.Public())
	w.pin("ed.pem", w.ed.Public())
	w.config = authorize.Default()
	w.config.Mode, w.config.Issuers = authorize.Enforce, []string{"ec.pem", "ops=ed.pem"}
	w.start()
	w.clock.now = noon
	return w
}

func (w *world) pin(name string, key crypto.PublicKey) {
	w.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.file(name, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (w *world) file(name string, text []byte) {
	w.t.Helper()
	f, err := w.disk.OpenFile("/state/"+name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), w.disk.SyncDir("/state"), w.disk.SyncDir("/"))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open() (*authorize.Authority, error) {
	return authorize.Open(w.config, authorize.Options{
		FS: w.disk, Path: store, StateDir: "/state", Clock: w.clock, Log: slog.New(slog.DiscardHandler),
		Device: func() authorize.Device {
			return authorize.Device{ID: device, Thumbprints: append([]string{w.thumbprint}, w.also...)}
		},
		Key: func() crypto.Signer { return w.key },
	})
}

// start starts the device, anew where it runs.
func (w *world) start() {
	w.t.Helper()
	if w.Authority != nil {
		if err := w.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	a, err := w.open()
	if err != nil {
		w.t.Fatal(err)
	}
	w.Authority = a
}

// claims are a good token's; change makes another of them.
func (w *world) claims(change ...func(map[string]any)) map[string]any {
	c := map[string]any{
		"iss": "ops", "aud": device, "iat": noon.Unix(), "exp": noon.Add(5 * time.Minute).Unix(), "jti": rand.Text(),
		"scope": "write:rs485-1/meter-a/limit=0..50", "cnf": map[string]any{"jkt": w.thumbprint},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func set(name string, value any) func(map[string]any) {
	return func(c map[string]any) { c[name] = value }
}

func without(name string) func(map[string]any) {
	return func(c map[string]any) { delete(c, name) }
}

func scope(text string) func(map[string]any) { return set("scope", text) }

// token signs claims with the P-256 issuer.
func (w *world) token(change ...func(map[string]any)) string {
	return w.sign(w.ec, map[string]any{"typ": "JWT"}, w.claims(change...))
}

func (w *world) sign(key crypto.Signer, header map[string]any, claims any) string {
	w.t.Helper()
	text, err := jws.Sign(key, header, claims)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// raw signs what is not JSON that Go would write.
func (w *world) raw(header, payload string) string {
	w.t.Helper()
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	signature := ed25519.Sign(w.ed, []byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func text(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// operation is what the good token is for.
func operation() authorize.Operation {
	return authorize.Operation{
		ID: "c1", Command: "write", Line: "rs485-1", Unit: "meter-a", Point: "limit", Value: json.Number("12.5"),
		Args: []byte(`{"line":"rs485-1","unit":"meter-a","point":"limit","value":12.5}`),
	}
}

// use checks and spends, as the agent does.
func (w *world) use(token string, op authorize.Operation) (authorize.Decision, error) {
	d, err := w.Check(w.t.Context(), token, op)
	if err == nil {
		err = w.Spend(w.t.Context(), &d, op)
	}
	return d, err
}

func (w *world) good(token string, op authorize.Operation) authorize.Decision {
	w.t.Helper()
	d, err := w.use(token, op)
	if err != nil {
		w.t.Fatalf("a good token is refused: %v", err)
	}
	return d
}

func (w *world) bad(code, token string, op authorize.Operation) {
	w.t.Helper()
	_, err := w.use(token, op)
	refusal, ok := errors.AsType[*authorize.Refusal](err)
	if !ok || refusal.Code != code {
		w.t.Errorf("want %s, got %v (%v)", code, codeOf(err), err)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n\x1b\x00") {
		w.t.Errorf("foreign bytes in %q", err)
	}
}

func codeOf(err error) string {
	if r, ok := errors.AsType[*authorize.Refusal](err); ok {
		return r.Code
	}
	return ""
}
