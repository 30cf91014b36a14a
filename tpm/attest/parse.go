package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// The bounds of what is read, in bytes unless said otherwise. A true TPM stays well below.
const (
	MaxEvidence  = 32 << 10 // the JSON of an Evidence
	MaxChallenge = 4 << 10  // the JSON of a Challenge

	maxEKs         = 8 // keys
	maxCertificate = 4 << 10
	maxCSR         = 4 << 10
	maxPublic      = 1 << 10
	maxCertify     = 1 << 10
	maxSignature   = 256
	maxCredential  = 2 + 64 + 2 + 64 // TPMS_ID_OBJECT, Part 2, 12.4.2
	maxSecret      = 512             // TPM2B_ENCRYPTED_SECRET of RSA-4096
)

// ParseEvidence reads the JSON of an Evidence; the error is a *Refusal. Names are matched
// exactly and may come once; unknown ones are passed over, for newer devices may say more.
func ParseEvidence(data []byte) (Evidence, error) {
	var e Evidence
	err := parse(data, MaxEvidence, func(s *scanner) error {
		return s.object(map[string]func() error{
			"eks":       func() error { return s.endorsements(&e.EKs) },
			"ak":        func() error { return s.bytes(&e.AK) },
			"key":       func() error { return s.bytes(&e.Key) },
			"certify":   func() error { return s.bytes(&e.Certify) },
			"signature": func() error { return s.bytes(&e.Signature) },
		})
	})
	if err == nil {
		err = e.bounded()
	}
	if err != nil {
		return Evidence{}, err
	}
	return e, nil
}

// ParseChallenge reads the JSON of a Challenge, as strictly as ParseEvidence. The parts are the
// TPM's to judge; the index is checked against no evidence.
func ParseChallenge(data []byte) (Challenge, error) {
	c := Challenge{EK: -1}
	err := parse(data, MaxChallenge, func(s *scanner) error {
		return s.object(map[string]func() error{
			"ek":         func() error { return s.index(&c.EK) },
			"credential": func() error { return s.bytes(&c.Credential) },
			"secret":     func() error { return s.bytes(&c.Secret) },
		})
	})
	switch {
	case err != nil:
	case c.EK < 0 || len(c.Credential) == 0 || len(c.Secret) == 0:
		err = errors.New("a part is missing")
	case len(c.Credential) > maxCredential || len(c.Secret) > maxSecret:
		err = errors.New("a part is too large")
	}
	if err != nil {
		return Challenge{}, fmt.Errorf("reading the challenge: %w", err)
	}
	return c, nil
}

// bounded says whether every part is there and none is larger than a true one.
func (e Evidence) bounded() error {
	if len(e.EKs) == 0 {
		return refuse(reasonNoEK, "the evidence lists no endorsement key")
	}
	if len(e.EKs) > maxEKs {
		return refuse(reasonSize, "the evidence lists %d endorsement keys, more than %d", len(e.EKs), maxEKs)
	}
	type part struct {
		name  string
		bytes []byte
		max   int
	}
	parts := []part{
		{"ak", e.AK, maxPublic}, {"key", e.Key, maxPublic},
		{"certify", e.Certify, maxCertify}, {"signature", e.Signature, maxSignature},
	}
	for _, k := range e.EKs {
		parts = append(parts, part{"public", k.Public, maxPublic})
		if k.Certificate != nil {
			parts = append(parts, part{"certificate", k.Certificate, maxCertificate})
		}
	}
	for _, p := range parts {
		if len(p.bytes) == 0 {
			return refuse(reasonEvidence, "the evidence lacks %q", p.name)
		}
		if len(p.bytes) > p.max {
			return refuse(reasonSize, "%q has %d bytes, more than %d", p.name, len(p.bytes), p.max)
		}
	}
	return nil
}

// parse gives data to read, and refuses what stands before or behind one JSON value.
func parse(data []byte, limit int, read func(*scanner) error) error {
	if len(data) > limit {
		return refuse(reasonSize, "%d bytes of JSON are more than %d", len(data), limit)
	}
	if !utf8.Valid(data) || !json.Valid(data) {
		return refuse(reasonEvidence, "not JSON")
	}
	s := &scanner{json.NewDecoder(bytes.NewReader(data))}
	s.dec.UseNumber()
	err := read(s)
	if err == nil {
		if _, err = s.dec.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("something stands behind it")
	}
	return refuse(reasonEvidence, "reading JSON near byte %d: %w", s.dec.InputOffset(), err)
}

// scanner reads JSON token by token: encoding/json by itself takes a name in any case, takes the
// last of several, and takes null for bytes, so two readers could see two things.
type scanner struct{ dec *json.Decoder }

func (s *scanner) delim(want json.Delim) error {
	t, err := s.dec.Token()
	if err == nil && t != want {
		err = fmt.Errorf("%q is expected", want.String())
	}
	return err
}

func (s *scanner) object(fields map[string]func() error) error {
	if err := s.delim('{'); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for s.dec.More() {
		t, err := s.dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string)
		if seen[name] {
			return fmt.Errorf("%q comes twice", name)
		}
		seen[name] = true
		read, known := fields[name]
		if !known {
			read = s.skip
		}
		if err := read(); err != nil {
			return err
		}
	}
	return s.delim('}')
}

func (s *scanner) skip() error {
	var raw json.RawMessage
	return s.dec.Decode(&raw)
}

func (s *scanner) endorsements(to *[]Endorsement) error {
	if err := s.delim('['); err != nil {
		return err
	}
	for s.dec.More() {
		if len(*to) == maxEKs {
			return fmt.Errorf("more than %d endorsement keys", maxEKs)
		}
		var k Endorsement
		err := s.object(map[string]func() error{
			"public":      func() error { return s.bytes(&k.Public) },
			"certificate": func() error { return s.bytes(&k.Certificate) },
		})
		if err != nil {
			return err
		}
		*to = append(*to, k)
	}
	return s.delim(']')
}

// bytes reads base64 with padding, as encoding/json writes []byte (RFC 4648, section 4), in its
// one canonical form.
func (s *scanner) bytes(to *[]byte) error {
	t, err := s.dec.Token()
	if err != nil {
		return err
	}
	text, ok := t.(string)
	if !ok {
		return errors.New("a string is expected")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return err
	}
	if base64.StdEncoding.EncodedLen(len(b)) != len(text) { // line breaks are skipped even so
		return errors.New("base64 with line breaks")
	}
	*to = b
	return nil
}

func (s *scanner) index(to *int) error {
	t, err := s.dec.Token()
	if err != nil {
		return err
	}
	number, ok := t.(json.Number)
	if !ok {
		return errors.New("a number is expected")
	}
	n, err := strconv.ParseUint(number.String(), 10, 8)
	if err != nil || n >= maxEKs {
		return fmt.Errorf("an index from 0 to %d is expected", maxEKs-1)
	}
	*to = int(n)
	return nil
}
