package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// What a Finding may be about. The first five are the faults that keep gateways from their
// TPMs in the field.
const (
	FaultPermission  = "permission"      // the service user may not open the device
	FaultMissing     = "missing"         // no TPM, no driver, or no /dev/tpmrm0
	FaultOwnerAuth   = "owner-auth"      // the owner hierarchy has a password, and there is no SRK
	FaultCleared     = "cleared"         // the TPM was cleared, or is another one
	FaultLockout     = "lockout"         // dictionary-attack protection is in lockout
	FaultCounter     = "lockout-counter" // it is on the way there
	FaultBusy        = "busy"            // another process holds the device, or its slots are full
	FaultSilent      = "silent"          // no answer in time
	FaultSRK         = "srk"             // what lies at SRKHandle is of no use, or a danger
	FaultP256        = "p256"            // the TPM has no P-256
	FaultEndorsement = "endorsement"     // no attestation, or a certificate that is of no use
	FaultOther       = "other"           // anything else; the text quotes the error
)

// A Finding is one thing that is wrong, and the way to mend it.
type Finding struct {
	Fault  string `json:"fault"`  // one of the Fault constants
	Blocks bool   `json:"blocks"` // the device key cannot be made or used until it is mended
	Text   string `json:"text"`   // one plain sentence
	Repair string `json:"repair"` // what to do, in one line
}

// Known is what the device remembers of its TPM.
type Known struct {
	SRK []byte // Name of the SRK that the device key lies under; nil: none yet
	EK  []byte // EndorsementName of the TPM; nil: none yet
}

// A Report is what can be said of a TPM without changing it. What could not be had is empty,
// and Findings say why.
type Report struct {
	Health
	Opened          bool          `json:"opened"`
	SessionsFree    uint32        `json:"sessions_free"`       // sessions that can still be started
	LockoutInterval time.Duration `json:"lockout_interval_ns"` // after which the counter falls by one
	LockoutRecovery time.Duration `json:"lockout_recovery_ns"` // after a wrong lockout password; 0: at the next reset
	OwnerAuth       bool          `json:"owner_auth"`          // the hierarchy has a password
	EndorsementAuth bool          `json:"endorsement_auth"`
	LockoutAuth     bool          `json:"lockout_auth"`
	P256            bool          `json:"p256"`
	P384            bool          `json:"p384"`
	SRK             SRKReport     `json:"srk"`
	EKs             []EKReport    `json:"eks"`
	EKName          string        `json:"ek_name,omitempty"` // hex of EndorsementName
	Attests         bool          `json:"attests"`           // the attestation key can be derived
	Findings        []Finding     `json:"findings"`
}

// SRKReport says what lies at SRKHandle.
type SRKReport struct {
	// State is absent, ours (of the TCG's template), foreign (a storage key of another
	// template, which serves), unsuitable (no storage key) or unknown.
	State string `json:"state"`
	NoDA  bool   `json:"no_da"`
	Name  string `json:"name,omitempty"` // hex
}

// EKReport is one endorsement key.
type EKReport struct {
	Kind        string    `json:"kind"`            // RSA-2048, P-256 or P-384
	Index       string    `json:"index,omitempty"` // of the certificate, as 0x01c00002
	Certificate bool      `json:"certificate"`
	Issuer      string    `json:"issuer,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Warning     string    `json:"warning,omitempty"`
}

// Inspect opens the TPM, asks it everything, and closes it. Where it cannot be opened the
// report says why.
func Inspect(ctx context.Context, o Options, known Known) Report {
	return inspect(ctx, o, known, func() (*Device, error) { return Open(ctx, o) })
}

func inspect(ctx context.Context, o Options, known Known, open func() (*Device, error)) Report {
	d, err := open()
	if err != nil {
		r := newReport(Health{Path: o.Path})
		r.failed(err)
		return r
	}
	r := d.Inspect(ctx, known)
	_ = d.Close() // nothing of ours is loaded
	return r
}

// Inspect asks the TPM everything that ferrule tpm shows. It changes nothing in it.
func (d *Device) Inspect(ctx context.Context, known Known) Report {
	r := newReport(Health{Path: d.path, ResourceManager: d.ResourceManager()})
	r.Opened = true
	if strings.HasPrefix(d.path, "/dev/") && !r.ResourceManager {
		r.find(FaultMissing, false, "The kernel offers no resource manager (/dev/tpmrm0) for this TPM, so that one program at a time can use it.",
			"use a kernel from 4.12 on, with CONFIG_TCG_TPM, and see that udev makes /dev/tpmrm0")
	}
	for _, ask := range []func(*Report, context.Context, *Device, Known) error{
		(*Report).askState, (*Report).askCurves, (*Report).askSRK, (*Report).askEK, (*Report).askEndorsement,
	} {
		if err := ask(&r, ctx, d, known); err != nil {
			r.failed(err)
			if silent(err) {
				break // each of the others would cost the same patience
			}
		}
	}
	return r
}

func newReport(h Health) Report {
	return Report{Health: h, SRK: SRKReport{State: "unknown"}, EKs: []EKReport{}, Findings: []Finding{}}
}

func silent(err error) bool {
	var rc tpm2.TPMRC
	return !errors.As(err, &rc) || errors.Is(err, ErrTimeout)
}

func (r *Report) find(fault string, blocks bool, text, repair string) {
	r.Findings = append(r.Findings, Finding{Fault: fault, Blocks: blocks, Text: text, Repair: repair})
}

// failed makes a finding of an error.
func (r *Report) failed(err error) {
	path := r.Path
	if path == "" || path == "auto" {
		path = "/dev/tpmrm0"
	}
	fault, text := FaultOther, fmt.Sprintf("The TPM cannot be asked: %v.", err)
	switch {
	case errors.Is(err, ErrPermission):
		fault, text = FaultPermission, fmt.Sprintf("The user that this runs as may not open the TPM %s.", path)
	case errors.Is(err, ErrNoDevice) && r.Path == "none":
		fault, text = FaultMissing, "The configuration switches the TPM off."
	case errors.Is(err, ErrNoDevice):
		fault, text = FaultMissing, fmt.Sprintf("There is no TPM at %s.", path)
	case errors.Is(err, ErrOwnerAuth):
		fault, text = FaultOwnerAuth, textOwnerAuth
	case errors.Is(err, ErrLockout):
		fault, text = FaultLockout, textLockout
	case errors.Is(err, ErrBusy):
		fault, text = FaultBusy, "Another program holds the TPM, or has filled its slots."
	case errors.Is(err, ErrTimeout):
		fault, text = FaultSilent, "The TPM does not answer in time."
	}
	if slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Fault == fault }) {
		return
	}
	r.find(fault, true, text, hint.Of(err))
}

const (
	textOwnerAuth = "The TPM's owner hierarchy has a password, so that no storage root key (SRK) can be made."
	textLockout   = "The TPM is in dictionary-attack lockout: keys without noDA do not work until it ends."
)
