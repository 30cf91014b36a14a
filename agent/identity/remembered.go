package identity

import (
	"ferrule/internal/disk"
	"ferrule/tpm"
)

// Remembered returns what a device remembers of its TPM, by which tpm.Inspect tells one that was
// cleared or exchanged. A device that was never enrolled remembers nothing.
func Remembered(fsys disk.FS, stateDir string) (tpm.Known, error) {
	r, err := readRecord(Options{FS: fsys, StateDir: stateDir})
	return tpm.Known{SRK: r.SRKName, EK: r.EKName}, err
}
