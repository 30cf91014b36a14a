package signer_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm/signer"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Keys in memory.
type memory struct {
	mu       sync.Mutex
	keys     map[string]*ecdsa.PrivateKey
	hardware bool
	create   bool
	signed   atomic.Int64
	fail     func(verb string) error // nil: nothing fails
}

func newMemory(t testing.TB, names ...string) *memory {
	t.Helper()
	m := &memory{keys: map[string]*ecdsa.PrivateKey{}, create: true}
	for _, name := range names {
		m.keys[name] = newKey(t, elliptic.P256())
	}
	return m
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (m *memory) find(verb, name string) (*ecdsa.PrivateKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(verb); err != nil {
			return nil, err
		}
	}
	if name == "" && len(m.keys) > 1 {
		return nil, fmt.Errorf("%w: %d of them", signer.ErrAmbiguous, len(m.keys))
	}
	for candidate, key := range m.keys {
		if name == "" || candidate == name {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", signer.ErrNoKey, name)
}

func (m *memory) Describe(_ context.Context, name string) (signer.Description, error) {
	key, err := m.find("describe", name)
	if err != nil {
		return signer.Description{}, err
	}
	return signer.Description{Public: &key.PublicKey, Hardware: m.hardware}, nil
}

func (m *memory) Sign(_ context.Context, name string, _ crypto.Hash, digest []byte) ([]byte, error) {
	key, err := m.find("sign", name)
	if err != nil {
		return nil, err
	}
	m.signed.Add(1)
	return ecdsa.SignASN1(rand.Reader, key, digest)
}

func (m *memory) Create(ctx context.Context, name string, curve elliptic.Curve) (signer.Description, error) {
	switch _, err := m.find("create", name); {
	case !m.create:
		return signer.Description{}, fmt.Errorf("%w: not here", signer.ErrRefused)
	case err == nil:
		return signer.Description{}, signer.ErrKeyExists
	case !errors.Is(err, signer.ErrNoKey):
		return signer.Description{}, err
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return signer.Description{}, err
	}
	m.mu.Lock()
	m.keys[name] = key
	m.mu.Unlock()
	return m.Describe(ctx, name)
}

// socketPath is short enough for sun_path, wherever the test's folder is.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sig")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// serve runs Serve until the returned stop is called, or the test ends.
func serve(t testing.TB, path string, keys signer.Keys, o signer.ServeOptions) (stop func()) {
	t.Helper()
	l, err := signer.Listen(path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- signer.Serve(ctx, l, keys, o) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func mustOpen(t testing.TB, o signer.Options) *signer.Client {
	t.Helper()
	c, err := signer.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func sign(c crypto.Signer) error {
	digest := sha256.Sum256([]byte("ferrule"))
	signature, err := c.Sign(nil, digest[:], crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(c.Public().(*ecdsa.PublicKey), digest[:], signature) {
		err = errors.New("the signature is wrong")
	}
	return err
}

func TestSigns(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	keys.hardware = true
	serve(t, path, keys, signer.ServeOptions{})
	c := mustOpen(t, signer.Options{Socket: path})
	if !c.Hardware() || !keys.keys["gw"].PublicKey.Equal(c.Public()) {
		t.Errorf("hardware %t, public %v", c.Hardware(), c.Public())
	}
	d256, d384, d512 := sha256.Sum256(nil), sha512.Sum384(nil), sha512.Sum512(nil)
	for h, digest := range map[crypto.Hash][]byte{crypto.SHA256: d256[:], crypto.SHA384: d384[:], crypto.SHA512: d512[:]} {
		if signature, err := c.Sign(nil, digest, h); err != nil || !ecdsa.VerifyASN1(&keys.keys["gw"].PublicKey, digest, signature) {
			t.Errorf("%v: %v", h, err)
		}
	}
	if n := keys.signed.Load(); n != 3 {
		t.Errorf("%d signatures for 3", n)
	}
	for _, bad := range []struct {
		digest []byte
		opts   crypto.SignerOpts
	}{{d256[:31], crypto.SHA256}, {d256[:20], crypto.SHA1}, {d256[:], crypto.Hash(0)}, {d256[:], nil}, {nil, crypto.SHA512}} {
		if _, err := c.Sign(nil, bad.digest, bad.opts); !errors.Is(err, signer.ErrUnsupported) {
			t.Errorf("%d bytes, %v: %v", len(bad.digest), bad.opts, err)
		}
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if err := sign(c); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestKeysByName(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "a", "b")
	serve(t, path, keys, signer.ServeOptions{})
	for name, want := range map[string]error{"a": nil, "b": nil, "": signer.ErrAmbiguous, "c": signer.ErrNoKey, "a\n": signer.ErrUnsupported, strings.Repeat("x", 65): signer.ErrUnsupported} {
		c, err := signer.Open(t.Context(), signer.Options{Socket: path, Key: name})
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
		if err == nil && (!keys.keys[name].PublicKey.Equal(c.Public()) || sign(c) != nil) {
			t.Errorf("%q is not the key", name)
		}
		if err != nil && name != "a\n" && len(name) < 65 && hint.Of(err) == "" {
			t.Errorf("%q: no hint with %v", name, err)
		}
	}
}

func TestCreate(t *testing.T) {
	path, keys := socketPath(t), newMemory(t)
	serve(t, path, keys, signer.ServeOptions{})
	o := signer.Options{Socket: path, Key: "new key"}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		o.Key = "new " + curve.Params().Name
		c, err := signer.Create(t.Context(), o, curve)
		if err != nil || sign(c) != nil || c.Public().(*ecdsa.PublicKey).Curve != curve {
			t.Fatalf("%s: %v", o.Key, err)
		}
		if _, err := signer.Create(t.Context(), o, curve); !errors.Is(err, signer.ErrKeyExists) {
			t.Errorf("again: %v", err)
		}
	}
	if _, err := signer.Create(t.Context(), o, elliptic.P521()); !errors.Is(err, signer.ErrUnsupported) {
		t.Errorf("P-521: %v", err)
	}
	keys.create = false
	o.Key = "another"
	if _, err := signer.Create(t.Context(), o, elliptic.P256()); !errors.Is(err, signer.ErrRefused) || hint.Of(err) == "" {
		t.Errorf("where keys are not made: %v", err)
	}
}

// thin-edge.io#4353: one transport error, and nothing was signed any more.
func TestHelperRestartedUnderALiveClient(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	stop := serve(t, path, keys, signer.ServeOptions{})
	c := mustOpen(t, signer.Options{Socket: path})
	for range 3 {
		if err := sign(c); err != nil {
			t.Fatal(err)
		}
		stop()
		failed := mustFail(t, path, keys)
		if !errors.Is(failed, signer.ErrUnreachable) || hint.Of(failed) == "" {
			t.Errorf("without a helper: %v", failed)
		}
		// A signature that is asked for while nobody listens waits for the helper.
		result := make(chan error, 1)
		go func() { result <- sign(c) }()
		stop = serve(t, path, keys, signer.ServeOptions{})
		if err := <-result; err != nil {
			t.Errorf("across a restart: %v", err)
		}
	}
}

// mustFail opens with a short budget where nobody listens.
func mustFail(t *testing.T, path string, _ *memory) error {
	t.Helper()
	_, err := signer.Open(t.Context(), signer.Options{Socket: path, Budget: 50 * time.Millisecond})
	return err
}

func TestTokenAwayForAMoment(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	serve(t, path, keys, signer.ServeOptions{})
	c := mustOpen(t, signer.Options{Socket: path})
	asked := 0
	keys.fail = func(string) error {
		if asked++; asked < 3 {
			return fmt.Errorf("%w: it is away", signer.ErrUnavailable)
		}
		return nil
	}
	if err := sign(c); err != nil || asked != 3 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	keys.fail = func(string) error { asked++; return signer.ErrFailed }
	asked = 0
	if err := sign(c); !errors.Is(err, signer.ErrFailed) || asked != 1 {
		t.Errorf("a final refusal, asked %d times: %v", asked, err)
	}
	keys.fail = func(string) error { return signer.ErrUnavailable }
	short := signer.Options{Socket: path, Budget: 100 * time.Millisecond}
	if _, err := signer.Open(t.Context(), short); !errors.Is(err, signer.ErrUnavailable) || hint.Of(err) == "" {
		t.Errorf("a token that stays away: %v", err)
	}
	short.Key = "new"
	asked = 0
	keys.fail = func(verb string) error { asked++; return signer.ErrUnavailable }
	if _, err := signer.Create(t.Context(), short, elliptic.P256()); !errors.Is(err, signer.ErrUnavailable) || asked != 1 {
		t.Errorf("creating was asked for %d times: %v", asked, err)
	}
}

func TestHelperThatChangesItsKey(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	serve(t, path, keys, signer.ServeOptions{})
	c := mustOpen(t, signer.Options{Socket: path})
	old := keys.keys["gw"]
	keys.mu.Lock()
	keys.keys["gw"] = newKey(t, elliptic.P384())
	keys.mu.Unlock()
	if err := sign(c); !errors.Is(err, signer.ErrKeyChanged) || hint.Of(err) == "" {
		t.Errorf("another key: %v", err)
	}
	keys.mu.Lock()
	keys.keys["gw"] = old
	keys.mu.Unlock()
	if err := sign(c); err != nil {
		t.Errorf("the old key again: %v", err)
	}
}

func TestManyGoroutines(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	serve(t, path, keys, signer.ServeOptions{})
	c := mustOpen(t, signer.Options{Socket: path, Budget: time.Minute})
	var all sync.WaitGroup
	for n := range 100 {
		all.Go(func() {
			digest := sha256.Sum256([]byte{byte(n)})
			signature, err := c.Sign(nil, digest[:], crypto.SHA256)
			if err != nil || !ecdsa.VerifyASN1(&keys.keys["gw"].PublicKey, digest[:], signature) {
				t.Errorf("goroutine %d: %v", n, err)
			}
		})
	}
	all.Wait()
	if n := keys.signed.Load(); n != 100 {
		t.Errorf("%d signatures for 100", n)
	}
}

// Signals at the process must not cost a signature (tpm2-software/tpm2-tss#3086).
func TestSignalsWhileSigning(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	serve(t, path, keys, signer.ServeOptions{})
	c := mustOpen(t, signer.Options{Socket: path})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = syscall.Kill(os.Getpid(), syscall.SIGURG)
			}
		}
	}()
	for range 50 {
		if err := sign(c); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
}

func TestClosingEndsWhatIsUnderWay(t *testing.T) {
	path := socketPath(t)
	asked := make(chan struct{})
	impostor(t, path, func(n int, conn net.Conn, q []byte) {
		if n == 0 {
			_, _ = conn.Write(describeAnswer(q, newKey(t, elliptic.P256())))
			return
		}
		close(asked)
		_, _ = conn.Read(make([]byte, 1)) // until the client hangs up
	})
	c := mustOpen(t, signer.Options{Socket: path, Budget: time.Hour})
	result := make(chan error, 1)
	go func() { result <- sign(c) }()
	<-asked
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed in the middle: %v", err)
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := signer.Open(ctx, signer.Options{Socket: socketPath(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestSocketsThatAreRefused(t *testing.T) {
	for _, path := range []string{"", "relative", "@abstract", "/" + strings.Repeat("x", 107)} {
		if _, err := signer.Open(t.Context(), signer.Options{Socket: path}); !errors.Is(err, signer.ErrUnsupported) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestListen(t *testing.T) {
	path := socketPath(t)
	l, err := signer.Listen(path, 0o660, os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := signer.Listen(path, 0o600, -1); err == nil || !strings.Contains(err.Error(), "another helper") || hint.Of(err) == "" {
		t.Errorf("a second helper: %v", err)
	}
	// A killed helper leaves its socket.
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = signer.Listen(path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signer.Listen(path, 0o600, -1); err == nil {
		t.Error("a file was replaced")
	}
	if _, err := signer.Listen("/"+strings.Repeat("x", 107), 0o600, -1); err == nil {
		t.Error("a path that is too long")
	}
}

// The log names clients and keys, and no digest, signature or foreign byte that a terminal obeys.
func TestLogIsHarmless(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	handler := slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), &slog.HandlerOptions{Level: slog.LevelDebug})
	path, keys := socketPath(t), newMemory(t, "gw")
	stop := serve(t, path, keys, signer.ServeOptions{Log: slog.New(handler)})
	c := mustOpen(t, signer.Options{Socket: path})
	if err := sign(c); err != nil {
		t.Fatal(err)
	}
	keys.fail = func(string) error { return errors.New("bad\x1b[31m\nnews") }
	err := sign(c)
	if !errors.Is(err, signer.ErrFailed) || strings.ContainsAny(err.Error(), "\x1b\n") || !strings.Contains(err.Error(), "news") {
		t.Errorf("the client's error: %q", err)
	}
	stop()
	mu.Lock()
	defer mu.Unlock()
	if text := log.String(); !strings.Contains(text, "verb=sign") || strings.Contains(text, "\x1b") {
		t.Errorf("log %q", text)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestRSAKeyIsRefused(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	path := socketPath(t)
	impostor(t, path, func(_ int, conn net.Conn, q []byte) { _, _ = conn.Write(answerTo(q, 0, 1, der)) })
	if _, err := signer.Open(t.Context(), signer.Options{Socket: path}); !errors.Is(err, signer.ErrUnsupported) || !strings.Contains(err.Error(), "P-256") {
		t.Errorf("an RSA key: %v", err)
	}
}
