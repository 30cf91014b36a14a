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
	key, err := parseSoftware(data)
	if err != nil {
		return nil, err
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
