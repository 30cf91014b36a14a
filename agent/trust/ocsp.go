package trust

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// maxStaple is the largest response that is read; real ones have 300 to 3,000 bytes.
	maxStaple = 64 << 10
	// maxResponders is how many certificates of a response are looked at.
	maxResponders = 4
)

// What a responder says of a certificate (RFC 6960, 4.2.1: CertStatus).
type certStatus byte

const (
	statusGood    certStatus = 0
	statusRevoked certStatus = 1
	statusUnknown certStatus = 2
)

// errNoAnswer says that the responder gave no answer, such as tryLater: no proof, and no harm.
var errNoAnswer = errors.New("the responder gave no answer")

// staple is an OCSP response (RFC 6960) that was read and not believed yet.
type staple struct {
	signed    der
	algorithm x509.SignatureAlgorithm
	signature []byte
	byName    []byte // who signed: the name, DER
	byKey     []byte // or the SHA-1 of the public key
	produced  time.Time
	answers   []answer
	certs     []der
}

// answer is what is said of one certificate.
type answer struct {
	hash           string // OID
	name, key      []byte
	serial         []byte
	status         certStatus
	this, next, at time.Time // at: of the revocation
}

// parseStaple reads a response. errNoAnswer where it is an error of the responder's.
func parseStaple(text der) (*staple, error) {
	if len(text) > maxStaple {
		return nil, fmt.Errorf("%d bytes, and %d are allowed", len(text), maxStaple)
	}
	outer, ok := text.take(tagSequence)
	if !ok || len(text) != 0 {
		return nil, errDER
	}
	status, ok := outer.take(tagEnumerated)
	if !ok || len(status) != 1 {
		return nil, errDER
	}
	if status[0] != 0 {
		if len(outer) != 0 {
			return nil, errDER
		}
		return nil, fmt.Errorf("%w (status %d)", errNoAnswer, status[0])
	}
	wrapped, ok := outer.take(tagContext0)
	if !ok || len(outer) != 0 {
		return nil, errDER
	}
	typed, ok := wrapped.take(tagSequence)
	if !ok || len(wrapped) != 0 {
		return nil, errDER
	}
	const basic = "\x2b\x06\x01\x05\x05\x07\x30\x01\x01"
	if oid, ok := typed.take(tagOID); !ok || string(oid) != basic {
		return nil, errors.New("it is not of the basic type")
	}
	response, ok := typed.take(tagOctets)
	if !ok || len(typed) != 0 {
		return nil, errDER
	}
	return parseBasic(response)
}

// parseBasic reads a BasicOCSPResponse.
func parseBasic(text der) (*staple, error) {
	body, ok := text.take(tagSequence)
	if !ok || len(text) != 0 {
		return nil, errDER
	}
	s := &staple{}
	content, signed, ok := body.element(tagSequence)
	if !ok {
		return nil, errDER
	}
	_, algorithm, ok := body.element(tagSequence)
	if !ok {
		return nil, errDER
	}
	if s.signature, ok = body.bits(); !ok {
		return nil, errDER
	}
	certs, present, ok := body.optional(tagContext0)
	if !ok || len(body) != 0 {
		return nil, errDER
	}
	if present {
		all, ok := certs.take(tagSequence)
		if !ok || len(certs) != 0 {
			return nil, errDER
		}
		for len(all) > 0 && len(s.certs) < maxResponders {
			_, whole, ok := all.element(tagSequence)
			if !ok {
				return nil, errDER
			}
			s.certs = append(s.certs, whole)
		}
	}
	s.signed = signed
	if s.algorithm, ok = algorithms[string(algorithm)]; !ok {
		return nil, errors.New("it is signed by an algorithm that is not believed")
	}
	return s, s.parse(content)
}

// parse reads a ResponseData.
func (s *staple) parse(body der) error {
	version, present, ok := body.optional(tagContext0)
	if !ok || present && string(version) != "\x02\x01\x00" {
		return errDER
	}
	tag, id, _, ok := body.next()
	if !ok {
		return errDER
	}
	switch tag {
	case tagContext0 + 1:
		_, name, ok := id.element(tagSequence)
		if !ok || len(id) != 0 {
			return errDER
		}
		s.byName = name
	case tagContext0 + 2:
		key, ok := id.take(tagOctets)
		if !ok || len(id) != 0 {
			return errDER
		}
		s.byKey = key
	default:
		return errDER
	}
	if s.produced, ok = body.time(); !ok {
		return errDER
	}
	answers, ok := body.take(tagSequence)
	if !ok {
		return errDER
	}
	for len(answers) > 0 {
		one, ok := answers.take(tagSequence)
		if !ok {
			return errDER
		}
		a, err := parseAnswer(one)
		if err != nil {
			return err
		}
		s.answers = append(s.answers, a)
	}
	if err := noCritical(&body); err != nil {
		return err
	}
	if len(body) != 0 {
		return errDER
	}
	return nil
}

