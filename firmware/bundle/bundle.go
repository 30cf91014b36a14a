// Package bundle writes what package firmware reads: manifests, objects and the repository that
// signs them. It runs at the release engineer's, never on a device. The trap is publishing half a
// release: a repository is one folder of static files that devices read while it is written, so
// the file that makes a release visible is written last.
//
// Tests that need a signed repository, good or bad, make one with package bundletest:
//
//	r, err := bundletest.New(t.TempDir(), nil, bundletest.Of("1.0.0", image))
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The folders of a repository. The first two are what devices read; the third holds what is not
// published yet.
const (
	metadataDir  = "metadata"
	targetsDir   = "targets"
	stagedDir    = "staged"
	tempDir      = "staged/temp"
	settingsFile = "ferrule-release.json"
)

// Bounds of what is read from a repository's folder.
const (
	maxMetadata = 64 << 20
	maxSettings = 64 << 10
)

// Errors that callers tell apart.
var (
	ErrNoRepository = errors.New("there is no repository")
	ErrKeys         = errors.New("the keys do not suffice")
	ErrDamaged      = errors.New("the repository is damaged")
	ErrRefused      = errors.New("the release is refused")
	ErrUnknown      = errors.New("there is no such release")
)

// Options are what a Repository needs. FS and Dir are required.
type Options struct {
	FS  disk.FS
	Dir string
	// Now is the time that expiries count from; nil: time.Now.
	Now func() time.Time
	// Progress is told how far what takes long is, in bytes; nil: nobody watches.
	Progress func(what string, done, all int64)
	// Quick has the encoder take a third of the time, for somewhat larger objects: for tests.
	Quick bool
}

// Repository is a repository in a folder. Its methods read the folder anew each time; two that
// write must not run at once (Lock).
type Repository struct {
	o        Options
	settings settings
}

// Settings is what a repository remembers beside its signed files. Everything of it is public.
type settings struct {
	Schema  int               `json:"schema"`
	Deltas  int               `json:"deltas"`  // to how many older releases
	Expires map[string]string `json:"expires"` // role → how long its signature holds
}

// Open opens the repository in o.Dir. Errors are ErrNoRepository.
func Open(o Options) (*Repository, error) {
	r := with(o)
	text, err := disk.ReadFile(r.o.FS, r.path(settingsFile), maxSettings)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint.With(fmt.Errorf("opening %s: %w", o.Dir, ErrNoRepository), "make one: ferrule-release keys init "+o.Dir+" --keys KEYS --root ROOTKEYS")
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &r.settings); err != nil {
		return nil, fmt.Errorf("reading %s: %w", r.path(settingsFile), err)
	}
	if r.settings.Schema != 1 {
		return nil, fmt.Errorf("reading %s: schema %d is not known", r.path(settingsFile), r.settings.Schema)
	}
	for _, role := range roles() {
		if _, err := r.life(role); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func with(o Options) *Repository {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	return &Repository{o: o}
}

func (r *Repository) writeSettings() error {
	text, err := json.MarshalIndent(r.settings, "", "  ")
	if err != nil {
		return err
	}
	return r.write(settingsFile, append(text, '\n'))
}

// life is how long a signature of a role holds.
func (r *Repository) life(role string) (time.Duration, error) {
	text, ok := r.settings.Expires[role]
	if !ok {
		return defaultLife(role), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Minute {
		return 0, fmt.Errorf("reading %s: expires.%s is %q, and a duration of at least a minute is needed", r.path(settingsFile), role, text)
	}
	return d, nil
}

// expiry is when what a role signs now runs out.
func (r *Repository) expiry(role string) (time.Time, error) {
	d, err := r.life(role)
	return r.now().Add(d), err
}

// now is in whole seconds, as metadata has it.
func (r *Repository) now() time.Time { return r.o.Now().UTC().Truncate(time.Second) }

// path is where a file of the repository lies on this machine.
func (r *Repository) path(name string) string {
	return filepath.Join(r.o.Dir, filepath.FromSlash(name))
}

func metadataName(version int64, role string) string {
	if role == timestampRole {
		return metadataDir + "/" + role + ".json"
	}
	return metadataDir + "/" + strconv.FormatInt(version, 10) + "." + role + ".json"
}

// write replaces one file of the repository, durably.
func (r *Repository) write(name string, data []byte) error {
	if err := r.folderOf(name); err != nil {
		return err
	}
	return atomicfile.Write(r.o.FS, r.path(name), data, 0o644)
}

// folderOf makes the folders above a file, durably, down from the repository's own.
func (r *Repository) folderOf(name string) error {
	elements := strings.Split(name, "/")
	folder := r.o.Dir
	if err := r.folder(folder); err != nil {
		return err
	}
	for _, element := range elements[:len(elements)-1] {
		folder = filepath.Join(folder, element)
		if err := r.folder(folder); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) folder(name string) error {
	if _, err := r.o.FS.ReadDir(name); err == nil {
		return nil
	}
	if err := r.o.FS.MkdirAll(name, 0o755); err != nil {
		return fmt.Errorf("making folder %s: %w", name, err)
	}
	if err := r.o.FS.SyncDir(filepath.Dir(name)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("making folder %s: %w", name, err)
	}
	return nil
}

// list is every file below a folder of the repository, as slash-separated names from its root,
// sorted.
func (r *Repository) list(folder string) ([]string, error) {
	entries, err := r.o.FS.ReadDir(r.path(folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := folder + "/" + e.Name()
		if !e.IsDir() {
			names = append(names, name)
			continue
		}
		below, err := r.list(name)
		if err != nil {
			return nil, err
		}
		names = append(names, below...)
	}
	return names, nil
}

// remove removes a file that may be gone already.
func (r *Repository) remove(name string) error {
	if err := r.o.FS.Remove(r.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
