package authorize_test

import (
	"context"
	"testing"

	"ferrule/agent/command/authorize"
	"ferrule/internal/jws"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// A command costs one Sign of the TPM, for its receipt; one that is refused costs none.
func TestReceiptByATPM(t *testing.T) {
	chip, err := tpm.Open(t.Context(), tpm.Options{Path: tpmtest.Start(t).Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer chip.Close()
	key, err := tpm.CreateKeyAt(t.Context(), "tpm2:file=device.key", tpm.KeySpec{}, tpm.KeyOptions{
		StateDir: t.TempDir(), Device: func(context.Context) (*tpm.Device, error) { return chip, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	w := newWorld(t)
	w.key = &counted{Signer: key}
	w.thumbprint = thumbprint(t, key)
	before := chip.Stats()
	w.bad(authorize.CodeScope, w.token(scope("restart")), operation())
	d := w.good(w.token(), operation())
	receipt, err := w.Receipt(t.Context(), d, operation(), authorize.Outcome{OK: true})
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.Parse(receipt)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Verify(key.Public()); err != nil {
		t.Fatal(err)
	}
	after := chip.Stats()
	if signs, all := after.Commands["Sign"]-before.Commands["Sign"], after.Total()-before.Total(); signs != 1 || all != 1 {
		t.Errorf("%d Sign among %d commands", signs, all)
	}
}
