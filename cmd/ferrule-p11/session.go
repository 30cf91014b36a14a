//go:build cgo

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"ferrule/tpm/signer"

	"github.com/miekg/pkcs11"
)

const (
	// idPrefix starts the name of a key by its CKA_ID in hex; any other name is a CKA_LABEL.
	idPrefix = "id:"
	maxKeys  = 256 // objects looked at
)

// session is an open session with what was learned in it.
type session struct {
	m      *pkcs11.Ctx
	handle pkcs11.SessionHandle
	slot   uint
	pin    func() (string, bool, error)
	opened time.Time
	keys   map[string]*key // by the name they were asked for
}

// key is a private key that has signed once in this session.
type key struct {
	private      pkcs11.ObjectHandle
	public       *ecdsa.PublicKey
	hardware     bool
	authenticate bool // the PIN is needed for every signature (CKA_ALWAYS_AUTHENTICATE)
}

func (k *key) description() signer.Description {
	return signer.Description{Public: k.public, Hardware: k.hardware}
}

// listed is a key as it is printed.
type listed struct {
	label    string
	id       []byte
	curve    string
	hardware bool
	note     string // why it cannot be served
}

// objects finds at most maxKeys objects.
func (s *session) objects(template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := s.m.FindObjectsInit(s.handle, template); err != nil {
		return nil, fmt.Errorf("looking for objects: %w", err)
	}
	found, _, err := s.m.FindObjects(s.handle, maxKeys)
	if final := s.m.FindObjectsFinal(s.handle); err == nil {
		err = final
	}
	if err != nil {
		return nil, fmt.Errorf("looking for objects: %w", err)
	}
	return found, nil
}

// value reads one attribute; nil where the object has none.
func (s *session) value(o pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	got, err := s.m.GetAttributeValue(s.handle, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	var code pkcs11.Error
	switch {
	case errors.As(err, &code) && (code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || code == pkcs11.CKR_ATTRIBUTE_SENSITIVE):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading attribute %#x: %w", attribute, err)
	}
	return got[0].Value, nil
}

// is reads a CK_BBOOL; what the object does not have is neither true nor false.
func (s *session) is(o pkcs11.ObjectHandle, attribute uint, want byte) (bool, error) {
	v, err := s.value(o, attribute)
	return len(v) == 1 && v[0] == want, err
}

// signers are the EC private keys that may sign, among those that match.
func (s *session) signers(match ...*pkcs11.Attribute) (keep []pkcs11.ObjectHandle, err error) {
	found, err := s.objects(append(match,
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC))...)
	if err != nil {
		return nil, err
	}
	for _, o := range found {
		forbidden, err := s.is(o, pkcs11.CKA_SIGN, 0)
		if err != nil {
			return nil, err
		}
		if !forbidden {
			keep = append(keep, o)
		}
	}
	return keep, nil
}

// find opens the one key that name means.
func (s *session) find(name string) (*key, error) {
	match, err := matching(name)
	if err != nil {
		return nil, err
	}
	found, err := s.signers(match...)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0 && name == "":
		return nil, fmt.Errorf("%w: the token has no EC key that may sign", signer.ErrNoKey)
	case len(found) == 0:
		return nil, fmt.Errorf("%w: %q", signer.ErrNoKey, name)
	case len(found) > 1 && name == "":
		return nil, fmt.Errorf("%w: the token has %d", signer.ErrAmbiguous, len(found))
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %d answer to %q", signer.ErrAmbiguous, len(found), name)
	}
	return s.load(found[0])
}

func matching(name string) ([]*pkcs11.Attribute, error) {
	if name == "" {
		return nil, nil
	}
	text, byID := strings.CutPrefix(name, idPrefix)
	if !byID {
		return []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, name)}, nil
	}
	id, err := hex.DecodeString(text)
	if err != nil || len(id) == 0 {
		return nil, fmt.Errorf("%w: %q is no id in hex", signer.ErrNoKey, name)
	}
	return []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}, nil
}

// load signs once and finds the public key that this signature is good for: labels and ids are
// written by people, and do not prove what belongs together.
func (s *session) load(private pkcs11.ObjectHandle) (*key, error) {
	params, err := s.value(private, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, err
	}
	candidates, err := s.publics(private)
	if err != nil {
		return nil, err
	}
	if curve := curveOf(params); curve == nil && len(candidates) == 0 || len(params) > 0 && curve == nil {
		return nil, fmt.Errorf("%w: the key is on another curve than P-256 and P-384", signer.ErrUnsupported)
	}
	k := &key{private: private}
	if k.authenticate, err = s.is(private, pkcs11.CKA_ALWAYS_AUTHENTICATE, 1); err != nil {
		return nil, err
	}
	if k.hardware, err = s.hardware(private); err != nil {
		return nil, err
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		err := s.choose(k, curve, candidates)
		if err != nil || k.public != nil {
			return k, err
		}
	}
	return nil, fmt.Errorf("%w: no public key or certificate in the token belongs to the private key", signer.ErrFailed)
}

// choose sets k.public to the candidate on curve that a test signature fits.
func (s *session) choose(k *key, curve elliptic.Curve, candidates []*ecdsa.PublicKey) error {
	var signature []byte
	digest := make([]byte, 32)
	if _, err := rand.Read(digest); err != nil {
		return err
	}
	for _, candidate := range candidates {
		if candidate.Curve != curve {
			continue
		}
		if signature == nil {
			var err error
			if signature, err = s.sign(&key{private: k.private, public: candidate, authenticate: k.authenticate}, digest); err != nil {
				return err
			}
		}
		if ecdsa.VerifyASN1(candidate, digest, signature) {
			k.public = candidate
			return nil
		}
	}
	return nil
}

