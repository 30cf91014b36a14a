package attest

import "fmt"

// Refusal is the error for evidence that is not believed. The registrar answers Reason, which
// never changes its meaning; Err is for its log, says more, and carries a hint where the one who
// runs the registrar can repair it.
//
// All but the first two and the last group say "key", "ak" or "ek" first: which key it is about.
//
//	size                     a part is larger than any true one
//	evidence-form            the item is not the JSON of an Evidence, or a part is missing
//
//	key-form, ak-form, ek-form                  not one TPMT_PUBLIC of an ECC or RSA key, or a byte is left over
//	key-type, ak-type, ek-type                  the algorithm, curve, length or name algorithm is another
//	key-attributes, ak-attributes, ek-attributes    an attribute bit differs from the template
//	key-policy, ak-policy, ek-policy            the policy differs from the template
//	key-scheme, ak-scheme, ek-scheme            the schemes differ from the template
//	key-point, ak-point, ek-point               the point is not on the curve; for RSA, no modulus
//
//	csr-form                 not one PKCS #10 request
//	csr-signature            its signature is not of its own key
//	csr-subject              its subject is not CN=device and nothing else
//	csr-extensions           it asks for more than a subject
//	csr-key                  it is for another key than the one that was certified
//
//	certify-form             not one TPMS_ATTEST of a certification
//	certify-magic            not made inside a TPM (TPM_GENERATED_VALUE)
//	certify-type             an attestation of something else: a quote, a time
//	certify-claim            signed for another nonce, device or request: replayed
//	certify-name             names another key
//	signature-form           not one TPMT_SIGNATURE
//	signature-scheme         not ECDSA with SHA-256
//	signature                not of this AK over this TPMS_ATTEST
//
//	ek-none                  no endorsement key is listed
//	ek-certificate-none      no EK has a certificate, and first use is not trusted
//	ek-certificate-form      not one X.509 certificate
//	ek-certificate-key       the certificate is of another key than the EK beside it
//	ek-certificate-ca        it is a certificate authority's
//	ek-certificate-usage     its key usage is not that of an EK
//	ek-certificate-purpose   its extended key usage does not name EKs (2.23.133.8.1)
//	ek-certificate-name      its alternative name does not name a TPM's maker, model and version
//	ek-certificate-critical  it has a critical extension that nobody here understands
//	ek-certificate-validity  it, or an authority above it, is not valid now
//	ek-certificate-issuer    no chain leads to a maker who is trusted here
type Refusal struct {
	Reason string
	Err    error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap gives the error behind it.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(reason, format string, args ...any) *Refusal {
	return &Refusal{reason, fmt.Errorf(format, args...)}
}

// The reasons that do not begin with the key they are about.
const (
	reasonSize            = "size"
	reasonEvidence        = "evidence-form"
	reasonCSRForm         = "csr-form"
	reasonCSRSignature    = "csr-signature"
	reasonCSRSubject      = "csr-subject"
	reasonCSRExtensions   = "csr-extensions"
	reasonCSRKey          = "csr-key"
	reasonCertifyForm     = "certify-form"
	reasonCertifyMagic    = "certify-magic"
	reasonCertifyType     = "certify-type"
	reasonCertifyClaim    = "certify-claim"
	reasonCertifyName     = "certify-name"
	reasonSignatureForm   = "signature-form"
	reasonSignatureScheme = "signature-scheme"
	reasonSignature       = "signature"
	reasonNoEK            = "ek-none"
	reasonNoCertificate   = "ek-certificate-none"
	reasonCertificateForm = "ek-certificate-form"
	reasonCertificateKey  = "ek-certificate-key"
	reasonCertificateCA   = "ek-certificate-ca"
	reasonUsage           = "ek-certificate-usage"
	reasonPurpose         = "ek-certificate-purpose"
	reasonName            = "ek-certificate-name"
	reasonCritical        = "ek-certificate-critical"
	reasonValidity        = "ek-certificate-validity"
	reasonIssuer          = "ek-certificate-issuer"
)

// What can be wrong with a public area; the reason is the key's word, then one of these.
const (
	wrongForm       = "-form"
	wrongType       = "-type"
	wrongAttributes = "-attributes"
	wrongPolicy     = "-policy"
	wrongScheme     = "-scheme"
	wrongPoint      = "-point"
)
