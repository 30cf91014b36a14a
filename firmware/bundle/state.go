package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/manifest"
	"ferrule/firmware/tuf"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// state is what is published: the files that timestamp.json leads to, each checked against the
// keys of the root and against what vouches for it. That they may have expired is no mistake
// here: who signs anew has to read them first.
type state struct {
	root      *metadata.Metadata[metadata.RootType]
	previous  *metadata.Metadata[metadata.RootType] // the root before; nil for the first
	timestamp *metadata.Metadata[metadata.TimestampType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	targets   *metadata.Metadata[metadata.TargetsType]
	releases  map[string]*manifest.Manifest // by target, PRODUCT/VERSION
	highest   map[string]highest            // by product
	// old holds the roles that are signed as the root before asked: a rotation was cut.
	old map[string]bool
}

// highest is the highest numbers that a product has been released with. They outlive the releases:
// a device that has installed one that was taken back would not look at a number that comes again.
// They lie among what targets sign, where clients pass over them.
type highest struct {
	Release  uint64 `json:"release"`
	Security uint64 `json:"security_version"`
}

// highestMember is the member of the signed targets that holds them.
const highestMember = "x-ferrule-highest"

// load reads what is published. Errors are ErrDamaged, or the disk's.
func (r *Repository) load() (*state, error) {
	s, err := r.loadSigned()
	if err != nil {
		return nil, err
	}
	return s, s.readReleases()
}

// loadSigned reads it without a look at what the manifests say.
func (r *Repository) loadSigned() (*state, error) {
	s := &state{old: make(map[string]bool), releases: make(map[string]*manifest.Manifest)}
	if err := r.loadRoots(s); err != nil {
		return nil, err
	}
	var err error
	if s.timestamp, err = loadRole[metadata.TimestampType](r, s, timestampRole, 0, nil); err != nil {
		return nil, err
	}
	vouched := s.timestamp.Signed.Meta["snapshot.json"]
	if vouched == nil {
		return nil, fmt.Errorf("reading timestamp.json: %w: it names no snapshot.json", ErrDamaged)
	}
	if s.snapshot, err = loadRole[metadata.SnapshotType](r, s, snapshotRole, vouched.Version, vouched); err != nil {
		return nil, err
	}
	if vouched = s.snapshot.Signed.Meta["targets.json"]; vouched == nil {
		return nil, fmt.Errorf("reading the snapshot: %w: it names no targets.json", ErrDamaged)
	}
	if s.targets, err = loadRole[metadata.TargetsType](r, s, targetsRole, vouched.Version, vouched); err != nil {
		return nil, err
	}
	return s, nil
}

// loadRoots follows the chain of roots from the oldest that is here.
func (r *Repository) loadRoots(s *state) error {
	versions, err := r.versions(rootRole)
	if err != nil {
		return err
	}
	if len(versions) == 0 {
		return fmt.Errorf("reading %s: %w: it has no root", r.path(metadataDir), ErrDamaged)
	}
	for i, version := range versions {
		name := metadataName(version, rootRole)
		text, err := disk.ReadFile(r.o.FS, r.path(name), maxMetadata)
		if err != nil {
			return err
		}
		root, err := new(metadata.Metadata[metadata.RootType]).FromBytes(text)
		if err == nil && root.Signed.Version != version {
			err = fmt.Errorf("it is version %d", root.Signed.Version)
		}
		if err == nil && i > 0 && version != versions[i-1]+1 {
			err = fmt.Errorf("the one before it is missing")
		}
		if err == nil {
			err = root.VerifyDelegate(rootRole, root)
		}
		if err == nil && s.root != nil {
			err = s.root.VerifyDelegate(rootRole, root)
		}
		if err == nil {
			err = checkRoles(&root.Signed)
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w: %w", name, ErrDamaged, err)
		}
		s.previous, s.root = s.root, root
	}
	return nil
}

func checkRoles(root *metadata.RootType) error {
	for _, role := range roles() {
		named := root.Roles[role]
		if named == nil || named.Threshold < 1 || named.Threshold > len(named.KeyIDs) {
			return fmt.Errorf("role %s has no sound threshold", role)
		}
	}
	if !root.ConsistentSnapshot {
		return errors.New("consistent_snapshot is not set")
	}
	return nil
}

// versions lists the versions of a role's files, rising.
func (r *Repository) versions(role string) ([]int64, error) {
	names, err := r.list(metadataDir)
	if err != nil {
		return nil, err
	}
	var versions []int64
	for _, name := range names {
		number, ok := strings.CutSuffix(strings.TrimPrefix(name, metadataDir+"/"), "."+role+".json")
		if version, err := strconv.ParseInt(number, 10, 64); ok && err == nil && metadataName(version, role) == name {
			versions = append(versions, version)
		}
	}
	slices.Sort(versions)
	return versions, nil
}

// loadRole reads the file of a role and checks it: by whom it is signed, and that it is the one
// that is vouched for.
func loadRole[T metadata.Roles](r *Repository, s *state, role string, version int64, vouched *metadata.MetaFiles) (*metadata.Metadata[T], error) {
	name := metadataName(version, role)
	text, err := disk.ReadFile(r.o.FS, r.path(name), maxMetadata)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %s is missing", ErrDamaged, name)
		return nil, hint.With(err, "bring it back from a copy of the repository, of the server's too; or, where the repository was being made, run keys init again")
	}
	if err != nil {
		return nil, err
	}
	if vouched != nil {
		if err := vouched.VerifyLengthHashes(text); err != nil {
			return nil, fmt.Errorf("reading %s: %w: %w", name, ErrDamaged, err)
		}
	}
	meta, err := new(metadata.Metadata[T]).FromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", name, ErrDamaged, err)
	}
	err = s.root.VerifyDelegate(role, meta)
	if err != nil && s.previous != nil && s.previous.VerifyDelegate(role, meta) == nil {
		s.old[role], err = true, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", name, ErrDamaged, err)
	}
	return meta, nil
}

