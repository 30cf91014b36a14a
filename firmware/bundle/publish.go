package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/manifest"
)

// Publication is what is to be published.
type Publication struct {
	Refresh  bool     // what waits goes on waiting: only signatures are renewed
	Releases []string // that wait; none: all of them
	Again    []string // published ones that get a new release number: the fleet is to go there
	Withdraw []string // published ones that are taken back
	Keep     int      // how many releases of each product, channel and hardware stay, beside new ones; 0: all
	Allow    Allow
	Keys     Keys
}

// Published is what came of it.
type Published struct {
	Targets, Snapshot, Timestamp int64                // versions
	Expires                      time.Time            // of the timestamp
	Soon                         []string             // what runs out next and was not signed now
	Releases                     []*manifest.Manifest // new or changed, as published
	Withdrawn                    []string
	Removed                      []string // files that nothing names any more
}

// Publish signs and publishes. Where nothing waits and nothing is asked for it signs the timestamp
// anew, and snapshot and targets where half of their time is over (the latter only if its keys are here). It can be cut at any point, and be run
// again. Errors are ErrKeys, ErrRefused, ErrUnknown, ErrDamaged and the disk's; after the first three
// nothing is written.
func (r *Repository) Publish(ctx context.Context, p Publication) (*Published, error) {
	s, err := r.load()
	if err != nil {
		return nil, err
	}
	drafts, err := r.Staged()
	if err != nil {
		return nil, err
	}
	if p.Refresh {
		drafts = nil
	}
	waiting, err := chosen(drafts, p.Releases)
	if err != nil {
		return nil, err
	}
	done := &Published{}
	for _, draft := range waiting {
		if err := r.release(ctx, s, draft, p.Allow, done); err != nil {
			return nil, err
		}
	}
	if err := s.again(p.Again, done); err != nil {
		return nil, err
	}
	if err := s.withdraw(p, done); err != nil {
		return nil, err
	}
	w := work{targets: len(done.Releases) > 0 || len(done.Withdrawn) > 0}
	if r.halfOver(targetsRole, s.targets.Signed.Expires) && enough(&s.root.Signed, targetsRole, p.Keys) {
		w.targets = true
	}
	w.snapshot = r.halfOver(snapshotRole, s.snapshot.Signed.Expires)
	if err := r.commit(s, p.Keys, w); err != nil {
		return nil, err
	}
	withdrawn := done.Withdrawn
	done = r.published(s, done.Releases...)
	done.Withdrawn = withdrawn
	for _, draft := range waiting {
		if err := r.remove(stagedName(draft.Target())); err != nil {
			return done, err
		}
	}
	if p.Keep > 0 {
		done.Removed, err = r.prune(s)
	}
	return done, err
}

// chosen picks drafts by name; all where none is named.
func chosen(drafts []*manifest.Manifest, names []string) ([]*manifest.Manifest, error) {
	if len(names) == 0 {
		return drafts, nil
	}
	var out []*manifest.Manifest
	for _, name := range names {
		m, _, err := find(name, drafts, &state{})
		if err != nil {
			return nil, fmt.Errorf("publishing: %w waiting", err)
		}
		out = append(out, m)
	}
	return out, nil
}

// enough says that the keys suffice for a role.
func enough(root *metadata.RootType, role string, keys Keys) bool {
	have := 0
	for _, k := range keys {
		if slices.Contains(root.Roles[role].KeyIDs, k.ID) {
			have++
		}
	}
	return have >= root.Roles[role].Threshold
}

// halfOver says that more than half of a signature's time is over.
func (r *Repository) halfOver(role string, expires time.Time) bool {
	life, err := r.life(role)
	return err == nil && expires.Sub(r.now()) < life/2
}

