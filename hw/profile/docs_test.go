package profile_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"ferrule/hw/profile"
	"ferrule/internal/strict"
)

var update = flag.Bool("update", false, "write the list in docs/profiles.md anew")

const docs = "../../docs/profiles.md"

// TestListInTheDocs keeps the list of profiles true.
func TestListInTheDocs(t *testing.T) {
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	l, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	list.WriteString("\n| profile | for | points | shipped with |\n|---|---|---|---|\n")
	for _, s := range l.List() {
		p, err := l.Get(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "| `%s` | %s | %d | %s |\n", s.Name, s.Title, s.Points, p.Unit.Settings)
	}
	head, rest, found := strings.Cut(string(text), "<!-- list -->")
	_, tail, ended := strings.Cut(rest, "<!-- end of list -->")
	if !found || !ended {
		t.Fatal("docs/profiles.md has no list")
	}
	want := head + "<!-- list -->" + list.String() + "<!-- end of list -->" + tail
	if *update {
		if err := os.WriteFile(docs, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Error("the list of docs/profiles.md is not that of the library; run: go test ./hw/profile -update")
	}
}

// The profile that docs/profiles.md writes step by step is one.
func TestExampleOfTheDocs(t *testing.T) {
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := strings.Cut(string(text), "```toml\n# The manual counts registers from 1.\n")
	example, _, ended := strings.Cut(example, "```")
	if !found || !ended {
		t.Fatal("docs/profiles.md has no example")
	}
	p, err := profile.Parse("acme-m1.toml", []byte(example))
	if err != nil || len(p.Points) != 4 || p.Unit.MaxRegisters != 60 {
		t.Errorf("%v: %+v", err, p)
	}
	example = "# The manual counts registers from 1.\n" + example
	_, err = profile.Parse("acme-m1.toml", []byte(strings.Replace(example, `"float32"`, `"flaot32"`, 1)))
	broken, ok := errors.AsType[*strict.Error](err)
	if !ok || !strings.Contains(string(text), broken.Error()[:strings.Index(broken.Error(), " is none of")]) {
		t.Errorf("the docs show another error than %v", err)
	}
}
