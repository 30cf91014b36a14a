package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// record is what the device remembers of its enrollment beside key and certificate: by what
// it knows its own TPM again.
type record struct {
	Device   string    `json:"device"`
	Enrolled time.Time `json:"enrolled"`
	// SRKName and EKName are TPM Names (Part 1, 16); absent for software keys.
	SRKName []byte `json:"srk_name,omitempty"`
	EKName  []byte `json:"ek_name,omitempty"`
	// Returning says that the key is being replaced because it was lost: until the certificate
	// of the new one is there, key and certificate do not belong together.
	Returning bool `json:"returning,omitempty"`
}

const (
	recordFile = "identity.json"
	maxRecord  = 16 << 10
)

// readRecord returns the zero record where there is none: an identity can be put in place by
// hand. A damaged one is an error, since it guards against a foreign TPM.
func readRecord(o Options) (record, error) {
	var r record
	text, err := disk.ReadFile(o.FS, filepath.Join(o.StateDir, recordFile), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, fmt.Errorf("reading the enrollment record: %w", err)
	}
	return r, nil
}

func writeRecord(o Options, r record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(o.FS, filepath.Join(o.StateDir, recordFile), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the enrollment record: %w", err)
	}
	return nil
}
