//go:build cgo

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// curveParams are the values of CKA_EC_PARAMS that are taken: the named curves, as DER object
// identifiers (RFC 5480, 2.1.1.1).
var curveParams = [...]struct {
	curve elliptic.Curve
	der   []byte
}{
	{elliptic.P256(), []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}},
	{elliptic.P384(), []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}},
}

func curveOf(params []byte) elliptic.Curve {
	for _, known := range curveParams {
		if bytes.Equal(params, known.der) {
			return known.curve
		}
	}
	return nil
}

func paramsOf(curve elliptic.Curve) []byte {
	for _, known := range curveParams {
		if known.curve == curve {
			return known.der
		}
	}
	return nil
}

// curveSize is the length of the curve's order in bytes.
func curveSize(curve elliptic.Curve) int { return (curve.Params().N.BitLen() + 7) / 8 }

// parsePoint reads CKA_EC_POINT: the DER of an OCTET STRING with the uncompressed point
// (PKCS #11 v2.40 mechanisms, 2.3.3). Some modules leave the OCTET STRING out.
func parsePoint(curve elliptic.Curve, value []byte) (*ecdsa.PublicKey, error) {
	if length := 1 + 2*curveSize(curve); len(value) != length {
		var inner []byte
		rest, err := asn1.Unmarshal(value, &inner)
		if err != nil || len(rest) != 0 {
			return nil, errors.New("CKA_EC_POINT is no OCTET STRING")
		}
		value = inner
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, value)
	if err != nil {
		return nil, fmt.Errorf("CKA_EC_POINT: %w", err)
	}
	return key, nil
}

// encodeSignature turns r and s of CKM_ECDSA, each as long as the curve's order (PKCS #11 v2.40
// mechanisms, 2.3.1), into the ASN.1 form of TLS.
func encodeSignature(curve elliptic.Curve, raw []byte) ([]byte, error) {
	size := curveSize(curve)
	if len(raw) != 2*size {
		return nil, fmt.Errorf("a signature of %d bytes, not %d", len(raw), 2*size)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:])})
}

// shorten cuts a digest to the length of the order, as ECDSA does (FIPS 186-5, 6.4.1); modules
// differ in whether they would.
func shorten(curve elliptic.Curve, digest []byte) []byte {
	return digest[:min(len(digest), curveSize(curve))]
}
