package profile_test

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
	"ferrule/internal/hint"
	"ferrule/internal/strict"
)

// load is the library with the user's own files.
func load(t *testing.T, files map[string]string) (*profile.Library, error) {
	t.Helper()
	directory := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return profile.Load(directory)
}

const own = `name = "acme-1"
title = "Acme 1"
source = "its manual"

[[point]]
name = "power"
at = "input:12"
type = "float32"
uom = "W"
`

func TestBuiltInProfilesAreSound(t *testing.T) {
	l, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("library/*.toml")
	if err != nil {
		t.Fatal(err)
	}
	list, points := l.List(), 0
	for _, s := range list {
		if _, err := l.Get(s.Name); err != nil {
			t.Error(err)
		}
		points += s.Points
		if s.Manufacturer == "" || len(s.Models) == 0 || s.File != "" || s.Title == "" {
			t.Errorf("the summary of %s: %+v", s.Name, s)
		}
	}
	if len(list) != len(files) || len(list) < 30 {
		t.Errorf("%d of %d files are sound", len(list), len(files))
	}
	t.Logf("profiles %d, points %d", len(list), points)
	for _, file := range files { // those that are not sound are not in the list
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := profile.Parse(file, text); err != nil {
			t.Error(err)
		}
	}
}

// The built-in profiles speak one vocabulary, that of docs/profiles.md, with the same unit of
// measure for the same thing: a dashboard made for one meter shows the next.
func TestOneVocabulary(t *testing.T) {
	words := vocabulary(t)
	pattern := regexp.MustCompile(`^(.*?)(_l[123](_l[123])?|_t[1-4])?$`)
	l, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.List() {
		p, err := l.Get(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range p.Points {
			stem := pattern.FindStringSubmatch(q.Name)[1]
			uom, known := words[stem]
			if !known || uom != q.Uom {
				t.Errorf("%s: %s in %q: docs/profiles.md says %q, %v", s.Name, q.Name, q.Uom, uom, known)
			}
			slow := strings.Contains(stem, "energy") || strings.Contains(stem, "thd")
			if slow != (q.Every > p.Unit.Every) {
				t.Errorf("%s: %s is polled every %v", s.Name, q.Name, q.Every)
			}
		}
	}
}

// vocabulary reads the table of docs/profiles.md: name → unit of measure.
func vocabulary(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "<!-- vocabulary -->")
	table, _, ended := strings.Cut(table, "<!-- end -->")
	if !found || !ended {
		t.Fatal("docs/profiles.md has no vocabulary")
	}
	words := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(table, -1) {
		words[row[1]] = strings.TrimSpace(row[2])
	}
	return words
}