// publics are the public keys that may belong to private: its own point, where the module gives
// one, and those of public keys and certificates with its id, or with its label where it has
// no id.
func (s *session) publics(private pkcs11.ObjectHandle) (keys []*ecdsa.PublicKey, err error) {
	if keys, err = s.point(keys, private); err != nil {
		return nil, err
	}
	match := pkcs11.NewAttribute(pkcs11.CKA_ID, nil)
	if match.Value, err = s.value(private, pkcs11.CKA_ID); err == nil && len(match.Value) == 0 {
		match.Type = pkcs11.CKA_LABEL
		match.Value, err = s.value(private, pkcs11.CKA_LABEL)
	}
	if err != nil || len(match.Value) == 0 {
		return keys, err
	}
	found, err := s.objects(match, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY))
	for _, o := range found {
		if keys, err = s.point(keys, o); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	found, err = s.objects(match, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE))
	for _, o := range found {
		der, err := s.value(o, pkcs11.CKA_VALUE)
		if err != nil {
			return nil, err
		}
		if cert, err := x509.ParseCertificate(der); err == nil {
			if k, ok := cert.PublicKey.(*ecdsa.PublicKey); ok {
				keys = append(keys, k)
			}
		}
	}
	return keys, err
}

// point appends the public key that o has, if it is one on a curve of ours.
func (s *session) point(keys []*ecdsa.PublicKey, o pkcs11.ObjectHandle) ([]*ecdsa.PublicKey, error) {
	params, err := s.value(o, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, err
	}
	curve := curveOf(params)
	if curve == nil {
		return keys, nil
	}
	value, err := s.value(o, pkcs11.CKA_EC_POINT)
	if err != nil || len(value) == 0 {
		return keys, err
	}
	if k, err := parsePoint(curve, value); err == nil {
		keys = append(keys, k)
	}
	return keys, nil
}

// hardware: the module says that its mechanism or its slot is hardware, and that the key can be
// neither read nor exported. What it does not say counts as no.
func (s *session) hardware(private pkcs11.ObjectHandle) (bool, error) {
	sensitive, err := s.is(private, pkcs11.CKA_SENSITIVE, 1)
	if err != nil || !sensitive {
		return false, err
	}
	kept, err := s.is(private, pkcs11.CKA_EXTRACTABLE, 0)
	if err != nil || !kept {
		return false, err
	}
	slot, err := s.m.GetSlotInfo(s.slot)
	if err != nil {
		return false, fmt.Errorf("asking for the slot: %w", err)
	}
	mechanism, err := s.m.GetMechanismInfo(s.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)})
	if err != nil {
		return false, fmt.Errorf("asking for ECDSA: %w", err)
	}
	return slot.Flags&pkcs11.CKF_HW_SLOT != 0 || mechanism.Flags&pkcs11.CKF_HW != 0, nil
}

// sign is C_SignInit and C_Sign with CKM_ECDSA.
func (s *session) sign(k *key, digest []byte) ([]byte, error) {
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}
	if err := s.m.SignInit(s.handle, mechanism, k.private); err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if k.authenticate {
		pin, _, err := s.pin()
		if err != nil {
			return nil, err
		}
		if err := loginError(s.m.Login(s.handle, pkcs11.CKU_CONTEXT_SPECIFIC, pin)); err != nil {
			return nil, err
		}
	}
	raw, err := s.m.Sign(s.handle, shorten(k.public.Curve, digest))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	signature, err := encodeSignature(k.public.Curve, raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrFailed, err)
	}
	return signature, nil
}

// create makes a key that never leaves the token, and tests it. One that fails is removed again.
func (s *session) create(label string, curve elliptic.Curve) (*key, error) {
	there, err := s.objects(pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
	if err != nil {
		return nil, err
	}
	if len(there) > 0 {
		return nil, fmt.Errorf("%w: %q", signer.ErrKeyExists, label)
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	public, private, err := s.m.GenerateKeyPair(s.handle,
		[]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, paramsOf(curve)),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
			pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
			pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		})
	if err != nil {
		return nil, fmt.Errorf("making the key: %w", err)
	}
	k, err := s.load(private)
	if err == nil && k.public.Curve != curve {
		err = fmt.Errorf("%w: the new key is on another curve", signer.ErrFailed)
	}
	if err != nil {
		// No errors.Join: what counts is why it failed, and the text is one line on the wire.
		_ = s.m.DestroyObject(s.handle, private)
		_ = s.m.DestroyObject(s.handle, public)
		return nil, fmt.Errorf("testing the new key: %w", err)
	}
	return k, nil
}

// list describes every EC key that may sign, those too that cannot be served.
func (s *session) list() ([]listed, error) {
	found, err := s.signers()
	if err != nil {
		return nil, err
	}
	var out []listed
	for _, o := range found {
		var l listed
		label, err := s.value(o, pkcs11.CKA_LABEL)
		if err == nil {
			l.id, err = s.value(o, pkcs11.CKA_ID)
		}
		if err != nil {
			return nil, err
		}
		l.label, l.curve = string(bytes.TrimRight(label, "\x00")), "?"
		k, err := s.load(o)
		var code pkcs11.Error
		switch {
		case err == nil:
			l.curve, l.hardware = k.public.Curve.Params().Name, k.hardware
		case errors.As(err, &code) && !final(code):
			return nil, err
		default:
			l.note = err.Error()
		}
		out = append(out, l)
	}
	return out, nil
}
