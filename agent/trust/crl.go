package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"ferrule/internal/hint"
)

const (
	// maxList is the largest file of lists: about 100,000 revoked certificates.
	maxList = 4 << 20
	// maxLists is the most lists of one file.
	maxLists = 8
)

// OIDs (content) of the extensions of a list and of its entries (RFC 5280, 5.2 and 5.3).
const (
	oidAuthorityKey = "\x55\x1d\x23"
	oidNumber       = "\x55\x1d\x14"
	oidDelta        = "\x55\x1d\x1b"
	oidDistribution = "\x55\x1d\x1c"
	oidEntryIssuer  = "\x55\x1d\x1d"
	maxSerial       = 127
)

// list is a certificate revocation list as it is kept: who was revoked, as a sorted set, and
// what shows whether it is believed. The text it came as is not kept.
type list struct {
	issuer     []byte // its name, DER
	this, next time.Time
	number     []byte // of the CRL; nil: none

	// What part of the issuer's certificates it is about: users or authorities alone, or those
	// that name one of these points.
	users, authorities, shard bool
	points                    []string

	// data holds the serial numbers, each behind its length; at where each begins, in the order
	// of what is there.
	data []byte
	at   []uint32

	// What the signature is over, in the text that was read, until it was checked.
	signed    []byte
	algorithm x509.SignatureAlgorithm
	signature []byte
	// signer is the SHA-256 of the public key that the signature was found to be of.
	signer [sha256.Size]byte
}

// parseLists reads the lists of a file: DER, or PEM with one or several.
func parseLists(text []byte) ([]*list, error) {
	if len(text) > maxList {
		return nil, fmt.Errorf("%d bytes, and %d are allowed", len(text), maxList)
	}
	if !bytes.Contains(text, []byte("-----BEGIN")) || len(text) > 0 && text[0] == tagSequence {
		l, err := parseList(text)
		if err != nil {
			return nil, err
		}
		return []*list{l}, nil
	}
	var lists []*list
	for rest := text; len(lists) < maxLists; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		l, err := parseList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, l)
	}
	if len(lists) == 0 {
		return nil, hint.With(errors.New("there is no revocation list"), "name a CRL as DER, or as PEM (-----BEGIN X509 CRL-----)")
	}
	return lists, nil
}

// parseList reads one CertificateList (RFC 5280, 5.1). A delta, or a list that speaks for other
// issuers, is refused: taken for a whole one, it would call revoked certificates good.
func parseList(text der) (*list, error) {
	outer := text
	body, ok := outer.take(tagSequence)
	if !ok || len(outer) != 0 {
		return nil, errDER
	}
	content, signed, ok := body.element(tagSequence)
	if !ok {
		return nil, errDER
	}
	_, algorithm, ok := body.element(tagSequence)
	if !ok {
		return nil, errDER
	}
	signature, ok := body.bits()
	if !ok || len(body) != 0 {
		return nil, errDER
	}
	l := &list{signed: signed, signature: signature}
	if l.algorithm, ok = algorithms[string(algorithm)]; !ok {
		return nil, errors.New("it is signed by an algorithm that is not believed")
	}
	if err := l.parse(content, algorithm); err != nil {
		return nil, err
	}
	// Once the signature was checked, nothing is to hold the text in memory.
	l.issuer, l.number = slices.Clone(l.issuer), slices.Clone(l.number)
	return l, nil
}

// parse reads a TBSCertList.
func (l *list) parse(body, algorithm der) error {
	version, present, ok := body.optional(tagInteger)
	if !ok || present && (len(version) != 1 || version[0] != 1) {
		return errors.New("it is of another version than 1 and 2")
	}
	_, inner, ok := body.element(tagSequence)
	if !ok || !bytes.Equal(inner, algorithm) {
		return errDER
	}
	_, issuer, ok := body.element(tagSequence)
	if !ok {
		return errDER
	}
	l.issuer = issuer
	if l.this, ok = body.time(); !ok {
		return errDER
	}
	if len(body) > 0 && (body[0] == tagUTCTime || body[0] == tagTime) {
		if l.next, ok = body.time(); !ok || l.next.Before(l.this) {
			return errDER
		}
	}
	entries, _, ok := body.optional(tagSequence)
	if !ok {
		return errDER
	}
	if err := l.entries(entries); err != nil {
		return err
	}
	extensions, present, ok := body.optional(tagContext0)
	if !ok || len(body) != 0 {
		return errDER
	}
	if !present {
		return nil
	}
	return l.extensions(extensions)
}

// entries gathers the serial numbers and sorts them.
func (l *list) entries(entries der) error {
	var problem error
	count := 0
	for left := entries; len(left) > 0; count++ {
		if _, _, _, ok := left.next(); !ok {
			return errDER
		}
	}
	l.at, l.data = make([]uint32, 0, count), make([]byte, 0, len(entries)/2)
	for len(entries) > 0 {
		entry, ok := entries.take(tagSequence)
		if !ok {
			return errDER
		}
		serial, ok := entry.integer()
		if !ok || len(serial) > maxSerial {
			return errDER
		}
		// When it was revoked is of no interest; the time is walked over.
		if tag, when, _, ok := entry.next(); !ok || tag != tagUTCTime && tag != tagTime || len(when) < 13 {
			return errDER
		}
		ok = len(entry) == 0 || entry.extensions(func(oid string, critical bool, _ der) bool {
			if oid == oidEntryIssuer {
				problem = errIndirect
			} else if critical {
				problem = fmt.Errorf("an entry has a critical extension that is not known (%x)", oid)
			}
			return problem == nil
		})
		if problem != nil || !ok {
			return errors.Join(problem, notOK(ok))
		}
		l.at = append(l.at, uint32(len(l.data)))
		l.data = append(append(l.data, byte(len(serial))), serial...)
	}
	slices.SortFunc(l.at, func(a, b uint32) int { return bytes.Compare(l.serial(a), l.serial(b)) })
	return nil
}

