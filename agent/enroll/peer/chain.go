package peer

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Issued is what a service gave.
type Issued struct {
	// Chain is the certificate and its issuers below the root, as far as they were given.
	Chain []*x509.Certificate
	// Roots are those that the service calls its own.
	Roots []*x509.Certificate
}

// maxCertificates bounds what one answer may hold, maxDepth a chain.
const (
	maxCertificates = 32
	maxDepth        = 8
)

// ErrForeignKey: no certificate of the answer is for the key of the request.
var ErrForeignKey = errors.New("there is no certificate for the key of the request")

// Chain picks from certificates, in any order, the one for key and puts its issuers behind it,
// without the root. Where there are several for key, as after a renewal without a new key, the
// newest is taken.
func Chain(key crypto.PublicKey, certificates []*x509.Certificate) ([]*x509.Certificate, error) {
	var last *x509.Certificate
	for _, c := range certificates {
		if sameKey(c.PublicKey, key) && (last == nil || c.NotBefore.After(last.NotBefore)) {
			last = c
		}
	}
	if last == nil {
		return nil, ErrForeignKey
	}
	chain := []*x509.Certificate{last}
	for len(chain) < maxDepth {
		issuer := issuerOf(last, certificates)
		if issuer == nil {
			break
		}
		chain, last = append(chain, issuer), issuer
	}
	return chain, nil
}

func issuerOf(c *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, issuer := range among {
		if bytes.Equal(issuer.RawSubject, c.RawIssuer) && !issuer.Equal(c) && !SelfSigned(issuer) && c.CheckSignatureFrom(issuer) == nil {
			return issuer
		}
	}
	return nil
}

// SelfSigned says whether c is a root: it bears its own signature, not only its own name.
func SelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

func sameKey(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}

// KeyOf returns the key that a PKCS #10 request in DER is for, once its signature is checked.
func KeyOf(csr []byte) (*x509.CertificateRequest, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificate request: %w", err)
	}
	return request, nil
}

// ParsePEM reads 1 to 32 certificates and nothing else; text between them is passed over.
func ParsePEM(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %q", Printable(block.Type))
		}
		if len(certificates) == maxCertificates {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCertificates)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return certificates, nil
}

// PEM writes certificates as a file holds them; nil for none.
func PEM(certificates []*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
