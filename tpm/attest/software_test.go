package attest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// now is when all tests take place; the certificates of the makers below are valid then.
var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// maker is a manufacturer: a root, an intermediate, and EK certificates below that.
type maker struct {
	root, intermediate       *x509.Certificate
	rootKey, intermediateKey *ecdsa.PrivateKey
}

func newMaker(t testing.TB) *maker {
	m := &maker{rootKey: newKey(t, elliptic.P256()), intermediateKey: newKey(t, elliptic.P256())}
	template := func(cn string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: now.AddDate(-5, 0, 0), NotAfter: now.AddDate(20, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	root := template("Maker Root")
	m.root = issue(t, root, root, m.rootKey.Public(), m.rootKey)
	m.intermediate = issue(t, template("Maker CA 1"), m.root, m.intermediateKey.Public(), m.rootKey)
	return m
}

func issue(t testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// verifier trusts m at now.
func (m *maker) verifier() *Verifier {
	v := &Verifier{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), Now: func() time.Time { return now }}
	v.Roots.AddCert(m.root)
	v.Intermediates.AddCert(m.intermediate)
	return v
}

// ekCertificate is what a maker writes into NV; change may spoil it.
func (m *maker) ekCertificate(t testing.TB, key crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), NotBefore: now.AddDate(-1, 0, 0),
		NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: sanOf(t, oneSet("id:49465800", "SLB9670", "id:0D0B"))}},
	}
	if _, ok := key.(*rsa.PublicKey); ok {
		template.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	if change != nil {
		change(template)
	}
	return issue(t, template, m.intermediate, key, m.intermediateKey).Raw
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func utf8String(s string) asn1.RawValue {
	return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)}
}

func tpmAttribute(n int, s string) attribute {
	return attribute{asn1.ObjectIdentifier{2, 23, 133, 2, n}, utf8String(s)}
}

// oneSet is a directory name as swtpm writes it, with all three in one set.
func oneSet(manufacturer, model, version string) []attributeSET {
	return []attributeSET{{tpmAttribute(1, manufacturer), tpmAttribute(2, model), tpmAttribute(3, version)}}
}

// sanOf is a SubjectAltName with one directoryName.
func sanOf(t testing.TB, directory any) []byte {
	t.Helper()
	name, err := asn1.Marshal(directory)
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return san
}

// The kinds of endorsement key.
const (
	ekP256 = iota
	ekP384
	ekRSA
)

var ekNames = [...]string{"P-256", "P-384", "RSA"}

// softTPM is a TPM in Go: it holds private keys, describes them as a TPM does, and signs
// whatever it is asked to, which no TPM would.
type softTPM struct {
	maker    *maker
	ek       crypto.Signer
	ekPublic tpm2.TPMTPublic
	ak, key  *ecdsa.PrivateKey
}

// One RSA key per process: making one takes long under an emulator.
var rsaEK *rsa.PrivateKey

func newSoftTPM(t testing.TB, m *maker, kind int) *softTPM {
	t.Helper()
	s := &softTPM{maker: m, ak: newKey(t, elliptic.P256()), key: newKey(t, elliptic.P256())}
	switch kind {
	case ekP256:
		k := newKey(t, elliptic.P256())
		s.ek, s.ekPublic = k, withPoint(tpm2.ECCEKTemplate, k.Public())
	case ekP384:
		k := newKey(t, elliptic.P384())
		s.ek, s.ekPublic = k, withPoint(templateH3(), k.Public())
	case ekRSA:
		if rsaEK == nil {
			var err error
			if rsaEK, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
				t.Fatal(err)
			}
		}
		s.ek, s.ekPublic = rsaEK, tpm2.RSAEKTemplate
		s.ekPublic.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: rsaEK.N.Bytes()})
	}
	return s
}

func templateH3() tpm2.TPMTPublic {
	p := tpm2.ECCEKTemplate
	p.NameAlg = tpm2.TPMAlgSHA384
	p.ObjectAttributes.UserWithAuth = true
	p.AuthPolicy.Buffer = []byte(policyB384)
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	})
	return p
}

func withPoint(p tpm2.TPMTPublic, key crypto.PublicKey) tpm2.TPMTPublic {
	point, err := key.(*ecdsa.PublicKey).Bytes()
	if err != nil {
		panic(err)
	}
	n := len(point) / 2
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]},
	})
	return p
}

// parts are evidence before it is marshalled. Every forgery changes one of them.
type parts struct {
	ek, ak, key tpm2.TPMTPublic
	cert        func(*x509.Certificate)
	csr         x509.CertificateRequest
	csrKey      *ecdsa.PrivateKey
	attest      func(*tpm2.TPMSAttest)
	signer      *ecdsa.PrivateKey
	claim       func(*Claim) // what is signed, where it differs from what is checked
}

// evidence gives evidence that a verifier of s.maker believes, unless change spoils it.
func (s *softTPM) evidence(t testing.TB, nonce []byte, device string, change func(*parts)) (Evidence, Claim) {
	t.Helper()
	p := s.parts(device)
	if change != nil {
		change(p)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &p.csr, p.csrKey)
	if err != nil {
		t.Fatal(err)
	}
	claim := Claim{Nonce: nonce, Device: device, CSR: csr}
	signed := claim
	if p.claim != nil {
		p.claim(&signed)
	}
	e := Evidence{
		EKs: []Endorsement{{Public: tpm2.Marshal(p.ek), Certificate: s.maker.ekCertificate(t, s.ek.Public(), p.cert)}},
		AK:  tpm2.Marshal(p.ak), Key: tpm2.Marshal(p.key),
	}
	e.Certify = tpm2.Marshal(certification(name(e.AK), name(e.Key), signed.Qualify(), p.attest))
	e.Signature = signature(t, e.Certify, p.signer)
	return e, claim
}

