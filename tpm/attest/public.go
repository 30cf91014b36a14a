package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"math/bits"
	"slices"

	"ferrule/internal/hint"
)

const hintTemplate = "another tool made the key; let the device make its own: ferrule enroll --rekey"

// The numbers of the TPM's wire that matter here (Part 2, 6.3 and 6.4).
const (
	algRSA    = 0x0001
	algECC    = 0x0023
	algSHA256 = 0x000B
	algSHA384 = 0x000C
	algECDSA  = 0x0018
	algNull   = 0x0010

	curveP256 = 0x0003
	curveP384 = 0x0004
)

// The attribute bits (TPMA_OBJECT, Part 2, 8.3).
const (
	fixedTPM            = 1 << 1
	fixedParent         = 1 << 4
	sensitiveDataOrigin = 1 << 5
	userWithAuth        = 1 << 6
	adminWithPolicy     = 1 << 7
	noDA                = 1 << 10
	restricted          = 1 << 16
	decrypt             = 1 << 17
	sign                = 1 << 18
)

// template is a public area without the key itself.
type template struct {
	typ, nameAlg uint16
	size         uint16 // the curve, or the bits of an RSA modulus
	attributes   uint32
	policy       string // digest
	symmetric    string // as marshalled
	scheme       string // as marshalled; for RSA also the exponent, for ECC also the KDF
}

// null is an algorithm that is none; aes… are TPMT_SYM_DEF_OBJECT in CFB mode.
const (
	null      = "\x00\x10"
	aes128CFB = "\x00\x06\x00\x80\x00\x43"
	aes256CFB = "\x00\x06\x01\x00\x00\x43"
)

// policyA and policyB guard EKs: PolicySecret of the endorsement hierarchy, and for the high
// range either that or the policy in an NV index (TCG EK Credential Profile 2.5, B.6).
const (
	policyA = "\x83\x71\x97\x67\x44\x84\xB3\xF8\x1A\x90\xCC\x8D\x46\xA5\xD7\x24" +
		"\xFD\x52\xD7\x6E\x06\x52\x0B\x64\xF2\xA1\xDA\x1B\x33\x14\x69\xAA"
	policyB256 = "\xCA\x3D\x0A\x99\xA2\xB9\x39\x06\xF7\xA3\x34\x24\x14\xEF\xCF\xB3" +
		"\xA3\x85\xD4\x4C\xD1\xFD\x45\x90\x89\xD1\x9B\x50\x71\xC0\xB7\xA0"
	policyB384 = "\xB2\x6E\x7D\x28\xD1\x1A\x50\xBC\x53\xD8\x82\xBC\xF5\xFD\x3A\x1A" +
		"\x07\x41\x48\xBB\x35\xD3\xB4\xE4\xCB\x1C\x0A\xD9\xBD\xE4\x19\xCA" +
		"\xCB\x47\xBA\x09\x69\x96\x46\x15\x0F\x9F\xC0\x00\xF3\xF8\x0E\x12"
)

const ekAttributes = fixedTPM | fixedParent | sensitiveDataOrigin | adminWithPolicy | restricted | decrypt

// ekTemplates are L-2, H-2, H-3, L-1 and H-1 of the profile, in the order of preference: what a
// chip does in a fraction of a second before what it may take half a minute for. A nonce in NV
// changes only the key, and with it nothing here.
var ekTemplates = [...]template{
	{algECC, algSHA256, curveP256, ekAttributes, policyA, aes128CFB, null + null},
	{algECC, algSHA256, curveP256, ekAttributes | userWithAuth, policyB256, aes128CFB, null + null},
	{algECC, algSHA384, curveP384, ekAttributes | userWithAuth, policyB384, aes256CFB, null + null},
	{algRSA, algSHA256, 2048, ekAttributes, policyA, aes128CFB, null + "\x00\x00\x00\x00"},
	{algRSA, algSHA256, 2048, ekAttributes | userWithAuth, policyB256, aes128CFB, null + "\x00\x00\x00\x00"},
}

// akTemplate signs nothing but what the TPM itself has said: restricted.
var akTemplate = template{
	algECC, algSHA256, curveP256, fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | noDA | restricted | sign,
	"", null, "\x00\x18\x00\x0B" + null,
}

// keyTemplates are those of tpm.KeySpec: any digest, never leaves its TPM.
var keyTemplates = [...]template{
	{algECC, algSHA256, curveP256, keyAttributes, "", null, null + null},
	{algECC, algSHA256, curveP384, keyAttributes, "", null, null + null},
}

const keyAttributes = fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | noDA | sign

// differs names what of p is not as in t: one of the constants wrong…, or "".
func (t template) differs(p *public) string {
	switch {
	case p.typ != t.typ || p.nameAlg != t.nameAlg || p.size != t.size:
		return wrongType
	case p.attributes != t.attributes:
		return wrongAttributes
	case p.policy != t.policy:
		return wrongPolicy
	case p.symmetric != t.symmetric || p.scheme != t.scheme:
		return wrongScheme
	}
	return ""
}

