// Package trust says which authorities are believed and which certificates they took back. The
// trap is the operator's own hand: a wrong set of roots, sent to a whole fleet, is a fleet that
// nobody can reach again. So new roots stand beside the old ones until a connection has shown
// that they suffice, and roots that a connection needs cannot be dropped.
package trust

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"ferrule/internal/disk"
)

var (
	// ErrNothingStaged says that no roots wait to be confirmed or discarded.
	ErrNothingStaged = errors.New("no roots are staged")
	// ErrNotSeen says that no connection has been verified by the staged roots alone.
	ErrNotSeen = errors.New("no connection was verified by the staged roots alone yet")
	// ErrInUse says that the last connection needed the staged roots.
	ErrInUse = errors.New("the last connection needed the staged roots")
	// ErrRefused says that what was sent cannot be a set of roots.
	ErrRefused = errors.New("these roots are not taken")
)

// Clock tells the time, and whether to believe it (agent/clock).
type Clock interface {
	// Now is never before Floor.
	Now() time.Time
	// Floor is a time that has certainly passed.
	Floor() time.Time
	Trusted() bool
}

// Options is what this package needs of its surroundings.
type Options struct {
	FS disk.FS
	// StateDir holds roots/ and revocation/.
	StateDir string
	Clock    Clock
	Log      *slog.Logger
	// Changed is called, with no lock held, when a connection that stands may no longer be
	// good: other roots are believed, or a list has changed. It must not wait. nil: nobody asks.
	Changed func()
}

func (o Options) changed() {
	if o.Changed != nil {
		o.Changed()
	}
}

func (o Options) event(level slog.Level, event string, attrs ...slog.Attr) {
	o.Log.LogAttrs(context.Background(), level, event, attrs...)
}

// Root describes one authority.
type Root struct {
	Subject string `json:"subject"`
	// Fingerprint is the SHA-256 of the certificate in hex.
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
}

func describe(certificates []*x509.Certificate) []Root {
	roots := make([]Root, len(certificates))
	for i, c := range certificates {
		roots[i] = Root{Subject: c.Subject.String(), Fingerprint: digest(c.Raw), NotAfter: c.NotAfter}
	}
	return roots
}

// digest is the SHA-256 of data in hex.
func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
