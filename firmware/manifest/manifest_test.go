package manifest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ferrule/firmware/manifest"
)

func digest(n byte) (d manifest.Digest) { d[0], d[31] = n, n; return d }

func object(target string, n byte) manifest.Object {
	return manifest.Object{Path: manifest.ServerPath(target, digest(n)), Size: 100 + int64(n), SHA256: digest(n)}
}

var epoch = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

// fields is a manifest with everything in it.
func fields() manifest.Fields {
	return manifest.Fields{
		Product: "gw", Hardware: []string{"revB", "revC"}, Channel: "stable", Version: "1.4.0", Release: 17, SecurityVersion: 3, MinAgent: "1.2.0",
		Parts: []manifest.Part{
			{Name: "rootfs", Size: 2<<20 + 1, SHA256: digest(1), Segments: []manifest.Digest{digest(2), digest(3), digest(4)}, Full: object("gw/1.4.0", 5),
				Deltas: []manifest.Delta{{From: digest(6), FromSize: 77, Object: object("gw/1.4.0/rootfs-from-06", 7)}, {From: digest(1), FromSize: 2<<20 + 1, Object: object("gw/1.4.0/rootfs-from-01", 8)}}},
			{Name: "agent", Size: 1, SHA256: digest(9), Segments: []manifest.Digest{digest(10)}, Full: object("gw/1.4.0/agent", 11)},
		},
		Health:  manifest.Health{Session: true, Within: time.Minute, NetworkGrace: 0},
		Rollout: manifest.Rollout{Seed: "s", Paused: true, Steps: []manifest.Step{{Percent: 0.25, From: epoch}, {Percent: 10, From: epoch.Add(time.Hour)}}},
		Notes:   "line\n\tsecond \"line\" <b> é",
		Extra:   json.RawMessage(`{"Any":[null,{"Case":1}]}`),
	}
}

