// Package manifest is the signed description of one update: what it is for, what it is made of,
// how its health is judged and who gets it when. The trap: a manifest is only as good as the
// signatures above it, so one is made of a target that the repository's roles have signed, and
// in no other way.
package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"ferrule/firmware/tuf"
)

// SegmentSize is how many bytes of a part one hash covers, and one segment of a patch makes; the
// last one of a part may be shorter.
const SegmentSize = 1 << 20

// Bounds of what a manifest may say. A repository whose keys are stolen can still sign anything.
const (
	MaxSize     = 4 << 20  // bytes of a manifest
	MaxParts    = 8        // parts of one update
	MaxPart     = 64 << 30 // bytes of one part
	MaxDeltas   = 64       // deltas of one part
	MaxSteps    = 32       // steps of a rollout
	MaxHardware = 64       // revisions of the hardware
	MaxNotes    = 16 << 10 // bytes of notes
	// MaxSecurityVersion is what a TPM's counter, which counts by ones, can be brought to in
	// half an hour.
	MaxSecurityVersion = 1<<16 - 1
	// MaxRelease is the highest integer that every reader of JSON reads exactly.
	MaxRelease = 1<<53 - 1
)

var (
	// ErrNone: the target is a file and no release; it has no manifest.
	ErrNone = errors.New("the target has no manifest")
	// ErrFormat: the manifest is not what docs/releases.md says; the text tells where.
	ErrFormat = errors.New("bad manifest")
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// String is d in lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads lower-case hex, in one spelling.
func ParseDigest(text string) (d Digest, err error) {
	if len(text) != hex.EncodedLen(len(d)) {
		return d, fmt.Errorf("%w: a SHA-256 has 64 hex digits, not %d", ErrFormat, len(text))
	}
	for _, c := range []byte(text) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return d, fmt.Errorf("%w: a SHA-256 is written in lower-case hex", ErrFormat)
		}
	}
	_, err = hex.Decode(d[:], []byte(text))
	return d, err
}

// Manifest is a checked manifest. What its methods return is not to be changed.
type Manifest struct {
	raw []byte
	id  string
	f   Fields
}

// Part is one thing that is written: a whole slot's partition, or the agent's program.
type Part struct {
	Name     string // [a-z0-9-]{1,32}, such as rootfs, boot, agent
	Size     int64  // in bytes, 1 to MaxPart
	SHA256   Digest
	Segments []Digest // of each SegmentSize bytes
	Full     Object   // makes the part of nothing
	Deltas   []Delta  // make it of what a slot holds, which may be the part itself; each From once
}

// Object is a file of the repository in the format of package patch.
type Object struct {
	// Path is where it lies on the server below targets/: slash-separated, of letters, digits
	// and ._+~-, without . and .., its last element beginning with the SHA-256 and a dot.
	Path   string
	Size   int64 // in bytes
	SHA256 Digest
}

// Delta is an object that needs an old part.
type Delta struct {
	From     Digest
	FromSize int64 // in bytes
	Object   Object
}

// Health is what a trial must show before it is committed.
type Health struct {
	// Session: a session stands, and the broker has acknowledged the report of this boot.
	Session bool
	// Lines: every unit of every configured line answers that answered before the update.
	Lines bool
	// Within is how long anything but the network may take from the start of the trial; then it
	// is rolled back. 10 s to 24 h.
	Within time.Duration
	// NetworkGrace is how long the network itself may be out; then it is rolled back. At most
	// 90 days.
	NetworkGrace time.Duration
}

// DefaultHealth is the policy of a manifest that does not speak of it.
func DefaultHealth() Health {
	return Health{Session: true, Lines: true, Within: 10 * time.Minute, NetworkGrace: 14 * 24 * time.Hour}
}

