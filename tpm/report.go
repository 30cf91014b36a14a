package tpm

import (
	"context"
	"time"
)

// The faults that keep a gateway from its TPM in the field, as a Finding names them.
const (
	FaultMissing    = "missing"    // no TPM at the path, or no driver for it
	FaultPermission = "permission" // the service user is not in the device's group
	FaultOwnerAuth  = "owner-auth" // the owner hierarchy has a password, and there is no SRK
	FaultCleared    = "cleared"    // the TPM was cleared, or is another one
	FaultLockout    = "lockout"    // dictionary-attack protection, now or soon
)

// A Finding is one thing that is wrong, and the way to mend it.
type Finding struct {
	Fault  string `json:"fault"`  // one of the Fault constants, or another stable word
	Text   string `json:"text"`   // one plain sentence
	Repair string `json:"repair"` // what to do, in one line
}

// InspectOptions are what the device remembers of its TPM.
type InspectOptions struct {
	SRK []byte // Name of the SRK that the device key was made under; nil: none yet
	EK  []byte // EndorsementName of the TPM; nil: none yet
}

// A Report is what can be said of a TPM without changing it. Fields that could not be had are
// empty; Findings say why.
type Report struct {
	Health
	Open            bool          `json:"open"` // the TPM could be opened
	LockoutInterval time.Duration `json:"lockout_interval_ns"`
	LockoutRecovery time.Duration `json:"lockout_recovery_ns"`
	SessionsFree    uint32        `json:"sessions_free"`
	OwnerAuth       bool          `json:"owner_auth"`
	EndorsementAuth bool          `json:"endorsement_auth"`
	LockoutAuth     bool          `json:"lockout_auth"`
	P256            bool          `json:"p256"`
	SRK             SRKReport     `json:"srk"`
	EKs             []EKReport    `json:"eks"`
	EKName          string        `json:"ek_name,omitempty"` // hex of EndorsementName
	Attests         bool          `json:"attests"`           // the attestation key can be derived
	Findings        []Finding     `json:"findings"`
}

// SRKReport says what lies at SRKHandle.
type SRKReport struct {
	State string `json:"state"` // absent | ours | foreign | unsuitable | unknown
	NoDA  bool   `json:"no_da"`
	Name  string `json:"name,omitempty"` // hex
}

// EKReport is one endorsement key.
type EKReport struct {
	Kind        string    `json:"kind"`            // RSA-2048 | P-256 | P-384
	Index       string    `json:"index,omitempty"` // of the certificate, e.g. 0x01c00002
	Certificate bool      `json:"certificate"`
	Issuer      string    `json:"issuer,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Warning     string    `json:"warning,omitempty"`
}

// Inspect opens the TPM, asks it everything, and closes it. Where it cannot be opened the
// report holds the finding.
func Inspect(ctx context.Context, o Options, known InspectOptions) Report {
	return Report{}
}

// Inspect asks the TPM everything that ferrule tpm shows; it changes nothing in it.
func (d *Device) Inspect(ctx context.Context, known InspectOptions) Report {
	return Report{}
}
