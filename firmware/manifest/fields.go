package manifest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fields is what a manifest says, in Go's types.
type Fields struct {
	Product         string
	Hardware        []string
	Channel         string
	Version         string
	Release         uint64
	SecurityVersion uint64
	MinAgent        string
	Parts           []Part
	Health          Health
	Rollout         Rollout
	Notes           string
	Extra           json.RawMessage // an object of the user's; integers only, since it is signed as canonical JSON
}

// Encode writes a manifest, the same bytes for the same fields; it refuses what Of would. It is for
// the program that publishes.
func Encode(f Fields) ([]byte, error) {
	d := document{
		Schema: schema, Product: f.Product, Hardware: f.Hardware, Channel: f.Channel, Version: f.Version,
		Release: f.Release, SecurityVersion: f.SecurityVersion, MinAgent: f.MinAgent, Notes: f.Notes, Extra: f.Extra,
		Health: health{f.Health.Session, f.Health.Lines, f.Health.Within.String(), f.Health.NetworkGrace.String()},
	}
	if d.Hardware == nil {
		d.Hardware = []string{}
	}
	for _, p := range f.Parts {
		d.Parts = append(d.Parts, encodePart(p))
	}
	d.Rollout = rollout{Seed: f.Rollout.Seed, Paused: f.Rollout.Paused, Steps: []step{}}
	for _, s := range f.Rollout.Steps {
		d.Rollout.Steps = append(d.Rollout.Steps, step{encodePercent(s.Percent), s.From.UTC().Format(time.RFC3339)})
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("writing the manifest: %w", err)
	}
	if _, err := parse(raw); err != nil {
		return nil, err
	}
	return raw, nil
}

func encodePart(p Part) part {
	segments := make([]byte, 0, len(p.Segments)*len(Digest{}))
	for _, s := range p.Segments {
		segments = append(segments, s[:]...)
	}
	d := part{
		Name: p.Name, Size: p.Size, SHA256: p.SHA256.String(), Segments: base64.StdEncoding.EncodeToString(segments),
		Full: encodeObject(p.Full), Deltas: []delta{},
	}
	for _, x := range p.Deltas {
		o := encodeObject(x.Object)
		d.Deltas = append(d.Deltas, delta{From: x.From.String(), FromSize: x.FromSize, Path: o.Path, Size: o.Size, SHA256: o.SHA256})
	}
	return d
}

func encodeObject(o Object) object { return object{o.Path, o.Size, o.SHA256.String()} }

// encodePercent writes an integer, or a string where there are hundredths: canonical JSON knows no
// other numbers.
func encodePercent(p float64) json.RawMessage {
	if p == math.Trunc(p) {
		return json.RawMessage(strconv.FormatFloat(p, 'f', -1, 64))
	}
	return json.RawMessage(strconv.Quote(strconv.FormatFloat(p, 'f', -1, 64)))
}

// ServerPath is where a target lies on the server below targets/, as consistent snapshots have
// it: the hash goes before the last element (TUF specification 1.0, 6.2).
func ServerPath(target string, sum Digest) string {
	dir, base := path.Split(target)
	return dir + sum.String() + "." + base
}

// TargetOf is the target that lies at a path on the server, or false where the path is not one of
// ServerPath.
func TargetOf(o Object) (string, bool) {
	dir, base := path.Split(o.Path)
	name, ok := strings.CutPrefix(base, o.SHA256.String()+".")
	return dir + name, ok && name != ""
}

// Fields is what m says, for the program that publishes it anew.
func (m *Manifest) Fields() Fields {
	f := m.f
	f.Hardware = slices.Clone(f.Hardware)
	f.Parts = slices.Clone(f.Parts)
	for i := range f.Parts {
		f.Parts[i].Deltas = slices.Clone(f.Parts[i].Deltas)
	}
	f.Rollout.Steps = slices.Clone(f.Rollout.Steps)
	return f
}
