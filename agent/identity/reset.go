package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// resetFile marks a reset that is under way: while it is there nothing else opens.
const resetFile = "reset"

// badSuffix ends the name of a damaged file that a part has set aside.
const badSuffix = ".bad"

// resetMark is its content.
type resetMark struct {
	// All says that the factory identity goes too.
	All bool `json:"all"`
}

// DefaultState is what the agent's parts keep in the state directory beside the identity.
func DefaultState() []string {
	return []string{"outbox", "journal", "authorizations", "audit", "roots", "revocation", "time", "way", "budget", "trial.json", "local-tls.pem"}
}

// Reset takes the device back to its factory identity: the operational key and certificate, what
// was staged, lost or collected, and what the other parts keep (Options.State) are removed; the
// factory's key and certificate stay unless all is true. The storage root key stays: it is the
// TPM's, and comes back the same. A power cut anywhere is made good by Open, which goes on with
// it. The caller holds the lock of the state directory.
//
// Nothing is overwritten before it is removed: on flash that would write the new bytes elsewhere,
// and wear it. What must not be found later is kept in the TPM, whose key files are no secret.
func Reset(ctx context.Context, c Config, o Options, all bool) (removed []string, err error) {
	text, err := json.Marshal(resetMark{All: all})
	if err != nil {
		return nil, err
	}
	if err := disk.MakeFolder(o.FS, o.StateDir); err != nil {
		return nil, fmt.Errorf("beginning the reset: %w", err)
	}
	if err := atomicfile.Write(o.FS, filepath.Join(o.StateDir, resetFile), text, 0o600); err != nil {
		return nil, fmt.Errorf("beginning the reset: %w", err)
	}
	return reset(ctx, c, o, all)
}

// finishReset goes on with a reset that a power cut ended.
func finishReset(ctx context.Context, c Config, o Options) error {
	text, err := disk.ReadFile(o.FS, filepath.Join(o.StateDir, resetFile), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var mark resetMark
	if err == nil {
		err = json.Unmarshal(text, &mark)
	}
	if err == nil {
		o.Log.WarnContext(ctx, "reset goes on that was interrupted")
		_, err = reset(ctx, c, o, mark.All)
	}
	if err != nil {
		return hint.With(fmt.Errorf("finishing a reset that was interrupted: %w", err), "run it again: ferrule reset")
	}
	return nil
}

// reset can be repeated until it succeeds; the mark goes last.
func reset(ctx context.Context, c Config, o Options, all bool) ([]string, error) {
	e := eraser{o: o}
	i := newIdentity(c, o)
	defer func() { _ = i.Close() }()
	roles := []Config{c}
	factory := c.Factory != (Factory{})
	if factory && all {
		roles = append(roles, c.ForFactory())
	}
	kept := factory && !all && e.exists(o.below(c.Factory.Certificate))
	for _, role := range roles {
		e.certificate(o.below(role.Certificate))
		e.key(ctx, role.Key, i.keyOptions(record{}))
	}
	state := o.State
	if state == nil {
		state = DefaultState()
	}
	for _, name := range append(slices.Clone(state), collectedFile) {
		e.below(name)
	}
	if kept {
		e.keepRecord(c)
	} else {
		e.file(filepath.Join(o.StateDir, recordFile))
	}
	e.sync(o.StateDir)
	if err := errors.Join(e.problems...); err != nil {
		return e.removed, fmt.Errorf("resetting: %w", err)
	}
	o.event(ctx, EventReset)
	mark := filepath.Join(o.StateDir, resetFile)
	err := o.FS.Remove(mark)
	if err == nil {
		err = o.FS.SyncDir(o.StateDir)
	}
	if err != nil {
		return e.removed, fmt.Errorf("ending the reset: %w", err)
	}
	return e.removed, nil
}

// eraser removes what is there, goes on where something cannot be, and keeps both lists.
type eraser struct {
	o        Options
	removed  []string
	problems []error
}

func (e *eraser) note(what string, err error) {
	switch {
	case err == nil:
		e.removed = append(e.removed, what)
	case !errors.Is(err, fs.ErrNotExist):
		e.problems = append(e.problems, err)
	}
}

func (e *eraser) exists(path string) bool {
	f, err := e.o.FS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

func (e *eraser) file(path string) { e.note(path, e.o.FS.Remove(path)) }

func (e *eraser) sync(folder string) {
	if err := e.o.FS.SyncDir(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.problems = append(e.problems, err)
	}
}

func (e *eraser) certificate(path string) {
	for _, name := range []string{path, path + nextSuffix} {
		e.file(name)
		e.file(name + atomicfile.Suffix)
	}
	e.sync(filepath.Dir(path))
}

// key removes a key with its successor and what was set aside. A helper's key is not ours.
func (e *eraser) key(ctx context.Context, uri string, o tpm.KeyOptions) {
	_, none := tpm.PublicOf(uri, o)
	err := tpm.Remove(ctx, uri, o)
	if err == nil && errors.Is(none, tpm.ErrNoKey) {
		return // there was none; what lay beside it is gone too
	}
	if errors.Is(err, tpm.ErrUnsupported) {
		e.o.Log.WarnContext(ctx, "key not removed", "err", err)
		return
	}
	e.note(uri, err)
}

// below removes a file or a folder of the state directory, what an atomic write left of it, and a
// damaged one that was set aside.
// A name that leads elsewhere is refused.
func (e *eraser) below(name string) {
	if !filepath.IsLocal(name) || filepath.Clean(name) == "." {
		e.problems = append(e.problems, fmt.Errorf("%q does not lie in the state directory", name))
		return
	}
	path := filepath.Join(e.o.StateDir, name)
	if entries, err := e.o.FS.ReadDir(path); err == nil {
		for _, entry := range entries {
			e.below(filepath.Join(name, entry.Name()))
		}
		e.sync(path)
	}
	e.file(path)
	for _, left := range []string{atomicfile.Suffix, badSuffix} {
		e.file(path + left)
	}
}

// keepRecord leaves of the record what belongs to the factory identity: by what it knows its TPM.
func (e *eraser) keepRecord(c Config) {
	r, err := readRecord(e.o)
	if err != nil {
		e.problems = append(e.problems, err)
		return
	}
	chain, _, err := readChain(e.o, c.Factory.Certificate)
	if err != nil {
		e.problems = append(e.problems, err)
		return
	}
	kept := record{Device: chain[0].Subject.CommonName, SRKName: r.SRKName, EKName: r.EKName}
	if err := writeRecord(e.o, kept); err != nil {
		e.problems = append(e.problems, err)
	}
}
