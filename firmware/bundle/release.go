package bundle

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"ferrule/firmware/manifest"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Allow names what is refused unless it was meant.
type Allow struct {
	// LowerSecurity: a release whose security version is below that of one before. Devices that
	// have committed the higher one refuse it for ever.
	LowerSecurity bool
	// SecurityJump: a security version that is more than maxJump above that of the one before. A
	// TPM's counter goes there one by one, and never back.
	SecurityJump bool
}

const maxJump = 16

// Image is one image of a release.
type Image struct{ Name, File string }

// Spec is a release that is to be made.
type Spec struct {
	Product, Version, Channel string
	Hardware                  []string
	SecurityVersion           *uint64 // nil: that of the release before
	MinAgent, Notes           string
	Health                    manifest.Health
	Rollout                   manifest.Rollout
	Extra                     json.RawMessage
	Images                    []Image
	Deltas                    int // to how many older releases; negative: as the repository is set
	Allow                     Allow
}

// Made is what came of an image.
type Made struct {
	Part   string     `json:"part"`
	Size   int64      `json:"size"` // of the image
	Full   int64      `json:"full"` // of the object
	SHA256 string     `json:"sha256"`
	Deltas []MadeFrom `json:"deltas"`
}

// Bundle makes the objects of a release and its manifest, and puts the latter aside until it is
// published. A release that waits already is made anew. Errors are ErrRefused and the disk's.
func (r *Repository) Bundle(ctx context.Context, spec Spec) (*manifest.Manifest, []Made, error) {
	s, err := r.load()
	if err != nil {
		return nil, nil, err
	}
	drafts, err := r.Staged()
	if err != nil {
		return nil, nil, err
	}
	f := spec.fields(s, drafts)
	// Everything but the parts is checked before hours are spent on them.
	if err := s.admit(f, spec); err != nil {
		return nil, nil, err
	}
	if err := r.sweep(); err != nil {
		return nil, nil, err
	}
	var made []Made
	for i, img := range spec.Images {
		p, m, err := r.part(ctx, spec, i, img)
		if err != nil {
			return nil, nil, fmt.Errorf("part %s: %w", img.Name, err)
		}
		f.Parts, made = append(f.Parts, p), append(made, m)
	}
	if spec.Deltas < 0 {
		spec.Deltas = r.settings.Deltas
	}
	before := s.before(f)
	before = before[:min(len(before), spec.Deltas)]
	for i := range f.Parts {
		made[i].Deltas, err = r.deltas(ctx, &f, i, r.oldParts(before, f.Parts[i].Name))
		if err != nil {
			return nil, nil, fmt.Errorf("part %s: %w", f.Parts[i].Name, err)
		}
	}
	m, err := r.stage(f)
	return m, made, err
}

func (spec *Spec) fields(s *state, drafts []*manifest.Manifest) manifest.Fields {
	f := manifest.Fields{
		Product: spec.Product, Hardware: spec.Hardware, Channel: spec.Channel, Version: spec.Version, MinAgent: spec.MinAgent,
		Health: spec.Health, Rollout: spec.Rollout, Notes: spec.Notes, Extra: spec.Extra,
	}
	// Not the release that devices will see, but it keeps drafts in the order they were made in.
	f.Release = s.nextRelease(f.Product)
	for _, m := range drafts {
		if m.Product() == f.Product && m.Version() != f.Version {
			f.Release = max(f.Release, m.Release()+1)
		}
	}
	if spec.SecurityVersion != nil {
		f.SecurityVersion = *spec.SecurityVersion
	} else {
		f.SecurityVersion = s.highest[f.Product].Security
	}
	if f.Rollout.Seed == "" {
		f.Rollout.Seed = f.Version
	}
	return f
}

// before lists the releases that devices may come from to f, the newest first.
func (s *state) before(f manifest.Fields) []*manifest.Manifest {
	return slices.DeleteFunc(of(newest(s.releases), f.Product), func(m *manifest.Manifest) bool {
		shared := func(revision string) bool { return slices.Contains(m.Hardware(), revision) }
		fits := len(f.Hardware) == 0 || len(m.Hardware()) == 0 || slices.ContainsFunc(f.Hardware, shared)
		return m.Version() == f.Version || m.Channel() != f.Channel || !fits
	})
}

// admit refuses a release before its parts are made.
func (s *state) admit(f manifest.Fields, spec Spec) error {
	if len(spec.Images) == 0 || len(spec.Images) > manifest.MaxParts {
		return fmt.Errorf("%w: it has %d images, and 1 to %d are allowed", ErrRefused, len(spec.Images), manifest.MaxParts)
	}
	probe := f
	for _, img := range spec.Images {
		o := manifest.Object{Path: manifest.ServerPath("x", manifest.Digest{}), Size: 1}
		probe.Parts = append(probe.Parts, manifest.Part{Name: img.Name, Size: 1, Segments: make([]manifest.Digest, 1), Full: o})
	}
	if _, err := manifest.Encode(probe); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if _, err := canonical(orEmpty(f.Extra)); err != nil {
		return fmt.Errorf("%w: extra: %w", ErrRefused, err)
	}
	return s.admitSecurity(f, spec.Allow)
}

