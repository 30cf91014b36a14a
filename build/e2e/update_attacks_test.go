package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"
)

// ill is what may be wrong with a repository, its server or the disk.
type ill struct {
	name    string
	release func(*bundletest.Release)
	// do makes it so; undo may be nil, and then the next release has to do.
	do func(t *testing.T, u *updating, m *manifest.Manifest) (undo func())
	// says is why, in the reply, the report and the status.
	says string
	// code is that of the reply where nothing is begun; fine: it is got over at once.
	code string
	fine bool
}

// What bad input gets: a reason in the reply or the report, and in the status; nothing is written to the
// slot that runs; and the next attempt works. Each group is a gateway of its own.
func TestUpdateBadInput(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	for name, ills := range map[string][]ill{
		"metadata": metadataIlls, "manifests": manifestIlls, "releases": releaseIlls, "objects": objectIlls, "flips": flipIlls,
		"servers": serverIlls, "answers": answerIlls,
	} {
		at(t, &all, name, func(t *testing.T) {
			u := newUpdating(t, quietLine, "floor = \"file\"")
			u.base(t)
			for _, i := range ills {
				t.Run(i.name, func(t *testing.T) { u.suffer(t, i) })
			}
			u.whole(t)
		})
	}
	all.Wait()
}

// base installs the first release.
func (u *updating) base(t *testing.T) {
	t.Helper()
	m := u.release(t, u.next(), atTwo)
	u.run(t)
	u.apply(t)
	u.tried(t, m)
}

// atTwo is the security version of all releases but one.
func atTwo(r *bundletest.Release) { r.SecurityVersion = 2 }

func (u *updating) suffer(t *testing.T, i ill) {
	t.Helper()
	more := []func(*bundletest.Release){atTwo}
	if i.release != nil {
		more = append(more, i.release)
	}
	m := u.release(t, u.next(), more...)
	before, environment, reports := u.running(t), u.environment(t), len(u.reports(t))
	path, _, _ := strings.Cut(before, " ")
	undo := func() {}
	if i.do != nil {
		undo = i.do(t, u, m)
	}
	if i.fine {
		defer undo()
		u.apply(t)
		u.tried(t, m)
		if after := u.untouched(t, path); after != before {
			t.Errorf("the slot that ran was %s and is %s", before, after)
		}
		return
	}
	u.refuses(t, i, m)
	if kib := highWater(u.keeper.pid()); kib > mostMemory {
		t.Errorf("%d KiB in memory, want %d at most", kib, mostMemory)
	}
	if after := u.running(t); after != before || u.environment(t) != environment {
		t.Errorf("what runs was %s and is %s; environment %+v, was %+v", before, after, u.environment(t), environment)
	}
	if told := u.reports(t)[reports:]; i.code != "" && len(told) > 0 {
		t.Errorf("reports of what was never begun: %+v", told)
	}
	if undo != nil {
		undo()
	}
	if undo == nil || i.do == nil {
		m = u.release(t, u.next(), atTwo)
	}
	u.apply(t)
	u.tried(t, m)
	if after := u.untouched(t, path); after != before {
		t.Errorf("after the next attempt: the slot that ran was %s and is %s", before, after)
	}
}

// refuses has the device try, and checks what it says.
func (u *updating) refuses(t *testing.T, i ill, m *manifest.Manifest) {
	t.Helper()
	a := u.command(t, agent.UpdateArgs{})
	if i.code != "" {
		if a.OK || a.Code != i.code || !strings.Contains(a.Error, i.says) {
			t.Errorf("reply: %+v; want %s, %q", a, i.code, i.says)
		}
		if said := u.said(t); !strings.Contains(said, i.says) {
			t.Errorf("the status does not say %q: %s", i.says, said)
		}
		t.Logf("%s: %s", a.Code, a.Error)
		return
	}
	if !a.OK {
		t.Fatalf("update: %+v", a)
	}
	r := u.report(t, m, firmware.OutcomeFailed)
	waitFor(t, "the end of it", func() bool { return u.stands(t).State == firmware.Idle })
	if said := u.said(t); !strings.Contains(r.Reason, i.says) || !strings.Contains(said, i.says) {
		t.Errorf("it should say %q: report %+v, status %s", i.says, r, said)
	}
	t.Log(r.Reason)
}

var metadataIlls = []ill{
	{name: "bad signature", says: "not signed", code: "failed", do: spoilMetadata(func(u *updating, files map[string][]byte) {
		files["timestamp.json"] = []byte(strings.Replace(string(files["timestamp.json"]), `"expires":"20`, `"expires":"21`, 1))
	})},
	{name: "older than what was seen", says: "older", code: "failed", do: spoilMetadata(func(u *updating, files map[string][]byte) {
		for name := range files {
			delete(files, name)
		}
		for name, text := range u.oldest {
			files[name] = text
		}
	})},
	{name: "another targets than the snapshot names", says: "vouched for", code: "failed", do: spoilMetadata(func(u *updating, files map[string][]byte) {
		newest, older := "", ""
		for name := range files {
			if strings.HasSuffix(name, ".targets.json") && (len(name) > len(newest) || len(name) == len(newest) && name > newest) {
				newest, older = name, newest
			}
		}
		files[newest] = files[older]
		if older == "" {
			files[newest] = u.oldest["1.targets.json"]
		}
	})},
	{name: "expired", says: "expired", code: "failed", do: func(t *testing.T, u *updating, _ *manifest.Manifest) func() {
		u.clock.shift(-400 * 24 * time.Hour)
		u.refresh(t)
		return func() { u.clock.shift(0); u.refresh(t) }
	}},
	{name: "foreign repository", says: "not signed", code: "failed", do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		other, err := bundletest.New(filepath.Join(u.dir, "foreign"), nil, bundletest.Published{Release: bundletest.Release{Version: m.Version()},
			Parts: []bundletest.Part{{Name: "agent", Image: u.wrapped([]byte("foreign"))}}})
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := other.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		return spoilMetadata(func(_ *updating, files map[string][]byte) {
			clear(files)
			for name, text := range theirs {
				files[name] = text
			}
		})(t, u, m)
	}},
	{name: "truncated", says: "timestamp", code: "failed", do: spoilMetadata(func(_ *updating, files map[string][]byte) {
		files["timestamp.json"] = files["timestamp.json"][:len(files["timestamp.json"])/2]
	})},
	{name: "endless", says: "longer than it may be", code: "failed", do: serves(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/timestamp.json") {
			return false
		}
		for block := make([]byte, 32<<10); ; {
			if _, err := w.Write(block); err != nil {
				return true
			}
		}
	})},
	{name: "none", says: "404 Not Found", code: "failed", do: serves(func(w http.ResponseWriter, r *http.Request) bool {
		http.NotFound(w, r)
		return true
	})},
}

var manifestIlls = []ill{
	{name: "more than it may: a member", says: "exec", code: "update-refused", do: edits(func(members map[string]any) { members["exec"] = "/bin/sh" })},
	{name: "more than it may: a size", says: "size 69793218560", code: "update-refused", do: edits(func(members map[string]any) { part(members)["size"] = 65 << 30 })},
	{name: "more than it may: a path", says: "path", code: "update-refused", do: edits(func(members map[string]any) {
		part(members)["full"].(map[string]any)["path"] = "../../../etc/passwd"
	})},
	{name: "more than it may: a trial of a year", says: "within", code: "update-refused", do: edits(func(members map[string]any) {
		members["health"].(map[string]any)["within"] = "9000h"
	})},
}

var releaseIlls = []ill{
	{name: "a part this device has not", says: "kernel", do: edits(func(members map[string]any) { part(members)["name"] = "kernel" })},
	{name: "foreign product", says: "", code: "update-none", release: func(r *bundletest.Release) { r.Product = "fridge" }},
	{name: "foreign hardware", says: "hardware revZ", code: "update-refused", release: func(r *bundletest.Release) { r.Hardware = []string{"revZ"} }},
	{name: "old security version", says: "the security version 1", code: "update-refused", release: func(r *bundletest.Release) {
		r.SecurityVersion, r.LowerSecurity = 1, true
	}},
	{name: "truncated, and the manifest agrees", says: "damaged", do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		content, err := os.ReadFile(u.repo.File(m.Parts()[0].Full))
		var members map[string]any
		if err == nil {
			err = json.Unmarshal(m.Raw(), &members)
		}
		half := content[:len(content)/2]
		sum := manifest.Digest(sha256.Sum256(half))
		part(members)["full"] = map[string]any{"path": manifest.ServerPath(m.Target(), sum), "size": len(half), "sha256": sum.String()}
		part(members)["deltas"] = []any{}
		custom, _ := json.Marshal(members)
		if err == nil {
			err = u.repo.SignTarget(m.Target(), half, custom)
		}
		if err != nil {
			t.Fatal(err)
		}
		return edited(t, u, m, content)
	}},
}

