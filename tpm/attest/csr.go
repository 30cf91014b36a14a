package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
)

// checkCSR says whether c.CSR asks for c.Device's certificate and nothing else, for that key.
// Whatever issues may copy what a request asks for, so a request with an alternative name in it
// would be a certificate for somebody else.
func checkCSR(c Claim, key crypto.PublicKey) error {
	if len(c.CSR) > maxCSR {
		return refuse(reasonSize, "the request has %d bytes, more than %d", len(c.CSR), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(c.CSR)
	if err != nil {
		return refuse(reasonCSRForm, "reading the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return refuse(reasonCSRSignature, "verifying the certificate request: %w", err)
	}
	if !isCommonName(csr.RawSubject, c.Device) {
		return refuse(reasonCSRSubject, "the request's subject is %.200q, not CN=%s alone", csr.Subject.String(), c.Device)
	}
	if asks, err := asksForMore(csr.RawTBSCertificateRequest); err != nil || asks {
		return refuse(reasonCSRExtensions, "the request asks for more than a subject")
	}
	public, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(key) {
		return refuse(reasonCSRKey, "the request is for another key than the one that was certified")
	}
	return nil
}

// isCommonName says whether a Name in DER is CN=want, in one of the two encodings that
// RFC 5280, 4.1.2.4 allows.
func isCommonName(der []byte, want string) bool {
	for _, tag := range []int{asn1.TagUTF8String, asn1.TagPrintableString} {
		value := asn1.RawValue{Tag: tag, Bytes: []byte(want)}
		name := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: value}}}
		if ours, err := asn1.Marshal(name); err == nil && bytes.Equal(ours, der) {
			return true
		}
	}
	return false
}

// asksForMore looks for attributes, of which the extension request is one (RFC 2986, 4.1).
func asksForMore(tbs []byte) (bool, error) {
	var info struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes asn1.RawValue `asn1:"optional,tag:0"`
	}
	rest, err := asn1.Unmarshal(tbs, &info)
	return len(rest) > 0 || len(info.Attributes.Bytes) > 0, err
}
