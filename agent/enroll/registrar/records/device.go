package records

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// Device is the record of one device: one file, replaced as a whole.
type Device struct {
	ID string `json:"device"`
	// EK is the SHA-256 of the endorsement key, hex; "" where no TPM was proved. FirstUse says
	// that no maker's certificate vouches for it.
	EK       string `json:"ek,omitempty"`
	FirstUse bool   `json:"first_use,omitempty"`
	TPM      TPM    `json:"tpm,omitzero"`
	// Weak says that the key lies in a file: nothing is known of where else it is.
	Weak bool `json:"weak,omitempty"`
	// Revoked is when the device was put out; only a token that is younger lets it in again.
	Revoked      time.Time     `json:"revoked,omitzero"`
	Certificates []Certificate `json:"certificates"` // the newest last
}

// TPM is what the certificate of the EK says of the chip.
type TPM struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Version      string `json:"version,omitempty"`
}

// Certificate is one that was issued.
type Certificate struct {
	Serial      string    `json:"serial"` // hex
	Fingerprint string    `json:"certificate_sha256"`
	PublicKey   string    `json:"public_key_sha256"` // of the SubjectPublicKeyInfo
	Factory     bool      `json:"factory,omitempty"` // an IDevID
	Basis       Basis     `json:"basis"`
	Issuer      string    `json:"issuer"` // the back end
	Issued      time.Time `json:"issued"`
	NotAfter    time.Time `json:"not_after"`
	Revoked     time.Time `json:"revoked,omitzero"`
	// Sealed says that the chain was handed out for the eyes of one TPM only, which has yet to
	// show that it could open it: until then the chain is nobody else's business.
	Sealed bool   `json:"sealed,omitempty"`
	State  State  `json:"state,omitempty"`
	Chain  string `json:"chain,omitempty"` // PEM; of the current one alone
}

// State says what a certificate still entitles to.
type State string

// At most one operational and one factory certificate are current: the newest. Previous is the
// one that the current was issued for, since the answer may have been lost.
const (
	Current    State = "current"
	Previous   State = "previous"
	Superseded State = ""
)

// Basis is what entitled to a certificate: "token:<digest>", "order:<digest>",
// "certificate:<serial>", "factory:<fingerprint>" or "return".
type Basis string

// Return is the basis of a device that was known by its EK alone.
const Return Basis = "return"

// ByToken is the basis of a token, ByOrder of the order of a batch, ByCertificate of the
// certificate that was renewed, ByFactory of a factory certificate.
func ByToken(digest string) Basis        { return Basis("token:" + digest) }
func ByOrder(digest string) Basis        { return Basis("order:" + digest) }
func ByCertificate(serial string) Basis  { return Basis("certificate:" + serial) }
func ByFactory(fingerprint string) Basis { return Basis("factory:" + fingerprint) }

// Once reports whether the basis is good for one key only.
func (b Basis) Once() bool {
	return strings.HasPrefix(string(b), "token:") || strings.HasPrefix(string(b), "order:")
}

// Issued returns the newest certificate that was issued on a basis, or nil.
func (d *Device) Issued(b Basis) *Certificate {
	return d.newest(func(c Certificate) bool { return c.Basis == b })
}

// Current returns the newest certificate of a kind, or nil.
func (d *Device) Current(factory bool) *Certificate {
	return d.newest(func(c Certificate) bool { return c.State == Current && c.Factory == factory })
}

// Find returns the certificate with a fingerprint, or nil.
func (d *Device) Find(fingerprint string) *Certificate {
	return d.newest(func(c Certificate) bool { return c.Fingerprint == fingerprint })
}

func (d *Device) newest(is func(Certificate) bool) *Certificate {
	for n := len(d.Certificates) - 1; n >= 0; n-- {
		if is(d.Certificates[n]) {
			return &d.Certificates[n]
		}
	}
	return nil
}

// Out returns when the device was put out, itself or its current certificate of any kind; zero:
// it is in.
func (d *Device) Out() time.Time {
	out := d.Revoked
	for _, c := range d.Certificates {
		if c.State == Current && c.Revoked.After(out) {
			out = c.Revoked
		}
	}
	return out
}

// What a record may hold: expired certificates beyond the last few are forgotten, unless their
// basis could come again; a device that collects valid ones is stopped.
const (
	keepExpired = 32
	maxValid    = 512
)