// Of returns the manifest of a release, which is a target that carries one and whose file is the
// full object of its first part. It is the only maker of manifests that a device acts on. Errors
// are ErrNone and ErrFormat.
func Of(t tuf.Target) (*Manifest, error) {
	raw := t.Custom()
	if len(raw) == 0 {
		return nil, ErrNone
	}
	m, err := Reopen(raw)
	if err != nil {
		return nil, err
	}
	if want := m.Target(); t.Path() != want {
		return nil, fmt.Errorf("%w: it describes %s and is signed as %s", ErrFormat, want, strconv.Quote(t.Path()))
	}
	first := m.f.Parts[0].Full
	if Digest(t.SHA256()) != first.SHA256 || t.Length() != first.Size {
		return nil, fmt.Errorf("%w: the target's file is not the full object of part %s", ErrFormat, m.f.Parts[0].Name)
	}
	if want := ServerPath(t.Path(), first.SHA256); first.Path != want {
		return nil, fmt.Errorf("%w: the full object of part %s lies in %s, and the target in %s", ErrFormat, m.f.Parts[0].Name, first.Path, want)
	}
	return m, nil
}

// Reopen reads what Raw gave. It looks at no signature: it is for the engine's own journal, which
// holds manifests that Of has made, and for the program that writes them.
func Reopen(raw []byte) (*Manifest, error) {
	f, err := parse(raw)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	return &Manifest{raw: append([]byte(nil), raw...), id: hex.EncodeToString(sum[:]), f: f}, nil
}

// Raw is the manifest as it was signed.
func (m *Manifest) Raw() []byte { return m.raw }

// ID is the SHA-256 of Raw in hex: another one as soon as anything differs, the rollout too.
func (m *Manifest) ID() string { return m.id }

// Edition names what a device tries: a hash, in hex, of product, version, release and parts. It stays
// while rollout, health, notes or deltas change, so a version that was given up is not tried
// again because its rollout goes on; publishing it anew, with a new release number, changes it.
func (m *Manifest) Edition() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%d\n", m.f.Product, m.f.Version, m.f.Release)
	for _, p := range m.f.Parts {
		fmt.Fprintf(h, "%s %d %s\n", p.Name, p.Size, p.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Target is the name of the release in the repository, PRODUCT/VERSION.
func (m *Manifest) Target() string { return m.f.Product + "/" + m.f.Version }

// Product is what the release is for, such as gw.
func (m *Manifest) Product() string { return m.f.Product }

// Hardware is the revisions that may have it; none: every one.
func (m *Manifest) Hardware() []string { return m.f.Hardware }

// Channel is such as stable.
func (m *Manifest) Channel() string { return m.f.Channel }

// Version is the release's name; it says nothing of order.
func (m *Manifest) Version() string { return m.f.Version }

// Release rises with each publication; of those that fit a device, the highest is meant for it.
func (m *Manifest) Release() uint64 { return m.f.Release }

// SecurityVersion is what a device's floor rises to once this is committed.
func (m *Manifest) SecurityVersion() uint64 { return m.f.SecurityVersion }

// MinAgent is the oldest version of the agent that can install it, as 1.4.0; "" where any can.
func (m *Manifest) MinAgent() string { return m.f.MinAgent }

// Parts are at least one.
func (m *Manifest) Parts() []Part { return m.f.Parts }

// Part returns the part called name.
func (m *Manifest) Part(name string) (Part, bool) {
	for _, p := range m.f.Parts {
		if p.Name == name {
			return p, true
		}
	}
	return Part{}, false
}

// Health is what a trial must show.
func (m *Manifest) Health() Health { return m.f.Health }

// Rollout says who gets it when.
func (m *Manifest) Rollout() Rollout { return m.f.Rollout }

// Notes are for people: UTF-8 of at most MaxNotes bytes, without control characters but newline and tab.
func (m *Manifest) Notes() string { return m.f.Notes }

// DeltaFrom returns the delta that makes p of the part with that digest.
func (p Part) DeltaFrom(old Digest) (Delta, bool) {
	for _, d := range p.Deltas {
		if d.From == old {
			return d, true
		}
	}
	return Delta{}, false
}
