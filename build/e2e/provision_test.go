package e2e

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// provisioning is one call of build/provision.sh for one gateway below a directory.
type provisioning struct {
	*world
	root, records string
	argv          []string
}

func newProvisioning(t *testing.T) *provisioning {
	t.Helper()
	w := newAttested(t)
	p := &provisioning{world: w, root: filepath.Join(w.dir, "gateway"), records: filepath.Join(w.dir, "records.jsonl")}
	p.argv = []string{"sh", "../provision.sh", "--device", "gw-1", "--ca", w.ca, "--registrar", w.registrar,
		"--broker", w.broker, "--ferrule", build(t, "ferrule", native)[0], "--records", p.records,
		"--gateway", "local:" + p.root, "--tpm", w.tpm.Address(), "--factory", w.factory[0]}
	return p
}

// converged checks that there is one key, one certificate and one record, which agree.
func (p *provisioning) converged(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(p.records)
	if err != nil {
		t.Fatal(err)
	}
	station, issued := readLines(t, string(text)), readLines(t, mustRun(t, "", append(p.factory, "records", p.ca)...))
	if one := station["gw-1"]; len(station) != 1 || len(issued) != 1 || one != issued["gw-1"] || one.EK == "" {
		t.Errorf("the station has %+v, the registrar %+v", station, issued)
	}
	keys, err := filepath.Glob(filepath.Join(p.root, "var/lib/ferrule/device.key*"))
	if err != nil || len(keys) != 1 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if left, _ := filepath.Glob(p.records + ".tokens/gw*"); len(left) != 0 {
		t.Errorf("tokens are left: %v", left)
	}
}

func TestProvision(t *testing.T) {
	p := newProvisioning(t)
	first := mustRun(t, "", p.argv...)
	p.converged(t)
	certificate := filepath.Join(p.root, "var/lib/ferrule/device.crt")
	before, err := os.ReadFile(certificate)
	if err != nil {
		t.Fatal(err)
	}
	again := mustRun(t, "", p.argv...)
	p.converged(t)
	if after, _ := os.ReadFile(certificate); string(after) != string(before) {
		t.Error("a second run changed the certificate")
	}
	if !strings.Contains(first, "enrolled as gw-1") || !strings.Contains(again, "already enrolled") || strings.Contains(again, "written") {
		t.Errorf("first run:\n%s\nsecond run:\n%s", first, again)
	}
}

// A gateway that is another device already is not recorded as this one, and the record of a
// device whose id differs in a dot stays.
func TestProvisionTheWrongGateway(t *testing.T) {
	p := newProvisioning(t)
	other := `{"device":"gwx1","serial":"1"}` + "\n"
	if err := os.WriteFile(p.records, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	p.argv[3] = "gw.1"
	mustRun(t, "", p.argv...)
	before, err := os.ReadFile(p.records)
	if err != nil || !strings.HasPrefix(string(before), other) || strings.Count(string(before), "\n") != 2 {
		t.Fatalf("records, %v:\n%s", err, before)
	}
	p.argv[3] = "gw-2"
	_, stderr, code := run(t, "", p.argv...)
	if code != 1 || !strings.Contains(stderr, "gw.1 is already enrolled") || !strings.Contains(stderr, "hint:") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if after, _ := os.ReadFile(p.records); string(after) != string(before) {
		t.Errorf("records:\n%s", after)
	}
}

// A token that a run of long ago left is no good any more: the script gets another.
func TestProvisionWithAnOldToken(t *testing.T) {
	p := newProvisioning(t)
	if err := os.MkdirAll(p.records+".tokens", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.records+".tokens", "gw-1"), []byte("of-long-ago\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := mustRun(t, "", p.argv...); strings.Count(said, "a new one for gw-1") != 1 {
		t.Errorf("the script said:\n%s", said)
	}
	p.converged(t)
}

// The script is killed with all its children at random moments, again and again; the run
// that is left alone ends as if nothing had happened.
func TestProvisionCutAnywhere(t *testing.T) {
	rounds, cuts := number(t, "E2E_PROVISION", 6), 0
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range rounds {
		p := newProvisioning(t)
		for range 6 {
			command := exec.Command(p.argv[0], p.argv[1:]...)
			command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			command.Env = append(os.Environ(), "TMPDIR="+p.dir)
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			pause(t, time.Duration(random.IntN(500))*time.Millisecond)
			_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
			if command.Wait() != nil {
				cuts++
			}
		}
		mustRun(t, "", p.argv...)
		p.converged(t)
	}
	t.Logf("%d gateways, %d cuts", rounds, cuts)
	if cuts < rounds {
		t.Errorf("only %d cuts in %d rounds hit a running script", cuts, rounds)
	}
}
