package bundle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/firmware/manifest"
	"ferrule/firmware/tuf"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

var epoch = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

// noise is bytes that do not compress.
func noise(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out)
	return out
}

// world is a repository with its keys on one disk: repo, keys, root, images.
type world struct {
	t   testing.TB
	fs  disk.FS
	dir string
	now time.Time
}

func onMachine(t testing.TB) *world {
	return &world{t: t, fs: disk.OS(), dir: t.TempDir(), now: epoch}
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) options() bundle.Options {
	return bundle.Options{FS: w.fs, Dir: w.path("repo"), Now: func() time.Time { return w.now }, Quick: true}
}

func (w *world) setup() bundle.Setup {
	return bundle.Setup{Keys: w.path("keys"), Root: w.path("root"), Deltas: 3}
}

func (w *world) init(setup bundle.Setup) *bundle.Repository {
	w.t.Helper()
	r, err := bundle.Init(w.options(), setup)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) open() *bundle.Repository {
	w.t.Helper()
	r, err := bundle.Open(w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) keys(folders ...string) bundle.Keys {
	w.t.Helper()
	var paths []string
	for _, f := range folders {
		paths = append(paths, w.path(f))
	}
	keys, err := bundle.LoadKeys(w.fs, paths...)
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

// write writes a file of the world.
func (w *world) write(name string, data []byte) string {
	w.t.Helper()
	path := w.path(name)
	if err := w.fs.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	f, err := w.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) spec(version string, image []byte) bundle.Spec {
	return bundle.Spec{
		Product: "gw", Version: version, Channel: "stable", Health: manifest.DefaultHealth(), Deltas: -1,
		Images: []bundle.Image{{Name: "rootfs", File: w.write("images/"+version, image)}},
	}
}

func (w *world) bundle(spec bundle.Spec) *manifest.Manifest {
	w.t.Helper()
	m, _, err := w.open().Bundle(context.Background(), spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) publish(p bundle.Publication) *bundle.Published {
	w.t.Helper()
	if p.Keys == nil {
		p.Keys = w.keys("keys")
	}
	done, err := w.open().Publish(context.Background(), p)
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

func (w *world) read(name string) []byte {
	w.t.Helper()
	data, err := disk.ReadFile(w.fs, w.path(name), 1<<30)
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// device is a device's view of a repository; what it trusts it keeps on its own disk.
type device struct {
	fs   disk.FS
	root []byte
}

func newDevice(root []byte) *device { return &device{disktest.New(), root} }

func (d *device) refresh(site bundle.Site, now time.Time) (map[string]*manifest.Manifest, error) {
	c, err := tuf.Open(tuf.Options{FS: d.fs, Dir: "/trusted", Root: d.root, Now: func() (time.Time, bool) { return now, true }})
	if err != nil {
		return nil, err
	}
	targets, err := c.Refresh(context.Background(), site)
	if err != nil {
		return nil, err
	}
	out := make(map[string]*manifest.Manifest)
	for _, t := range targets.All() {
		m, err := manifest.Of(t)
		if errors.Is(err, manifest.ErrNone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[m.Version()] = m
		for _, p := range m.Parts() {
			objects := []manifest.Object{p.Full}
			for _, x := range p.Deltas {
				objects = append(objects, x.Object)
			}
			for _, o := range objects {
				if err := get(site, o); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

// get reads an object and compares it with what its manifest says.
func get(site bundle.Site, o manifest.Object) error {
	in := site.Object(context.Background(), o, 0)
	defer in.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, in); err != nil {
		return err
	}
	if int64(b.Len()) != o.Size || manifest.Digest(sum(b.Bytes())) != o.SHA256 {
		return fmt.Errorf("%s is damaged", o.Path)
	}
	return nil
}

// view is what a new device sees.
func (w *world) view() map[string]*manifest.Manifest {
	w.t.Helper()
	out, err := newDevice(w.read("repo/metadata/1.root.json")).refresh(bundle.FolderSite(w.fs, w.path("repo")), w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func versions(view map[string]*manifest.Manifest) string {
	var out []string
	for _, m := range view {
		paused := ""
		if m.Rollout().Paused {
			paused = "(paused)"
		}
		out = append(out, m.Version()+paused)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w *world) verify() *bundle.Report {
	w.t.Helper()
	root, err := bundle.FirstRoot(w.fs, w.path("repo"))
	if err != nil {
		w.t.Fatal(err)
	}
	report, err := bundle.Verify(context.Background(), bundle.FolderSite(w.fs, w.path("repo")), bundle.Verification{Root: root, Now: func() time.Time { return w.now }, Temp: w.t.TempDir()})
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}
