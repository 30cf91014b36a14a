package tpm

import (
	"context"

	"ferrule/tpm/attest"
)

// An Attester is a DeviceKey whose TPM can prove that it holds it: those of tpm2: URIs are,
// keys in files and behind helpers are not.
type Attester interface {
	// Attest returns the TPM's word that the key lies in it and cannot leave; qualifying, at
	// most 32 bytes, is signed along (attest.Claim.Qualify).
	Attest(ctx context.Context, qualifying []byte) (attest.Evidence, error)
	// Activate opens a challenge that was made for the evidence of this TPM, in this process
	// or an earlier one.
	Activate(ctx context.Context, c attest.Challenge) (secret []byte, err error)
}
