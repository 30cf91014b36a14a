// Package wire is what a device and the registrar say to each other: three requests, JSON
// over TLS. The steps carry lists of items by kind, so that another kind of evidence is an
// addition: each side refuses only the kinds it was told are required and does not know.
package wire

// Version is the protocol both sides speak. A device lists those it can, the registrar picks.
const Version = 1

// MaxBody bounds every request and response, in bytes.
const MaxBody = 64 << 10

// The three requests, in order. Each is a POST with a JSON body.
const (
	PathBegin    = "/v1/enroll/begin"
	PathEvidence = "/v1/enroll/evidence"
	PathFinish   = "/v1/enroll/finish"
)

// KindCSR is the evidence that the device holds its key: a PKCS #10 request (RFC 2986) in
// DER, whose subject is the common name the registrar gave and nothing else.
const KindCSR = "csr"

// KindTPM is the evidence that the key lies in a TPM: the JSON of tpm/attest.Evidence. The
// registrar answers it with a challenge of KindCredential, the JSON of attest.Challenge, and the
// device answers that with KindActivation: attest.Claim.Answer over the items as they were sent.
const (
	KindTPM        = "tpm"
	KindCredential = "tpm-credential"
	KindActivation = "tpm-activation"
)

// Item is one piece of evidence, one challenge or one answer.
type Item struct {
	Kind string `json:"kind"`
	Data []byte `json:"data"` // base64 in JSON
}

// Hint is what the device says of itself before it is believed anything.
type Hint struct {
	Hostname string `json:"hostname,omitempty"`
}

// Begin opens an enrollment. What entitles to a certificate is, in this order, the token; the
// certificate that the device shows in TLS, its present one or that of the factory; or, where
// there is neither, the endorsement key that Device was enrolled with, which the challenge proves.
type Begin struct {
	Versions []int  `json:"versions"`
	Token    string `json:"token,omitempty"`
	// Device is the id that the device had before, "" at its first enrollment.
	Device string `json:"device,omitempty"`
	Hint   Hint   `json:"hint"`
}

// Begun answers Begin.
type Begun struct {
	Version int    `json:"version"`
	Session string `json:"session"`
	// Nonce is fresh for this enrollment; evidence that can be replayed signs it.
	Nonce []byte `json:"nonce"`
	// Device is the id that the certificate will carry as its common name.
	Device string `json:"device"`
	// Require lists the kinds of evidence without which no certificate is issued.
	Require []string `json:"require"`
}

// Evidence is the second request.
type Evidence struct {
	Session  string `json:"session"`
	Evidence []Item `json:"evidence"`
}

// Challenged answers Evidence.
type Challenged struct {
	Challenges []Item `json:"challenges"`
}

// Finish is the third request.
type Finish struct {
	Session string `json:"session"`
	Answers []Item `json:"answers"`
}

// Issued answers Finish.
type Issued struct {
	// Chain is the certificate and its issuers below the root, PEM.
	Chain string `json:"chain"`
	// Serial is the certificate's serial number in hex.
	Serial string `json:"serial"`
}

// Order, Collected and Delivery are the three steps of an enrollment without a network between
// device and registrar, each one file of JSON. The certificate is sealed under the secret of the
// challenge, so that only the TPM which gave the evidence can open it.
type Order struct {
	Version int    `json:"version"`
	Device  string `json:"device"`
	Nonce   []byte `json:"nonce"`
}

// Collected is what the device gives for an Order.
type Collected struct {
	Order
	Evidence []Item `json:"evidence"`
}

// Delivery is what the registrar gives for a Collected.
type Delivery struct {
	Version int    `json:"version"`
	Device  string `json:"device"`
	Serial  string `json:"serial"`
	// Evidence is the SHA-256 of the file of the Collected that this answers.
	Evidence  []byte `json:"evidence"`
	Challenge Item   `json:"challenge"`
	// Sealed is the chain, PEM, sealed by tpm/attest.Claim.Seal.
	Sealed []byte `json:"sealed"`
}

// The codes of Error.
const (
	CodeTokenUnknown = "token-unknown"
	CodeTokenExpired = "token-expired"
	CodeTokenUsed    = "token-used"
	CodeEvidence     = "evidence"
	CodeAttestation  = "attestation"  // the TPM's evidence is not believed; the text says which part
	CodeEKTaken      = "ek-taken"     // this TPM is enrolled as another device
	CodeNotEntitled  = "not-entitled" // neither token nor certificate nor a known TPM
	CodeBackend      = "backend"      // the CA behind the registrar did not issue; try again later
	CodeSession      = "session-unknown"
	CodeVersion      = "version"
	CodeMalformed    = "malformed"
	CodeInternal     = "internal"
)

// Error is the body of every answer that is not 200.
type Error struct {
	Code string `json:"code"`
	Text string `json:"error"`
	Hint string `json:"hint,omitempty"`
	// Cause is for the log of the registrar, and never sent.
	Cause error `json:"-"`
}

func (e *Error) Error() string { return e.Text }

// Logged returns what the registrar's log says of it.
func (e *Error) Logged() error {
	if e.Cause != nil {
		return e.Cause
	}
	return e
}
