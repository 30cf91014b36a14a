package attest

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// forgery is evidence that is wrong in one place.
type forgery struct {
	reason string
	kind   int                     // of EK
	parts  func(*parts)            // before the TPM signs
	after  func(*Evidence, *Claim) // after it has signed
	trust  func(*Verifier)
}

// resign lets an AK of the forger's own sign what after has changed; s.ak is its private half.
func (s *softTPM) resign(t testing.TB, e *Evidence) { e.Signature = signature(t, e.Certify, s.ak) }

func attributes(change func(*tpm2.TPMAObject)) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) { change(&p.ObjectAttributes) }
}

func ofKey(change func(*tpm2.TPMTPublic)) func(*parts) { return func(p *parts) { change(&p.key) } }
func ofAK(change func(*tpm2.TPMTPublic)) func(*parts)  { return func(p *parts) { change(&p.ak) } }
func ofEK(change func(*tpm2.TPMTPublic)) func(*parts)  { return func(p *parts) { change(&p.ek) } }
func ofCert(change func(*x509.Certificate)) func(*parts) {
	return func(p *parts) { p.cert = change }
}
func ofAttest(change func(*tpm2.TPMSAttest)) func(*parts) {
	return func(p *parts) { p.attest = change }
}

// offCurve keeps x and spoils y.
func offCurve(p *tpm2.TPMTPublic) {
	point, err := p.Unique.ECC()
	if err != nil {
		panic(err)
	}
	y := bytes.Clone(point.Y.Buffer)
	y[len(y)-1] ^= 1
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: point.X, Y: tpm2.TPM2BECCParameter{Buffer: y}})
}

func modulus(change func([]byte) []byte) func(*parts) {
	return ofEK(func(p *tpm2.TPMTPublic) {
		n, err := p.Unique.RSA()
		if err != nil {
			panic(err)
		}
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: change(bytes.Clone(n.Buffer))})
	})
}

func san(t testing.TB, directory []attributeSET) func(*parts) {
	return ofCert(func(c *x509.Certificate) { c.ExtraExtensions[0].Value = sanOf(t, directory) })
}

// signatureOf changes r and s of a signature.
func signatureOf(change func(r, s []byte) (alg, hash tpm2.TPMIAlgHash, r2, s2 []byte)) func(*Evidence, *Claim) {
	return func(e *Evidence, _ *Claim) {
		r := reader{b: e.Signature[4:]}
		e.Signature = ecdsaSignature(change(r.sized(32), r.sized(32)))
	}
}

func groupOrder() []byte { return elliptic.P256().Params().N.Bytes() }

func forgeriesOfKey(s *softTPM, t testing.TB) map[string]forgery {
	set := func(change func(*tpm2.TPMAObject)) func(*parts) { return ofKey(attributes(change)) }
	return map[string]forgery{
		"a key that may leave the TPM":             {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.FixedTPM = false })},
		"a key that may move to another parent":    {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.FixedParent = false })},
		"a key that was imported":                  {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })},
		"a key that power cuts lock out":           {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.NoDA = false })},
		"a key that also decrypts":                 {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.Decrypt = true })},
		"a key that goes with the next start":      {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.STClear = true })},
		"a key whose duplicate may be in the open": {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.EncryptedDuplication = true })},
		"a restricted key":                         {reason: "key-attributes", parts: set(func(a *tpm2.TPMAObject) { a.Restricted = true })},
		"a reserved attribute bit of the key":      {reason: "key-attributes", after: func(e *Evidence, _ *Claim) { e.Key[7] |= 1 }},
		"a key with a policy": {reason: "key-policy", parts: ofKey(func(p *tpm2.TPMTPublic) {
			p.AuthPolicy.Buffer = make([]byte, 32)
		})},
		"a key with a scheme": {reason: "key-scheme", parts: ofKey(func(p *tpm2.TPMTPublic) {
			p.Parameters = eccParms(tpm2.TPMECCNistP256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256)
		})},
		"a key on P-521": {reason: "key-type", parts: ofKey(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP521})
		})},
		"an RSA key":                    {reason: "key-type", after: func(e *Evidence, _ *Claim) { e.Key = tpm2.Marshal(tpm2.RSAEKTemplate) }},
		"a symmetric key":               {reason: "key-type", after: func(e *Evidence, _ *Claim) { e.Key[1] = 0x25 }},
		"a key named by SHA-1":          {reason: "key-type", parts: ofKey(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 })},
		"a key off its curve":           {reason: "key-point", parts: ofKey(offCurve)},
		"a key with longer coordinates": {reason: "key-point", parts: ofKey(func(p *tpm2.TPMTPublic) { *p = longer(*p) })},
		"a byte behind the key":         {reason: "key-form", after: func(e *Evidence, _ *Claim) { e.Key = append(e.Key, 0) }},
		"half a key":                    {reason: "key-form", after: func(e *Evidence, _ *Claim) { e.Key = e.Key[:40] }},
		"a key too large for any TPM":   {reason: "size", after: func(e *Evidence, _ *Claim) { e.Key = make([]byte, 1025) }},
		"no key":                        {reason: "evidence-form", after: func(e *Evidence, _ *Claim) { e.Key = nil }},
		"another key that the AK never saw": {reason: "csr-key", after: func(e *Evidence, _ *Claim) {
			e.Key = tpm2.Marshal(newSoftTPM(t, s.maker, ekP256).parts(device).key)
		}},
	}
}

