package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

type (
	jsonRaw = json.RawMessage
	timeT   = time.Time
)

// Quorum is how many keys a role has, and how many of them must sign.
type Quorum struct{ Threshold, Keys int }

// Setup is how a repository is made.
type Setup struct {
	Keys    string                   // the folder of the keys of targets, snapshot and timestamp
	Root    string                   // the folder of the root's keys
	Kind    string                   // Ed25519 or P256; "" is Ed25519
	Quorums map[string]Quorum        // by role; 1 of 1 where there is none
	Expires map[string]time.Duration // by role; where there is none, three years, one year, 30 and 14 days
	Deltas  int                      // to how many older releases bundles make deltas
}

// Init makes a repository with its keys, empty and signed: devices can be given its root from then
// on. Run again it finishes what was cut, and changes nothing of what is done. Key files that lie
// in the folders already are taken.
func Init(o Options, setup Setup) (*Repository, error) {
	if r, err := Open(o); !errors.Is(err, ErrNoRepository) {
		return r, err
	}
	for _, folder := range []string{setup.Keys, setup.Root} {
		if folder == "" {
			return nil, fmt.Errorf("making a repository: %w: a folder for keys is missing", ErrKeys)
		}
		if err := outside(o.Dir, folder); err != nil {
			return nil, err
		}
	}
	r := with(o)
	r.settings = settings{Schema: 1, Deltas: setup.Deltas, Expires: make(map[string]string)}
	for _, role := range roles() {
		life := setup.Expires[role]
		if life == 0 {
			life = defaultLife(role)
		}
		r.settings.Expires[role] = life.String()
		if _, err := r.life(role); err != nil {
			return nil, err
		}
	}
	s, keys, err := r.firstRoot(setup)
	if err != nil {
		return nil, err
	}
	if err := r.firstFiles(s, keys); err != nil {
		return nil, err
	}
	return r, r.writeSettings()
}

// outside refuses a folder of keys within the repository: it would be uploaded.
func outside(repository, folder string) error {
	r, err := filepath.Abs(repository)
	if err != nil {
		return err
	}
	f, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	if f == r || strings.HasPrefix(f, r+string(filepath.Separator)) {
		return hint.With(fmt.Errorf("keeping keys in %s: it lies in the repository, which is uploaded", folder), "name a folder beside it")
	}
	return nil
}

// firstRoot makes the keys, and the root that names them, unless a run that was cut has written it.
func (r *Repository) firstRoot(setup Setup) (*state, Keys, error) {
	expires, err := r.expiry(rootRole)
	if err != nil {
		return nil, nil, err
	}
	s := &state{root: metadata.Root(expires), old: make(map[string]bool)}
	var keys Keys
	for _, role := range roles() {
		folder := setup.Keys
		if role == rootRole {
			folder = setup.Root
		}
		q, ok := setup.Quorums[role]
		if !ok {
			q = Quorum{1, 1}
		}
		if q.Threshold < 1 || q.Threshold > q.Keys || q.Keys > 16 {
			return nil, nil, fmt.Errorf("role %s: %d of %d keys cannot be asked for", role, q.Threshold, q.Keys)
		}
		made, err := makeKeys(r.o.FS, folder, role, setup.kind(), q.Keys, nil)
		if err != nil {
			return nil, nil, err
		}
		keys = append(keys, made...)
		if err := name(&s.root.Signed, role, made, q.Threshold); err != nil {
			return nil, nil, err
		}
	}
	if have, err := r.versions(rootRole); err != nil || len(have) > 0 {
		return s, keys, errors.Join(err, r.loadRoots(s))
	}
	data, err := sign(&s.root.Signed, rootRole, keys, s.root)
	if err != nil {
		return nil, nil, err
	}
	return s, keys, r.write(metadataName(1, rootRole), data)
}

func (s Setup) kind() string {
	if s.Kind == "" {
		return Ed25519
	}
	return s.Kind
}

// name has the root name these keys, and no others, for a role.
func name(root *metadata.RootType, role string, keys Keys, threshold int) error {
	for _, id := range slices.Clone(root.Roles[role].KeyIDs) {
		if err := root.RevokeKey(id, role); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if err := root.AddKey(k.public, role); err != nil {
			return err
		}
	}
	slices.Sort(root.Roles[role].KeyIDs)
	root.Roles[role].Threshold = threshold
	return nil
}

// firstFiles publishes nothing: an empty repository.
func (r *Repository) firstFiles(s *state, keys Keys) error {
	if _, err := disk.ReadFile(r.o.FS, r.path(metadataName(0, timestampRole)), maxMetadata); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if have, err := r.versions(targetsRole); err != nil || len(have) > 0 && have[len(have)-1] > 1 {
		return errors.Join(err, fmt.Errorf("making a repository: %w: timestamp.json is missing, and devices know an older one", ErrDamaged))
	}
	s.targets, s.snapshot, s.timestamp = metadata.Targets(), metadata.Snapshot(), metadata.Timestamp()
	s.targets.Signed.Version, s.snapshot.Signed.Version, s.timestamp.Signed.Version = 0, 0, 0
	if err := r.folderOf(targetsDir + "/x"); err != nil {
		return err
	}
	return r.commit(s, keys, work{targets: true})
}
