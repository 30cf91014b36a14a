package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

const (
	// maxSent is the most that Stage takes: a command's payload has little more room.
	maxSent = 64 << 10
	// maxRoots is the most certificates of one set.
	maxRoots = 32
	// maxFile bounds the configured file; a system's bundle is a quarter of it.
	maxFile = 1 << 20
	// countEvery is how often the running time of staged roots is stored: seven small writes
	// in the week that they may wait.
	countEvery = 24 * time.Hour
	// lookEvery is how soon it is noticed that the time of staged roots is over.
	lookEvery = 10 * time.Minute
)

// saved is what is kept of one purpose's roots, in one file, so that every change is one
// rename: a power cut leaves the old or the new.
type saved struct {
	Confirmed *confirmed `json:"confirmed,omitempty"`
	Staged    *staged    `json:"staged,omitempty"`
}

// confirmed is a set that stands in for the configured file.
type confirmed struct {
	PEM string `json:"pem"`
	// Replaces is the digest of the file that it stands in for.
	Replaces string    `json:"replaces"`
	At       time.Time `json:"at"`
}

// staged is a set that waits.
type staged struct {
	PEM     string    `json:"pem"`
	Since   time.Time `json:"since"`
	Trusted bool      `json:"trusted"` // Since was told by a clock that could be believed
	// Ran is for how long the agent has run since, up to the last storing.
	Ran    time.Duration `json:"ran"`
	Seen   bool          `json:"seen"`
	Needed bool          `json:"needed"`
}

// load reads what was saved. A damaged file is set aside: the configured roots stand.
func (r *Roots) load() saved {
	text, err := disk.ReadFile(r.o.FS, r.path, 4*maxSent)
	if errors.Is(err, fs.ErrNotExist) {
		return saved{}
	}
	var s saved
	if err == nil {
		if s, err = decode(text); err == nil {
			return s
		}
		// The name is of ours alone, so one that is set aside may be replaced by the next.
		if renameErr := r.o.FS.Rename(r.path, r.path+".bad"); renameErr == nil {
			_ = r.o.FS.SyncDir(filepath.Dir(r.path))
		}
	}
	r.o.event(slog.LevelError, "stored roots not usable, the configured ones stand", slog.String("for", r.config.Name), slog.Any("err", err))
	return saved{}
}

// decode reads a file of ours: the SHA-256 of the rest in hex, a line feed, JSON.
func decode(text []byte) (saved, error) {
	sum, body, _ := bytes.Cut(text, []byte("\n"))
	if string(sum) != digest(body) {
		return saved{}, errors.New("its checksum is wrong")
	}
	var s saved
	if err := json.Unmarshal(body, &s); err != nil {
		return saved{}, err
	}
	var errs []error
	if s.Confirmed != nil {
		_, err := parseRoots([]byte(s.Confirmed.PEM))
		errs = append(errs, err)
	}
	if s.Staged != nil {
		_, err := parseRoots([]byte(s.Staged.PEM))
		errs = append(errs, err)
	}
	return s, errors.Join(errs...)
}

// store replaces the file.
func (r *Roots) store(s saved) error {
	body, err := json.Marshal(s)
	if err == nil {
		err = disk.MakeFolder(r.o.FS, filepath.Dir(r.path))
	}
	if err == nil {
		sum := sha256.Sum256(body)
		text := append(append([]byte(hex.EncodeToString(sum[:])), '\n'), body...)
		err = atomicfile.Write(r.o.FS, r.path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("storing the roots: %w", err)
	}
	return nil
}

// age is how long the staged roots have waited: the longer of two measures. The time that the
// agent ran needs no clock, and misses what the device slept; the clock's is taken where it
// could be believed then and can be now.
func (r *Roots) age() time.Duration {
	st := r.saved.Staged
	age := st.Ran + time.Since(r.counted)
	if st.Trusted && r.o.Clock.Trusted() {
		age = max(age, r.o.Clock.Now().Sub(st.Since))
	}
	return age
}

// expire drops staged roots whose time is over, unless a connection needed them: who has moved
// and forgot to confirm is not to lose the fleet.
func (r *Roots) expire() bool {
	st := r.saved.Staged
	if st == nil || st.Needed || r.age() < r.config.ConfirmWithin {
		return false
	}
	if err := r.drop("staged roots were not confirmed in time, and are dropped"); err != nil {
		r.o.event(slog.LevelWarn, "dropping staged roots", slog.String("for", r.config.Name), slog.Any("err", err))
		r.saved.Staged, r.staged, r.pool = nil, nil, nil // the file follows at the next start
	}
	return true
}

// Run drops staged roots when their time is over, and keeps count of it. It ends with ctx.
func (r *Roots) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		if r.tick() {
			r.o.changed()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

func (r *Roots) tick() (expired bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.expire() {
		return true
	}
	if ran := time.Since(r.counted); r.saved.Staged != nil && ran >= countEvery {
		next, st := r.saved, *r.saved.Staged
		st.Ran += ran
		next.Staged = &st
		if err := r.store(next); err == nil {
			r.saved, r.counted = next, time.Now()
		}
	}
	return false
}

// parseRoots reads a set of roots strictly: bounded, authorities alone, each once.
func parseRoots(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxSent {
		return nil, fmt.Errorf("%d bytes, and %d are allowed", len(text), maxSent)
	}
	var roots []*x509.Certificate
	rest := text
	for len(roots) <= maxRoots {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			// Perhaps somebody's private key: it is named, and neither stored nor shown.
			return nil, hint.With(fmt.Errorf("it holds a block of another kind (%.20q)", block.Type), "send certificates alone")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", len(roots)+1, err)
		}
		if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return nil, hint.With(fmt.Errorf("%q is no authority", c.Subject.String()), "send the certificate of the authority, not one that it issued")
		}
		if !slices.ContainsFunc(roots, c.Equal) {
			roots = append(roots, c)
		}
	}
	switch {
	case len(roots) > maxRoots:
		return nil, fmt.Errorf("more than %d certificates", maxRoots)
	case len(roots) == 0:
		return nil, hint.With(errors.New("there is no certificate"), "send PEM text (-----BEGIN CERTIFICATE-----)")
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, errors.New("there is something behind the last certificate")
	}
	return roots, nil
}

// lenient reads the certificates of a configured file as crypto/x509 does: what is not one is
// passed over, since a file of the operator's has worked so all along.
func lenient(text []byte) []*x509.Certificate {
	var roots []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return roots
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) != 0 {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && !slices.ContainsFunc(roots, c.Equal) {
			roots = append(roots, c)
		}
	}
}

func encode(certificates []*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