// No two points of a profile share a register but where they are bits of it.
func TestPointsDoNotOverlap(t *testing.T) {
	l, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.List() {
		p, err := l.Get(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		taken := make(map[modbus.Address]string)
		for _, q := range p.Points {
			at, _ := modbus.ParseAddress(q.At)
			typ, _ := point.ParseType(q.Type)
			for range typ.Registers() {
				if other := taken[at]; other != "" {
					t.Errorf("%s: %s and %s share %s", s.Name, other, q.Name, at)
				}
				taken[at] = q.Name
				at.Offset++
			}
		}
	}
}

func TestOwnProfilesGoBefore(t *testing.T) {
	mine := strings.NewReplacer("acme-1", "eastron-sdm630", "Acme 1", "mine").Replace(own)
	l, err := load(t, map[string]string{"acme-1.toml": own, "eastron-sdm630.toml": mine, "notes.txt": "no profile", ".hidden.toml": "neither"})
	if err != nil {
		t.Fatal(err)
	}
	for name, title := range map[string]string{"acme-1": "Acme 1", "eastron-sdm630": "mine"} {
		if p, err := l.Get(name); err != nil || p.Title != title || len(p.Points) != 1 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	list := l.List()
	i := slices.IndexFunc(list, func(s profile.Summary) bool { return s.Name == "eastron-sdm630" })
	if i < 0 || !strings.HasSuffix(list[i].File, "eastron-sdm630.toml") {
		t.Errorf("the list does not say whose it is: %+v", list)
	}
	if p, err := l.Get("eastron-sdm120"); err != nil || p.Unit.MaxRegisters != 80 {
		t.Errorf("a built-in one beside: %+v, %v", p, err)
	}
}

func TestALaterDirectoryGoesBefore(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	for directory, title := range map[string]string{first: "first", second: "second"} {
		if err := os.WriteFile(filepath.Join(directory, "acme-1.toml"), []byte(strings.Replace(own, "Acme 1", title, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := profile.Load(first, second)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := l.Get("acme-1"); err != nil || p.Title != "second" {
		t.Errorf("%q, %v", p.Title, err)
	}
}

// A broken file is named with line and column, and takes nobody down but the built-in profile
// that it stands for.
func TestABrokenFileStaysAlone(t *testing.T) {
	l, err := load(t, map[string]string{
		"acme-1.toml":         own,
		"acme-2.toml":         strings.NewReplacer("acme-1", "acme-2", "input:12", "inputs:12").Replace(own),
		"eastron-sdm120.toml": strings.Replace(own, "uom", "unit", 1),
	})
	broken, ok := errors.AsType[*strict.Error](err)
	if !ok || broken.Line != 7 || broken.Column != 1 || filepath.Base(broken.Path) != "acme-2.toml" {
		t.Errorf("the error: %v", err)
	}
	if want := "eastron-sdm120.toml:9:1: unknown key \"unit\" in [point]"; !strings.Contains(err.Error(), want) {
		t.Errorf("the error: %v; want %s", err, want)
	}
	for name, sound := range map[string]bool{"acme-1": true, "acme-2": false, "eastron-sdm120": false, "eastron-sdm630": true} {
		if _, err := l.Get(name); (err == nil) != sound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.Get("acme-2"); errors.Is(err, profile.ErrUnknown) {
		t.Errorf("a broken profile is called unknown: %v", err)
	}
	if list := l.List(); slices.ContainsFunc(list, func(s profile.Summary) bool { return s.Name == "acme-2" }) {
		t.Error("the list has a profile that cannot be used")
	}
}

func TestUnknownProfilesNameTheNearest(t *testing.T) {
	l, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"sdm630":           "did you mean eastron-sdm630?",
		"eastron-sdm-630":  "did you mean eastron-sdm630",
		"Eastron SDM72":    "did you mean eastron-sdm72",
		"qqqqqqqqqqqqqqqq": "ferrule check --profiles",
		"../../etc/passwd": "ferrule check --profiles",
	} {
		_, err := l.Get(name)
		if !errors.Is(err, profile.ErrUnknown) || !strings.Contains(hint.Of(err), want) {
			t.Errorf("%s: %v, hint %q; want %q", name, err, hint.Of(err), want)
		}
	}
}

// What registers hold, and what is read of them: one value of each kind of each make.
func TestKnownValues(t *testing.T) {
	l, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ profile, point, raw, want string }{
		{"abb-b-series", "voltage_l1", "000008fd", "230.1"},
		{"abb-b-series", "voltage_l2", "ffffffff", "nan"},
		{"abb-b-series", "power", "ffffff9c", "-1.0"},
		{"abb-b-series", "power", "7fffffff", "nan"},
		{"abb-b-series", "energy_import", "000000000001e240", "1234.56"},
		{"abb-b-series", "power_factor", "fc18", "-1.0"},
		{"bernecker-mpm3pm", "frequency", "00001388", "50.0"},
		{"bgetech-ds100", "voltage_l1", "000382d4", "230.1"},
		{"bgetech-ds100", "power", "fffffc18", "-1000"},
		{"carlo-gavazzi-em24", "voltage_l1", "08fd0000", "230.1"},
		{"carlo-gavazzi-em340", "power", "fff6ffff", "-1.0"},
		{"chint-dtsu666", "voltage_l1", "450fd000", "230.1"},
		{"chint-dtsu666", "frequency", "459c4000", "50.0"},
		{"dzg-dvh4013", "energy_import", "0000303a", "12.346"},
		{"eastron-sdm630", "voltage_l1", "43660a3d", "230.04"},
		{"eltako-dsz15dzmod", "power", "ffffffff", "-1"},
		{"finder-7m38", "energy_import", "449a5000", "1.2345"},
		{"inepro-pro380", "power", "3f9e0419", "1234.5"},
		{"janitza-b23", "energy_export", "447a0000", "1.0"},
		{"lovato-dmg610", "current_l1", "000186a0", "10.0"},
		{"orno-we-504", "voltage", "08fd", "230.1"},
		{"orno-we-514", "power", "000004d2", "1234"},
		{"orno-we-516", "power", "3f9e0419", "1234.5"},
		{"orno-we-525", "energy_import", "0001e240", "1234.56"},
		{"saia-ale3", "power", "0064", "1000.0"},
		{"schneider-iem3000", "energy_import", "000000000001e240", "123.456"},
		{"siemens-pac2200", "energy_import", "40fe240000000000", "123.456"},
		{"solaredge-se-mtr-3y", "voltage_l1", "0a3d4366", "230.04"},
		{"wago-879-30xx", "frequency", "42480000", "50.0"},
	} {
		p, err := l.Get(test.profile)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(p.Points, func(q profile.Point) bool { return q.Name == test.point })
		if got := decode(t, p.Points[i], test.raw); got != test.want {
			t.Errorf("%s: %s of %s is %s; want %s", test.profile, test.point, test.raw, got, test.want)
		}
	}
}

func decode(t *testing.T, q profile.Point, digits string) string {
	t.Helper()
	raw, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	typ, _ := point.ParseType(q.Type)
	order, _ := point.ParseOrder(q.Order)
	codec, err := point.NewCodec(point.Spec{Type: typ, Order: order, Scale: q.Scale, Offset: q.Offset, NaN: q.NaN})
	if err != nil || len(raw) != 2*typ.Registers() {
		t.Fatalf("%s: %d bytes for %s, %v", q.Name, len(raw), typ, err)
	}
	v, err := codec.Decode(raw)
	if errors.Is(err, point.ErrNaN) {
		return "nan"
	}
	return v.String()
}

func TestDirectories(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	l, err := profile.Load(missing)
	if !errors.Is(err, os.ErrNotExist) || hint.Of(err) == "" && !strings.Contains(err.Error(), missing) {
		t.Errorf("a missing directory: %v", err)
	}
	if _, err := l.Get("eastron-sdm630"); err != nil {
		t.Errorf("the built-in ones beside it: %v", err)
	}
	_, err = load(t, map[string]string{"huge.toml": strings.Repeat("# long\n", 1<<18)})
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
}

// Each mistake is found at its place.
func TestMistakes(t *testing.T) {
	for _, test := range []struct{ old, new, want, hint string }{
		{`name = "acme-1"`, `name = "acme-2"`, `acme-1.toml:1:1: name: "acme-2" is not the name of the file`, ""},
		{`title = "Acme 1"`, ``, `acme-1.toml:1:1: title: the title is missing`, ""},
		{`source = "its manual"`, ``, `source: the source is missing`, "manual"},
		{`title =`, `titel =`, `acme-1.toml:2:1: unknown key "titel" at the top level`, `did you mean "title"?`},
		{`title = "Acme 1"`, `title = 5`, `acme-1.toml:2:9: `, ""},
		{`title = "Acme 1"`, `title = "Acme 1`, `acme-1.toml:2:`, ""},
		{`at = "input:12"`, `at = "input:65535"`, `acme-1.toml:7:1: at: float32 does not fit between 65535 and the end`, ""},
		{`at = "input:12"`, `at = "coil:12"`, `acme-1.toml:8:1: type: what is in the table coil is a bit, not float32`, "leave the key out"},
		{`type = "float32"`, `type = "bit"`, `acme-1.toml:8:1: type: a register has 16 bits`, "bit@0"},
		{`type = "float32"`, `type = "float31"`, `acme-1.toml:8:1: type: type "float31"`, ""},
		{`type = "float32"`, `order = "BACD"`, `acme-1.toml:8:1: order: `, "ferrule read"},
		{`type = "float32"`, "type = \"string(4)\"\nscale = 2.0", `acme-1.toml:9:1: scale: `, ""},
		{`type = "float32"`, "type = \"uint16\"\nnan = [\"0x10000\"]", `acme-1.toml:9:1: nan: `, ""},
		{`type = "float32"`, "type = \"uint16\"\nvalues = { x = \"on\" }", `acme-1.toml:9:1: values: `, ""},
		{`type = "float32"`, "type = \"uint16\"\n[point.flags]\n99 = \"on\"\n[point.values]\n", `acme-1.toml:9:`, ""},
		{`type = "float32"`, `scale_factor = "pover"`, `acme-1.toml:8:1: scale_factor: "pover" is neither`, ""},
		{`type = "float32"`, `scale_factor = "power"`, `acme-1.toml:8:1: scale_factor: "power" is neither`, ""},
		{`type = "float32"`, `every = "1ms"`, `acme-1.toml:8:1: every: 1ms is not between`, ""},
		{`type = "float32"`, `deadband = -1.0`, `acme-1.toml:8:1: deadband: -1 is no distance`, ""},
		{`type = "float32"`, `write = { min = 0 }`, `acme-1.toml:8:1: write: the table input is read only`, "only coils"},
		{`at = "input:12"`, "at = \"holding:12\"\nwrite = { min = 2, max = 1 }", `acme-1.toml:8:1: write: min 2 is above max 1`, ""},
		{`name = "power"`, `name = ""`, `acme-1.toml:6:1: name: the name is missing`, ""},
		{`name = "power"`, `name = "po/wer"`, `acme-1.toml:6:1: name: the characters / + #`, ""},
		{`name = "power"`, `name = "` + strings.Repeat("x", 65) + `"`, `name: 65 bytes are too many`, ""},
		{"uom = \"W\"\n", "uom = \"W\"\n[[point]]\nname = \"power\"\nat = \"input:1\"\n", `acme-1.toml:11:1: name: another point is called "power", too`, ""},
		{"[[point]]\n", "protocol = \"modbus-tcp\"\n[[point]]\n", `acme-1.toml:5:1: protocol: "modbus-tcp" is neither`, ""},
		{"[[point]]\n", "[unit]\nmax_registers = 126\n[[point]]\n", `acme-1.toml:6:1: max_registers: 126 is none of`, ""},
		{"[[point]]\n", "[unit]\nmax_bits = -1\n[[point]]\n", `acme-1.toml:6:1: max_bits: -1 is none of`, ""},
		{"[[point]]\n", "[unit]\naddress = 248\n[[point]]\n", `acme-1.toml:6:1: address: 248 is none of`, ""},
		{"[[point]]\n", "[unit]\nholes = \"no\"\n[[point]]\n", `acme-1.toml:6:1: holes: "no" is none of`, ""},
		{"[[point]]\n", "unit = { turnaround = \"2s\" }\n[[point]]\n", `acme-1.toml:5:1: turnaround: 2s is not between`, ""},
		{own[strings.Index(own, "[[point]]"):], "point = [\n  { name = \"a\", at = \"nowhere\" },\n]\n", `acme-1.toml:5:1: at: `, ""},
		{"[[point]]\n", "unit.timeout = \"1ms\"\n[[point]]\n", `acme-1.toml:5:1: timeout: 1ms is not between`, ""},
	} {
		if !strings.Contains(own, test.old) {
			t.Fatalf("the profile has no %q", test.old)
		}
		_, err := profile.Parse("a/acme-1.toml", []byte(strings.Replace(own, test.old, test.new, 1)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %s", test.new, err, test.want)
			continue
		}
		if test.hint != "" && !strings.Contains(firstHint(err), test.hint) {
			t.Errorf("%s: hint %q; want %q", test.new, firstHint(err), test.hint)
		}
	}
	for path, want := range map[string]string{"sunspec.toml": "asked for their points", "Acme 1.toml": "small letters", "-x.toml": "small letters"} {
		if _, err := profile.Parse(path, []byte(own)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", path, err, want)
		}
	}
	if _, err := profile.Parse("acme-1.toml", []byte("name = \"acme-1\"\ntitle = \"t\"\nsource = \"s\"\n")); err == nil || !strings.Contains(err.Error(), "has no points") {
		t.Errorf("no points: %v", err)
	}
}

func firstHint(err error) string {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return firstHint(joined.Unwrap()[0])
	}
	return hint.Of(err)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(own))
	f.Add([]byte("point = [{ name = \"a\", at = \"30001\" }]\nunit.every = \"1s\"\n"))
	f.Add([]byte("[[point]]\nname = \"b\"\n[point.write]\nmin = 1.0\n[point.values]\n\"0\" = \"off\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := profile.Parse("acme-1.toml", text)
		if err == nil && (p.Name != "acme-1" || len(p.Points) == 0 || p.Protocol == "") {
			t.Errorf("accepted: %+v", p)
		}
		if broken, ok := errors.AsType[*strict.Error](err); err != nil && (!ok || broken.Line < 1 || broken.Column < 1) {
			t.Errorf("an error without a place: %v", err)
		}
	})
}
