package records

import (
	"context"
	"fmt"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// Revoked is what a revocation found.
type Revoked struct {
	Device  string   `json:"device"`
	Serials []string `json:"serials"`
	// Released is the EK that is free for another device now, "" none.
	Released string `json:"released_ek,omitempty"`
}

// RevokeDevice puts a device out: no certificate of it entitles to another, and its TPM does
// not either. release frees its TPM, so that it may become another device, and this id another
// TPM. Done again it changes nothing.
func (b *Book) RevokeDevice(ctx context.Context, id string, release bool) (Revoked, error) {
	result := Revoked{Device: id}
	err := b.Update(ctx, id, func(d *Device) (bool, error) {
		if len(d.Certificates) == 0 {
			return false, hint.With(fmt.Errorf("device %s: %w", id, ErrUnknown), "see: ferrule-factory devices DIR")
		}
		now, changed := time.Now().UTC(), false
		if d.Out().IsZero() || d.Revoked.IsZero() {
			d.Revoked, changed = now, true
		}
		for n := range d.Certificates {
			c := &d.Certificates[n]
			if now.After(c.NotAfter) {
				continue
			}
			result.Serials = append(result.Serials, c.Serial)
			if c.Revoked.IsZero() {
				c.Revoked, changed = now, true
			}
		}
		if release && d.EK != "" {
			result.Released = d.EK
			d.EK, d.TPM, d.FirstUse, changed = "", TPM{}, false, true
		}
		return changed, nil
	})
	return result, err
}

// RevokeSerial takes back one certificate. If it is the current one, the device is out until it
// gets a new token.
func (b *Book) RevokeSerial(ctx context.Context, serial string) (Revoked, error) {
	serial = strings.TrimLeft(strings.ToLower(serial), "0")
	devices, err := b.Devices()
	for _, d := range devices {
		for _, c := range d.Certificates {
			if c.Serial == serial && serial != "" {
				return b.revokeSerial(ctx, d.ID, serial)
			}
		}
	}
	if err != nil {
		return Revoked{}, err
	}
	return Revoked{}, hint.With(fmt.Errorf("certificate %q: %w", serial, ErrUnknown), "see: ferrule-factory devices DIR")
}

func (b *Book) revokeSerial(ctx context.Context, device, serial string) (Revoked, error) {
	err := b.Update(ctx, device, func(d *Device) (bool, error) {
		changed := false
		for n := range d.Certificates {
			if c := &d.Certificates[n]; c.Serial == serial && c.Revoked.IsZero() {
				c.Revoked, changed = time.Now().UTC(), true
			}
		}
		return changed, nil
	})
	return Revoked{Device: device, Serials: []string{serial}}, err
}
