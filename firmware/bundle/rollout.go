package bundle

import (
	"encoding/json"
	"slices"
	"time"

	"ferrule/firmware/manifest"
)

// Rollout changes who gets a release when. One that is published is published anew at once, with its
// number; what waits to be published is changed where it waits.
func (r *Repository) Rollout(release string, edit func(manifest.Rollout) manifest.Rollout, keys Keys) (*manifest.Manifest, *Published, error) {
	s, err := r.load()
	if err != nil {
		return nil, nil, err
	}
	drafts, err := r.Staged()
	if err != nil {
		return nil, nil, err
	}
	m, staged, err := find(release, drafts, s)
	if err != nil {
		return nil, nil, err
	}
	public := s.releases[m.Target()]
	if public != nil {
		f := public.Fields()
		f.Rollout = edit(f.Rollout)
		if public, err = remake(f); err != nil {
			return nil, nil, err
		}
		s.set(public)
		if err := r.commit(s, keys, work{targets: true}); err != nil {
			return nil, nil, err
		}
	}
	if staged { // beside a published one it holds more deltas: publishing it must not bring the old rollout back
		f := m.Fields()
		f.Rollout = edit(f.Rollout)
		if m, err = r.stage(f); err != nil {
			return nil, nil, err
		}
	}
	if public == nil {
		return m, nil, nil
	}
	return public, r.published(s, public), nil
}

// soon is when it is time to say that a signature runs out.
const soon = 30 * 24 * time.Hour

// published sums up what is published now.
func (r *Repository) published(s *state, releases ...*manifest.Manifest) *Published {
	p := &Published{
		Targets: s.targets.Signed.Version, Snapshot: s.snapshot.Signed.Version, Timestamp: s.timestamp.Signed.Version,
		Expires: s.timestamp.Signed.Expires, Releases: releases,
	}
	if e := s.targets.Signed.Expires; e.Sub(r.now()) < soon {
		p.Soon = append(p.Soon, "targets expire on "+e.Format(time.RFC3339)+": publish with their keys")
	}
	if e := s.root.Signed.Expires; e.Sub(r.now()) < soon {
		p.Soon = append(p.Soon, "the root expires on "+e.Format(time.RFC3339)+": keys rotate with its keys")
	}
	return p
}

// Reach has a share of the fleet get a release from a time on. Steps after it, and those with more,
// give way: so a rollout can also be slowed down.
func Reach(steps []manifest.Step, percent float64, from time.Time) []manifest.Step {
	kept := slices.DeleteFunc(slices.Clone(steps), func(s manifest.Step) bool {
		return !s.From.Before(from) || s.Percent > percent
	})
	return append(kept, manifest.Step{Percent: percent, From: from.UTC().Truncate(time.Second)})
}

// SignTarget publishes a target with any custom data, checked in nothing: for tests of what reads
// repositories.
func (r *Repository) SignTarget(target string, size int64, sum manifest.Digest, custom json.RawMessage, keys Keys) error {
	s, err := r.loadSigned()
	if err != nil {
		return err
	}
	t := targetFile(manifest.Object{Size: size, SHA256: sum})
	if len(custom) > 0 {
		t.Custom = &custom
	}
	s.targets.Signed.Targets[target] = t
	return r.commit(s, keys, work{targets: true})
}
