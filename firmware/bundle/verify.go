package bundle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"ferrule/firmware/fetch"
	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"
	"ferrule/firmware/tuf"
	"ferrule/internal/disk"
)

// Site is a repository as a device reads it: over HTTP, or out of its folder.
type Site interface {
	tuf.Source
	// Object reads an object from an offset on.
	Object(ctx context.Context, o manifest.Object, off int64) io.ReadCloser
}

// Verification is what a look at a repository takes.
type Verification struct {
	// Root is the root.json that devices have pinned.
	Root []byte
	// Temp is a folder for unpacked images; "": that of the system.
	Temp string
	// Old are files with images that deltas are made from and no release has.
	Old []string
	Now func() time.Time
	// Progress is told how many bytes of a release's objects are checked.
	Progress func(what string, done, all int64)
}

// Report is what was found.
type Report struct {
	Roles    []RoleReport    `json:"roles"`
	Releases []ReleaseReport `json:"releases"` // the newest first
	Files    int             `json:"files"`    // objects
	Bytes    int64           `json:"bytes"`
	Problems []string        `json:"problems"` // devices could not do with it
	Warnings []string        `json:"warnings"`
}

// RoleReport is one signed file.
type RoleReport struct {
	Role      string    `json:"role"`
	Version   int64     `json:"version"`
	Expires   time.Time `json:"expires"`
	Keys      int       `json:"keys"`
	Threshold int       `json:"threshold"`
}

// ReleaseReport is one release.
type ReleaseReport struct {
	Target          string       `json:"target"`
	ID              string       `json:"id"`
	Release         uint64       `json:"release"`
	Channel         string       `json:"channel"`
	SecurityVersion uint64       `json:"security_version"`
	Reach           float64      `json:"reach"` // per cent of the fleet that may have it now
	Paused          bool         `json:"paused"`
	Parts           []PartReport `json:"parts"`
}

// PartReport is one part, with the sizes of what makes it.
type PartReport struct {
	Name   string        `json:"name"`
	Size   int64         `json:"size"`
	Full   int64         `json:"full"`
	Deltas []DeltaReport `json:"deltas"`
}

// DeltaReport is one delta.
type DeltaReport struct {
	From    string `json:"from"` // PRODUCT/VERSION, or a digest where no release has it
	Size    int64  `json:"size"`
	Applied bool   `json:"applied"` // false: the old part is not at hand
}

// FolderSite is a repository's folder.
func FolderSite(fsys disk.FS, dir string) Site {
	return &folderSite{with(Options{FS: fsys, Dir: dir})}
}

// RemoteSite is a repository as a server has it.
func RemoteSite(url string) (Site, error) { return fetch.New(fetch.Options{Base: url}) }

// MaxRoot is the most bytes of a root.json that devices read.
const MaxRoot = tuf.RootLimit

type folderSite struct{ r *Repository }

func (f *folderSite) Metadata(_ context.Context, name string, limit int64) ([]byte, error) {
	file, err := f.r.o.FS.OpenFile(f.r.path(metadataDir+"/"+name), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit+1))
}

func (f *folderSite) Object(_ context.Context, o manifest.Object, off int64) io.ReadCloser {
	file, err := f.r.o.FS.OpenFile(f.r.path(targetsDir+"/"+o.Path), os.O_RDONLY, 0)
	if err != nil {
		return failed{err}
	}
	return section{io.NewSectionReader(file, off, 1<<62), file}
}

type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }
func (f failed) Close() error             { return nil }

type section struct {
	*io.SectionReader
	io.Closer
}

// FirstRoot is the oldest root of a repository's folder: what its first devices have pinned.
func FirstRoot(fsys disk.FS, dir string) ([]byte, error) {
	r := with(Options{FS: fsys, Dir: dir})
	versions, err := r.versions(rootRole)
	if err != nil || len(versions) == 0 {
		return nil, errors.Join(err, fmt.Errorf("reading %s: %w", dir, ErrNoRepository))
	}
	return disk.ReadFile(fsys, r.path(metadataName(versions[0], rootRole)), tuf.RootLimit)
}

// verifier is one look at a repository.
type verifier struct {
	Verification
	site    Site
	report  *Report
	scratch *Repository
	trusted []*manifest.Manifest
	files   map[string]manifest.Object // all targets, by path on the server
	done    int64
	now     time.Time
}