// release takes a draft into what will be signed. One of a version that is published may change
// everything but what a device installs; then it keeps its number.
func (r *Repository) release(ctx context.Context, s *state, draft *manifest.Manifest, allow Allow, done *Published) error {
	f := draft.Fields()
	if before := s.releases[draft.Target()]; before != nil {
		f.Release = before.Release()
	} else {
		f.Release = s.nextRelease(f.Product)
	}
	m, err := remake(f)
	if err != nil {
		return err
	}
	before := s.releases[m.Target()]
	if before != nil && before.ID() == m.ID() {
		return nil // a run that was cut has published it
	}
	if before != nil && before.Edition() != m.Edition() {
		return fmt.Errorf("%w: %s is published with other parts; give the new ones another version", ErrRefused, m.Target())
	}
	if err := s.admitSecurity(f, allow); err != nil {
		return fmt.Errorf("publishing %s: %w", m.Target(), err)
	}
	for _, o := range objects(m) {
		if err := r.check(ctx, o); err != nil {
			return fmt.Errorf("publishing %s: %w: %w", m.Target(), ErrRefused, err)
		}
	}
	s.set(m)
	done.Releases = append(done.Releases, m)
	return nil
}

// nextRelease is a number above every other that the product has had.
func (s *state) nextRelease(product string) uint64 { return s.highest[product].Release + 1 }

func remake(f manifest.Fields) (*manifest.Manifest, error) {
	raw, err := manifest.Encode(f)
	if err != nil {
		return nil, err
	}
	return reopen(raw)
}

// reopen reads a manifest in the form that devices hash.
func reopen(raw json.RawMessage) (*manifest.Manifest, error) {
	raw, err := compact(raw)
	if err != nil {
		return nil, err
	}
	return manifest.Reopen(raw)
}

// again gives published releases new numbers, so that they are the newest.
func (s *state) again(names []string, done *Published) error {
	for _, name := range names {
		m, _, err := find(name, nil, s)
		if err != nil {
			return err
		}
		f := m.Fields()
		f.Release = s.nextRelease(f.Product)
		if m, err = remake(f); err != nil {
			return err
		}
		s.set(m)
		done.Releases = append(done.Releases, m)
	}
	return nil
}

// withdraw takes back what was named, and what is beyond Keep.
func (s *state) withdraw(p Publication, done *Published) error {
	for _, name := range p.Withdraw {
		m, _, err := find(name, nil, s)
		if err != nil {
			return err
		}
		s.drop(m.Target())
		done.Withdrawn = append(done.Withdrawn, m.Target())
	}
	kept := make(map[string]int)
	for _, m := range newest(s.releases) {
		fresh := slices.ContainsFunc(done.Releases, func(d *manifest.Manifest) bool { return d.Target() == m.Target() })
		kept[audience(m)]++
		if p.Keep > 0 && kept[audience(m)] > p.Keep && !fresh {
			s.drop(m.Target())
			done.Withdrawn = append(done.Withdrawn, m.Target())
		}
	}
	return nil
}

// audience is the devices that a release is meant for.
func audience(m *manifest.Manifest) string {
	hardware := slices.Sorted(slices.Values(m.Hardware()))
	return fmt.Sprintf("%s %s %q", m.Product(), m.Channel(), hardware)
}

// keptMetadata is how many old snapshots and targets stay: a device that has just read a
// timestamp asks for what it names.
const keptMetadata = 10

// prune removes objects that neither a published nor a waiting manifest names, and old metadata.
// It runs when the release that no longer names them is visible.
func (r *Repository) prune(s *state) (removed []string, err error) {
	named := make(map[string]bool)
	for name, target := range s.targets.Signed.Targets {
		sum := manifest.Digest(target.Hashes["sha256"])
		named[targetsDir+"/"+manifest.ServerPath(name, sum)] = true
	}
	drafts, err := r.Staged()
	if err != nil {
		return nil, err
	}
	for _, m := range drafts {
		for _, o := range objects(m) {
			named[targetsDir+"/"+o.Path] = true
		}
	}
	files, err := r.list(targetsDir)
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		if !named[name] {
			removed = append(removed, name)
		}
	}
	for role, current := range map[string]int64{snapshotRole: s.snapshot.Signed.Version, targetsRole: s.targets.Signed.Version} {
		versions, err := r.versions(role)
		if err != nil {
			return nil, err
		}
		for _, version := range versions {
			if version <= current-keptMetadata {
				removed = append(removed, metadataName(version, role))
			}
		}
	}
	slices.Sort(removed)
	for _, name := range removed {
		err = errors.Join(err, r.remove(name))
	}
	return removed, err
}
