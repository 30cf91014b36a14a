package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A batch at a place without a network: orders out, evidence in, deliveries out, labels. One
// gateway is broken at first, as in TestBatch, and every step is done twice.
func TestBatchByFiles(t *testing.T) {
	f := newFleet(t, number(t, "E2E_BATCH_FILES", 10))
	f.issuing.stop(t)
	n, orders := len(f.names), filepath.Join(f.dir, "orders")
	broken := f.names[n/2]
	if err := f.chips[n/2].Kill(); err != nil {
		t.Fatal(err)
	}
	planning := with(f.factory, "batch", "plan", f.devices, orders)
	issuing := with(f.factory, "batch", "issue", "--ca", f.ca, "--tpm-roots", f.tpmRoots(), orders)
	collecting := append(f.argv[:len(f.argv):len(f.argv)], "--collect", orders)
	delivering := append(f.argv[:len(f.argv):len(f.argv)], "--deliver", orders, "--records", f.records)

	plan := mustScript(t, planning)
	stderr, code, collect := script(t, collecting)
	if code != 1 || !strings.Contains(stderr, broken+": ") || !strings.Contains(stderr, fmt.Sprintf("1 of %d gateways failed", n)) {
		t.Errorf("collecting: exit code %d:\n%s", code, stderr)
	}
	issue := mustScript(t, issuing)
	stderr, code, _ = script(t, delivering)
	if code != 1 || !strings.Contains(stderr, "there is no delivery for "+broken) {
		t.Errorf("delivering: exit code %d:\n%s", code, stderr)
	}
	f.converged(t, broken)

	if err := f.chips[n/2].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustScript(t, planning)
	mustScript(t, collecting)
	mustScript(t, issuing)
	deliver := mustScript(t, delivering)
	f.converged(t)

	before := f.snapshot(t)
	for _, again := range [][]string{planning, collecting, issuing, delivering} {
		mustScript(t, again)
	}
	f.unchanged(t, before)
	f.checkLabels(t)
	t.Logf("%d gateways by files: plan %.1f s, collect %.1f s, issue %.1f s, deliver %.1f s",
		n, plan.Seconds(), collect.Seconds(), issue.Seconds(), deliver.Seconds())
}

// checkLabels prints the labels of both files of records.
func (f *fleet) checkLabels(t *testing.T) {
	t.Helper()
	issued := f.file(t, "issued.jsonl", mustRun(t, "", with(f.factory, "records", f.ca)...))
	station := mustRun(t, "", with(f.factory, "labels", f.records)...)
	if n := strings.Count(station, "<svg"); n != len(f.names) || !strings.Contains(station, "<b>"+f.names[0]+"</b>") {
		t.Errorf("%d labels for %d gateways", n, len(f.names))
	}
	one, other := mustRun(t, "", with(f.factory, "labels", "--json", f.records)...), mustRun(t, "", with(f.factory, "labels", "--json", issued)...)
	if fmt.Sprint(readLabels(one)) != fmt.Sprint(readLabels(other)) {
		t.Errorf("the labels of the station's records and of the registrar's differ:\n%s\n%s", one, other)
	}
}

func readLabels(text string) map[string]bool {
	lines := make(map[string]bool)
	for line := range strings.Lines(text) {
		lines[line] = true
	}
	return lines
}

// Evidence that was carried to the wrong gateway's name, or changed on the way, is refused by
// name; nothing is issued for it.
func TestBatchWithForeignEvidence(t *testing.T) {
	f := newFleet(t, 2)
	f.issuing.stop(t)
	orders := filepath.Join(f.dir, "orders")
	mustRun(t, "", with(f.factory, "batch", "plan", f.devices, orders)...)
	mustScript(t, append(f.argv[:len(f.argv):len(f.argv)], "--collect", orders))
	first := filepath.Join(orders, f.names[0]+".evidence.json")
	text, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(orders, f.names[1]+".evidence.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := run(t, "", with(f.factory, "batch", "issue", "--ca", f.ca, "--tpm-roots", f.tpmRoots(), orders)...)
	if code != 1 || !strings.Contains(stdout, `the evidence is of device "gw-0001"`) || !strings.Contains(stderr, "1 of 2 devices failed") {
		t.Errorf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	stderr, code, _ = script(t, append(f.argv[:len(f.argv):len(f.argv)], "--deliver", orders, "--records", f.records))
	if code != 1 || !strings.Contains(stderr, "gw-0002: there is no delivery") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
	f.converged(t, "gw-0002")
}