// public is a TPMT_PUBLIC (Part 2, 12.2.4) cut into its fields. It was read by hand and not by
// go-tpm: every field has one length and one place, so there is one encoding, and what is
// compared is what the TPM hashed into the Name.
type public struct {
	template
	x, y []byte // for RSA, x is the modulus
}

// readPublic cuts b. It takes the algorithms that a template above could have; for others it
// says type. The reason begins with which.
func readPublic(which string, b []byte) (*public, error) {
	r := reader{b: b}
	p := &public{}
	p.typ, p.nameAlg, p.attributes = r.u16(), r.u16(), r.u32()
	p.policy = string(r.sized(64))
	if r.bad {
		return nil, refuse(which+wrongForm, "the public area of the %s is cut short", which)
	}
	switch p.typ {
	case algRSA:
		p.symmetric = r.algorithm(4)
		p.scheme = r.algorithm(2)
		p.size = r.u16()
		p.scheme += string(r.take(4))
		p.x = r.sized(512)
	case algECC:
		p.symmetric = r.algorithm(4)
		p.scheme = r.algorithm(2)
		p.size = r.u16()
		p.scheme += r.algorithm(2)
		p.x, p.y = r.sized(66), r.sized(66)
	default:
		return nil, refuse(which+wrongType, "the %s is neither an elliptic nor an RSA key (type %#x)", which, p.typ)
	}
	if !r.done() {
		return nil, refuse(which+wrongForm, "the public area of the %s is cut short, or something stands behind it", which)
	}
	return p, nil
}

// match finds p's template. Where none fits, the reason is that of the one that fits longest:
// type, then attributes, then policy, then schemes.
func match(which string, p *public, templates []template) (int, error) {
	wrong := wrongType
	for i, t := range templates {
		d := t.differs(p)
		if d == "" {
			return i, nil
		}
		if slices.Index(wrongs[:], d) > slices.Index(wrongs[:], wrong) {
			wrong = d
		}
	}
	r := refuse(which+wrong, "the %s is not made as it has to be (%s: type %#x, name %#x, size %d, attributes %#x, policy %x, schemes %x %x)",
		which, wrong[1:], p.typ, p.nameAlg, p.size, p.attributes, p.policy, p.symmetric, p.scheme)
	if which == "key" {
		r.Err = hint.With(r.Err, hintTemplate)
	}
	return 0, r
}

// wrongs is the order in which differs looks.
var wrongs = [...]string{wrongType, wrongAttributes, wrongPolicy, wrongScheme}

// key gives the key that p describes. A point that is not on its curve would give away, bit by
// bit, what is computed with it.
func (p *public) key(which string) (crypto.PublicKey, error) {
	if p.typ == algRSA {
		if n := len(p.x); n*8 != int(p.size) || bits.Len8(p.x[0]) != 8 || p.x[n-1]&1 == 0 {
			return nil, refuse(which+wrongPoint, "the modulus of the %s is none of %d bits", which, p.size)
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(p.x), E: 65537}, nil
	}
	curve := elliptic.P256()
	if p.size == curveP384 {
		curve = elliptic.P384()
	}
	n := (curve.Params().BitSize + 7) / 8
	if len(p.x) > n || len(p.y) > n { // shorter ones: some chips leave zeros away in front
		return nil, refuse(which+wrongPoint, "the coordinates of the %s are longer than its curve", which)
	}
	point := make([]byte, 1+2*n)
	point[0] = 4 // uncompressed, SEC 1, 2.3.3
	copy(point[1+n-len(p.x):], p.x)
	copy(point[1+2*n-len(p.y):], p.y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, refuse(which+wrongPoint, "the point of the %s is not on its curve: %w", which, err)
	}
	return key, nil
}

// name is the TPM's Name of a public area with name algorithm SHA-256 (Part 1, 16).
func name(public []byte) []byte {
	sum := sha256.Sum256(public)
	return append([]byte{algSHA256 >> 8, algSHA256 & 0xff}, sum[:]...)
}

// reader reads what a TPM marshalled, big-endian; it is bad from the first byte that lacks.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized reads a TPM2B of at most limit bytes.
func (r *reader) sized(limit int) []byte {
	n := int(r.u16())
	if n > limit {
		r.bad = true
	}
	return r.take(n)
}

// algorithm reads an algorithm and, unless it is none, its details of n bytes.
func (r *reader) algorithm(n int) string {
	alg := r.take(2)
	if bytes.Equal(alg, []byte(null)) {
		return null
	}
	return string(alg) + string(r.take(n))
}

// done says whether everything was read, and nothing is left.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }
