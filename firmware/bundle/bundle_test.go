package bundle_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"ferrule/firmware/bundle"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

// What a device hashes is what the publisher shows, with every character that could be written in
// two ways.
func TestDevicesSeeTheSameManifest(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	spec := w.spec("1.0.0", noise(1, 3000))
	spec.Notes = "a\tb\n\"<&>\\ é\u2028"
	spec.Extra = json.RawMessage(`{"b": [1, null], "a": "\u00e9\n"}`)
	spec.Hardware = []string{"revB"}
	w.bundle(spec)
	done := w.publish(bundle.Publication{})
	m := w.view()["1.0.0"]
	if m == nil || m.ID() != done.Releases[0].ID() || m.Notes() != spec.Notes || m.Release() != 1 || m.Hardware()[0] != "revB" {
		t.Errorf("a device sees %+v, and %s was published", m, done.Releases[0].ID())
	}
	if report := w.verify(); len(report.Problems)+len(report.Warnings) > 0 || report.Releases[0].ID != m.ID() {
		t.Errorf("%+v", report)
	}
}

// files is every file of a folder, by its name below it.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		out[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheSameInputsGiveTheSameBytes(t *testing.T) {
	for _, kind := range []string{bundle.Ed25519, bundle.P256} {
		var first map[string]string
		keys := t.TempDir()
		for range 2 {
			w := onMachine(t)
			setup := w.setup()
			setup.Keys, setup.Root, setup.Kind = filepath.Join(keys, "keys"), filepath.Join(keys, "root"), kind
			w.init(setup)
			old := noise(1, 3<<20)
			w.bundle(w.spec("1.0.0", old))
			all, err := bundle.LoadKeys(w.fs, setup.Keys)
			if err != nil {
				t.Fatal(err)
			}
			w.publish(bundle.Publication{Keys: all})
			w.bundle(w.spec("1.1.0", append(noise(2, 100), old...)))
			w.publish(bundle.Publication{Keys: all})
			got := files(t, w.path("repo"))
			if first == nil {
				first = got
				continue
			}
			for name, data := range got {
				if first[name] != data {
					t.Errorf("%s: %s differs", kind, name)
				}
			}
			if len(got) != len(first) {
				t.Errorf("%s: %d files, then %d", kind, len(first), len(got))
			}
		}
	}
}

// A client that is not ours downloads a release over HTTP.
func TestGoTUFDownloads(t *testing.T) {
	w := onMachine(t)
	w.now = time.Now()
	setup := w.setup()
	setup.Quorums = map[string]bundle.Quorum{"targets": {Threshold: 2, Keys: 3}}
	w.init(setup)
	w.bundle(w.spec("1.0.0", noise(1, 100_000)))
	m := w.publish(bundle.Publication{}).Releases[0]
	root := w.read("repo/metadata/1.root.json")
	if _, err := w.open().Rotate(bundle.Rotation{Role: "snapshot", Folder: w.path("keys"), Keys: w.keys("keys", "root")}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(w.path("repo"))))
	defer server.Close()
	c, err := config.New(server.URL+"/metadata", root)
	if err != nil {
		t.Fatal(err)
	}
	c.LocalMetadataDir, c.LocalTargetsDir, c.RemoteTargetsURL = t.TempDir(), t.TempDir(), server.URL+"/targets"
	u, err := updater.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Refresh(); err != nil {
		t.Fatal(err)
	}
	info, err := u.GetTargetInfo("gw/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	_, data, err := u.DownloadTarget(info, "", "")
	if err != nil || sha256.Sum256(data) != m.Parts()[0].Full.SHA256 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// openssl is the foreign checker of what we sign.
func TestOpenSSLChecksSignatures(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	for _, kind := range []string{bundle.Ed25519, bundle.P256} {
		w := onMachine(t)
		setup := w.setup()
		setup.Kind = kind
		w.init(setup)
		var file struct {
			Signed     map[string]any `json:"signed"`
			Signatures []struct{ Sig string }
		}
		if err := json.Unmarshal(w.read("repo/metadata/timestamp.json"), &file); err != nil {
			t.Fatal(err)
		}
		// Go sorts the members of a map, and nothing in here is written in two ways.
		message, err := json.Marshal(file.Signed)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := hex.DecodeString(file.Signatures[0].Sig)
		if err != nil {
			t.Fatal(err)
		}
		m, s := w.write("message", message), w.write("signature", signature)
		key := w.path("keys/timestamp-1.pem")
		argv := []string{"pkeyutl", "-verify", "-inkey", key, "-rawin", "-in", m, "-sigfile", s}
		if kind == bundle.P256 {
			argv = append(argv, "-digest", "sha256")
		}
		if out, err := exec.CommandContext(t.Context(), "openssl", argv...).CombinedOutput(); err != nil || !strings.Contains(string(out), "Verified Successfully") {
			t.Errorf("%s: %v: %s", kind, err, out)
		}
	}
}

// A device that saw a publication of which a power cut left nothing but orphans goes on with the next.
func TestADeviceThatSawMoreThanTheCutLeft(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	d := newDevice(w.read("repo/metadata/1.root.json"))
	before := w.read("repo/metadata/timestamp.json")
	w.bundle(w.spec("1.0.0", noise(1, 1000)))
	w.publish(bundle.Publication{})
	site := bundle.FolderSite(w.fs, w.path("repo"))
	if _, err := d.refresh(site, w.now); err != nil {
		t.Fatal(err)
	}
	w.write("repo/metadata/timestamp.json", before)
	w.now = w.now.Add(time.Hour)
	w.bundle(w.spec("1.1.0", noise(2, 1000)))
	w.publish(bundle.Publication{})
	view, err := d.refresh(site, w.now)
	if got := versions(view); err != nil || got != "1.1.0" {
		t.Errorf("it sees %s: %v", got, err)
	}
}

// Two roots of one version would part the fleet: one that was signed before a cut is the one that
// is published after it.
func TestARotationThatWasCutIsFinishedWithItsRoot(t *testing.T) {
	w := &world{t: t, fs: disktest.New(), dir: "/", now: epoch}
	w.init(w.setup())
	rotate := func() (*bundle.Rotated, error) {
		return w.open().Rotate(bundle.Rotation{Role: "targets", Folder: "/keys", Keys: w.keys("keys", "root")})
	}
	w.fs.(*disktest.Disk).Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Rename && op.To == "/repo/metadata/2.root.json" {
			return syscall.EIO
		}
		return nil
	})
	if _, err := rotate(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	w.fs.(*disktest.Disk).Fail(nil)
	staged := w.read("repo/staged/root.json")
	w.now = w.now.Add(time.Hour)
	done, err := rotate()
	if err != nil || !done.Finished || !bytes.Equal(w.read("repo/metadata/2.root.json"), staged) {
		t.Errorf("%+v, %v", done, err)
	}
	w.view()
	if done, err = rotate(); err != nil || done.Finished || done.Version != 3 {
		t.Errorf("the next one: %+v, %v", done, err)
	}
	w.view()
}

// Whatever operation of the disk fails while a release is published, devices see the old one or
// the new one, and the next attempt works.
func TestAFailingDisk(t *testing.T) {
	for n := 0; ; n++ {
		d := disktest.New()
		w := &world{t: t, fs: d, dir: "/", now: epoch}
		w.init(w.setup())
		keys := w.keys("keys")
		w.bundle(w.spec("1.0.0", noise(1, 1000)))
		ops := 0
		d.Fail(func(op disktest.Op) error {
			ops++
			if ops == n+1 {
				return &disktest.ShortWrite{N: 7, Err: syscall.ENOSPC}
			}
			return nil
		})
		_, err := w.open2().Publish(context.Background(), bundle.Publication{Keys: keys})
		d.Fail(nil)
		if ops <= n {
			if err != nil || n < 30 {
				t.Errorf("after %d operations: %v", n, err)
			}
			return
		}
		if got := versions(w.view()); got != "" && got != "1.0.0" {
			t.Errorf("operation %d failed: %s is seen", n, got)
		}
		w.publish(bundle.Publication{Keys: keys})
		if got := versions(w.view()); got != "1.0.0" {
			t.Errorf("operation %d failed, and the next attempt: %q is seen", n, got)
		}
	}
}