func orEmpty(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("{}")
	}
	return raw
}

func (s *state) admitSecurity(f manifest.Fields, allow Allow) error {
	before, known := s.highest[f.Product]
	switch {
	case f.SecurityVersion < before.Security && !allow.LowerSecurity:
		err := fmt.Errorf("%w: its security version is %d, and %s has been released with %d", ErrRefused, f.SecurityVersion, f.Product, before.Security)
		return hint.With(err, "devices with the higher one would refuse it; for others: --allow lower-security")
	case f.SecurityVersion > before.Security+maxJump && known && !allow.SecurityJump:
		err := fmt.Errorf("%w: its security version is %d, and the one before is %d", ErrRefused, f.SecurityVersion, before.Security)
		return hint.With(err, "a TPM counts up one by one, and never down again; if it is meant: --allow security-jump")
	}
	return nil
}

// part makes the full object of an image. The first part's is the file of the release itself.
func (r *Repository) part(ctx context.Context, spec Spec, i int, img Image) (manifest.Part, Made, error) {
	file, err := openImage(r.o.FS, img.File)
	if err != nil {
		return manifest.Part{}, Made{}, err
	}
	defer file.Close()
	target := spec.Product + "/" + spec.Version
	if i > 0 {
		target += "/" + img.Name
	}
	o, stats, err := r.object(ctx, img.Name, target, file, nil)
	if err != nil {
		return manifest.Part{}, Made{}, err
	}
	d := stats.Image
	p := manifest.Part{Name: img.Name, Size: d.Size, SHA256: d.SHA256, Segments: d.Segments, Full: o}
	return p, Made{Part: img.Name, Size: p.Size, Full: o.Size, SHA256: p.SHA256.String(), Deltas: []MadeFrom{}}, nil
}

// stagedName is where a manifest waits.
func stagedName(release string) string { return stagedDir + "/" + release + ".json" }

// stage puts a manifest aside until it is published.
func (r *Repository) stage(f manifest.Fields) (*manifest.Manifest, error) {
	m, err := remake(f)
	if err != nil {
		return nil, err
	}
	return m, r.write(stagedName(m.Target()), m.Raw())
}

// Staged lists the releases that wait to be published, in the order they were made in.
func (r *Repository) Staged() ([]*manifest.Manifest, error) {
	names, err := r.list(stagedDir)
	if err != nil {
		return nil, err
	}
	found := make(map[string]*manifest.Manifest)
	for _, name := range names {
		if name == stagedRoot || strings.HasPrefix(name, tempDir+"/") || !strings.HasSuffix(name, ".json") {
			continue
		}
		raw, err := disk.ReadFile(r.o.FS, r.path(name), manifest.MaxSize)
		if err != nil {
			return nil, err
		}
		m, err := reopen(raw)
		if err == nil && stagedName(m.Target()) != name {
			err = fmt.Errorf("it describes %s", m.Target())
		}
		if err != nil {
			return nil, hint.With(fmt.Errorf("reading %s: %w", name, err), "remove it, and bundle the release again")
		}
		found[m.Target()] = m
	}
	out := newest(found)
	slices.Reverse(out)
	return out, nil
}

// Releases lists what is published, the newest first.
func (r *Repository) Releases() ([]*manifest.Manifest, error) {
	s, err := r.load()
	if err != nil {
		return nil, err
	}
	return newest(s.releases), nil
}

// find resolves PRODUCT/VERSION, or VERSION where it is one product's. A draft goes before what
// is published.
func find(name string, drafts []*manifest.Manifest, s *state) (m *manifest.Manifest, staged bool, err error) {
	fits := func(m *manifest.Manifest) bool { return m.Target() == name || m.Version() == name }
	var hits []*manifest.Manifest
	for _, d := range drafts {
		if fits(d) {
			hits, staged = append(hits, d), true
		}
	}
	for _, p := range newest(s.releases) {
		if fits(p) && !slices.ContainsFunc(hits, func(h *manifest.Manifest) bool { return h.Target() == p.Target() }) {
			hits = append(hits, p)
		}
	}
	if len(hits) == 1 {
		return hits[0], staged, nil
	}
	if len(hits) > 1 {
		return nil, false, hint.With(fmt.Errorf("%w: %.80q is a version of several products", ErrUnknown, name), "write PRODUCT/VERSION")
	}
	var known []string
	for _, m := range append(drafts, newest(s.releases)...) {
		known = append(known, m.Target())
	}
	err = fmt.Errorf("%w: %.80q", ErrUnknown, name)
	if len(known) > 0 {
		err = hint.With(err, "there are "+strings.Join(known[:min(len(known), 8)], ", "))
	}
	return nil, false, err
}
