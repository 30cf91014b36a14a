package listener

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// machine is where a self-made certificate is kept, with a clock and names that a test sets.
type machine struct {
	fs    disk.FS
	now   time.Time
	names []string
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	d := disktest.New()
	if err := disk.MakeFolder(d, "/state"); err != nil {
		t.Fatal(err)
	}
	return &machine{fs: d, now: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC), names: []string{"gw-1", "192.168.1.5"}}
}

func (m *machine) open(t testing.TB) *identity {
	t.Helper()
	i, err := openIdentity(Options{
		Now: func() time.Time { return m.now }, Log: slog.New(slog.DiscardHandler),
		Source: Source{Folder: "/state", FS: m.fs, Names: func() []string { return m.names }},
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestSelfMadeCertificateLasts(t *testing.T) {
	m := newMachine(t)
	i := m.open(t)
	first := i.status()
	if !first.SelfMade || !slices.Equal(first.Names, m.names) || first.NotAfter.Sub(m.now) != lifetime {
		t.Errorf("%+v", first)
	}
	leaf := i.current.Load().Leaf
	if leaf.IsCA || leaf.CheckSignatureFrom(leaf) == nil {
		t.Error("the certificate could vouch for others")
	}
	if again := m.open(t).status(); again.SHA256 != first.SHA256 {
		t.Error("a restart made another certificate")
	}
	for _, c := range []struct {
		name  string
		after time.Duration
		names []string
		new   bool
	}{
		{"a day later", 24 * time.Hour, m.names, false},
		{"fewer names", 0, m.names[:1], false},
		{"another address", 0, []string{"gw-1", "192.168.1.6"}, true},
		{"the first address again", 0, []string{"gw-1", "192.168.1.5"}, false},
		{"the clock a year back", -365 * 24 * time.Hour, m.names, true},
		{"the clock right again", 365 * 24 * time.Hour, m.names, true},
		{"shortly before its end", lifetime - renewBefore + time.Hour, m.names, true},
		{"long after its end", 2 * lifetime, m.names, true},
	} {
		before := i.status()
		m.now, m.names = m.now.Add(c.after), c.names
		if err := i.refresh(); err != nil {
			t.Fatal(err)
		}
		now := i.status()
		if (now.SHA256 != before.SHA256) != c.new {
			t.Errorf("%s: new %t", c.name, !c.new)
		}
		if now.Pin != first.Pin {
			t.Errorf("%s: another key", c.name)
		}
		for _, name := range c.names {
			if !slices.Contains(now.Names, name) {
				t.Errorf("%s: %s is missing in %q", c.name, name, now.Names)
			}
		}
		if m.now.After(now.NotAfter) {
			t.Errorf("%s: ends %v, and it is %v", c.name, now.NotAfter, m.now)
		}
	}
}

// Names that come without end do not make the certificate grow without end.
func TestManyNames(t *testing.T) {
	m := newMachine(t)
	i := m.open(t)
	for n := range 100 {
		m.names = []string{"gw-1", "10.0.0." + string(rune('0'+n%10)) + string(rune('0'+n/10))}
		if err := i.refresh(); err != nil {
			t.Fatal(err)
		}
	}
	if names := i.status().Names; len(names) > maxNames {
		t.Errorf("%d names", len(names))
	}
}

// In every state that a power cut leaves, the listener opens, and with the old key or the new.
func TestSelfMadeCertificateAndPowerCuts(t *testing.T) {
	m := newMachine(t)
	d := m.fs.(*disktest.Disk)
	i := m.open(t)
	pin := i.status().Pin
	d.Mark("made")
	m.now = m.now.Add(lifetime)
	if err := i.refresh(); err != nil {
		t.Fatal(err)
	}
	states := 0
	for where, state := range d.CrashStates() {
		states++
		after := &machine{fs: state, now: m.now, names: m.names}
		if err := disk.MakeFolder(state, "/state"); err != nil {
			t.Fatal(err)
		}
		s := after.open(t).status()
		if slices.Contains(state.Marks(), any("made")) && s.Pin != pin {
			t.Errorf("%s: the key is gone", where)
		}
	}
	if states < 5 {
		t.Errorf("%d states looked at", states)
	}
}

// A file that is broken, unreadable or cannot be written costs its content, never the listener.
func TestSelfMadeCertificateOnABadDisk(t *testing.T) {
	name := filepath.Join("/state", File)
	for what, content := range map[string][]byte{
		"empty": {}, "zeros": make([]byte, 4096), "too large": bytes.Repeat([]byte("x"), maxFile+1), "no key": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	} {
		m := newMachine(t)
		m.fs.(*disktest.Disk).SetContent(name, content)
		if s := m.open(t).status(); s.Pin == "" {
			t.Errorf("%s: no certificate", what)
		}
	}
	m := newMachine(t)
	m.fs.(*disktest.Disk).Fail(func(op disktest.Op) error {
		if op.Kind.Changes() {
			return fs.ErrPermission
		}
		return nil
	})
	i := m.open(t)
	if i.status().Pin == "" {
		t.Error("a disk that cannot be written leaves no certificate")
	}
	m.now = m.now.Add(lifetime)
	if err := i.refresh(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("renewing on it: %v", err)
	}
}

// A machine has names whatever the address is that it listens on.
func TestMachineNames(t *testing.T) {
	for address, want := range map[string]string{
		":8443": "127.0.0.1", "0.0.0.0:8443": "127.0.0.1", "10.1.2.3:8443": "10.1.2.3", "[::1]:8443": "::1", "gw.example:8443": "gw.example",
	} {
		names := machineNames(address)
		if !slices.Contains(names, want) || !slices.Contains(names, "localhost") {
			t.Errorf("%s: %q lacks %s", address, names, want)
		}
	}
	if names := machineNames("10.1.2.3:1"); slices.Contains(names, "127.0.0.1") {
		t.Errorf("names of addresses that nobody listens on: %q", names)
	}
	if dnsName("ü") || dnsName("a b") || dnsName("") || dnsName(strings.Repeat("a", 300)) {
		t.Error("a name that no certificate can hold is taken")
	}
}

// Files are read again: who renews them needs no restart, and a half-written pair changes nothing.
func TestCertificateFilesAreReadAgain(t *testing.T) {
	folder := t.TempDir()
	pair := func(name string) (chain, key []byte) {
		t.Helper()
		m := newMachine(t)
		i := m.open(t)
		text, _, err := i.make(nil, []string{name})
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(text, []byte("-----BEGIN CERTIFICATE"))
		return text[at:], text[:at]
	}
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	chain, key := pair("first.example")
	write("a.crt", chain)
	write("a.key", key)
	source := Source{Certificate: filepath.Join(folder, "a.crt"), Key: filepath.Join(folder, "a.key")}
	now := time.Now
	i, err := openIdentity(Options{Now: func() time.Time { return now() }, Log: slog.New(slog.DiscardHandler), Source: source})
	if err != nil || source.Probe() != nil {
		t.Fatal(err, source.Probe())
	}
	chain, key = pair("second.example")
	write("a.crt", chain)
	if err := i.refresh(); err == nil || i.status().Names[0] != "first.example" {
		t.Errorf("half of a pair: %v, %+v", err, i.status())
	}
	write("a.key", key)
	if err := i.refresh(); err != nil || i.status().Names[0] != "second.example" || i.status().SelfMade {
		t.Errorf("the new pair: %v, %+v", err, i.status())
	}
	now = func() time.Time { return time.Now().Add(2 * lifetime) }
	if err := i.refresh(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired certificate: %v", err)
	}
}