// open2 opens the repository while the disk fails: what Open itself reads is no matter here.
func (w *world) open2() *bundle.Repository {
	r, err := bundle.Open(w.options())
	if err != nil {
		r, err = bundle.Open(w.options())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// What stolen keys could sign is refused where a device reads it, and seen by who verifies.
func TestBadManifests(t *testing.T) {
	r, err := bundletest.New(t.TempDir(), func() time.Time { return epoch }, bundletest.Of("1.0.0", noise(1, 5000)))
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(r.Root)
	first := func(members map[string]any) map[string]any { return members["parts"].([]any)[0].(map[string]any) }
	good, err := r.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(map[string]any){
		"another version": func(m map[string]any) { m["version"] = "2.0.0" },
		"another product": func(m map[string]any) { m["product"] = "other" },
		"a later schema":  func(m map[string]any) { m["schema"] = 2 },
		"unknown member":  func(m map[string]any) { m["install"] = "rm -rf /" },
		"another object":  func(m map[string]any) { first(m)["full"].(map[string]any)["sha256"] = strings.Repeat("0", 64) },
		"huge part":       func(m map[string]any) { first(m)["size"] = int64(1) << 62 },
		"no parts":        func(m map[string]any) { m["parts"] = []any{} },
	} {
		if err := r.EditManifest("1.0.0", edit); err != nil {
			t.Fatal(err)
		}
		site := bundle.FolderSite(disk.OS(), r.Dir)
		if _, err := d.refresh(site, epoch); !errors.Is(err, manifest.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		report, err := bundle.Verify(t.Context(), site, bundle.Verification{Root: r.Root, Now: func() time.Time { return epoch }})
		if err != nil || len(report.Problems) == 0 {
			t.Errorf("%s: verified: %v, %v", name, report.Problems, err)
		}
		if err := r.SetMetadata(good); err != nil {
			t.Fatal(err)
		}
		d = newDevice(r.Root)
	}
	if err := r.SignTarget("loose/file", []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	if err := r.SignTarget("../../etc/passwd", []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	report, err := bundle.Verify(t.Context(), bundle.FolderSite(disk.OS(), r.Dir), bundle.Verification{Root: r.Root, Now: func() time.Time { return epoch }})
	if err != nil || len(report.Warnings) != 1 || len(report.Problems) == 0 || !strings.Contains(report.Problems[0], "no clean path") {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestKeys(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	once, twice := w.keys("keys"), w.keys("keys", "keys", "root")
	if len(once) != 3 || len(twice) != 4 {
		t.Errorf("%d and %d keys", len(once), len(twice))
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"p384": p384, "ed25519": ed} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		file := w.write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		if _, err := bundle.LoadKeys(w.fs, file); (err == nil) != (name == "ed25519") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := bundle.LoadKeys(w.fs, file); err == nil || name == "ed25519" && hint.Of(err) != "chmod 600 "+file {
			t.Errorf("%s that others may read: %v", name, err)
		}
	}
	if _, err := bundle.LoadKeys(w.fs, w.write("public.pem", []byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"))); err == nil || !strings.Contains(hint.Of(err), "keys init") {
		t.Errorf("a public key: %v", err)
	}
	if _, err := bundle.LoadKeys(w.fs, t.TempDir()); err == nil {
		t.Error("an empty folder holds keys")
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repo")
	unlock, err := bundle.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Lock(dir); !errors.Is(err, bundle.ErrBusy) || hint.Of(err) == "" {
		t.Errorf("a second publisher: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = bundle.Lock(dir); err != nil {
		t.Fatal(err)
	}
	_ = unlock()
}

// Pruning removes what nothing names, and nothing else: not what waits, nor what a device that has
// just read a timestamp asks for.
func TestPrune(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	for i, version := range []string{"1.0.0", "1.1.0", "1.2.0"} {
		w.bundle(w.spec(version, noise(byte(i), 2000)))
		w.publish(bundle.Publication{})
	}
	beta := w.spec("1.3.0-beta", noise(9, 2000))
	beta.Channel = "beta"
	w.bundle(beta)
	w.publish(bundle.Publication{})
	w.bundle(w.spec("1.4.0", noise(8, 2000)))
	orphan := w.write("repo/targets/gw/orphan", []byte("x"))
	done := w.publish(bundle.Publication{Releases: []string{}, Refresh: true, Keep: 1})
	if got := versions(w.view()); got != "1.2.0 1.3.0-beta" {
		t.Errorf("left are %s", got)
	}
	if _, err := os.Stat(orphan); err == nil || len(done.Withdrawn) != 2 {
		t.Errorf("withdrawn %v, removed %v", done.Withdrawn, done.Removed)
	}
	w.publish(bundle.Publication{}) // the objects of the one that waited are there
	if got := versions(w.view()); got != "1.2.0 1.3.0-beta 1.4.0" {
		t.Errorf("there are %s", got)
	}
	for range 15 {
		w.publish(bundle.Publication{Again: []string{"1.4.0"}})
	}
	w.publish(bundle.Publication{Keep: 2})
	entries, err := os.ReadDir(w.path("repo/metadata"))
	if err != nil || len(entries) != 22 { // root, timestamp, and ten of each
		t.Errorf("%d files of metadata, %v", len(entries), err)
	}
	if report := w.verify(); len(report.Problems) > 0 {
		t.Error(report.Problems)
	}
}

// A delta is left out where it is not smaller; one from the same image is what the other slot needs.
func TestDeltasThatPay(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	w.bundle(w.spec("1.0.0", noise(1, 100_000)))
	w.publish(bundle.Publication{})
	m, made, err := w.open().Bundle(t.Context(), w.spec("1.1.0", noise(2, 100_000)))
	if err != nil || len(m.Parts()[0].Deltas) != 0 || len(made[0].Deltas) != 1 || made[0].Deltas[0].Kept {
		t.Errorf("of two strangers: %+v, %v", made, err)
	}
	m, made, err = w.open().Bundle(t.Context(), w.spec("1.2.0", noise(1, 100_000)))
	if err != nil || len(m.Parts()[0].Deltas) != 1 || made[0].Deltas[0].Size > 500 {
		t.Errorf("of the same: %+v, %v", made, err)
	}
	changed := w.spec("1.3.0", noise(3, 100))
	changed.Images = append(changed.Images, bundle.Image{Name: "rootfs", File: changed.Images[0].File})
	if _, _, err := w.open().Bundle(t.Context(), changed); !errors.Is(err, bundle.ErrRefused) {
		t.Errorf("a part twice: %v", err)
	}
}

// A run that ends in the middle leaves nothing but what the next one removes.
func TestBundleEnds(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	spec := w.spec("1.0.0", noise(1, 3<<20))
	ctx, cancel := context.WithCancel(t.Context())
	o := w.options()
	o.Progress = func(string, int64, int64) { cancel() }
	r, err := bundle.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Bundle(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	w.write("repo/staged/temp/0", []byte("left over"))
	w.bundle(spec)
	left, err := os.ReadDir(w.path("repo/staged/temp"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// A device that has installed what was then taken back would pass over its number for ever.
func TestNumbersOutliveReleases(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	two := uint64(2)
	for _, version := range []string{"1.0.0", "1.1.0"} {
		w.bundle(w.spec(version, noise(1, 1000)))
		w.publish(bundle.Publication{})
	}
	spec := w.spec("1.2.0", noise(2, 1000))
	spec.SecurityVersion = &two
	w.bundle(spec)
	w.publish(bundle.Publication{})
	w.publish(bundle.Publication{Withdraw: []string{"1.2.0", "1.1.0"}})
	w.bundle(w.spec("1.3.0", noise(3, 1000)))
	m := w.publish(bundle.Publication{}).Releases[0]
	if m.Release() != 4 || m.SecurityVersion() != 2 {
		t.Errorf("number %d, security version %d", m.Release(), m.SecurityVersion())
	}
}

// Publishing signs anew what has little time left, as far as the keys go, and says what it could not.
func TestSignaturesAreRenewedInTime(t *testing.T) {
	w := onMachine(t)
	w.init(w.setup())
	only := w.keys("keys/snapshot-1.pem", "keys/timestamp-1.pem")
	w.now = epoch.Add(10 * 24 * time.Hour)
	if done := w.publish(bundle.Publication{Refresh: true, Keys: only}); done.Snapshot != 1 || done.Timestamp != 2 || len(done.Soon) > 0 {
		t.Errorf("after 10 days: %+v", done)
	}
	w.now = epoch.Add(350 * 24 * time.Hour)
	if done := w.publish(bundle.Publication{Refresh: true, Keys: only}); done.Snapshot != 2 || done.Targets != 1 || len(done.Soon) != 1 {
		t.Errorf("after 350 days, without the key of targets: %+v", done)
	}
	if done := w.publish(bundle.Publication{}); done.Targets != 2 || len(done.Soon) != 0 {
		t.Errorf("after 350 days: %+v", done)
	}
	w.now = epoch.Add(3*365*24*time.Hour - time.Hour)
	w.publish(bundle.Publication{})
	w.view()
	if done := w.publish(bundle.Publication{}); len(done.Soon) != 1 || !strings.Contains(done.Soon[0], "root") {
		t.Errorf("an hour before the root expires: %+v", done.Soon)
	}
	if _, err := w.open().Rotate(bundle.Rotation{Keys: w.keys("root")}); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(2 * time.Hour)
	w.view()
}
