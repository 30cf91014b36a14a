package strict_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"ferrule/internal/hint"
	"ferrule/internal/strict"
)

type file struct {
	Title string `toml:"title"`
	Unit  struct {
		Every int `toml:"every"`
	} `toml:"unit"`
	Points []struct {
		Name string `toml:"name"`
		At   string `toml:"at"`
	} `toml:"point"`
	Internal string `toml:"-"`
}

func TestDecodeNamesPlaceAndKey(t *testing.T) {
	for _, test := range []struct{ text, want, hint string }{
		{"titel = \"x\"", `f.toml:1:1: unknown key "titel" at the top level`, `did you mean "title"?`},
		{"\n[unit]\nevry = 1", `f.toml:3:1: unknown key "evry" in [unit]`, `did you mean "every"?`},
		{"[[point]]\nzzz = 1", `f.toml:2:1: unknown key "zzz" in [point]`, "valid keys here: name, at"},
		{"[unit]\nevery = \"x\"", `f.toml:2:9: unit.every: `, ""},
		{"title = ", `f.toml:1:8: `, ""},
	} {
		var f file
		err := strict.Decode("f.toml", []byte(test.text), &f)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want %q", test.text, err, test.want)
			continue
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			err = joined.Unwrap()[0]
		}
		if _, ok := errors.AsType[*strict.Error](err); !ok || hint.Of(err) != test.hint {
			t.Errorf("%q: %T, hint %q, want %q", test.text, err, hint.Of(err), test.hint)
		}
	}
}

func TestPlaces(t *testing.T) {
	places := strict.Find([]byte("title = \"x\"\n[unit]\n  every = 1\n[[point]]\nname = \"a\"\n[[point]]\nname = \"b\"\nat = \"c\"\n"))
	for key, want := range map[string][2]int{
		"title": {1, 1}, "unit": {2, 2}, "unit.every": {3, 3}, "point[0].name": {5, 1}, "point[1].at": {8, 1},
		"point[0].at": {4, 3}, // absent: its table
		"point[7].at": {1, 1}, "author": {1, 1},
	} {
		line, column := places.Of(key)
		if [2]int{line, column} != want {
			t.Errorf("%s is at %d:%d, want %v", key, line, column, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"eastron-sdm630", "eastron-sdm230", "abb-b23"}
	for name, want := range map[string][]string{
		"sdm630":         {"eastron-sdm630"},
		"eastron-sdm63":  {"eastron-sdm630", "eastron-sdm230"},
		"abb_b23":        {"abb-b23"},
		"something-else": nil,
		"":               nil,
	} {
		if got := strict.Nearest(name, names); !slices.Equal(got, want) {
			t.Errorf("nearest to %q: %q, want %q", name, got, want)
		}
	}
}

// Whatever the file says, mistakes have a place in it, and the places of a good file can be found.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("title = \"x\"\n[unit]\nevery = 1\n[[point]]\nname = \"a\"\n"))
	f.Add([]byte("titel = 1\n[point.name]\nx = []\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var v file
		err := strict.Decode("f.toml", text, &v)
		if bad, ok := errors.AsType[*strict.Error](err); err != nil && (!ok || bad.Line < 1 || bad.Column < 1) {
			t.Errorf("%v has no place", err)
		}
		if err == nil {
			strict.Find(text).Of("point[0].name")
		}
	})
}
