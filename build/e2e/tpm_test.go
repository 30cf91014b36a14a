package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// tool runs one of tpm2-tools on the site's TPM.
func (s *site) tool(t *testing.T, program string, args ...string) (stderr string, code int) {
	t.Helper()
	_, stderr, code = run(t, "", append(append([]string{need(t, program)}, args...), "-T", "swtpm:path="+s.tpm.Socket())...)
	return stderr, code
}

func (s *site) clearTPM(t *testing.T) {
	t.Helper()
	if stderr, code := s.tool(t, "tpm2_clear", "-c", "p"); code != 0 {
		t.Fatalf("tpm2_clear: %s", stderr)
	}
}

// inspected is what ferrule tpm says: the faults by name, those that block with a !.
func (s *site) inspected(t *testing.T, wantCode int, wantText string) (faults []string) {
	t.Helper()
	text, stderr, code := run(t, "", with(s.ferrule, "tpm", "--config", s.config)...)
	if code != wantCode || !strings.Contains(text, wantText) {
		t.Errorf("ferrule tpm: exit code %d, want %d; it should say %q:\n%s%s", code, wantCode, wantText, text, stderr)
	}
	out, _, code := run(t, "", with(s.ferrule, "tpm", "--json", "--config", s.config)...)
	var report struct {
		Findings []struct {
			Fault, Text, Repair string
			Blocks              bool
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != wantCode {
		t.Fatalf("ferrule tpm --json: exit code %d, %v: %s", code, err, out)
	}
	for _, f := range report.Findings {
		if f.Text == "" || f.Repair == "" || !strings.Contains(text, f.Text) {
			t.Errorf("finding %+v", f)
		}
		if f.Blocks {
			f.Fault += "!"
		}
		faults = append(faults, f.Fault)
	}
	return faults
}

// The TPM was cleared while the agent was off. ferrule tpm says so; the agent gets a certificate
// for a new key by itself, stays the same device, and delivers what it had.
func TestClearedTPMReturns(t *testing.T) {
	t.Parallel()
	s := newSite(t, underLoad)
	if faults := s.inspected(t, 0, "lockout"); slices.Contains(faults, "cleared!") {
		t.Errorf("a good TPM has the faults %v", faults)
	}
	broker := s.watched(t, filepath.Join(s.ca, "broker"), readFile(t, filepath.Join(s.ca, "root.crt")))
	broker.Cut()
	s.run(t)
	waitFor(t, "a backlog", func() bool { return count(s.status(t), "outbox", "depth") > 20 })
	if faults := s.inspected(t, 0, "SRK"); slices.Contains(faults, "cleared!") { // by the agent
		t.Errorf("asked through the agent, a good TPM has the faults %v", faults)
	}
	s.stop(t)
	stopped, before := s.stopped, s.certificate(t)
	s.clearTPM(t)
	if faults := s.inspected(t, 10, "The TPM was cleared"); !slices.Contains(faults, "cleared!") {
		t.Errorf("a cleared TPM has the faults %v", faults)
	}
	if err := broker.Mend(); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	s.waitDrained(t)
	after := s.certificate(t)
	if after.Subject.CommonName != before.Subject.CommonName || string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
		t.Errorf("%s came back as %s; the key is the old one: %t", before.Subject, after.Subject,
			string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo))
	}
	s.stop(t)
	s.settled(t)
	s.inspected(t, 0, "SRK")
	s.judge(t, []time.Time{stopped}, promise{window: cutOff})
}

// Somebody's guesses have locked the TPM up: ferrule tpm says so, and the agent runs all the same,
// since its keys are not subject to it.
func TestLockedOutTPM(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	if stderr, code := s.tool(t, "tpm2_nvdefine", "0x1400001", "-C", "o", "-s", "6", "-a", "authread|authwrite", "-p", "secret"); code != 0 {
		t.Fatal(stderr)
	}
	for range 4 {
		_, _ = s.tool(t, "tpm2_nvread", "0x1400001", "-C", "0x1400001", "-P", "guess")
	}
	if faults := s.inspected(t, 0, "IN LOCKOUT"); !slices.Contains(faults, "lockout") {
		t.Errorf("a TPM in lockout has the faults %v", faults)
	}
	s.run(t)
	s.waitUp(t)
	s.stop(t)
}

// What the agent asks of its TPM: one ReadPublic and one Load at a start with a key that is there, one
// Sign for each full handshake, none for one that is resumed.
func TestCommandCensus(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	s.section(t, "[audit]\nsign_every = \"24h\"") // a head is a Sign of its own
	broker := s.watched(t, filepath.Join(s.ca, "broker"), readFile(t, filepath.Join(s.ca, "root.crt")))
	s.run(t) // the audit log's first lines
	s.waitUp(t)
	s.stop(t)
	before := len(broker.Connections())
	s.run(t)
	s.waitUp(t)
	commands := func(name string) int { return count(s.status(t), "identity", "tpm", "commands", name) }
	for name, want := range map[string]int{"Load": 1, "ReadPublic": 1} {
		if got := commands(name); got != want {
			t.Errorf("%d × %s at a warm start; want %d", got, name, want)
		}
	}
	const reconnects = 3 // each waits longer than the one before
	for range reconnects {
		n := len(broker.Connections())
		broker.Cut()
		if err := broker.Mend(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "a connection", func() bool { return len(broker.Connections()) > n })
		s.waitUp(t)
	}
	connections := broker.Connections()[before:]
	full := len(slices.DeleteFunc(slices.Clone(connections), func(c agenttest.Connection) bool { return c.Resumed }))
	status := s.status(t)
	t.Logf("%d connections, %d full; commands of the TPM: %v", len(connections), full, field(status, "identity", "tpm", "commands"))
	heads := 0
	if count(status, "audit", "signed") > 0 {
		heads = 1 // at the start, for what the process before left
	}
	if got := commands("Sign"); got != full+heads {
		t.Errorf("%d Signs for %d full handshakes and %d heads of the audit log", got, full, heads)
	}
	if got := count(status, "identity", "full_handshakes"); got != full || full > 2 {
		t.Errorf("%d full handshakes by the status, %d by the broker of %d connections", got, full, len(connections))
	}
	if commands("Load") != 1 || commands("ReadPublic") != 1 {
		t.Errorf("after %d reconnects: %d × Load, %d × ReadPublic", reconnects, commands("Load"), commands("ReadPublic"))
	}
	s.stop(t)
	if _, err := os.Stat(filepath.Join(s.state, "device.key")); err != nil {
		t.Error(err)
	}
}
