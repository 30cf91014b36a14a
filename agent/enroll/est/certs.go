package est

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
)

// Tags of BER (X.690, 8.1.2).
const (
	tagOID      = 0x06
	tagSequence = 0x30
	tagSet      = 0x31
	tagFirst    = 0xA0 // [0], constructed
	constructed = 0x20
)

// signedData is the content type 1.2.840.113549.1.7.2 (RFC 5652, 5.1), without tag and length.
var signedData = []byte{0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x02}

const (
	maxCertificates = 32
	maxDepth        = 12
)

var errShort = errors.New("it ends too early")

// parseAnswer reads certificates from a body. It is base64 whatever the headers say (RFC 8951,
// 2.1), with line ends or without; the base64 of no ASN.1 begins with 0x30, so that DER sent as
// it is can be told from it.
func parseAnswer(body []byte) ([]*x509.Certificate, error) {
	if len(body) > 0 && body[0] == tagSequence {
		return parseCertificates(body)
	}
	text := bytes.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, body)
	data := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(data, text)
	if err != nil {
		return nil, fmt.Errorf("it is no base64: %w", err)
	}
	return parseCertificates(data[:n])
}

// parseCertificates reads a PKCS #7 message that only carries certificates (RFC 5652, 5.1;
// RFC 7030, 4.1.3):
//
//	ContentInfo { signedData, [0] SignedData { version, digests, content, [0] certificates, … } }
//
// CMS may be BER, and the servers that are built on Bouncy Castle send indefinite lengths, so
// encoding/asn1 is of no use for the shell; the certificates in it are DER.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	info, rest, err := expect(data, tagSequence)
	if err != nil {
		return nil, fmt.Errorf("it is no PKCS #7: %w", err)
	}
	if len(rest) > 0 {
		return nil, errors.New("it is no PKCS #7: something follows it")
	}
	kind, info, err := expect(info, tagOID)
	if err != nil || !bytes.Equal(kind, signedData) {
		return nil, errors.New("it is no PKCS #7 of signed data")
	}
	for _, tag := range []byte{tagFirst, tagSequence} {
		if info, _, err = expect(info, tag); err != nil {
			return nil, fmt.Errorf("it is no PKCS #7 of signed data: %w", err)
		}
	}
	for _, tag := range []byte{0x02, tagSet, tagSequence} { // version, digestAlgorithms, encapContentInfo
		if _, info, err = expect(info, tag); err != nil {
			return nil, fmt.Errorf("it is no PKCS #7 of signed data: %w", err)
		}
	}
	bag, _, err := expect(info, tagFirst)
	if err != nil {
		return nil, errors.New("it holds no certificate")
	}
	return parseBag(bag)
}

func parseBag(bag []byte) (certificates []*x509.Certificate, err error) {
	for len(bag) > 0 {
		if len(certificates) == maxCertificates {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCertificates)
		}
		_, rest, err := expect(bag, tagSequence)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", len(certificates)+1, err)
		}
		c, err := x509.ParseCertificate(bag[:len(bag)-len(rest)])
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", len(certificates)+1, err)
		}
		certificates, bag = append(certificates, c), rest
	}
	if len(certificates) == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return certificates, nil
}

// expect splits data into the contents of its first element, which has this tag, and what
// follows the element.
func expect(data []byte, tag byte) (contents, rest []byte, err error) {
	if len(data) == 0 {
		return nil, nil, errShort
	}
	if data[0] != tag {
		return nil, nil, fmt.Errorf("the tag is 0x%02X instead of 0x%02X", data[0], tag)
	}
	return element(data, maxDepth)
}

// element splits data into the contents of its first element and what follows it. Of an element
// of indefinite length (X.690, 8.1.3.6) the end is found by going over all it holds.
func element(data []byte, depth int) (contents, rest []byte, err error) {
	if len(data) < 2 {
		return nil, nil, errShort
	}
	if data[0]&0x1F == 0x1F {
		return nil, nil, errors.New("a tag is longer than one byte")
	}
	first, body := data[1], data[2:]
	if first == 0x80 {
		return indefinite(data[0], body, depth)
	}
	length := uint(first)
	if first > 0x80 {
		size := int(first & 0x7F)
		if size > 4 || size > len(body) {
			return nil, nil, errors.New("a length is too long")
		}
		length = 0
		for _, b := range body[:size] {
			length = length<<8 | uint(b)
		}
		body = body[size:]
	}
	if length > uint(len(body)) {
		return nil, nil, errShort
	}
	return body[:length], body[length:], nil
}

func indefinite(tag byte, body []byte, depth int) (contents, rest []byte, err error) {
	if tag&constructed == 0 {
		return nil, nil, errors.New("a plain value has no length")
	}
	if depth == 0 {
		return nil, nil, errors.New("it is nested too deeply")
	}
	rest = body
	for !bytes.HasPrefix(rest, []byte{0, 0}) {
		if _, rest, err = element(rest, depth-1); err != nil {
			return nil, nil, err
		}
	}
	return body[:len(body)-len(rest)], rest[2:], nil
}