var objectIlls = []ill{
	{name: "delta for another image", fine: true, do: swaps(false)},
	{name: "delta and image of another release", says: "another part than the manifest names", do: swaps(true)},
	{name: "damaged delta", fine: true, do: flips(true, false, 0.5)},
	{name: "no delta", fine: true, do: removes(true, false)},
	{name: "no object", says: "404 Not Found", do: removes(true, true)},
	{name: "a bomb", says: "segment 0", do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		undo := removes(true, false)(t, u, m)
		back := u.changes(t, chosen(m, false, true), func(_ manifest.Object, content []byte) []byte {
			part := m.Parts()[0]
			p, err := patch.ReadHeader(bytes.NewReader(content), patch.OfFull(&part))
			if err != nil {
				t.Fatal(err)
			}
			copy(content[p.Offset(0):], bomb(p.Body(0)))
			return content
		})
		return func() { back(); undo() }
	}},
}

var flipIlls = []ill{
	{name: "in the magic", says: "damaged", do: flips(true, true, 0)},
	{name: "in the table", says: "damaged", do: flips(true, true, 0.00005)},
	{name: "in the first segment", says: "segment 0", do: flips(true, true, 0.2)},
	{name: "in the middle", says: "segment", do: flips(true, true, 0.6)},
	{name: "in the last byte", says: "segment 1", do: flips(true, true, 1)},
}

var serverIlls = []ill{
	{name: "no ranges", fine: true, do: serves(func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	})},
	{name: "another ETag after a cut", says: "changed on the server", do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		undo := cut(t, u, m, 300<<10)
		var mu sync.Mutex
		n := 0
		u.server.wrong(func(w http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			n++
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n))
			return false
		})
		return undo
	}},
	{name: "another file after a cut, without a tag", says: "segment", do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		undo := cut(t, u, m, 300<<10)
		u.server.wrong(func(w http.ResponseWriter, r *http.Request) bool {
			var from, last int64
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &last)
			if !strings.Contains(r.URL.Path, "/targets/") || from < 200<<10 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, last, m.Parts()[0].Full.Size))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.CopyN(w, zeros{}, last+1-from)
			return true
		})
		return undo
	}},
	{name: "endless", says: "damaged", do: serves(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/targets/") {
			return false
		}
		_, _ = io.CopyN(w, zeros{}, 1<<40)
		return true
	})},
}

var answerIlls = []ill{
	{name: "503, come back in an hour", says: "503 Service Unavailable", do: objects(func(w http.ResponseWriter) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
	})},
	{name: "403", says: "403 Forbidden", do: objects(func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) })},
	{name: "500, three times", fine: true, do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		var mu sync.Mutex
		n := 0
		return serves(func(w http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			if n++; n > 3 {
				return false
			}
			w.WriteHeader(http.StatusInternalServerError)
			return true
		})(t, u, m)
	}},
	{name: "redirected to http", says: "redirects from https", do: objects(func(w http.ResponseWriter) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(http.StatusFound)
	})},
	{name: "redirected for ever", says: "redirections", do: objects(func(w http.ResponseWriter) {
		w.Header().Set("Location", "?again")
		w.WriteHeader(http.StatusFound)
	})},
	{name: "redirected to another server", fine: true, do: func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		mirror := newUpdateServer(t, u.world, u.repo.Dir)
		return serves(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, mirror.URL()+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		})(t, u, m)
	}},
}

// spoilMetadata changes what is signed, as it lies on the server.
func spoilMetadata(change func(u *updating, files map[string][]byte)) func(*testing.T, *updating, *manifest.Manifest) func() {
	return func(t *testing.T, u *updating, _ *manifest.Manifest) func() {
		good, err := u.repo.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		bad := make(map[string][]byte)
		for name, text := range good {
			bad[name] = text
		}
		change(u, bad)
		if err := u.repo.SetMetadata(bad); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := u.repo.SetMetadata(good); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (u *updating) refresh(t *testing.T) {
	t.Helper()
	if err := u.repo.Refresh(); err != nil {
		t.Fatal(err)
	}
}

// serves has the server do wrong.
func serves(wrong func(w http.ResponseWriter, r *http.Request) bool) func(*testing.T, *updating, *manifest.Manifest) func() {
	return func(_ *testing.T, u *updating, _ *manifest.Manifest) func() {
		u.server.wrong(wrong)
		return func() { u.server.wrong(nil) }
	}
}

// objects is serves for objects alone.
func objects(answer func(w http.ResponseWriter)) func(*testing.T, *updating, *manifest.Manifest) func() {
	return serves(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/targets/") {
			answer(w)
			return true
		}
		return false
	})
}