// longer puts a zero before both coordinates.
func longer(p tpm2.TPMTPublic) tpm2.TPMTPublic {
	point, err := p.Unique.ECC()
	if err != nil {
		panic(err)
	}
	zero := func(b []byte) tpm2.TPM2BECCParameter {
		return tpm2.TPM2BECCParameter{Buffer: append([]byte{0}, b...)}
	}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: zero(point.X.Buffer), Y: zero(point.Y.Buffer)})
	return p
}

func forgeriesOfAK(s *softTPM, t testing.TB) map[string]forgery {
	set := func(change func(*tpm2.TPMAObject)) func(*parts) { return ofAK(attributes(change)) }
	scheme := func(alg tpm2.TPMAlgID, hash tpm2.TPMIAlgHash) func(*parts) {
		return ofAK(func(p *tpm2.TPMTPublic) { p.Parameters = eccParms(tpm2.TPMECCNistP256, alg, hash) })
	}
	return map[string]forgery{
		"an AK that signs anything":    {reason: "ak-attributes", parts: set(func(a *tpm2.TPMAObject) { a.Restricted = false })},
		"an AK that may leave the TPM": {reason: "ak-attributes", parts: set(func(a *tpm2.TPMAObject) { a.FixedTPM = false })},
		"an AK that was imported":      {reason: "ak-attributes", parts: set(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })},
		"an AK that decrypts too":      {reason: "ak-attributes", parts: set(func(a *tpm2.TPMAObject) { a.Decrypt = true })},
		"an AK with a policy":          {reason: "ak-policy", parts: ofAK(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = []byte(policyA) })},
		"an AK of another scheme":      {reason: "ak-scheme", after: func(e *Evidence, _ *Claim) { e.AK[13] = 0x1c }},
		"an AK that hashes with SHA-1": {reason: "ak-scheme", parts: scheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA1)},
		"an AK without a scheme": {reason: "ak-scheme", parts: ofAK(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
		})},
		"an AK on P-384": {reason: "ak-type", parts: ofAK(func(p *tpm2.TPMTPublic) {
			p.Parameters = eccParms(tpm2.TPMECCNistP384, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256)
		})},
		"an AK named by SHA-384":         {reason: "ak-type", parts: ofAK(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 })},
		"an AK that is the device's key": {reason: "ak-attributes", after: func(e *Evidence, _ *Claim) { e.AK = e.Key }},
		"an AK off its curve":            {reason: "ak-point", parts: ofAK(offCurve)},
		"a byte behind the AK":           {reason: "ak-form", after: func(e *Evidence, _ *Claim) { e.AK = append(e.AK, 0) }},
		"no AK":                          {reason: "evidence-form", after: func(e *Evidence, _ *Claim) { e.AK = nil }},
		"an AK of another TPM":           {reason: "signature", after: func(e *Evidence, _ *Claim) { e.AK = tpm2.Marshal(newSoftTPM(t, s.maker, ekP256).parts(device).ak) }},
	}
}