func (s *state) readReleases() error {
	raw, err := json.Marshal(s.targets.Signed.UnrecognizedFields[highestMember])
	if err == nil {
		err = json.Unmarshal(raw, &s.highest)
	}
	if err != nil {
		return fmt.Errorf("reading %s of the targets: %w: %w", highestMember, ErrDamaged, err)
	}
	if s.highest == nil {
		s.highest = make(map[string]highest)
	}
	for name, target := range s.targets.Signed.Targets {
		if target.Custom == nil {
			continue
		}
		m, err := reopen(*target.Custom)
		if err == nil && m.Target() != name {
			err = fmt.Errorf("it describes %s", m.Target())
		}
		if err != nil {
			return fmt.Errorf("reading the manifest of %s: %w: %w", name, ErrDamaged, err)
		}
		s.releases[name] = m
		s.count(m)
	}
	return nil
}

// count remembers the numbers of a release.
func (s *state) count(m *manifest.Manifest) {
	h := s.highest[m.Product()]
	s.highest[m.Product()] = highest{max(h.Release, m.Release()), max(h.Security, m.SecurityVersion())}
}

// newest lists releases, the newest first.
func newest(releases map[string]*manifest.Manifest) []*manifest.Manifest {
	return slices.SortedFunc(maps.Values(releases), func(a, b *manifest.Manifest) int {
		return cmp.Or(cmp.Compare(b.Release(), a.Release()), cmp.Compare(a.Target(), b.Target()))
	})
}

// of keeps the releases of a product.
func of(releases []*manifest.Manifest, product string) []*manifest.Manifest {
	return slices.DeleteFunc(slices.Clone(releases), func(m *manifest.Manifest) bool { return m.Product() != product })
}

// set replaces the manifest of a release, and the targets that it names.
func (s *state) set(m *manifest.Manifest) {
	s.drop(m.Target())
	for name, o := range objects(m) {
		s.targets.Signed.Targets[name] = targetFile(o)
	}
	raw := slices.Clone(m.Raw())
	s.targets.Signed.Targets[m.Target()].Custom = (*jsonRaw)(&raw)
	s.releases[m.Target()] = m
	s.count(m)
	if s.targets.Signed.UnrecognizedFields == nil {
		s.targets.Signed.UnrecognizedFields = make(map[string]any)
	}
	s.targets.Signed.UnrecognizedFields[highestMember] = s.highest
}

// drop takes a release out, and the targets that no other one names.
func (s *state) drop(release string) {
	m := s.releases[release]
	if m == nil {
		return
	}
	delete(s.releases, release)
	for name := range objects(m) {
		delete(s.targets.Signed.Targets, name)
	}
	for _, other := range s.releases { // none names another's, but nothing would tell if it did
		for name, o := range objects(other) {
			if s.targets.Signed.Targets[name] == nil {
				s.targets.Signed.Targets[name] = targetFile(o)
			}
		}
	}
}

