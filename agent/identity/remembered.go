package identity

import (
	"context"

	"ferrule/internal/disk"
	"ferrule/tpm"
)

// Remembered returns what a device remembers of its TPM, by which tpm.Inspect tells one that was
// cleared or exchanged. A device that was never enrolled remembers nothing.
func Remembered(fsys disk.FS, stateDir string) (tpm.Known, error) {
	r, err := readRecord(Options{FS: fsys, StateDir: stateDir})
	return tpm.Known{SRK: r.SRKName, EK: r.EKName}, err
}

// Inspect reports on the TPM that the key lies in, through the connection that is open: a raw
// device takes no second one. Without a TPM it is the configured one that is looked for.
func (i *Identity) Inspect(ctx context.Context) (tpm.Report, error) {
	known, err := Remembered(i.o.FS, i.o.StateDir)
	if err != nil {
		return tpm.Report{}, err
	}
	if i.device == nil {
		return tpm.Inspect(ctx, tpm.Options{Path: i.config.TPM, Log: i.o.Log}, known), nil
	}
	return i.device.Inspect(ctx, known), nil
}

// HasFactory says whether the device has a factory certificate, by which it can enroll without a
// token.
func HasFactory(c Config, o Options) bool {
	if c.Factory.Certificate == "" {
		return false
	}
	_, _, err := readChain(o, c.Factory.Certificate)
	return err == nil
}