func forgeriesOfCertify(s *softTPM, t testing.TB) map[string]forgery {
	other := newKey(t, elliptic.P256())
	resigned := func(change func(*Evidence)) func(*Evidence, *Claim) {
		return func(e *Evidence, _ *Claim) { change(e); s.resign(t, e) }
	}
	claim := func(change func(*Claim)) func(*parts) { return func(p *parts) { p.claim = change } }
	return map[string]forgery{
		"an attestation from outside a TPM": {reason: "certify-magic", parts: ofAttest(func(a *tpm2.TPMSAttest) { a.Magic = 0x00544347 })},
		"a quote":                           {reason: "certify-type", parts: ofAttest(asQuote)},
		"an attestation of a creation": {reason: "certify-type", after: resigned(func(e *Evidence) {
			e.Certify[5] = 0x1a
		})},
		"another nonce":                  {reason: "certify-claim", parts: claim(func(c *Claim) { c.Nonce = bytes.Repeat([]byte{1}, 32) })},
		"another device":                 {reason: "certify-claim", parts: claim(func(c *Claim) { c.Device = "gw-0002" })},
		"another request":                {reason: "certify-claim", parts: claim(func(c *Claim) { c.CSR = []byte("request") })},
		"no claim at all":                {reason: "certify-claim", parts: ofAttest(func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = nil })},
		"half a claim":                   {reason: "certify-claim", parts: ofAttest(func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = a.ExtraData.Buffer[:16] })},
		"the answer to an older request": {reason: "certify-claim", after: func(_ *Evidence, c *Claim) { c.Nonce = bytes.Repeat([]byte{2}, 32) }},
		"another key is certified":       {reason: "certify-name", parts: ofAttest(func(a *tpm2.TPMSAttest) { certifies(a, make([]byte, 34)) })},
		"the AK is certified":            {reason: "certify-name", parts: ofAttest(func(a *tpm2.TPMSAttest) { certifies(a, a.QualifiedSigner.Buffer) })},
		"no key is certified":            {reason: "certify-name", parts: ofAttest(func(a *tpm2.TPMSAttest) { certifies(a, nil) })},
		"an attestation cut short":       {reason: "certify-form", after: resigned(func(e *Evidence) { e.Certify = e.Certify[:len(e.Certify)-1] })},
		"a byte behind the attestation":  {reason: "certify-form", after: resigned(func(e *Evidence) { e.Certify = append(e.Certify, 0) })},
		"a clock neither safe nor not":   {reason: "certify-form", after: resigned(func(e *Evidence) { e.Certify[6+2+34+2+32+16] = 2 })},
		"an attestation out of all size": {reason: "size", after: func(e *Evidence, _ *Claim) { e.Certify = make([]byte, 1025) }},
		"no attestation":                 {reason: "evidence-form", after: func(e *Evidence, _ *Claim) { e.Certify = nil }},

		"signed by another key":               {reason: "signature", parts: func(p *parts) { p.signer = other }},
		"signed by the key that is certified": {reason: "signature", parts: func(p *parts) { p.signer = p.csrKey }},
		"changed after it was signed":         {reason: "signature", after: func(e *Evidence, _ *Claim) { e.Certify[6+2+34+2+32+7] ^= 1 }},
		"r is 0": {reason: "signature", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, nil, s
		})},
		"r and s are 0": {reason: "signature", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, []byte{0}, []byte{0}
		})},
		"s is the order of the group": {reason: "signature", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, r, groupOrder()
		})},
		"r is larger than the group": {reason: "signature", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, new(big.Int).Add(new(big.Int).SetBytes(r), elliptic.P256().Params().N).Bytes(), s
		})},
		"a signature over SHA-1": {reason: "signature-scheme", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA1, r, s
		})},
		"an RSA signature": {reason: "signature-scheme", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, r, s
		})},
		"no scheme at all": {reason: "signature-scheme", after: signatureOf(func(r, s []byte) (_, _ tpm2.TPMIAlgHash, _, _ []byte) {
			return tpm2.TPMAlgNull, tpm2.TPMAlgSHA256, r, s
		})},
		"a byte behind the signature": {reason: "signature-form", after: func(e *Evidence, _ *Claim) { e.Signature = append(e.Signature, 0) }},
		"half a signature":            {reason: "signature-form", after: func(e *Evidence, _ *Claim) { e.Signature = e.Signature[:20] }},
		"a signature out of all size": {reason: "size", after: func(e *Evidence, _ *Claim) { e.Signature = make([]byte, 257) }},
	}
}

