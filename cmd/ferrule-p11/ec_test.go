//go:build cgo

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"testing"
)

func TestPointsWithAndWithoutOctetString(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key := newKey(t, curve)
		bare, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := asn1.Marshal(bare)
		if err != nil {
			t.Fatal(err)
		}
		for _, value := range [][]byte{bare, wrapped} {
			if got, err := parsePoint(curve, value); err != nil || !got.Equal(&key.PublicKey) {
				t.Errorf("%x: %v", value, err)
			}
		}
		off := append([]byte{}, bare...)
		off[len(off)-1] ^= 1
		for _, value := range [][]byte{nil, {4}, off, wrapped[:len(wrapped)-1], append(wrapped, 0), make([]byte, len(bare))} {
			if _, err := parsePoint(curve, value); err == nil {
				t.Errorf("%x is taken", value)
			}
		}
		if curveOf(paramsOf(curve)) != curve {
			t.Error("the curve's name")
		}
	}
	if curveOf(nil) != nil || paramsOf(elliptic.P521()) != nil {
		t.Error("a curve that is not served")
	}
}

func TestSignatureForms(t *testing.T) {
	key, digest := newKey(t, elliptic.P256()), digestOf("ferrule")
	r, s, err := ecdsa.Sign(rand.Reader, key, digest)
	if err != nil {
		t.Fatal(err)
	}
	raw := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	if der, err := encodeSignature(elliptic.P256(), raw); err != nil || !ecdsa.VerifyASN1(&key.PublicKey, digest, der) {
		t.Errorf("%v", err)
	}
	for _, bad := range [][]byte{nil, raw[:63], append(raw, 0)} {
		if _, err := encodeSignature(elliptic.P256(), bad); err == nil {
			t.Errorf("%d bytes are taken", len(bad))
		}
	}
}

// FuzzPoint: what a module says of a public key is refused, or is a point on the curve.
func FuzzPoint(f *testing.F) {
	bare, err := newKey(f, elliptic.P256()).PublicKey.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	wrapped, err := asn1.Marshal(bare)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bare, bare[1:])
	f.Add(wrapped, bare[:64])
	f.Fuzz(func(t *testing.T, point, signature []byte) {
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
			if key, err := parsePoint(curve, point); err == nil {
				again, err := key.Bytes()
				if err != nil || key.Curve != curve {
					t.Fatalf("%x: %v", point, err)
				}
				if got, err := parsePoint(curve, again); err != nil || !got.Equal(key) {
					t.Fatalf("%x does not come back: %v", point, err)
				}
			}
			if der, err := encodeSignature(curve, signature); err == nil && len(der) > 2*curveSize(curve)+9 {
				t.Fatalf("a signature of %d bytes", len(der))
			}
		}
	})
}
