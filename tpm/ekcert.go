package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

var errCertificate = errors.New("unusable certificate")

// trimCertificate cuts an X.509 certificate out of an NV index, which may be larger: makers
// fill the rest with anything.
func trimCertificate(data []byte) ([]byte, error) {
	var outer asn1.RawValue
	_, err := asn1.Unmarshal(data, &outer)
	if err != nil || outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence || !outer.IsCompound {
		return nil, fmt.Errorf("%w: it does not begin with an ASN.1 SEQUENCE", errCertificate)
	}
	return outer.FullBytes, nil
}

// certifiedKey returns the key that an endorsement certificate is for.
func certifiedKey(der []byte) (crypto.PublicKey, *x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errCertificate, err)
	}
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
		return key, cert, nil
	}
	// Some makers name the key's use with it (RSAES-OAEP, RFC 4055), which crypto/x509 does
	// not know; the key itself is of the common form.
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err == nil {
		if key, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign()); err == nil {
			return key, cert, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: its key is neither RSA nor ECC", errCertificate)
}

// sameKey compares public keys of the two types.
func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