func asQuote(a *tpm2.TPMSAttest) {
	a.Type = tpm2.TPMSTAttestQuote
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
}

func certifies(a *tpm2.TPMSAttest, key []byte) {
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
		Name: tpm2.TPM2BName{Buffer: key}, QualifiedName: tpm2.TPM2BName{Buffer: key},
	})
}

func forgeriesOfRequest(s *softTPM, t testing.TB) map[string]forgery {
	subject := func(n pkix.Name) func(*parts) { return func(p *parts) { p.csr.Subject = n } }
	asks := func(change func(*x509.CertificateRequest)) func(*parts) { return func(p *parts) { change(&p.csr) } }
	return map[string]forgery{
		"a request for another device":   {reason: "csr-subject", parts: subject(pkix.Name{CommonName: "gw-0002"})},
		"a request for nobody":           {reason: "csr-subject", parts: subject(pkix.Name{})},
		"a request for two names":        {reason: "csr-subject", parts: subject(pkix.Name{CommonName: device, ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "admin"}}})},
		"a request with an organisation": {reason: "csr-subject", parts: subject(pkix.Name{CommonName: device, Organization: []string{"admins"}})},
		"a request for a longer name":    {reason: "csr-subject", parts: subject(pkix.Name{CommonName: device + "\x00.example"})},
		"a request for another DNS name": {reason: "csr-extensions", parts: asks(func(r *x509.CertificateRequest) { r.DNSNames = []string{"gw-0002"} })},
		"a request for a URI":            {reason: "csr-extensions", parts: asks(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} })},
		"a request to be an authority": {reason: "csr-extensions", parts: asks(func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		})},
		"a request for a key in software": {reason: "csr-key", parts: func(p *parts) { p.csrKey = newKey(t, elliptic.P256()) }},
		"a request whose signature is not its key's": {reason: "csr-signature", after: func(_ *Evidence, c *Claim) {
			c.CSR = bytes.Clone(c.CSR)
			c.CSR[len(c.CSR)-1] ^= 1
		}},
		"a byte behind the request":   {reason: "csr-form", after: func(_ *Evidence, c *Claim) { c.CSR = append(c.CSR, 0) }},
		"no request":                  {reason: "csr-form", after: func(_ *Evidence, c *Claim) { c.CSR = nil }},
		"a certificate for a request": {reason: "csr-form", after: func(_ *Evidence, c *Claim) { c.CSR = s.maker.root.Raw }},
		"a request out of all size":   {reason: "size", after: func(_ *Evidence, c *Claim) { c.CSR = make([]byte, 4097) }},
	}
}