func encode(t testing.TB, f manifest.Fields) []byte {
	t.Helper()
	raw, err := manifest.Encode(f)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRoundTrip(t *testing.T) {
	want := fields()
	raw := encode(t, want)
	m, err := manifest.Reopen(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, m.Fields()); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(m.Raw(), raw) || m.Target() != "gw/1.4.0" || len(m.ID()) != 64 {
		t.Errorf("%s %s", m.Target(), m.ID())
	}
	if again := encode(t, m.Fields()); !bytes.Equal(again, raw) {
		t.Errorf("written again it is another one:\n%s\n%s", again, raw)
	}
	raw[20] ^= 1
	if bytes.Equal(m.Raw(), raw) {
		t.Error("a manifest changes with the bytes that it was made of")
	}
}

// A version that was given up must not come back because its rollout goes on.
func TestEditionOutlivesTheRollout(t *testing.T) {
	edition := func(edit func(*manifest.Fields)) (string, string) {
		f := fields()
		edit(&f)
		m, err := manifest.Reopen(encode(t, f))
		if err != nil {
			t.Fatal(err)
		}
		return m.Edition(), m.ID()
	}
	first, id := edition(func(*manifest.Fields) {})
	for name, edit := range map[string]func(*manifest.Fields){
		"rollout": func(f *manifest.Fields) { f.Rollout.Paused = false }, "notes": func(f *manifest.Fields) { f.Notes = "" },
		"deltas": func(f *manifest.Fields) { f.Parts[0].Deltas = nil }, "health": func(f *manifest.Fields) { f.Health.Lines = true },
	} {
		if e, i := edition(edit); e != first || i == id {
			t.Errorf("%s: edition %s, id %s", name, e, i)
		}
	}
	for name, edit := range map[string]func(*manifest.Fields){
		"release": func(f *manifest.Fields) { f.Release++ }, "version": func(f *manifest.Fields) { f.Version = "1.4.1" },
		"part": func(f *manifest.Fields) { f.Parts[1].SHA256 = digest(77) },
	} {
		if e, _ := edition(edit); e == first {
			t.Errorf("%s: the edition is the same", name)
		}
	}
}

// refusals are manifests that differ from a good one in one place: old text, new text, and what the
// error says.
func refusals() [][3]string {
	hex := digest(5).String()
	return [][3]string{
		{`"schema":1`, `"schema":2`, "schema 2 is not known"},
		{`"schema":1`, `"schema":null`, "is null"},
		{`"schema":1`, `"schema":1.5`, "no integer"},
		{`"schema":1`, `"schema":1e0`, "no integer"},
		{`"product":"gw"`, `"product":"gw","product":"gw"`, "twice"},
		{`"product":"gw"`, `"Product":"gw"`, "unknown member"},
		{`"product":"gw"`, `"product":"gw","colour":"red"`, "unknown field"},
		{`"product":"gw"`, `"product":""`, "product"},
		{`"product":"gw"`, `"product":"../gw"`, "product"},
		{`"product":"gw"`, `"product":"g w"`, "product"},
		{`"product":"gw"`, `"product":["gw"]`, "cannot unmarshal"},
		{`"revC"`, `"rev/C"`, "hardware"},
		{`"revC"`, `null`, "is null"},
		{`"1.4.0"`, `".."`, "version"},
		{`"1.4.0"`, `"-rf"`, "version"},
		{`"stable"`, `"sta\nble"`, "channel"},
		{`"release":17`, `"release":0`, "release 0"},
		{`"release":17`, `"release":-1`, "cannot unmarshal"},
		{`"release":17`, `"release":9007199254740992`, "release"},
		{`"release":17`, `"release":99999999999999999999999`, "cannot unmarshal"},
		{`"security_version":3`, `"security_version":65536`, "a TPM counts by ones"},
		{`"1.2.0"`, `"v1.2"`, "min_agent"},
		{`"1.2.0"`, `"1..2"`, "min_agent"},
		{`"name":"rootfs"`, `"name":"Rootfs"`, "its name"},
		{`"name":"rootfs"`, `"name":"agent"`, "comes twice"},
		{`"name":"rootfs"`, `"name":""`, "its name"},
		{`"size":2097153`, `"size":2097152`, "segments"},
		{`"size":2097153`, `"size":0`, "size 0"},
		{`"size":2097153`, `"size":-5`, "size -5"},
		{`"size":2097153`, `"size":68719476737`, "size 68719476737"},
		{`"size":105`, `"size":0`, "size 0"},
		{`"size":105`, `"size":99999999999999`, "out of bounds"},
		{`"sha256":"` + hex, `"sha256":"` + strings.ToUpper(digest(0xab).String()), "lower-case"},
		{`"sha256":"` + hex, `"sha256":"` + hex[:62], "64 hex digits"},
		{`"sha256":"` + hex, `"sha256":"` + digest(6).String(), "does not bear"},
		{`"path":"gw/05`, `"path":"../05`, "clean"},
		{`"path":"gw/05`, `"path":"/gw/05`, "clean"},
		{`"path":"gw/05`, `"path":"gw//05`, "clean"},
		{`"path":"gw/05`, `"path":"gw/%2e%2e/05`, "clean"},
		{`"path":"gw/05`, `"path":"gw?/05`, "clean"},
		{`"segments":"`, `"segments":"AAAA`, "base64"},
		{`"from":"` + digest(6).String(), `"from":"` + digest(1).String(), "as another one"},
		{`"from_size":77`, `"from_size":0`, "from_size"},
		{`"within":"1m0s"`, `"within":"1s"`, "within"},
		{`"within":"1m0s"`, `"within":"soon"`, "no duration"},
		{`"network_grace":"0s"`, `"network_grace":"-1s"`, "network_grace"},
		{`"network_grace":"0s"`, `"network_grace":"99999h"`, "network_grace"},
		{`"seed":"s"`, `"seed":"\u0000"`, "seed"},
		{`"percent":"0.25"`, `"percent":"101.0"`, "percent"},
		{`"percent":"0.25"`, `"percent":"NaN"`, "percent"},
		{`"percent":"0.25"`, `"percent":"0.255"`, "percent"},
		{`"percent":"0.25"`, `"percent":-1`, "percent"},
		{`"percent":"0.25"`, `"percent":{}`, "percent"},
		{`"percent":"0.25"`, `"percent":11`, "is less"},
		{`T04:00:00Z`, `T05:00:00Z`, "not later"},
		{`T04:00:00Z`, `T04:00:00+00:00`, "no time"},
		{`T04:00:00Z`, `T04:00:00.5Z`, "no time"},
		{`"notes":"`, `"notes":"\u001b[31m`, "control characters"},
		{`"notes":"`, `"notes":"\u009b31m`, "control characters"},
		{`"extra":{`, `"extra":{"a":1,"a":2,`, "twice"},
		{`"extra":{`, `"extra":{"a":0.5,`, "no integer"},
		{`"extra":{`, `"extra":{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `,`, "nested deeper"},
		{`{"schema"`, ` [{"schema"`, "reading the manifest"},
		{`{"schema"`, `{} {"schema"`, "something follows"},
	}
}

func TestRefuses(t *testing.T) {
	raw := string(encode(t, fields()))
	for _, r := range refusals() {
		if !strings.Contains(raw, r[0]) {
			t.Errorf("the manifest has no %s", r[0])
			continue
		}
		_, err := manifest.Reopen([]byte(strings.Replace(raw, r[0], r[1], 1)))
		if !errors.Is(err, manifest.ErrFormat) || !strings.Contains(fmt.Sprint(err), r[2]) {
			t.Errorf("%s for %s: %v, want %q", r[1], r[0], err, r[2])
		}
	}
	for name, bad := range map[string]string{
		"nothing": "", "null": "null", "cut": raw[:len(raw)/2], "text": `"gw"`, "not UTF-8": strings.Replace(raw, "second", "\xff", 1),
		"large": raw[:len(raw)-1] + strings.Repeat(" ", manifest.MaxSize) + "}",
	} {
		if _, err := manifest.Reopen([]byte(bad)); !errors.Is(err, manifest.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBoundsOfLists(t *testing.T) {
	for name, edit := range map[string]func(*manifest.Fields){
		"parts": func(f *manifest.Fields) {
			for i := range manifest.MaxParts {
				p := f.Parts[1]
				p.Name = fmt.Sprint("p", i)
				f.Parts = append(f.Parts, p)
			}
		},
		"no parts": func(f *manifest.Fields) { f.Parts = nil },
		"deltas": func(f *manifest.Fields) {
			for i := range manifest.MaxDeltas {
				f.Parts[1].Deltas = append(f.Parts[1].Deltas, manifest.Delta{From: digest(byte(i + 100)), FromSize: 1, Object: object("x", byte(i))})
			}
			f.Parts[1].Deltas = append(f.Parts[1].Deltas, manifest.Delta{From: digest(1), FromSize: 1, Object: object("x", 1)})
		},
		"hardware": func(f *manifest.Fields) { f.Hardware = strings.Fields(strings.Repeat("rev ", manifest.MaxHardware+1)) },
		"steps": func(f *manifest.Fields) {
			for i := range manifest.MaxSteps {
				f.Rollout.Steps = append(f.Rollout.Steps, manifest.Step{Percent: 50, From: epoch.Add(time.Duration(i+2) * time.Hour)})
			}
		},
		"notes": func(f *manifest.Fields) { f.Notes = strings.Repeat("n", manifest.MaxNotes+1) },
		"extra": func(f *manifest.Fields) { f.Extra = json.RawMessage(`[]`) },
	} {
		f := fields()
		edit(&f)
		if _, err := manifest.Encode(f); !errors.Is(err, manifest.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a manifest does not speak of has a value that is safe.
func TestDefaults(t *testing.T) {
	raw := string(encode(t, fields()))
	start, end := strings.Index(raw, `"health":`), strings.Index(raw, `"rollout":`)
	m, err := manifest.Reopen([]byte(raw[:start] + raw[end:]))
	if err != nil || m.Health() != manifest.DefaultHealth() {
		t.Errorf("%+v, %v", m.Health(), err)
	}
}

func TestAdmits(t *testing.T) {
	steps := []manifest.Step{{Percent: 10, From: epoch}, {Percent: 50, From: epoch.Add(time.Hour)}, {Percent: 100, From: epoch.Add(2 * time.Hour)}}
	r := manifest.Rollout{Seed: "1.4.0", Steps: steps}
	const fleet = 20_000
	admitted := make([]int, 4)
	for i := range fleet {
		device := fmt.Sprintf("gw-%05d", i)
		before := false
		for k := range admitted {
			now := epoch.Add(time.Duration(k-1)*time.Hour + time.Minute)
			is := r.Admits(device, now)
			if before && !is {
				t.Fatalf("%s was admitted, and is not any more", device)
			}
			if before = is; is {
				admitted[k]++
			}
		}
		if (manifest.Rollout{Seed: "1.4.0", Steps: steps, Paused: true}).Admits(device, epoch.Add(9*time.Hour)) {
			t.Fatalf("%s is admitted while it is paused", device)
		}
	}
	for k, want := range []int{0, fleet / 10, fleet / 2, fleet} {
		if off := admitted[k] - want; off < -fleet/50 || off > fleet/50 || (want == 0 || want == fleet) && off != 0 {
			t.Errorf("step %d: %d of %d", k, admitted[k], want)
		}
	}
	if !(manifest.Rollout{}).Admits("gw", epoch) || !r.Admits("gw-1", epoch.Add(2*time.Hour)) || r.Share(epoch.Add(-1)) != 0 {
		t.Error("no steps, or the last one of 100 %, do not admit everybody")
	}
}

// Other seeds begin with other devices, and the smallest share is a hundredth of a per cent.
func TestSeedsStir(t *testing.T) {
	same, tiny := 0, 0
	for i := range 20_000 {
		device := fmt.Sprint("gw-", i)
		if (manifest.Group("a", device) < 1000) && (manifest.Group("b", device) < 1000) {
			same++
		}
		if (manifest.Rollout{Steps: []manifest.Step{{Percent: 0.01, From: epoch}}}).Admits(device, epoch) {
			tiny++
		}
	}
	if same < 100 || same > 320 || tiny > 12 {
		t.Errorf("%d of 20000 are first with both seeds, %d in a hundredth of a per cent", same, tiny)
	}
	// The number of a device is a promise: an agent of another version must not compute another.
	if got := manifest.Group("1.4.0", "gw-00001"); got != 1750 {
		t.Errorf("the group of gw-00001 is %d", got)
	}
}

func TestPaths(t *testing.T) {
	o := object("gw/1.4.0/agent", 3)
	if target, ok := manifest.TargetOf(o); !ok || target != "gw/1.4.0/agent" {
		t.Errorf("%q %v", target, ok)
	}
	o.Path = "gw/" + digest(3).String() + "."
	if _, ok := manifest.TargetOf(o); ok {
		t.Error("a path without a name is one")
	}
}

func FuzzReopen(f *testing.F) {
	raw := encode(f, fields())
	f.Add(raw)
	for _, r := range refusals() {
		f.Add([]byte(strings.Replace(string(raw), r[0], r[1], 1)))
	}
	for range 50 { // pieces in another order
		words := strings.SplitAfter(string(raw), ",")
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(words), reflect.Swapper(words))
		f.Add([]byte(strings.Join(words, "")))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := manifest.Reopen(raw)
		if err != nil {
			if !errors.Is(err, manifest.ErrFormat) {
				t.Fatalf("the error is no ErrFormat: %v", err)
			}
			return
		}
		m.Rollout().Admits("gw", epoch)
		again, err := manifest.Encode(m.Fields())
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		back, err := manifest.Reopen(again)
		if err != nil {
			t.Fatal(err)
		}
		x, y := m.Fields(), back.Fields()
		x.Extra, y.Extra = nil, nil // written without its spaces
		if diff := cmp.Diff(x, y); diff != "" {
			t.Fatal(diff)
		}
		for _, p := range m.Parts() {
			if !manifest.Path(p.Full.Path) || p.Size > manifest.MaxPart || int64(len(p.Segments)) != (p.Size+manifest.SegmentSize-1)/manifest.SegmentSize {
				t.Fatalf("%+v", p)
			}
		}
	})
}