// Verify looks at a repository as a device of ours does, and as go-tuf, and makes every part out of
// every object. What devices could not do with is in Report.Problems, as is that it has expired;
// the error says why looking itself came to an end.
func Verify(ctx context.Context, site Site, v Verification) (*Report, error) {
	if v.Now == nil {
		v.Now = time.Now
	}
	if v.Progress == nil {
		v.Progress = func(string, int64, int64) {}
	}
	temp, err := os.MkdirTemp(v.Temp, "ferrule-verify-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	look := &verifier{
		Verification: v, site: site, now: v.Now(), files: make(map[string]manifest.Object),
		report:  &Report{Problems: []string{}, Warnings: []string{}, Releases: []ReleaseReport{}},
		scratch: with(Options{FS: disk.OS(), Dir: temp}),
	}
	if err := look.asDevice(ctx, temp); err != nil {
		return look.report, err
	}
	if err := look.asGoTUF(ctx); err != nil {
		return look.report, err
	}
	for _, m := range look.trusted {
		look.release(m)
	}
	if err := look.contents(ctx); err != nil {
		return look.report, err
	}
	return look.report, nil
}

func (v *verifier) problem(format string, args ...any) {
	v.report.Problems = append(v.report.Problems, fmt.Sprintf(format, args...))
}

func (v *verifier) warning(format string, args ...any) {
	v.report.Warnings = append(v.report.Warnings, fmt.Sprintf(format, args...))
}

// asDevice is the device's own client, new out of the factory.
func (v *verifier) asDevice(ctx context.Context, temp string) error {
	client, err := tuf.Open(tuf.Options{
		FS: disk.OS(), Dir: temp + "/trusted", Root: v.Root,
		Now: func() (time.Time, bool) { return v.now, true },
	})
	if err != nil {
		return err
	}
	targets, err := client.Refresh(ctx, v.site)
	status := client.Status()
	for role, is := range map[string]tuf.RoleStatus{rootRole: status.Root, targetsRole: status.Targets, snapshotRole: status.Snapshot, timestampRole: status.Timestamp} {
		v.report.Roles = append(v.report.Roles, RoleReport{Role: role, Version: is.Version, Expires: is.Expires})
	}
	slices.SortFunc(v.report.Roles, func(a, b RoleReport) int {
		return cmp.Compare(slices.Index(roles(), a.Role), slices.Index(roles(), b.Role))
	})
	if err != nil {
		v.problem("a device refuses it: %v", err)
		return ctx.Err()
	}
	for _, t := range targets.All() {
		v.target(t)
	}
	slices.SortFunc(v.trusted, func(a, b *manifest.Manifest) int {
		return cmp.Or(cmp.Compare(b.Release(), a.Release()), cmp.Compare(a.Target(), b.Target()))
	})
	return nil
}

func (v *verifier) target(t tuf.Target) {
	o := manifest.Object{Path: manifest.ServerPath(t.Path(), t.SHA256()), Size: t.Length(), SHA256: t.SHA256()}
	if !manifest.Path(o.Path) {
		v.problem("target %q is no clean path", t.Path())
		return
	}
	v.files[o.Path] = o
	v.report.Files++
	v.report.Bytes += o.Size
	m, err := manifest.Of(t)
	if errors.Is(err, manifest.ErrNone) {
		return
	}
	if err != nil {
		v.problem("a device refuses %s: %v", t.Path(), err)
		return
	}
	v.trusted = append(v.trusted, m)
}

func (v *verifier) release(m *manifest.Manifest) {
	r := ReleaseReport{
		Target: m.Target(), ID: m.ID(), Release: m.Release(), Channel: m.Channel(), SecurityVersion: m.SecurityVersion(),
		Reach: m.Rollout().Share(v.now), Paused: m.Rollout().Paused,
	}
	for _, p := range m.Parts() {
		part := PartReport{Name: p.Name, Size: p.Size, Full: p.Full.Size, Deltas: []DeltaReport{}}
		for _, d := range p.Deltas {
			from := d.From.String()
			if old, _ := v.has(d.From); old != nil {
				from = old.Target()
			}
			part.Deltas = append(part.Deltas, DeltaReport{From: from, Size: d.Object.Size})
		}
		r.Parts = append(r.Parts, part)
	}
	for name, o := range objects(m) {
		if v.files[o.Path] != o {
			v.problem("%s names %s, which is not among the targets", m.Target(), name)
		}
	}
	v.report.Releases = append(v.report.Releases, r)
}

// has finds the release whose part has that digest.
func (v *verifier) has(sum manifest.Digest) (*manifest.Manifest, *manifest.Part) {
	for _, m := range v.trusted {
		for _, p := range m.Parts() {
			if p.SHA256 == sum {
				return m, &p
			}
		}
	}
	return nil, nil
}

