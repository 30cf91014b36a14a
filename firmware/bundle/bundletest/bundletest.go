// Package bundletest makes signed repositories for tests, good and bad, in a folder that any file
// server serves. The trap: its keys lie in the open and its objects are compressed quickly, so it
// is for nothing else.
package bundletest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/firmware/manifest"
	"ferrule/internal/disk"
)

// Part is one image of a release.
type Part struct {
	Name  string // "": rootfs
	Image []byte
}

// Release is one that is to be published. Only Version and Parts are needed.
type Release struct {
	Product         string // "": gw
	Version         string
	Channel         string // "": stable
	Hardware        []string
	SecurityVersion uint64
	MinAgent        string
	Notes           string
	Health          *manifest.Health // nil: manifest.DefaultHealth
	Rollout         manifest.Rollout
	NoDeltas        bool // otherwise deltas to the last three releases are made
	LowerSecurity   bool // the security version may be below that of the release before
}

// Repository is a repository whose keys are at hand.
type Repository struct {
	// Dir holds metadata and targets, as a server has them.
	Dir string
	// Root is the first root: what a device has pinned.
	Root []byte

	keys string // the folder of all keys
	now  func() time.Time
	r    *bundle.Repository
}

// New makes a repository below dir, which is empty or not there, and publishes the releases one
// after another. now is the time of its signatures; nil: time.Now.
func New(dir string, now func() time.Time, releases ...Published) (*Repository, error) {
	r := &Repository{Dir: filepath.Join(dir, "repository"), keys: filepath.Join(dir, "keys"), now: now}
	var err error
	r.r, err = bundle.Init(r.options(), bundle.Setup{Keys: r.keys, Root: r.keys, Deltas: 3})
	if err != nil {
		return nil, err
	}
	if r.Root, err = os.ReadFile(filepath.Join(r.Dir, "metadata", "1.root.json")); err != nil {
		return nil, err
	}
	for _, release := range releases {
		if _, err := r.Publish(release.Release, release.Parts...); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Published is a release with its images.
type Published struct {
	Release
	Parts []Part
}

// Of is a release of one image, the whole of what most tests need.
func Of(version string, image []byte) Published {
	return Published{Release: Release{Version: version}, Parts: []Part{{Image: image}}}
}

func (r *Repository) options() bundle.Options {
	return bundle.Options{FS: disk.OS(), Dir: r.Dir, Now: r.now, Quick: true}
}

// Keys are all keys of the repository, the root's too.
func (r *Repository) Keys() (bundle.Keys, error) { return bundle.LoadKeys(disk.OS(), r.keys) }

// Publish bundles a release and publishes it.
func (r *Repository) Publish(release Release, parts ...Part) (*manifest.Manifest, error) {
	keys, err := r.Keys()
	if err != nil {
		return nil, err
	}
	spec := bundle.Spec{
		Product: or(release.Product, "gw"), Version: release.Version, Channel: or(release.Channel, "stable"),
		Hardware: release.Hardware, SecurityVersion: &release.SecurityVersion, MinAgent: release.MinAgent, Notes: release.Notes,
		Health: manifest.DefaultHealth(), Rollout: release.Rollout, Deltas: -1,
		Allow: bundle.Allow{LowerSecurity: release.LowerSecurity, SecurityJump: true},
	}
	if release.Health != nil {
		spec.Health = *release.Health
	}
	if release.NoDeltas {
		spec.Deltas = 0
	}
	temp, err := os.MkdirTemp(filepath.Dir(r.Dir), "images-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	for _, p := range parts {
		img := bundle.Image{Name: or(p.Name, "rootfs"), File: filepath.Join(temp, or(p.Name, "rootfs"))}
		if err := os.WriteFile(img.File, p.Image, 0o600); err != nil {
			return nil, err
		}
		spec.Images = append(spec.Images, img)
	}
	if _, _, err := r.r.Bundle(context.Background(), spec); err != nil {
		return nil, err
	}
	done, err := r.r.Publish(context.Background(), bundle.Publication{Keys: keys, Allow: spec.Allow})
	if err != nil {
		return nil, err
	}
	if len(done.Releases) != 1 {
		return nil, fmt.Errorf("%d releases were published", len(done.Releases))
	}
	return done.Releases[0], nil
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// Refresh signs timestamp and snapshot anew.
func (r *Repository) Refresh() error {
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	_, err = r.r.Publish(context.Background(), bundle.Publication{Keys: keys})
	return err
}

// Rollout replaces the rollout of a published release.
func (r *Repository) Rollout(version string, rollout manifest.Rollout) error {
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	_, _, err = r.r.Rollout(version, func(manifest.Rollout) manifest.Rollout { return rollout }, keys)
	return err
}

// Again gives a published release the highest number: the fleet is to go there.
func (r *Repository) Again(version string) error {
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	_, err = r.r.Publish(context.Background(), bundle.Publication{Keys: keys, Again: []string{version}})
	return err
}

// Withdraw takes a release back.
func (r *Repository) Withdraw(version string) error {
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	_, err = r.r.Publish(context.Background(), bundle.Publication{Keys: keys, Withdraw: []string{version}})
	return err
}

// Rotate replaces the keys of a role; of "root", "targets", "snapshot" and "timestamp".
func (r *Repository) Rotate(role string) error {
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	_, err = r.r.Rotate(bundle.Rotation{Role: role, Folder: r.keys, Keys: keys})
	return err
}

// Manifest is the manifest of a published release.
func (r *Repository) Manifest(version string) (*manifest.Manifest, error) {
	releases, err := r.r.Releases()
	if err != nil {
		return nil, err
	}
	for _, m := range releases {
		if m.Version() == version {
			return m, nil
		}
	}
	return nil, fmt.Errorf("version %s is not published", version)
}

// SignTarget publishes any target, with any custom data or none: what stolen keys could sign. edit
// gets the JSON of the release's manifest as a map where there is one of that name.
func (r *Repository) SignTarget(target string, content []byte, custom json.RawMessage) error {
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	sum := manifest.Digest(sha256.Sum256(content))
	name := filepath.Join(r.Dir, "targets", filepath.FromSlash(manifest.ServerPath(target, sum)))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return err
	}
	return r.r.SignTarget(target, int64(len(content)), sum, custom, keys)
}

// EditManifest publishes a manifest that edit has changed, whatever it is then: the members of its
// JSON as encoding/json has them.
func (r *Repository) EditManifest(version string, edit func(members map[string]any)) error {
	m, err := r.Manifest(version)
	if err != nil {
		return err
	}
	keys, err := r.Keys()
	if err != nil {
		return err
	}
	var members map[string]any
	if err := json.Unmarshal(m.Raw(), &members); err != nil {
		return err
	}
	edit(members)
	custom, err := json.Marshal(members)
	if err != nil {
		return err
	}
	first := m.Parts()[0].Full
	return r.r.SignTarget(m.Target(), first.Size, first.SHA256, custom, keys)
}

// Corrupt flips one bit of an object as it lies on the server.
func (r *Repository) Corrupt(o manifest.Object, offset int64) error {
	f, err := os.OpenFile(r.File(o), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], offset)
	if err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b[:], offset)
	}
	return errors.Join(err, f.Close())
}

// File is where an object lies.
func (r *Repository) File(o manifest.Object) string {
	return filepath.Join(r.Dir, "targets", filepath.FromSlash(o.Path))
}

// Metadata is a copy of what is signed, by file name; SetMetadata puts one back: an attacker who
// has kept it.
func (r *Repository) Metadata() (map[string][]byte, error) {
	files := make(map[string][]byte)
	folder := os.DirFS(filepath.Join(r.Dir, "metadata"))
	entries, err := fs.ReadDir(folder, ".")
	for _, e := range entries {
		text, err := fs.ReadFile(folder, e.Name())
		if err != nil {
			return nil, err
		}
		files[e.Name()] = text
	}
	return files, err
}

// SetMetadata replaces all metadata.
func (r *Repository) SetMetadata(files map[string][]byte) error {
	folder := filepath.Join(r.Dir, "metadata")
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Handler serves the repository, with ranges, as any web server does.
func (r *Repository) Handler() http.Handler { return http.FileServer(http.Dir(r.Dir)) }