func notOK(ok bool) error {
	if ok {
		return nil
	}
	return errDER
}

var errIndirect = hint.With(errors.New("it is an indirect list, which speaks for other issuers too"), "name the CRL of the authority itself")

// extensions looks for what makes a list less than the whole.
func (l *list) extensions(all der) error {
	var problem error
	ok := all.extensions(func(oid string, critical bool, value der) bool {
		switch oid {
		case oidNumber:
			number, ok := value.integer()
			if !ok || len(number) > 21 || number[0] >= 0x80 {
				problem = errDER
			}
			l.number = number
		case oidDelta:
			problem = hint.With(errors.New("it is a delta, which says only what has changed"), "name the full CRL")
		case oidDistribution:
			problem = l.partial(value)
		case oidAuthorityKey:
		default:
			if critical {
				problem = fmt.Errorf("it has a critical extension that is not known (%x)", oid)
			}
		}
		return problem == nil
	})
	return errors.Join(problem, notOK(ok || problem != nil))
}

// partial reads an IssuingDistributionPoint (RFC 5280, 5.2.5), which says what part of the
// issuer's certificates the list is about.
func (l *list) partial(value der) error {
	body, ok := value.take(tagSequence)
	if !ok || len(value) != 0 {
		return errDER
	}
	point, present, ok := body.optional(tagContext0)
	if !ok {
		return errDER
	}
	if present {
		l.shard = true
		full, _, ok := point.optional(tagContext0) // else relative to the issuer: it matches nothing
		for len(full) > 0 && ok {
			var tag byte
			var name der
			if tag, name, _, ok = full.next(); tag == tagImplicit0+6 { // uniformResourceIdentifier
				l.points = append(l.points, string(name))
			}
		}
		if !ok {
			return errDER
		}
	}
	for len(body) > 0 {
		tag, flag, _, ok := body.next()
		if !ok {
			return errDER
		}
		switch yes := len(flag) == 1 && flag[0] == 0xff; {
		case tag == tagImplicit0+1 && yes:
			l.users = true
		case tag == tagImplicit0+2 && yes:
			l.authorities = true
		case tag == tagImplicit0+4 && yes:
			return errIndirect
		default:
			return hint.With(errors.New("it leaves out a part of what its issuer revoked"), "name the full CRL")
		}
	}
	return nil
}

// covers says whether a certificate of its issuer would be in the list, were it revoked.
func (l *list) covers(c *x509.Certificate) bool {
	if l.users && c.IsCA || l.authorities && !c.IsCA {
		return false
	}
	return !l.shard || slices.ContainsFunc(l.points, func(p string) bool { return slices.Contains(c.CRLDistributionPoints, p) })
}

// serial returns the number that begins at.
func (l *list) serial(at uint32) []byte {
	n := uint32(l.data[at])
	return l.data[at+1 : at+1+n]
}

// revoked says whether a serial number, as a certificate's INTEGER has it, is in the list.
func (l *list) revoked(serial []byte) bool {
	_, found := slices.BinarySearchFunc(l.at, serial, func(at uint32, serial []byte) int { return bytes.Compare(l.serial(at), serial) })
	return found
}

// signedBy says whether issuer made the list. A signature is checked once per public key.
func (l *list) signedBy(issuer *x509.Certificate) error {
	if !bytes.Equal(l.issuer, issuer.RawSubject) {
		return errors.New("it is of another issuer")
	}
	if issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return errors.New("its issuer may not sign lists")
	}
	key := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	if l.signed == nil {
		if l.signer != key {
			return errors.New("it is signed by another key of that name")
		}
		return nil
	}
	if err := issuer.CheckSignature(l.algorithm, l.signed, l.signature); err != nil {
		return err
	}
	l.signer, l.signed, l.signature = key, nil, nil
	return nil
}

// older says whether l is an older list than other, of the same issuer.
func (l *list) older(other *list) bool {
	if l.number != nil && other.number != nil && !bytes.Equal(l.number, other.number) {
		if len(l.number) != len(other.number) {
			return len(l.number) < len(other.number)
		}
		return bytes.Compare(l.number, other.number) < 0
	}
	return l.this.Before(other.this)
}

// sameScope says whether l and other, of the same signer, are about the same certificates.
func (l *list) sameScope(other *list) bool {
	return l.users == other.users && l.authorities == other.authorities && l.shard == other.shard && slices.Equal(l.points, other.points)
}

// serialOf returns the octets of a certificate's serial number as its INTEGER has them.
func serialOf(c *x509.Certificate) []byte {
	tbs := der(c.RawTBSCertificate)
	body, ok := tbs.take(tagSequence)
	if !ok {
		return nil
	}
	if _, _, ok = body.optional(tagContext0); !ok {
		return nil
	}
	serial, _ := body.integer()
	return serial
}