// contents makes every part out of every object.
func (v *verifier) contents(ctx context.Context) error {
	reached := make(map[string]bool)
	for i, m := range v.trusted {
		for j, p := range m.Parts() {
			reached[p.Full.Path] = true
			if err := v.make(ctx, m, "full", p.Full, patch.OfFull(&p), nil); err != nil {
				return err
			}
			for k, d := range p.Deltas {
				reached[d.Object.Path] = true
				applied, err := v.apply(ctx, m, &p, &d)
				if err != nil {
					return err
				}
				v.report.Releases[i].Parts[j].Deltas[k].Applied = applied
			}
		}
	}
	for path, o := range v.files {
		if !reached[path] {
			v.warning("target %s belongs to no release", path)
			if err := v.hash(ctx, o); err != nil {
				return err
			}
		}
	}
	slices.Sort(v.report.Warnings)
	return nil
}

// apply makes a part out of a delta, if its old part is at hand.
func (v *verifier) apply(ctx context.Context, m *manifest.Manifest, p *manifest.Part, d *manifest.Delta) (bool, error) {
	old, err := v.old(ctx, d)
	if err != nil {
		return false, err
	}
	if old == nil {
		v.warning("%s: the delta from %.16s… was not applied: no release has the old part (--old FILE)", m.Target(), d.From)
		return false, v.hash(ctx, d.Object)
	}
	defer old.Close()
	before := len(v.report.Problems)
	err = v.make(ctx, m, "delta", d.Object, patch.OfDelta(p, d), old)
	return len(v.report.Problems) == before, err
}

// scratchFile is a file that goes when it is closed.
type scratchFile struct{ *os.File }

func (s scratchFile) Close() error { return errors.Join(s.File.Close(), os.Remove(s.Name())) }

type readerAtCloser interface {
	io.ReaderAt
	io.Closer
}

// old opens the old part of a delta: unpacked from its release, or a file of the user's; nil where
// neither has it.
func (v *verifier) old(ctx context.Context, d *manifest.Delta) (readerAtCloser, error) {
	if _, p := v.has(d.From); p != nil {
		object := v.site.Object(ctx, p.Full, 0)
		defer object.Close()
		name, err := v.scratch.temp(func(w io.Writer) error { return decode(ctx, object, patch.OfFull(p), nil, w) })
		if err != nil {
			return nil, ctx.Err() // that the full object is bad is told where it is looked at
		}
		f, err := os.Open(name)
		return scratchFile{f}, err
	}
	for _, name := range v.Old {
		img, err := openImage(disk.OS(), name)
		if err != nil {
			return nil, err
		}
		if sum, err := digest(ctx, img.File); err == nil && sum == d.From {
			return img, nil
		}
		img.Close()
	}
	return nil, nil
}

// make makes a part out of an object, and throws it away.
func (v *verifier) make(ctx context.Context, m *manifest.Manifest, kind string, o manifest.Object, want patch.Want, old io.ReaderAt) error {
	in := v.site.Object(ctx, o, 0)
	defer in.Close()
	sum := sha256.New()
	err := decode(ctx, io.TeeReader(in, io.MultiWriter(sum, v.progress(m.Target()))), want, old, io.Discard)
	if err == nil && manifest.Digest(sum.Sum(nil)) != o.SHA256 {
		err = errors.New("its SHA-256 is another one")
	}
	if err != nil {
		v.problem("%s: its %s object %s: %v", m.Target(), kind, o.Path, err)
	}
	return ctx.Err()
}

// hash looks at an object that is made into nothing.
func (v *verifier) hash(ctx context.Context, o manifest.Object) error {
	in := v.site.Object(ctx, o, 0)
	defer in.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, v.progress(o.Path)), io.LimitReader(&reader{ctx, in}, o.Size+1))
	if err == nil && (n != o.Size || manifest.Digest(sum.Sum(nil)) != o.SHA256) {
		err = fmt.Errorf("%d bytes that are not what was signed", n)
	}
	if err != nil {
		v.problem("%s: %v", o.Path, err)
	}
	return ctx.Err()
}

// progress counts what is read.
func (v *verifier) progress(what string) io.Writer {
	return counter(func(n int) {
		v.done += int64(n)
		v.Progress(what, v.done, v.report.Bytes)
	})
}

type counter func(n int)

func (c counter) Write(b []byte) (int, error) {
	c(len(b))
	return len(b), nil
}

// ExpiringWithin lists what a device will refuse in that time from now.
func (r *Report) ExpiringWithin(now time.Time, d time.Duration) []RoleReport {
	return slices.DeleteFunc(slices.Clone(r.Roles), func(role RoleReport) bool {
		return role.Version == 0 || role.Expires.After(now.Add(d))
	})
}
