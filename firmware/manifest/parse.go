package manifest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// schema is the only one there is.
const schema = 1

// document is the JSON (docs/releases.md).
type document struct {
	Schema          int             `json:"schema"`
	Product         string          `json:"product"`
	Hardware        []string        `json:"hardware"`
	Channel         string          `json:"channel"`
	Version         string          `json:"version"`
	Release         uint64          `json:"release"`
	SecurityVersion uint64          `json:"security_version"`
	MinAgent        string          `json:"min_agent"`
	Parts           []part          `json:"parts"`
	Health          health          `json:"health"`
	Rollout         rollout         `json:"rollout"`
	Notes           string          `json:"notes"`
	Extra           json.RawMessage `json:"extra,omitempty"`
}

type part struct {
	Name     string  `json:"name"`
	Size     int64   `json:"size"`
	SHA256   string  `json:"sha256"`
	Segments string  `json:"segments"`
	Full     object  `json:"full"`
	Deltas   []delta `json:"deltas"`
}

type object struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

type delta struct {
	From     string `json:"from"`
	FromSize int64  `json:"from_size"`
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	SHA256   string `json:"sha256"`
}

type health struct {
	Session      bool   `json:"session"`
	Lines        bool   `json:"lines"`
	Within       string `json:"within"`
	NetworkGrace string `json:"network_grace"`
}

type rollout struct {
	Seed   string `json:"seed"`
	Paused bool   `json:"paused"`
	Steps  []step `json:"steps"`
}

type step struct {
	Percent json.RawMessage `json:"percent"` // an integer, or a string such as "0.5"
	From    string          `json:"from"`
}

