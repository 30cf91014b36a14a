package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// finding is one line of testssl's report.
type finding struct{ ID, Severity, Finding string }

// TestTestssl has Debian's testssl look at the listener: nothing above LOW. In mode none it sees
// all that a server can get wrong; in mode required it sees what a stranger sees.
func TestTestssl(t *testing.T) {
	testssl := need(t, "testssl")
	p := newPeople(t, "people")
	dir := shortDir(t)
	certificate, key := save(t, dir, "server", p.server(t))
	local := "certificate = \"" + certificate + "\"\nkey = \"" + key + "\"\n"
	for name, mode := range map[string]struct {
		local string
		looks []string
	}{
		"none":     {"client_auth = \"none\"\nanonymous = \"viewer\"", []string{"-p", "-s", "-f", "-S", "-h", "-U"}},
		"required": {"", []string{"-p", "-S"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := p.gateway(t, local+mode.local)
			report := filepath.Join(g.dir, "testssl.json")
			words := append([]string{testssl, "--quiet", "--warnings", "off", "--color", "0", "--fast", "--nodns", "none",
				"--add-ca", filepath.Join(g.dir, "people.pem"), "--jsonfile", report}, mode.looks...)
			_, stderr, _ := run(t, "", append(words, g.address)...)
			text, err := os.ReadFile(report)
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr)
			}
			var all []finding
			if err := json.Unmarshal(text, &all); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			seen := 0
			for _, f := range all {
				switch f.Severity {
				case "OK", "INFO":
					seen++
				case "LOW", "WARN", "DEBUG": // the latter two are about testssl itself
					t.Logf("%s %s: %s", f.Severity, f.ID, f.Finding)
				default:
					t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
				}
			}
			if seen < 10 || name == "none" && !slices.ContainsFunc(all, func(f finding) bool { return f.ID == "TLS1_3" && f.Severity == "OK" }) {
				t.Errorf("testssl saw next to nothing: %s", text)
			}
			g.kill(t)
		})
	}
}
