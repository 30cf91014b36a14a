package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/signer"
)

// box is a helper's one key, in memory.
type box struct {
	name     string
	key      atomic.Pointer[ecdsa.PrivateKey]
	hardware bool
	signed   atomic.Int64
}

func (b *box) Describe(_ context.Context, name string) (signer.Description, error) {
	switch key := b.key.Load(); {
	case key == nil || name != b.name:
		return signer.Description{}, signer.ErrNoKey
	default:
		return signer.Description{Public: &key.PublicKey, Hardware: b.hardware}, nil
	}
}

func (b *box) Sign(_ context.Context, _ string, _ crypto.Hash, digest []byte) ([]byte, error) {
	b.signed.Add(1)
	return ecdsa.SignASN1(rand.Reader, b.key.Load(), digest)
}

func (b *box) Create(ctx context.Context, name string, curve elliptic.Curve) (signer.Description, error) {
	if b.key.Load() != nil {
		return signer.Description{}, signer.ErrKeyExists
	}
	if name != b.name {
		return signer.Description{}, fmt.Errorf("%w: not under this name", signer.ErrRefused)
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return signer.Description{}, err
	}
	b.key.Store(key)
	return b.Describe(ctx, name)
}

// serve serves b on a socket in the folder it returns.
func (b *box) serve(t *testing.T) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := signer.Listen(filepath.Join(dir, "s"), 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- signer.Serve(ctx, l, b, signer.ServeOptions{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestKeyInAHelper(t *testing.T) {
	b := &box{name: "gw 1", hardware: true}
	dir := b.serve(t)
	const uri = "signer:unix=s?key=gw%201"
	o := tpm.KeyOptions{StateDir: dir}
	if _, err := tpm.OpenKey(background, uri, o); !errors.Is(err, tpm.ErrNoKey) || hint.Of(err) == "" {
		t.Fatalf("opening what is not there: %v", err)
	}
	if _, err := tpm.CreateKeyAt(background, "signer:unix=s?key=other", tpm.KeySpec{}, o); !errors.Is(err, tpm.ErrUnsupported) || hint.Of(err) == "" {
		t.Errorf("creating what the helper refuses: %v", err)
	}
	k, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{Curve: elliptic.P384()}, o)
	if err != nil {
		t.Fatal(err)
	}
	if k.Ref() != uri || k.Weak() || k.Public().(*ecdsa.PublicKey).Curve != elliptic.P384() {
		t.Errorf("ref %q, weak %t", k.Ref(), k.Weak())
	}
	mustSign(t, k)
	if _, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o); !errors.Is(err, tpm.ErrKeyExists) {
		t.Errorf("creating it again: %v", err)
	}
	if _, err := tpm.NextURI(uri); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("a place for its successor: %v", err)
	}
	if err := tpm.Remove(background, uri, o); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("removing it: %v", err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.key.Store(other)
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, tpm.ErrHelper) || !errors.Is(err, signer.ErrKeyChanged) || hint.Of(err) == "" {
		t.Errorf("another key in its place: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeyInAHelperThatIsWeak(t *testing.T) {
	b := &box{}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.key.Store(key)
	var log bytes.Buffer
	k, err := tpm.OpenKey(background, "signer:unix="+b.serve(t)+"/s", tpm.KeyOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil || !k.Weak() || !strings.Contains(log.String(), "weak") {
		t.Errorf("%v; log %q", err, log.String())
	}
}

// The same census as in the TPM: one signature for a full handshake, none for a resumed one.
func TestHandshakesWithAKeyInAHelper(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			b := &box{hardware: true}
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			b.key.Store(key)
			k, err := tpm.OpenKey(background, "signer:unix=s", tpm.KeyOptions{StateDir: b.serve(t)})
			if err != nil {
				t.Fatal(err)
			}
			if n := b.signed.Load(); n != 0 {
				t.Errorf("opening the key cost %d signatures", n)
			}
			client, server := configs(t, k, version)
			b.signed.Store(0) // configs signs a certificate
			for round := range 3 {
				resumed, peer := handshake(t, client, server)
				if n := b.signed.Load(); n != 1 || resumed != (round > 0) || peer != "gw-0001" {
					t.Errorf("round %d: %d signatures in all, resumed %t, seen as %q", round, n, resumed, peer)
				}
			}
		})
	}
}
