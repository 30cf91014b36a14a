// Package audit is a log of what mattered, in which nothing can be changed unseen: every line names the hash of the
// line before it, and the device's key signs the head. The trap is the end: a tail that a power cut tore looks like one
// that was tampered with, so every line proves itself, what is torn is kept and named, and only the signed head says
// how far the log must reach.
package audit

import (
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/quantity"
)

const (
	// HeadType and KeyType are the "typ" of a signed head and of the old key's word for a new one.
	HeadType, KeyType = "ferrule-audit+jwt", "ferrule-audit-key+jwt"

	prefix, suffix         = "audit-", ".jsonl" // of segments; between them a running number of 10 digits
	headPrefix, headSuffix = "head-", ".jws"    // of signed heads; between them the thumbprint of the key
	maxHeads               = 4                  // of former keys, for whoever kept their certificates

	maxAttrs = 24
	maxKey   = 48  // bytes of the name of a field
	maxValue = 768 // bytes of a value; a signed statement fits
	// MaxLine is the longest line, in bytes, the line end included.
	MaxLine = 8 << 10
	// maxBatch bounds what is written between two syncs, and with it what a power cut can tear, in bytes.
	maxBatch = 64 << 10
	maxQueue = 256 // lines that wait for the disk

	minBytes    = 256 << 10
	segments    = 8                      // a full log has so many
	maxSegments = 4 * segments           // each power cut that tears a line begins one
	syncPause   = 200 * time.Millisecond // between two writes: a flood costs five syncs a second
	signPause   = 10 * time.Second       // between two heads, however much there is to sign
	signRetry   = time.Minute            // after the key refused
	signLines   = 64                     // so many unsigned lines do not wait for SignEvery
)

// Config is the [audit] section.
type Config struct {
	// How much disk the audit log may take; the oldest part goes first.
	MaxBytes quantity.Size `toml:"max_bytes"`
	// How long new lines may wait until the device's key signs the head of the log; one TPM command each time, none
	// while nothing happens.
	SignEvery quantity.Duration `toml:"sign_every"`
}

// Default returns the section as it is when the file says nothing.
func Default() Config {
	return Config{MaxBytes: 4 << 20, SignEvery: quantity.Duration(10 * time.Minute)}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	var problems []error
	if c.MaxBytes < minBytes {
		problems = append(problems, fmt.Errorf("audit.max_bytes is %v; at least %v are needed", c.MaxBytes, quantity.Size(minBytes)))
	}
	if c.SignEvery.Std() < signPause {
		problems = append(problems, fmt.Errorf("audit.sign_every is %v; at least %v is needed to spare the TPM", c.SignEvery, signPause))
	}
	return errors.Join(problems...)
}

var (
	// ErrFull: lines come faster than the disk takes them; this one is counted as lost.
	ErrFull = errors.New("audit log takes no more lines at present")
	// ErrClosed: the log is closed.
	ErrClosed = errors.New("audit log is closed")
)

// Event is one thing that happened. Name is a word such as "command.refused"; values of Attrs may come from anywhere.
type Event struct {
	Name  string
	Attrs []slog.Attr
	// Essential exempts the event from the limit of 32 of a name at once and one a minute, which keeps a stranger
	// from pushing older lines out: for what a stranger cannot cause.
	Essential bool
}

// Clock is what is known of the time (agent/clock).
type Clock interface {
	Now() time.Time
	Trusted() bool
}

// Options is what a Log needs of others.
type Options struct {
	Config Config
	FS     disk.FS
	Dir    string
	// Device is the device's id; Key is its key of the moment, nil while there is none.
	Device func() string
	Key    func() crypto.Signer
	Clock  Clock
	Log    *slog.Logger
}

// Status is what the log says of itself.
type Status struct {
	First uint64 `json:"first"` // sequence numbers that are kept
	Last  uint64 `json:"last"`
	// Signed is the last line that the head proves, Hash that line's hash: who keeps both elsewhere notices a log
	// that was set back as a whole.
	Signed     uint64 `json:"signed"`
	Hash       string `json:"hash,omitempty"`
	Suppressed uint64 `json:"suppressed"` // by the limit
	Lost       uint64 `json:"lost"`       // for want of a disk
	// Problem is why lines or the head cannot be stored, "" when all is well.
	Problem string `json:"problem,omitempty"`
}