func forgeriesOfEK(s *softTPM, t testing.TB) map[string]forgery {
	set := func(change func(*tpm2.TPMAObject)) func(*parts) { return ofEK(attributes(change)) }
	bare := func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = nil }
	forged := map[string]forgery{
		"an RSA EK with the policy of H-1": {reason: "ek-policy", kind: ekRSA, parts: ofEK(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = []byte(policyB256) })},
		"an EK that signs":                 {reason: "ek-attributes", parts: set(func(a *tpm2.TPMAObject) { a.SignEncrypt = true })},
		"an EK that may leave its TPM":     {reason: "ek-attributes", parts: set(func(a *tpm2.TPMAObject) { a.FixedTPM = false })},
		"an EK that decrypts anything":     {reason: "ek-attributes", parts: set(func(a *tpm2.TPMAObject) { a.Restricted = false })},
		"an EK that was imported":          {reason: "ek-attributes", parts: set(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })},
		"L-2 with the attributes of H-2":   {reason: "ek-policy", parts: set(func(a *tpm2.TPMAObject) { a.UserWithAuth = true })},
		"H-3 with the attributes of L":     {reason: "ek-attributes", kind: ekP384, parts: set(func(a *tpm2.TPMAObject) { a.UserWithAuth = false })},
		"an EK that everybody may use":     {reason: "ek-policy", parts: ofEK(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil })},
		"an EK with another policy":        {reason: "ek-policy", kind: ekRSA, parts: ofEK(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) })},
		"an EK with a weaker cipher": {reason: "ek-scheme", kind: ekP384, parts: ofEK(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
				Symmetric: tpm2.TPMTSymDefObject{
					Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
					Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
				}, CurveID: tpm2.TPMECCNistP384,
			})
		})},
		"an RSA EK with exponent 3": {reason: "ek-scheme", kind: ekRSA, after: func(e *Evidence, _ *Claim) {
			e.EKs[0].Public[len(e.EKs[0].Public)-259] = 3
		}},
		"an EK named by SHA-1":            {reason: "ek-type", parts: ofEK(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 })},
		"an RSA EK of 1024 bits":          {reason: "ek-type", kind: ekRSA, after: func(e *Evidence, _ *Claim) { e.EKs[0].Public[0x32] = 4 }},
		"an RSA EK with half its modulus": {reason: "ek-point", kind: ekRSA, parts: modulus(func(n []byte) []byte { return n[128:] })},
		"an RSA EK with a small modulus":  {reason: "ek-point", kind: ekRSA, parts: modulus(func(n []byte) []byte { n[0] = 1; return n })},
		"an RSA EK with an even modulus":  {reason: "ek-point", kind: ekRSA, parts: modulus(func(n []byte) []byte { n[255] &= 0xfe; return n })},
		"an RSA EK without a modulus":     {reason: "ek-point", kind: ekRSA, parts: modulus(func([]byte) []byte { return nil })},
		"an EK off its curve":             {reason: "ek-point", parts: ofEK(offCurve)},
		"a byte behind the EK":            {reason: "ek-form", after: func(e *Evidence, _ *Claim) { e.EKs[0].Public = append(e.EKs[0].Public, 0) }},
		"no EK":                           {reason: "ek-none", after: func(e *Evidence, _ *Claim) { e.EKs = nil }},
		"an empty EK":                     {reason: "evidence-form", after: func(e *Evidence, _ *Claim) { e.EKs[0].Public = nil }},
		"nine EKs":                        {reason: "size", after: func(e *Evidence, _ *Claim) { e.EKs = slices.Repeat(e.EKs, 9) }},
		"an EK that nobody vouches for":   {reason: "ek-certificate-none", after: bare},
		"an EK that nobody vouches for, twice": {reason: "ek-certificate-none", after: func(e *Evidence, c *Claim) {
			bare(e, c)
			e.EKs = append(e.EKs, e.EKs[0])
		}},
	}
	return forged
}

