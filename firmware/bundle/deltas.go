package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"ferrule/firmware/bundle/delta"
	"ferrule/firmware/manifest"
	"ferrule/internal/disk"
)

// MadeFrom is what came of a delta.
type MadeFrom struct {
	From string `json:"from"` // the version that has the old part, or the file
	Size int64  `json:"size"`
	Kept bool   `json:"kept"` // false: it is not smaller than the full object
}

// oldPart is an old image that deltas are made from.
type oldPart struct {
	label string
	part  *manifest.Part // of a release: it is unpacked from its full object
	file  string         // or a file of the user's
}

// oldParts are the parts of that name of older releases, each image once.
func (r *Repository) oldParts(releases []*manifest.Manifest, name string) []oldPart {
	var olds []oldPart
	seen := make(map[manifest.Digest]bool)
	for _, m := range releases {
		if p, ok := m.Part(name); ok && !seen[p.SHA256] {
			seen[p.SHA256] = true
			olds = append(olds, oldPart{label: m.Version(), part: &p})
		}
	}
	return olds
}

// deltas makes the deltas of part i of f to old images, and adds those that are smaller than the
// full object. One that f has already stays as it is.
func (r *Repository) deltas(ctx context.Context, f *manifest.Fields, i int, olds []oldPart) ([]MadeFrom, error) {
	made := []MadeFrom{}
	p := &f.Parts[i]
	var fresh string
	for _, old := range olds {
		if old.part != nil && !wants(p, old.part.SHA256) {
			continue
		}
		// The new image is what the full object makes: the file that it came from may have changed.
		if fresh == "" {
			var err error
			if fresh, err = r.unpack(ctx, p); err != nil {
				return nil, err
			}
			defer func() { _ = r.o.FS.Remove(fresh) }()
		}
		m, ok, err := r.delta(ctx, f, i, old, fresh)
		if err != nil {
			return nil, fmt.Errorf("making the delta from %s: %w", old.label, err)
		}
		if ok {
			made = append(made, m)
		}
	}
	return made, nil
}

// wants says whether a delta from that image would be new to p. From p itself it is not in vain:
// a device writes the other slot, which does not hold it, and has it in the one that runs.
func wants(p *manifest.Part, from manifest.Digest) bool {
	_, has := p.DeltaFrom(from)
	return !has && len(p.Deltas) < manifest.MaxDeltas
}

// delta makes one delta, to the image in the file fresh; false where there is nothing to make.
func (r *Repository) delta(ctx context.Context, f *manifest.Fields, i int, old oldPart, fresh string) (MadeFrom, bool, error) {
	p, name := &f.Parts[i], old.file
	if old.part != nil {
		var err error
		if name, err = r.unpack(ctx, old.part); err != nil {
			return MadeFrom{}, false, err
		}
		defer func() { _ = r.o.FS.Remove(name) }()
	}
	from, err := openImage(r.o.FS, name)
	if err != nil {
		return MadeFrom{}, false, err
	}
	defer from.Close()
	sum, err := digest(ctx, from.File)
	if err != nil || !wants(p, sum) {
		return MadeFrom{}, false, err
	}
	to, err := openImage(r.o.FS, fresh)
	if err != nil {
		return MadeFrom{}, false, err
	}
	defer to.Close()
	index, err := delta.Index(ctx, from, from.size)
	if err != nil {
		return MadeFrom{}, false, err
	}
	target := f.Product + "/" + f.Version + "/" + p.Name + "-from-" + sum.String()[:16]
	o, stats, err := r.object(ctx, p.Name+" from "+old.label, target, to, index)
	if err != nil {
		return MadeFrom{}, false, err
	}
	if stats.Image.SHA256 != p.SHA256 {
		return MadeFrom{}, false, errors.New("the image changed while it was read")
	}
	kept := o.Size < p.Full.Size
	if kept {
		p.Deltas = append(p.Deltas, manifest.Delta{From: sum, FromSize: from.size, Object: o})
	} else if err := r.remove(targetsDir + "/" + o.Path); err != nil {
		return MadeFrom{}, false, err
	}
	return MadeFrom{From: old.label, Size: o.Size, Kept: kept}, true, nil
}

func digest(ctx context.Context, f disk.File) (sum manifest.Digest, err error) {
	h := sha256.New()
	if _, err := io.Copy(h, &reader{ctx, f}); err != nil {
		return sum, fmt.Errorf("reading the image: %w", err)
	}
	return manifest.Digest(h.Sum(nil)), nil
}

// AddDeltas makes deltas of a release, staged or published, from other releases and from images
// (part → file) that no release of the repository has. They are staged; publishing makes them
// known. It returns what came of each part.
func (r *Repository) AddDeltas(ctx context.Context, release string, from []string, images []Image) (*manifest.Manifest, []Made, error) {
	s, err := r.load()
	if err != nil {
		return nil, nil, err
	}
	drafts, err := r.Staged()
	if err != nil {
		return nil, nil, err
	}
	m, _, err := find(release, drafts, s)
	if err != nil {
		return nil, nil, err
	}
	var olds []*manifest.Manifest
	for _, name := range from {
		old, _, err := find(name, of(drafts, m.Product()), s)
		if err != nil {
			return nil, nil, err
		}
		olds = append(olds, old)
	}
	if err := r.sweep(); err != nil {
		return nil, nil, err
	}
	f := m.Fields()
	var made []Made
	for i := range f.Parts {
		p := &f.Parts[i]
		parts := r.oldParts(olds, p.Name)
		for _, img := range images {
			if img.Name == p.Name {
				parts = append(parts, oldPart{label: img.File, file: img.File})
			}
		}
		list, err := r.deltas(ctx, &f, i, parts)
		if err != nil {
			return nil, nil, fmt.Errorf("part %s: %w", p.Name, err)
		}
		made = append(made, Made{Part: p.Name, Size: p.Size, Full: p.Full.Size, SHA256: p.SHA256.String(), Deltas: list})
	}
	m, err = r.stage(f)
	return m, made, err
}
