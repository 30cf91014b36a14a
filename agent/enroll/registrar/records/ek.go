package records

import (
	"errors"
	"fmt"
	"io/fs"
)

// Taken says that a TPM is enrolled as another device.
type Taken struct{ EK, Device string }

func (t *Taken) Error() string {
	return fmt.Sprintf("the TPM with EK %.16s… is enrolled as %s", t.EK, t.Device)
}

// claim is the file of one EK.
type claim struct {
	Device string `json:"device"`
}

// Holder returns which device an EK is, or "" where it is none.
func (b *Book) Holder(ek string) (string, error) {
	if !digest.MatchString(ek) {
		return "", fmt.Errorf("%q is no SHA-256 of an EK", ek)
	}
	var c claim
	err := b.read(ekDir, ek, &c)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	// Only the record tells: a cut may have come between the claim and it.
	d, err := b.Device(c.Device)
	switch {
	case errors.Is(err, ErrUnknown) || err == nil && d.EK != ek:
		return "", nil
	case err != nil:
		return "", err
	}
	return c.Device, nil
}

// claim makes an EK this device's alone. The caller holds the commit lock.
func (b *Book) claim(ek, device string) error {
	holder, err := b.Holder(ek)
	switch {
	case err != nil:
		return err
	case holder == device:
		return b.settle(ekDir)
	case holder != "":
		return &Taken{EK: ek, Device: holder}
	}
	return b.write(ekDir, ek, claim{Device: device})
}
