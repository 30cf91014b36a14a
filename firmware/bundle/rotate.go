package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/tuf"
	"ferrule/internal/disk"
)

// Rotation is what changes of the keys.
type Rotation struct {
	Role   string   // whose keys are replaced; "": nobody's, the root is signed anew for its time
	Drop   []string // beginnings of the ids of the keys that go; none: all of the role
	Kind   string   // of the new ones
	Folder string   // where they are written
	// Quorum replaces how many keys the role has and how many must sign; zero: as before.
	Quorum Quorum
	Keys   Keys // of the root, and of what must be signed anew
}

// Rotated is what came of it.
type Rotated struct {
	Version  int64    // of the root
	Added    Keys     // new keys, written to their folder
	Dropped  []string // ids of keys that sign no more: destroy them
	Finished bool     // an earlier rotation that was cut is finished, and nothing else was done
}

// Rotate publishes a root with other keys, signed by the old root's and the new one's, and signs
// anew what the old keys have signed. Keys of theirs are needed beside the root's, but for the
// root's own rotation.
func (r *Repository) Rotate(n Rotation) (*Rotated, error) {
	s, err := r.load()
	if err != nil {
		return nil, err
	}
	if done, err := r.finish(s, n.Keys); done != nil || err != nil {
		return done, err
	}
	next := metadata.Root()
	next.Signed = cloneRoot(&s.root.Signed)
	next.Signed.Version++
	if next.Signed.Expires, err = r.expiry(rootRole); err != nil {
		return nil, err
	}
	done := &Rotated{Version: next.Signed.Version}
	if n.Role != "" {
		if err := r.replace(&next.Signed, n, done); err != nil {
			return nil, err
		}
	}
	keys := append(slices.Clone(n.Keys), done.Added...)
	// Who trusts the old root alone must be able to follow; and the new one must stand by itself.
	if err := addSignatures(&s.root.Signed, rootRole, keys, next); err != nil {
		return nil, err
	}
	if err := addSignatures(&next.Signed, rootRole, keys, next); err != nil {
		return nil, err
	}
	data, err := encode(next)
	if err != nil {
		return nil, err
	}
	return done, r.publishRoot(s, next, data, keys)
}

// stagedRoot is a root before it is published. It is written there first, because two different
// roots of one version, of which a device saw the one that a power cut undid, would part the
// fleet for ever.
const stagedRoot = stagedDir + "/root.json"

// finish ends a rotation that was cut; nil where there is none.
func (r *Repository) finish(s *state, keys Keys) (*Rotated, error) {
	data, err := disk.ReadFile(r.o.FS, r.path(stagedRoot), tuf.RootLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	next, parsing := new(metadata.Metadata[metadata.RootType]).FromBytes(data)
	if err == nil && parsing == nil && next.Signed.Version == s.root.Signed.Version+1 {
		return &Rotated{Version: next.Signed.Version, Finished: true}, r.publishRoot(s, next, data, keys)
	}
	if len(s.old) == 0 {
		return nil, nil
	}
	if err := r.commit(s, keys, work{}); err != nil {
		return nil, err
	}
	return &Rotated{Version: s.root.Signed.Version, Finished: true}, r.remove(stagedRoot)
}

// publishRoot publishes a root, and anew what the keys of the one before have signed and no others.
func (r *Repository) publishRoot(s *state, next *metadata.Metadata[metadata.RootType], data []byte, keys Keys) error {
	if err := errors.Join(s.root.VerifyDelegate(rootRole, next), next.VerifyDelegate(rootRole, next), checkRoles(&next.Signed)); err != nil {
		return fmt.Errorf("reading back the new root: %w", err)
	}
	s.previous, s.root = s.root, next
	s.old[timestampRole] = next.VerifyDelegate(timestampRole, s.timestamp) != nil
	s.old[snapshotRole] = next.VerifyDelegate(snapshotRole, s.snapshot) != nil
	s.old[targetsRole] = next.VerifyDelegate(targetsRole, s.targets) != nil
	unchanged := !s.old[timestampRole] && !s.old[snapshotRole] && !s.old[targetsRole]
	if unchanged {
		if err := errors.Join(r.write(stagedRoot, data), r.write(metadataName(next.Signed.Version, rootRole), data)); err != nil {
			return err
		}
		return r.remove(stagedRoot)
	}
	if err := r.commit(s, keys, work{root: data}); err != nil {
		return err
	}
	return r.remove(stagedRoot)
}

// replace makes new keys of a role for those that go.
func (r *Repository) replace(root *metadata.RootType, n Rotation, done *Rotated) error {
	named := root.Roles[n.Role]
	if named == nil {
		return fmt.Errorf("there is no role %.40q, only %s", n.Role, strings.Join(roles(), ", "))
	}
	if err := outside(r.o.Dir, n.Folder); err != nil {
		return err
	}
	goes := func(id string) bool {
		return len(n.Drop) == 0 || slices.ContainsFunc(n.Drop, func(prefix string) bool { return strings.HasPrefix(id, prefix) })
	}
	kept := 0
	for _, id := range slices.Clone(named.KeyIDs) {
		if !goes(id) {
			kept++
			continue
		}
		done.Dropped = append(done.Dropped, id)
	}
	if len(done.Dropped) == 0 {
		return fmt.Errorf("%s has no key whose id begins with %s", n.Role, strings.Join(n.Drop, " or "))
	}
	count := kept + len(done.Dropped)
	if n.Quorum.Keys > 0 {
		count, named.Threshold = n.Quorum.Keys, n.Quorum.Threshold
	}
	if count <= kept || named.Threshold < 1 || named.Threshold > count || count > 16 {
		return fmt.Errorf("role %s: %d of %d keys cannot be asked for", n.Role, named.Threshold, count)
	}
	var err error
	if done.Added, err = makeKeys(r.o.FS, n.Folder, n.Role, Setup{Kind: n.Kind}.kind(), count-kept, root.Keys); err != nil {
		return err
	}
	for _, id := range done.Dropped {
		if err := root.RevokeKey(id, n.Role); err != nil {
			return err
		}
	}
	for _, k := range done.Added {
		if err := root.AddKey(k.public, n.Role); err != nil {
			return err
		}
	}
	slices.Sort(named.KeyIDs)
	return nil
}

func cloneRoot(root *metadata.RootType) metadata.RootType {
	clone := *root
	clone.Keys = make(map[string]*metadata.Key, len(root.Keys))
	for id, key := range root.Keys {
		clone.Keys[id] = key
	}
	clone.Roles = make(map[string]*metadata.Role, len(root.Roles))
	for role, named := range root.Roles {
		clone.Roles[role] = &metadata.Role{KeyIDs: slices.Clone(named.KeyIDs), Threshold: named.Threshold}
	}
	return clone
}