func (s *softTPM) parts(device string) *parts {
	ak := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters:       eccParms(tpm2.TPMECCNistP256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256),
	}
	key := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curveID(s.key)}),
	}
	return &parts{
		ek: s.ekPublic, ak: withPoint(ak, s.ak.Public()), key: withPoint(key, s.key.Public()),
		csr: x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, csrKey: s.key, signer: s.ak,
	}
}

func curveID(k *ecdsa.PrivateKey) tpm2.TPMECCCurve {
	if k.Curve == elliptic.P384() {
		return tpm2.TPMECCNistP384
	}
	return tpm2.TPMECCNistP256
}

func eccParms(curve tpm2.TPMECCCurve, scheme tpm2.TPMAlgID, hash tpm2.TPMIAlgHash) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: curve,
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  scheme,
			Details: tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
		},
	})
}

func certification(ak, key, extra []byte, change func(*tpm2.TPMSAttest)) tpm2.TPMSAttest {
	a := tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify,
		QualifiedSigner: tpm2.TPM2BName{Buffer: ak}, ExtraData: tpm2.TPM2BData{Buffer: extra},
		ClockInfo: tpm2.TPMSClockInfo{Clock: 123456, ResetCount: 7, RestartCount: 1, Safe: true}, FirmwareVersion: 0x20240125,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
			Name: tpm2.TPM2BName{Buffer: key}, QualifiedName: tpm2.TPM2BName{Buffer: key},
		}),
	}
	if change != nil {
		change(&a)
	}
	return a
}

func signature(t testing.TB, signed []byte, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	sum := sha256.Sum256(signed)
	der, err := ecdsa.SignASN1(rand.Reader, by, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	return ecdsaSignature(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, rs.R.Bytes(), rs.S.Bytes())
}

func ecdsaSignature(alg, hash tpm2.TPMIAlgHash, r, s []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(alg))
	b = binary.BigEndian.AppendUint16(b, uint16(hash))
	for _, v := range [][]byte{r, s} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
	}
	return b
}

// activate is TPM2_ActivateCredential (Part 3, 12.5) by the EK of s for the AK of that public area.
func (s *softTPM) activate(c Challenge, ak []byte) ([]byte, error) {
	hash, keyBits := crypto.SHA256, 128
	if s.ekPublic.NameAlg == tpm2.TPMAlgSHA384 {
		hash, keyBits = crypto.SHA384, 256
	}
	seed, err := s.seed(c.Secret, hash)
	if err != nil {
		return nil, err
	}
	r := reader{b: c.Credential}
	mac, encrypted := r.sized(64), r.b
	if r.bad {
		return nil, errors.New("TPM_RC_SIZE")
	}
	h := hmac.New(hash.New, tpm2.KDFa(hash, seed, "INTEGRITY", nil, nil, hash.Size()*8))
	h.Write(encrypted)
	h.Write(name(ak))
	if !hmac.Equal(h.Sum(nil), mac) {
		return nil, errors.New("TPM_RC_INTEGRITY")
	}
	block, err := aes.NewCipher(tpm2.KDFa(hash, seed, "STORAGE", name(ak), nil, keyBits))
	if err != nil {
		return nil, err
	}
	plain := decryptCFB(block, encrypted)
	r = reader{b: plain}
	secret := r.sized(64)
	if !r.done() {
		return nil, errors.New("TPM_RC_SIZE")
	}
	return secret, nil
}

// decryptCFB is AES-CFB with an IV of zeros, as TPMs use it; crypto/cipher has given it up.
func decryptCFB(block cipher.Block, b []byte) []byte {
	plain := make([]byte, len(b))
	mask, previous := make([]byte, block.BlockSize()), make([]byte, block.BlockSize())
	for i := range b {
		if i%len(mask) == 0 {
			if i > 0 {
				copy(previous, b[i-len(mask):i])
			}
			block.Encrypt(mask, previous)
		}
		plain[i] = b[i] ^ mask[i%len(mask)]
	}
	return plain
}

func (s *softTPM) seed(secret []byte, hash crypto.Hash) ([]byte, error) {
	if k, ok := s.ek.(*rsa.PrivateKey); ok {
		return rsa.DecryptOAEP(hash.New(), nil, k, secret, []byte("IDENTITY\x00"))
	}
	k, err := s.ek.(*ecdsa.PrivateKey).ECDH()
	if err != nil {
		return nil, err
	}
	r := reader{b: secret}
	x, y := r.sized(66), r.sized(66)
	point, err := k.Curve().NewPublicKey(bytes.Join([][]byte{{4}, x, y}, nil))
	if !r.done() || err != nil {
		return nil, errors.New("TPM_RC_POINT")
	}
	z, err := k.ECDH(point)
	if err != nil {
		return nil, err
	}
	own := k.PublicKey().Bytes()
	return tpm2.KDFe(hash, z, "IDENTITY", x, own[1:1+len(own)/2], hash.Size()*8), nil
}