// objects are the files that a manifest names, by their targets.
func objects(m *manifest.Manifest) map[string]manifest.Object {
	out := make(map[string]manifest.Object)
	for _, p := range m.Parts() {
		all := []manifest.Object{p.Full}
		for _, d := range p.Deltas {
			all = append(all, d.Object)
		}
		for _, o := range all {
			if name, ok := manifest.TargetOf(o); ok {
				out[name] = o
			}
		}
	}
	return out
}

func targetFile(o manifest.Object) *metadata.TargetFiles {
	return &metadata.TargetFiles{Length: o.Size, Hashes: metadata.Hashes{"sha256": o.SHA256[:]}}
}

// work says what a publication signs beside the timestamp.
type work struct {
	root     []byte // the next root, signed; nil: none
	targets  bool
	snapshot bool
}

type file struct {
	name string
	data []byte
}

// commit signs what is to be signed, then writes it so that a reader sees the old release until
// the last file is there: everything but timestamp.json has a name of its own. Nothing is
// written where a key is missing.
func (r *Repository) commit(s *state, keys Keys, w work) error {
	w.targets = w.targets || s.old[targetsRole]
	w.snapshot = w.snapshot || w.targets || s.old[snapshotRole]
	var files []file
	add := func(role string, version int64, data []byte) *metadata.MetaFiles {
		files = append(files, file{metadataName(version, role), data})
		sum := sha256.Sum256(data)
		return &metadata.MetaFiles{Version: version, Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
	}
	if err := r.skip(s); err != nil {
		return err
	}
	if w.targets {
		signed := &s.targets.Signed
		data, err := renew(r, s, keys, targetsRole, s.targets, &signed.Version, &signed.Expires)
		if err != nil {
			return err
		}
		s.snapshot.Signed.Meta["targets.json"] = add(targetsRole, signed.Version, data)
	}
	if w.snapshot {
		signed := &s.snapshot.Signed
		data, err := renew(r, s, keys, snapshotRole, s.snapshot, &signed.Version, &signed.Expires)
		if err != nil {
			return err
		}
		s.timestamp.Signed.Meta["snapshot.json"] = add(snapshotRole, signed.Version, data)
	}
	signed := &s.timestamp.Signed
	data, err := renew(r, s, keys, timestampRole, s.timestamp, &signed.Version, &signed.Expires)
	if err != nil {
		return err
	}
	if w.root != nil {
		files = append(files, file{stagedRoot, w.root})
		add(rootRole, s.root.Signed.Version, w.root)
	}
	add(timestampRole, signed.Version, data)
	for _, f := range files {
		if err := r.write(f.name, f.data); err != nil {
			return err
		}
	}
	clear(s.old)
	return nil
}

// skip leaves out the versions of a run that was cut: its last rename may have been seen by a
// device, and then lost with the power. Another file of that version would be a riddle to it.
func (r *Repository) skip(s *state) error {
	for role, version := range map[string]*int64{targetsRole: &s.targets.Signed.Version, snapshotRole: &s.snapshot.Signed.Version} {
		have, err := r.versions(role)
		if err != nil {
			return err
		}
		if n := len(have); n > 0 && have[n-1] > *version {
			if role == snapshotRole {
				s.timestamp.Signed.Version += have[n-1] - *version
			}
			*version = have[n-1]
		}
	}
	return nil
}

// renew signs the next version of a role's file, and looks at it as a reader does.
func renew[T metadata.Roles](r *Repository, s *state, keys Keys, role string, meta *metadata.Metadata[T], version *int64, expires *timeT) ([]byte, error) {
	var err error
	if *expires, err = r.expiry(role); err != nil {
		return nil, err
	}
	*version++
	data, err := sign(&s.root.Signed, role, keys, meta)
	if err != nil {
		return nil, err
	}
	if most := limit(role); int64(len(data)) > most {
		err := fmt.Errorf("signing %s: it would have %d bytes, and devices read at most %d", role, len(data), most)
		return nil, hint.With(err, "take old releases out: ferrule-release publish --keep N")
	}
	back, err := new(metadata.Metadata[T]).FromBytes(bytes.Clone(data))
	if err == nil {
		err = s.root.VerifyDelegate(role, back)
	}
	if err != nil {
		return nil, fmt.Errorf("reading back what was signed for %s: %w", role, err)
	}
	return data, nil
}

// limit is the most bytes of a role's file that devices read.
func limit(role string) int64 {
	switch role {
	case rootRole:
		return tuf.RootLimit
	case targetsRole:
		return tuf.TargetsLimit
	case snapshotRole:
		return tuf.SnapshotLimit
	}
	return tuf.TimestampLimit
}