// cut has connections break, and leaves the full object alone, which takes several.
func cut(t *testing.T, u *updating, m *manifest.Manifest, after int64) func() {
	back := removes(true, false)(t, u, m)
	u.server.listener.cutAfter(after)
	return func() {
		u.server.listener.cutAfter(0)
		u.server.wrong(nil)
		back()
	}
}

func part(members map[string]any) map[string]any {
	return members["parts"].([]any)[0].(map[string]any)
}

// edits signs another manifest: what stolen keys could.
func edits(change func(members map[string]any)) func(*testing.T, *updating, *manifest.Manifest) func() {
	return func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		content, err := os.ReadFile(u.repo.File(m.Parts()[0].Full))
		if err == nil {
			err = u.repo.EditManifest(m.Version(), change)
		}
		if err != nil {
			t.Fatal(err)
		}
		return edited(t, u, m, content)
	}
}

// edited has the good manifest signed again.
func edited(t *testing.T, u *updating, m *manifest.Manifest, content []byte) (undo func()) {
	return func() {
		if err := u.repo.SignTarget(m.Target(), content, m.Raw()); err != nil {
			t.Fatal(err)
		}
	}
}

// chosen are the objects of a release that a device may choose: deltas, full.
func chosen(m *manifest.Manifest, deltas, full bool) (all []manifest.Object) {
	part := m.Parts()[0]
	if deltas {
		for _, d := range part.Deltas {
			all = append(all, d.Object)
		}
	}
	if full {
		all = append(all, part.Full)
	}
	return all
}

// changes replaces objects as they lie on the server.
func (u *updating) changes(t *testing.T, objects []manifest.Object, change func(o manifest.Object, content []byte) []byte) (undo func()) {
	t.Helper()
	good := make(map[string][]byte)
	for _, o := range objects {
		name := u.repo.File(o)
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		good[name] = content
		if bad := change(o, append([]byte(nil), content...)); bad == nil {
			err = os.Remove(name)
		} else {
			err = os.WriteFile(name, bad, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		for name, content := range good {
			if err := os.WriteFile(name, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func removes(deltas, full bool) func(*testing.T, *updating, *manifest.Manifest) func() {
	return func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		return u.changes(t, chosen(m, deltas, full), func(manifest.Object, []byte) []byte { return nil })
	}
}

// flips turns one bit, so far into the object.
func flips(deltas, full bool, where float64) func(*testing.T, *updating, *manifest.Manifest) func() {
	return func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		return u.changes(t, chosen(m, deltas, full), func(_ manifest.Object, content []byte) []byte {
			content[min(len(content)-1, int(where*float64(len(content))))] ^= 0x10
			return content
		})
	}
}

// swaps puts the objects of the release before in place of this one's, as long as these are.
func swaps(full bool) func(*testing.T, *updating, *manifest.Manifest) func() {
	return func(t *testing.T, u *updating, m *manifest.Manifest) func() {
		before, err := u.repo.Manifest(fmt.Sprintf("1.%d.0", u.n-1))
		if err != nil {
			t.Fatal(err)
		}
		return u.changes(t, chosen(m, true, full), func(o manifest.Object, content []byte) []byte {
			other := before.Parts()[0].Full
			if o != m.Parts()[0].Full && len(before.Parts()[0].Deltas) > 0 {
				other = before.Parts()[0].Deltas[0].Object
			}
			wrong, err := os.ReadFile(u.repo.File(other))
			if err != nil {
				t.Fatal(err)
			}
			return append(wrong, content...)[:len(content)]
		})
	}
}

// bomb is n bytes that inflate to 32768 times as many: a zstd frame of blocks that repeat one byte each (RFC
// 8878, 3.1.1.2).
func bomb(n int) []byte {
	const block = 128 << 10
	b := []byte{0x28, 0xB5, 0x2F, 0xFD, 0, 7 << 3} // a window of 128 KiB, no size
	rest := (n - len(b) - 3) % 4
	for len(b) < n-3-rest {
		b = append(b, block<<3&0xFF|1<<1, block<<3>>8&0xFF, block<<3>>16, 'x')
	}
	b = append(b, byte(rest<<3|1), 0, 0) // the last one, as it is
	return append(b, make([]byte, rest)...)
}