// parse reads and checks a whole manifest.
func parse(raw []byte) (Fields, error) {
	if err := wellFormed(raw); err != nil {
		return Fields{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	defaults := DefaultHealth()
	d := document{Health: health{defaults.Session, defaults.Lines, defaults.Within.String(), defaults.NetworkGrace.String()}}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return Fields{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f, err := d.fields()
	if err != nil {
		return Fields{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return f, nil
}

// wellFormed refuses what encoding/json would let pass: a member that comes twice or differs from ours
// in case, null, text that is not UTF-8, more than one value.
func wellFormed(raw []byte) error {
	if len(raw) > MaxSize {
		return fmt.Errorf("%d bytes, and at most %d are allowed", len(raw), MaxSize)
	}
	if !utf8.Valid(raw) {
		return errors.New("it is not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := walk(decoder, "", 0); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}

// maxDepth is below "extra"; our own members need four.
const maxDepth = 16

// walk reads one value. where is its place, such as .parts; below .extra any member may be.
func walk(decoder *json.Decoder, where string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s is nested deeper than %d", where, maxDepth)
	}
	token, err := decoder.Token()
	if err != nil {
		return fmt.Errorf("reading %s: %w", name(where), err)
	}
	foreign := where == ".extra" || strings.HasPrefix(where, ".extra.")
	switch token {
	case nil:
		if !foreign {
			return fmt.Errorf("%s is null", name(where))
		}
		return nil
	case json.Delim('['):
		for decoder.More() {
			if err := walk(decoder, where, depth+1); err != nil {
				return err
			}
		}
		return ending(decoder, where)
	case json.Delim('{'):
		return walkObject(decoder, where, depth, foreign)
	}
	if number, ok := token.(json.Number); ok && strings.ContainsAny(number.String(), ".eE") {
		return fmt.Errorf("%s: %.40q is no integer, and canonical JSON has no other numbers", name(where), number)
	}
	return nil
}

func walkObject(decoder *json.Decoder, where string, depth int, foreign bool) error {
	seen := make(map[string]bool)
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return fmt.Errorf("reading %s: %w", name(where), err)
		}
		key, ok := token.(string)
		if !ok || len(key) > 256 || !foreign && !spelt(key) {
			return fmt.Errorf("%s has an unknown member %.40q", name(where), key)
		}
		if seen[key] {
			return fmt.Errorf("%s has %.40q twice", name(where), key)
		}
		seen[key] = true
		if err := walk(decoder, where+"."+key, depth+1); err != nil {
			return err
		}
	}
	return ending(decoder, where)
}

// ending reads the bracket that closes a value.
func ending(decoder *json.Decoder, where string) error {
	if _, err := decoder.Token(); err != nil {
		return fmt.Errorf("reading %s: %w", name(where), err)
	}
	return nil
}

// spelt says that a member's name is written as ours are, so that it matches one of ours exactly or
// not at all.
func spelt(key string) bool { return key != "" && only(key, lower+digits+"_") }

func name(where string) string {
	if where == "" {
		return "the manifest"
	}
	return strconv.Quote(strings.TrimPrefix(where, "."))
}

func (d *document) fields() (Fields, error) {
	f := Fields{
		Product: d.Product, Hardware: d.Hardware, Channel: d.Channel, Version: d.Version, Release: d.Release,
		SecurityVersion: d.SecurityVersion, MinAgent: d.MinAgent, Notes: d.Notes, Extra: d.Extra,
	}
	if d.Schema != schema {
		return f, fmt.Errorf("schema %d is not known, only %d: a newer agent is needed first", d.Schema, schema)
	}
	if err := f.checkHead(); err != nil {
		return f, err
	}
	if len(d.Parts) == 0 || len(d.Parts) > MaxParts {
		return f, fmt.Errorf("%d parts, and 1 to %d are allowed", len(d.Parts), MaxParts)
	}
	names := make(map[string]bool)
	for i := range d.Parts {
		p, err := d.Parts[i].part()
		if err != nil {
			return f, fmt.Errorf("part %.40q: %w", d.Parts[i].Name, err)
		}
		if names[p.Name] {
			return f, fmt.Errorf("part %q comes twice", p.Name)
		}
		names[p.Name] = true
		f.Parts = append(f.Parts, p)
	}
	var err error
	if f.Health, err = d.Health.health(); err != nil {
		return f, fmt.Errorf("health: %w", err)
	}
	if f.Rollout, err = d.Rollout.rollout(); err != nil {
		return f, fmt.Errorf("rollout: %w", err)
	}
	return f, nil
}

func (p *part) part() (Part, error) {
	if !PartName(p.Name) {
		return Part{}, errors.New("its name is not of 1 to 32 letters a-z, digits and -")
	}
	if p.Size < 1 || p.Size > MaxPart {
		return Part{}, fmt.Errorf("size %d, and 1 to %d are allowed", p.Size, int64(MaxPart))
	}
	sum, err := ParseDigest(p.SHA256)
	if err != nil {
		return Part{}, err
	}
	out := Part{Name: p.Name, Size: p.Size, SHA256: sum}
	if out.Segments, err = segments(p.Segments, p.Size); err != nil {
		return Part{}, err
	}
	if out.Full, err = p.Full.object(); err != nil {
		return Part{}, fmt.Errorf("full: %w", err)
	}
	if len(p.Deltas) > MaxDeltas {
		return Part{}, fmt.Errorf("%d deltas, and at most %d are allowed", len(p.Deltas), MaxDeltas)
	}
	for i := range p.Deltas {
		d, err := p.Deltas[i].delta()
		if err != nil {
			return Part{}, fmt.Errorf("delta %d: %w", i, err)
		}
		if _, twice := out.DeltaFrom(d.From); twice {
			return Part{}, fmt.Errorf("delta %d is from %s, as another one", i, d.From)
		}
		out.Deltas = append(out.Deltas, d)
	}
	return out, nil
}

// segments reads the concatenated hashes of a part of that size.
func segments(text string, size int64) ([]Digest, error) {
	want := int((size + SegmentSize - 1) / SegmentSize)
	const each = len(Digest{})
	if len(text) != base64.StdEncoding.EncodedLen(want*each) || strings.ContainsAny(text, "\r\n") {
		return nil, fmt.Errorf("segments are not %d hashes in base64", want)
	}
	flat, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(flat) != want*each {
		return nil, fmt.Errorf("segments are not %d hashes in base64", want)
	}
	out := make([]Digest, want)
	for i := range out {
		copy(out[i][:], flat[i*each:])
	}
	return out, nil
}

func (o object) object() (Object, error) {
	sum, err := ParseDigest(o.SHA256)
	if err != nil {
		return Object{}, err
	}
	// A full object of what zstd cannot compress is a little larger than its part.
	if o.Size < 1 || o.Size > MaxPart+MaxPart/16 {
		return Object{}, fmt.Errorf("size %d of the object is out of bounds", o.Size)
	}
	out := Object{Path: o.Path, Size: o.Size, SHA256: sum}
	if !Path(o.Path) {
		return Object{}, fmt.Errorf("path %.80q is not a clean one", o.Path)
	}
	if _, ok := TargetOf(out); !ok {
		return Object{}, fmt.Errorf("path %.80q does not bear the object's SHA-256", o.Path)
	}
	return out, nil
}

func (d delta) delta() (Delta, error) {
	o, err := object{d.Path, d.Size, d.SHA256}.object()
	if err != nil {
		return Delta{}, err
	}
	from, err := ParseDigest(d.From)
	if err != nil {
		return Delta{}, err
	}
	if d.FromSize < 1 || d.FromSize > MaxPart {
		return Delta{}, fmt.Errorf("from_size %d, and 1 to %d are allowed", d.FromSize, int64(MaxPart))
	}
	return Delta{From: from, FromSize: d.FromSize, Object: o}, nil
}

func (h health) health() (Health, error) {
	within, err := duration(h.Within, 10*time.Second, 24*time.Hour)
	if err != nil {
		return Health{}, fmt.Errorf("within: %w", err)
	}
	grace, err := duration(h.NetworkGrace, 0, 90*24*time.Hour)
	if err != nil {
		return Health{}, fmt.Errorf("network_grace: %w", err)
	}
	return Health{Session: h.Session, Lines: h.Lines, Within: within, NetworkGrace: grace}, nil
}

func duration(text string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%.40q is no duration, such as 10m", text)
	}
	if d < least || d > most {
		return 0, fmt.Errorf("%v, and %v to %v are allowed", d, least, most)
	}
	return d, nil
}

func (r rollout) rollout() (Rollout, error) {
	if len(r.Seed) > 64 || !printable(r.Seed, "") {
		return Rollout{}, errors.New("the seed is longer than 64 bytes, or has control characters")
	}
	if len(r.Steps) > MaxSteps {
		return Rollout{}, fmt.Errorf("%d steps, and at most %d are allowed", len(r.Steps), MaxSteps)
	}
	out := Rollout{Seed: r.Seed, Paused: r.Paused}
	for i, s := range r.Steps {
		share, err := percent(s.Percent)
		if err != nil {
			return Rollout{}, fmt.Errorf("step %d: %w", i, err)
		}
		from, err := time.Parse(time.RFC3339, s.From)
		if err != nil || from.UTC().Format(time.RFC3339) != s.From {
			return Rollout{}, fmt.Errorf("step %d: %.40q is no time as 2026-11-21T04:00:00Z", i, s.From)
		}
		if i > 0 && (share < out.Steps[i-1].Percent || !from.After(out.Steps[i-1].From)) {
			return Rollout{}, fmt.Errorf("step %d is not later than the one before, or is less", i)
		}
		out.Steps = append(out.Steps, Step{Percent: share, From: from.UTC()})
	}
	return out, nil
}

// percent reads 0 to 100: an integer, or a string with up to two decimals.
func percent(raw json.RawMessage) (float64, error) {
	text := string(raw)
	if unquoted, ok := strings.CutPrefix(text, `"`); ok {
		text = strings.TrimSuffix(unquoted, `"`)
		whole, decimals, ok := strings.Cut(text, ".")
		if !ok || !only(whole, digits) || !only(decimals, digits) || whole == "" || decimals == "" || len(whole) > 3 || len(decimals) > 2 {
			return 0, fmt.Errorf("percent %.40q is not as 10 or \"0.5\"", text)
		}
	} else if !only(text, digits) || text == "" || len(text) > 3 {
		return 0, fmt.Errorf("percent %.40q is not as 10 or \"0.5\"", text)
	}
	share, err := strconv.ParseFloat(text, 64)
	if err != nil || share > 100 {
		return 0, fmt.Errorf("percent %.40q is not from 0 to 100", text)
	}
	return share, nil
}