func forgeriesOfCertificate(s *softTPM, t testing.TB) map[string]forgery {
	stranger := newMaker(t)
	firstUse := func(v *Verifier) { v.TrustOnFirstUse = true }
	usage := func(u x509.KeyUsage) func(*parts) { return ofCert(func(c *x509.Certificate) { c.KeyUsage = u }) }
	by := func(c *x509.Certificate) func(*Evidence, *Claim) {
		return func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = c.Raw }
	}
	strangers := func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = stranger.ekCertificate(t, s.ek.Public(), nil) }
	selfSigned := func(e *Evidence, _ *Claim) {
		e.EKs[0].Certificate = (&maker{intermediate: nameOf(s.maker.intermediate), intermediateKey: newKey(t, elliptic.P256())}).ekCertificate(t, s.ek.Public(), nil)
	}
	at := func(when time.Time) func(*Verifier) {
		return func(v *Verifier) { v.Now = func() time.Time { return when } }
	}
	extension := func(x pkix.Extension) func(*parts) {
		return ofCert(func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, x) })
	}
	return map[string]forgery{
		"the certificate of another EK": {reason: "ek-certificate-key", after: by(mustParse(t, s.maker.ekCertificate(t, newKey(t, elliptic.P256()).Public(), nil)))},
		"the certificate of an RSA EK":  {reason: "ek-certificate-key", after: by(mustParse(t, s.maker.ekCertificate(t, newSoftTPM(t, s.maker, ekRSA).ek.Public(), nil)))},
		"an authority's certificate":    {reason: "ek-certificate-ca", parts: ofCert(func(c *x509.Certificate) { c.IsCA = true })},
		"a certificate for signatures":  {reason: "ek-certificate-usage", parts: usage(x509.KeyUsageDigitalSignature)},
		"an ECC EK with RSA's usage":    {reason: "ek-certificate-usage", parts: usage(x509.KeyUsageKeyEncipherment)},
		"an RSA EK with ECC's usage":    {reason: "ek-certificate-usage", kind: ekRSA, parts: usage(x509.KeyUsageKeyAgreement)},
		"an EK that signs certificates": {reason: "ek-certificate-usage", parts: usage(x509.KeyUsageKeyAgreement | x509.KeyUsageCertSign)},
		"a certificate for any usage":   {reason: "ek-certificate-usage", parts: usage(0)},
		"a certificate of a TLS client": {reason: "ek-certificate-purpose", parts: ofCert(func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})},
		"a certificate for any purpose": {reason: "ek-certificate-purpose", parts: ofCert(func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		})},
		"a certificate of a platform":         {reason: "ek-certificate-purpose", parts: ofCert(func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 2}} })},
		"a certificate that names no TPM":     {reason: "ek-certificate-name", parts: ofCert(func(c *x509.Certificate) { c.ExtraExtensions = nil })},
		"a certificate with a DNS name alone": {reason: "ek-certificate-name", parts: ofCert(func(c *x509.Certificate) { c.ExtraExtensions, c.DNSNames = nil, []string{"tpm.example"} })},
		"a TPM without a model":               {reason: "ek-certificate-name", parts: san(t, []attributeSET{{tpmAttribute(1, "id:49465800"), tpmAttribute(3, "1")}})},
		"a TPM of two makers":                 {reason: "ek-certificate-name", parts: san(t, append(oneSet("id:49465800", "x", "1"), attributeSET{tpmAttribute(1, "id:494E5443")}))},
		"a maker without a number":            {reason: "ek-certificate-name", parts: san(t, oneSet("Infineon", "x", "1"))},
		"a model that is a terminal command":  {reason: "ek-certificate-name", parts: san(t, oneSet("id:49465800", "\x1b[2J", "1"))},
		"a model out of all size":             {reason: "ek-certificate-name", parts: san(t, oneSet("id:49465800", strings.Repeat("x", 65), "1"))},
		"a critical extension unknown here": {reason: "ek-certificate-critical", parts: extension(pkix.Extension{
			Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0},
		})},
		"a certificate that has run out":     {reason: "ek-certificate-validity", parts: ofCert(func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 0, -1) })},
		"a certificate of tomorrow":          {reason: "ek-certificate-validity", parts: ofCert(func(c *x509.Certificate) { c.NotBefore = now.AddDate(0, 0, 1) })},
		"an authority that has run out":      {reason: "ek-certificate-validity", trust: at(now.AddDate(30, 0, 0))},
		"a clock at 1970":                    {reason: "ek-certificate-validity", trust: at(time.Unix(60, 0))},
		"a maker who is not trusted":         {reason: "ek-certificate-issuer", after: strangers},
		"no maker is trusted":                {reason: "ek-certificate-issuer", trust: func(v *Verifier) { v.Roots = nil }},
		"the intermediate is missing":        {reason: "ek-certificate-issuer", trust: func(v *Verifier) { v.Intermediates = nil }},
		"a certificate signed by the forger": {reason: "ek-certificate-issuer", after: selfSigned},
		"not downgraded to first use":        {reason: "ek-certificate-issuer", after: strangers, trust: firstUse},
		"expired, not downgraded to first use": {reason: "ek-certificate-validity", trust: func(v *Verifier) {
			firstUse(v)
			at(now.AddDate(30, 0, 0))(v)
		}},
		"not downgraded to the bare EK beside it": {reason: "ek-certificate-issuer", trust: firstUse, after: func(e *Evidence, c *Claim) {
			strangers(e, c)
			e.EKs = append([]Endorsement{{Public: e.EKs[0].Public}}, e.EKs...)
		}},
		"an EK on record whose maker is trusted no more": {reason: "ek-certificate-issuer", after: strangers, trust: func(v *Verifier) {
			v.Known = func(string) bool { return true }
		}},
		"a certificate that is none":    {reason: "ek-certificate-form", after: func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = []byte{0x30, 0} }},
		"an empty certificate":          {reason: "evidence-form", after: func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = []byte{} }, trust: firstUse},
		"a byte behind the certificate": {reason: "ek-certificate-form", after: func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = append(e.EKs[0].Certificate, 0) }},
		"a certificate out of all size": {reason: "size", after: func(e *Evidence, _ *Claim) { e.EKs[0].Certificate = make([]byte, 4097) }},
	}
}

// nameOf is an authority that is c by name only.
func nameOf(c *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{RawSubject: c.RawSubject, SubjectKeyId: c.SubjectKeyId}
}

func mustParse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
