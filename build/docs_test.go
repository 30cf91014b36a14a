// Package build holds what surrounds the code: scripts, benchmarks, end-to-end tests. The
// tests here keep the documents true.
package build

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	linkPattern = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	roomPattern = regexp.MustCompile("`((?:agent|build|cmd|firmware|hw|internal|tpm)[a-z0-9/-]*)` ((?:Test|Fuzz)[A-Za-z0-9]+(?:, (?:Test|Fuzz)[A-Za-z0-9]+)*)")
	testPattern = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z][A-Za-z0-9]+\b`)
)

// Every relative link of every document leads to a file.
func TestLinksOfDocuments(t *testing.T) {
	links := 0
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != ".." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if filepath.Ext(name) != ".md" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, link := range linkPattern.FindAllStringSubmatch(string(text), -1) {
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), link[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if links == 0 {
		t.Error("no document has a link; this test looks at the wrong thing")
	}
}

// Every test that docs/security.md names is in the package that it names.
func TestTestsNamedInSecurity(t *testing.T) {
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, claim := range roomPattern.FindAllStringSubmatch(string(text), -1) {
		files, err := filepath.Glob(filepath.Join("..", claim[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var source strings.Builder
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(text)
		}
		for name := range strings.SplitSeq(claim[2], ", ") {
			named++
			if !strings.Contains(source.String(), "\nfunc "+name+"(") {
				t.Errorf("docs/security.md names %s of %s, which does not exist", name, claim[1])
			}
		}
	}
	// A test that the pattern overlooks would never be looked for.
	if all := len(testPattern.FindAllString(string(text), -1)); named != all {
		t.Errorf("%d of the %d tests that docs/security.md names follow the name of their package", named, all)
	}
}
