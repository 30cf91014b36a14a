package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
)

// softwareKey is a key in an ordinary file: for laptops and for gateways without a TPM,
// and only where the configuration allows it in so many words.
type softwareKey struct {
	*ecdsa.PrivateKey
	ref string
}

func (k *softwareKey) Ref() string  { return k.ref }
func (k *softwareKey) Weak() bool   { return true }
func (k *softwareKey) Close() error { return nil }

func (r *ref) openSoftware(ctx context.Context) (DeviceKey, error) {
	data, err := r.read()
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, corrupt("no PEM block in it")
	}
	if block.Type != "PRIVATE KEY" {
		return nil, unsupported("PEM type %q; a file: key is PKCS#8, %q", block.Type, "PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, corrupt("%s", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return nil, unsupported("a software key of another kind than P-256 or P-384")
	}
	r.warn(ctx)
	return &softwareKey{key, r.uri}, nil
}

func (r *ref) createSoftware(ctx context.Context, s KeySpec) (DeviceKey, error) {
	if _, err := s.template(); err != nil {
		return nil, err
	}
	if s.Curve == nil {
		s.Curve = elliptic.P256()
	}
	key, err := ecdsa.GenerateKey(s.Curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := r.store(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	r.warn(ctx)
	return &softwareKey{key, r.uri}, nil
}

func (r *ref) warn(ctx context.Context) {
	r.o.Log.LogAttrs(ctx, slog.LevelWarn, "weak device key: not in a tpm", slog.String("path", r.path))
}