// ErrTooMany says that a device has more valid certificates than any could use.
var ErrTooMany = errors.New("too many certificates of this device are valid")

// Add takes a new certificate into the record. It is the current one of its kind now; the one
// that it renews stays good until the new one is shown, and no other.
func (d *Device) Add(c Certificate, now time.Time) error {
	valid := 0
	for n := range d.Certificates {
		old := &d.Certificates[n]
		if now.Before(old.NotAfter) {
			valid++
		}
		if old.Factory != c.Factory {
			continue
		}
		old.Chain, old.State = "", Superseded
		if c.Basis == ByCertificate(old.Serial) && old.Revoked.IsZero() {
			old.State = Previous
		}
	}
	if valid >= maxValid {
		return ErrTooMany
	}
	if c.Basis.Once() {
		d.readmit()
	}
	c.State = Current
	d.Certificates = append(d.Certificates, c)
	d.forget(now)
	return nil
}

// readmit lets a device in that was put out: whoever gave it a new token wants it back. What was
// revoked stays so.
func (d *Device) readmit() {
	d.Revoked = time.Time{}
	for n := range d.Certificates {
		if c := &d.Certificates[n]; !c.Revoked.IsZero() {
			c.State, c.Chain = Superseded, ""
		}
	}
}

func (d *Device) forget(now time.Time) {
	last := len(d.Certificates) - keepExpired
	n := -1
	d.Certificates = slices.DeleteFunc(d.Certificates, func(c Certificate) bool {
		n++
		return n < last && now.After(c.NotAfter) && c.State == Superseded && !c.Basis.Once()
	})
}

// Device returns the record of a device, or ErrUnknown.
func (b *Book) Device(id string) (Device, error) {
	if err := CheckDevice(id); err != nil {
		return Device{}, err
	}
	d := Device{}
	err := b.read(deviceDir, id, &d)
	if errors.Is(err, fs.ErrNotExist) {
		return Device{ID: id}, fmt.Errorf("device %s: %w", id, ErrUnknown)
	}
	if err == nil && d.ID != id {
		err = fmt.Errorf("reading the record of %s: it is that of %q", id, d.ID)
	}
	return d, err
}

// Devices lists every record, by id. Those that cannot be read are in the error, the others are
// returned all the same: one damaged file must not hide the rest.
func (b *Book) Devices() ([]Device, error) {
	names, err := b.names(deviceDir)
	if err != nil {
		return nil, fmt.Errorf("listing the devices: %w", err)
	}
	devices := make([]Device, 0, len(names))
	var damaged []error
	for _, name := range names {
		d, err := b.Device(name)
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		devices = append(devices, d)
	}
	return devices, unreadable(damaged)
}

// unreadable joins the errors of files that were passed over.
func unreadable(damaged []error) error {
	return hint.With(errors.Join(damaged...), "put these files back from a backup: what they held is refused until then")
}

// Update holds a device against everybody else and hands its record, which may be a new one, to
// change. If that returns true the record is durable when Update returns, and its EK is this
// device's alone; a *Taken says that it is another's. If it returns false, what it read is
// durable all the same.
func (b *Book) Update(ctx context.Context, id string, change func(d *Device) (bool, error)) error {
	release, err := b.locks.take(ctx, stripe(id))
	if err != nil {
		return err
	}
	defer release()
	d, err := b.Device(id)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return err
	}
	changed, err := change(&d)
	if err != nil {
		return err
	}
	if !changed {
		return b.settle(deviceDir, ekDir)
	}
	return b.commit(ctx, d)
}

// commit writes the claim on the EK, then the record. The lock is held for the two, so a claim
// that is seen without its record was left by a cut, and is void.
func (b *Book) commit(ctx context.Context, d Device) error {
	release, err := b.locks.take(ctx, commitLock)
	if err != nil {
		return err
	}
	defer release()
	if d.EK != "" {
		if err := b.claim(d.EK, d.ID); err != nil {
			return err
		}
	}
	return b.write(deviceDir, d.ID, d)
}

// Kind is the basis without its secret-like part, for logs.
func (b Basis) Kind() string {
	kind, _, _ := strings.Cut(string(b), ":")
	return kind
}

// Renewal reports whether the basis is a certificate that is renewed.
func (b Basis) Renewal() bool { return strings.HasPrefix(string(b), "certificate:") }
