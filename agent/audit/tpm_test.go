package audit_test

import (
	"context"
	"testing"

	"ferrule/agent/audit"
	"ferrule/internal/disk/disktest"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// The head is signed in the TPM: one Sign for each head, and no other command.
func TestHeadByATPM(t *testing.T) {
	device, err := tpm.Open(t.Context(), tpm.Options{Path: tpmtest.Start(t).Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	key, err := tpm.CreateKeyAt(t.Context(), "tpm2:file=device.key", tpm.KeySpec{}, tpm.KeyOptions{
		StateDir: t.TempDir(), Device: func(context.Context) (*tpm.Device, error) { return device, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	before := device.Stats()
	w := &world{disk: disktest.New(), key: key, conf: audit.Default()}
	sample(t, w, 2, 5)
	whole(t, w.verify(t))
	after := device.Stats()
	if signs, all := after.Commands["Sign"]-before.Commands["Sign"], after.Total()-before.Total(); signs != 2 || all != 2 {
		t.Errorf("%d Sign among %d commands for two starts and stops", signs, all)
	}
}
