package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/config"
	"ferrule/internal/hint"
)

func TestExampleIsReadWhole(t *testing.T) {
	c, err := config.Load("testdata/example.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Session.Brokers[0] != "mqtts://broker.example:8883" || c.Session.Keepalive.Std() != time.Minute {
		t.Errorf("session: %+v", c.Session)
	}
	if len(c.Lines) != 1 || len(c.Lines[0].Units[0].Points) != 2 || c.Lines[0].Units[0].Points[1].Write == nil {
		t.Errorf("lines: %+v", c.Lines)
	}
	if c.ShutdownGrace.Std() == 0 || c.Local.Socket == "" {
		t.Errorf("absent keys have no defaults: %+v", c)
	}
}

// with returns the example with one replacement, so that each test shows one mistake.
func with(t *testing.T, old, new string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/example.toml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("the example has no %q", old)
	}
	return []byte(strings.Replace(string(text), old, new, 1))
}

func TestUnknownKeyNamesPlaceAndNearestKey(t *testing.T) {
	for _, test := range []struct{ old, new, text, hint string }{
		{"brokers =", "brokrs =", `f.toml:14:1: unknown key "brokrs" in [session]`, `did you mean "brokers"?`},
		{"[outbox]", "[outbx]", `unknown key "outbx" at the top level`, `did you mean "outbox"?`},
		{"deadband = 5.0", "dead_band = 5.0", `f.toml:42:1: unknown key "dead_band" in [line.unit.point]`, `did you mean "deadband"?`},
		{"state_dir", "zzz", `f.toml:1:1: unknown key "zzz" at the top level`, "valid keys here: "},
	} {
		_, err := config.Parse("f.toml", with(t, test.old, test.new))
		if err == nil || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v; want %s", test.new, err, test.text)
		}
		if got := firstHint(err); !strings.Contains(got, test.hint) {
			t.Errorf("%s: hint %q; want %q", test.new, got, test.hint)
		}
	}
}

func firstHint(err error) string {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return firstHint(joined.Unwrap()[0])
	}
	return hint.Of(err)
}

func TestEveryMistakeIsFoundInOneGo(t *testing.T) {
	text := strings.Replace(string(with(t, "brokers =", "brokrs =")), "window =", "windw =", 1)
	_, err := config.Parse("f.toml", []byte(text))
	if err == nil || !strings.Contains(err.Error(), "brokrs") || !strings.Contains(err.Error(), "windw") {
		t.Errorf("two unknown keys: %v", err)
	}
}

func TestBadValuesNameTheirPlace(t *testing.T) {
	for _, test := range []struct{ old, new, text string }{
		{`keepalive = "60s"`, `keepalive = "soon"`, `"soon" is not a duration`},
		{`max_bytes = "256MiB"`, `max_bytes = "lots"`, `"lots" is not a size`},
		{`window = 64`, `window = "many"`, `f.toml:18:10`},
		{`[session]`, `[session`, `f.toml:13:`},
		{`when_full = "drop-oldest"`, `when_full = "panic"`, `when_full`},
		{`at = "input:0x000C"`, `at = "somewhere"`, `somewhere`},
		{`settings = "19200 8E1"`, `settings = "fast"`, `fast`},
	} {
		_, err := config.Parse("f.toml", with(t, test.old, test.new))
		if err == nil || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), "f.toml") {
			t.Errorf("%s: %v; want %s", test.new, err, test.text)
		}
	}
}

func TestLinesMustNotShareNamesOrPorts(t *testing.T) {
	text := string(with(t, "[outbox]", "[outbox]"))
	_, line, _ := strings.Cut(text, "[[line]]")
	_, err := config.Parse("f.toml", []byte(text+"\n[[line]]"+line))
	if err == nil || !strings.Contains(err.Error(), "two lines are called") || !strings.Contains(err.Error(), "share the port") {
		t.Errorf("a doubled line: %v", err)
	}
}

func TestMissingAndHugeFiles(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.toml"))
	if !errors.Is(err, os.ErrNotExist) || hint.Of(err) == "" {
		t.Errorf("no file: %v, hint %q", err, hint.Of(err))
	}
	huge := filepath.Join(t.TempDir(), "huge.toml")
	if err := os.WriteFile(huge, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(huge); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	text, err := os.ReadFile("testdata/example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("[[line]]\n[[line.unit]]\n[[line.unit.point]]\nwrite = {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := config.Parse("f.toml", text); err == nil && len(c.Lines) == 0 {
			t.Error("a configuration without a line was accepted")
		}
	})
}