// noCritical takes the extensions that may come next, [1], and refuses those that must be
// understood: none is.
func noCritical(body *der) error {
	extensions, present, ok := body.optional(tagContext0 + 1)
	if !ok {
		return errDER
	}
	if !present {
		return nil
	}
	var unknown error
	ok = extensions.extensions(func(oid string, critical bool, _ der) bool {
		if critical {
			unknown = fmt.Errorf("it has a critical extension that is not known (%x)", oid)
		}
		return !critical
	})
	if unknown != nil {
		return unknown
	}
	return notOK(ok)
}

// parseAnswer reads a SingleResponse.
func parseAnswer(body der) (a answer, err error) {
	id, ok := body.take(tagSequence)
	if !ok {
		return a, errDER
	}
	hash, ok := id.take(tagSequence)
	if !ok {
		return a, errDER
	}
	oid, ok := hash.take(tagOID)
	if null, present, fine := hash.optional(tagNull); !ok || !fine || present && len(null) != 0 || len(hash) != 0 {
		return a, errDER
	}
	a.hash = string(oid)
	if a.name, ok = id.take(tagOctets); !ok {
		return a, errDER
	}
	if a.key, ok = id.take(tagOctets); !ok {
		return a, errDER
	}
	if a.serial, ok = id.integer(); !ok || len(id) != 0 {
		return a, errDER
	}
	if err := a.parseStatus(&body); err != nil {
		return a, err
	}
	if len(body) == 0 || body[0] != tagTime {
		return a, errDER
	}
	if a.this, ok = body.time(); !ok {
		return a, errDER
	}
	next, present, ok := body.optional(tagContext0)
	if !ok {
		return a, errDER
	}
	if present {
		if a.next, ok = next.time(); !ok || len(next) != 0 || a.next.Before(a.this) {
			return a, errDER
		}
	}
	if err := noCritical(&body); err != nil {
		return a, err
	}
	return a, notOK(len(body) == 0)
}

// parseStatus reads a CertStatus.
func (a *answer) parseStatus(body *der) error {
	tag, content, _, ok := body.next()
	switch {
	case !ok:
		return errDER
	case tag == tagImplicit0 && len(content) == 0:
		a.status = statusGood
	case tag == tagImplicit0+2 && len(content) == 0:
		a.status = statusUnknown
	case tag == tagContext0+1:
		a.status = statusRevoked
		if a.at, ok = content.time(); !ok {
			return errDER
		}
	default:
		return errDER
	}
	return nil
}

// of returns what the response says of a certificate that issuer issued.
func (s *staple) of(serial []byte, issuer *x509.Certificate) (answer, bool) {
	key := publicKey(issuer)
	for _, a := range s.answers {
		hash, ok := hashes[a.hash]
		if !ok || !hash.Available() || !bytes.Equal(a.serial, serial) {
			continue
		}
		h := hash.New()
		h.Write(issuer.RawSubject)
		if !bytes.Equal(a.name, h.Sum(nil)) {
			continue
		}
		h.Reset()
		h.Write(key)
		if bytes.Equal(a.key, h.Sum(nil)) {
			return a, true
		}
	}
	return answer{}, false
}

// publicKey returns the key's octets in a certificate, which OCSP hashes: those of the BIT
// STRING in its SubjectPublicKeyInfo (RFC 6960, 4.1.1).
func publicKey(c *x509.Certificate) []byte {
	info := der(c.RawSubjectPublicKeyInfo)
	body, ok := info.take(tagSequence)
	if !ok {
		return nil
	}
	if _, ok = body.take(tagSequence); !ok {
		return nil
	}
	key, _ := body.bits()
	return key
}

// named says whether c is who the response says that signed it.
func (s *staple) named(c *x509.Certificate) bool {
	if s.byName != nil {
		return bytes.Equal(s.byName, c.RawSubject)
	}
	sum := sha1.Sum(publicKey(c)) // RFC 6960, 4.2.1: KeyHash
	return bytes.Equal(s.byKey, sum[:])
}

// signedBy checks the signature and who may have made it: the issuer itself, or one to whom it
// gave this right directly (RFC 6960, 4.2.2.2). at is when it was made, by its own words: whether
// a responder's certificate, which is returned, is valid now, is a question of how fresh it is.
func (s *staple) signedBy(issuer *x509.Certificate, at time.Time) (responder *x509.Certificate, err error) {
	if s.named(issuer) {
		if err := issuer.CheckSignature(s.algorithm, s.signed, s.signature); err != nil {
			return nil, err
		}
		return nil, nil
	}
	for _, text := range s.certs {
		c, err := x509.ParseCertificate(text)
		if err != nil || !s.named(c) {
			continue
		}
		switch {
		case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
			return nil, errors.New("its responder may not sign answers: its certificate is for other uses")
		case at.Before(c.NotBefore) || at.After(c.NotAfter):
			return nil, errors.New("the certificate of its responder was not valid when it answered")
		}
		if err := c.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("its responder was not named by the issuer: %w", err)
		}
		if err := c.CheckSignature(s.algorithm, s.signed, s.signature); err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, errors.New("it is signed by nobody who may")
}
