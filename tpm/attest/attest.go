// Package attest checks a TPM's evidence, with no TPM at hand: that a key was made in a TPM of
// a known maker and cannot leave it. The trap is believing one half: Certify alone proves only
// that some attestation key vouches for the key. Nothing is proved until the answer to the
// Challenge is back, which only the TPM of that endorsement key can give (TPM 2.0 Part 1, 24).
package attest

// Evidence is what a device shows of its TPM; in JSON it is the item "tpm" of an enrollment
// (docs/enrollment.md). All areas are as the TPM marshals them, without a size before them.
type Evidence struct {
	// EKs are the endorsement keys that the device could derive; those with a certificate first.
	EKs []Endorsement `json:"eks"`
	// AK and Key are the public areas (TPMT_PUBLIC) of the attestation key and the device's key.
	AK  []byte `json:"ak"`
	Key []byte `json:"key"`
	// Certify is the TPMS_ATTEST in which the AK names Key, with Claim.Qualify as its
	// qualifying data; Signature the AK's TPMT_SIGNATURE of it (Part 3, 18.2).
	Certify   []byte `json:"certify"`
	Signature []byte `json:"signature"`
}

// Endorsement is one endorsement key: its TPMT_PUBLIC, and its certificate in DER where the TPM
// has one.
type Endorsement struct {
	Public      []byte `json:"public"`
	Certificate []byte `json:"certificate,omitempty"`
}

// Challenge is a secret that only the TPM with the EK named can open, and only for the AK of the
// evidence (TPM2_MakeCredential, Part 1, 24).
type Challenge struct {
	// EK is the index in Evidence.EKs.
	EK int `json:"ek"`
	// Credential is a TPM2B_ID_OBJECT, Secret a TPM2B_ENCRYPTED_SECRET, both without the size.
	Credential []byte `json:"credential"`
	Secret     []byte `json:"secret"`
}

// Claim is what the evidence is for: it ties the TPM's word to one enrollment, one device and one
// certificate request.
type Claim struct {
	Nonce  []byte // of the registrar, 16 to 64 bytes
	Device string // the id that the certificate will bear
	CSR    []byte // PKCS #10, DER
}
