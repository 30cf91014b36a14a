package identity

import (
	"context"
	"fmt"

	"ferrule/agent/enroll"
	"ferrule/internal/hint"
)

// Return obtains a certificate for the device that this was, for a new key where the old one is
// lost, and without a token: after the TPM was cleared (ErrCleared), or where the certificate
// expired and nothing runs that renews it. ErrWrongTPM in another gateway: there the disk stays
// as it is. A power cut anywhere is followed by ErrCleared from Open, and by another Return.
func Return(ctx context.Context, c Config, o Options, e enroll.Config) (Result, error) {
	if err := finishReset(ctx, c, o); err != nil {
		return Result{}, err
	}
	i := newIdentity(c, o)
	defer func() { _ = i.Close() }()
	past, err := readRecord(o)
	if err != nil {
		return Result{}, err
	}
	if past.Device == "" {
		return Result{}, hint.With(fmt.Errorf("%w: no record says which device this was", ErrNotEnrolled), "run: ferrule enroll --token T")
	}
	key, err := i.openOrCreateKey(ctx, past, true)
	if err != nil {
		return Result{}, err
	}
	defer key.Close()
	i.readFactory(ctx)
	fresh, err := i.wayBack(ctx, e, past.Device, key)
	if err != nil {
		return Result{}, err
	}
	return i.store(ctx, fresh, EventReturned)
}
