package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
	"ferrule/tpm/attest"
)

// deskOn opens CA and records on a disk.
func deskOn(t testing.TB, fsys disk.FS, v attest.Verifier) (*registrar.Registrar, *records.Book) {
	t.Helper()
	authority, err := ca.Init(fsys, "/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	book, err := records.Open(fsys, "/ca")
	if err != nil {
		t.Fatal(err)
	}
	c := registrar.Config{CA: authority, Records: book, TPMs: v}
	return registrar.New(c, slog.New(slog.DiscardHandler)), book
}

// A power cut anywhere in a batch ends, after the same command again, with one order, one
// certificate and a delivery that the TPM opens.
func TestBatchPowerCut(t *testing.T) {
	one, err := newGateways(t).powered(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	v := attest.Verifier{Roots: x509.NewCertPool()}
	for _, c := range one.chip.Roots() {
		v.Roots.AddCert(c)
	}
	order, err := registrar.NewOrder("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	collected, err := one.collect(t.Context(), order)
	if err != nil {
		t.Fatal(err)
	}
	serial, opened := "", 0
	states := disktest.Replay(t, func(d *disktest.Disk) {
		b := batch{fsys: d, dir: "/line"}
		if err := disk.MakeFolder(d, b.dir); err != nil {
			t.Fatal(err)
		}
		for ending, v := range map[string]any{orderFile: order, evidenceFile: collected} {
			if err := b.write("gw-1", ending, v); err != nil {
				t.Fatal(err)
			}
		}
		r, _ := deskOn(t, d, v)
		d.Mark("collected")
		line := b.issue(t.Context(), r, "gw-1")
		if line.State != stateIssued {
			t.Fatalf("%+v", line)
		}
		serial = line.Serial
		d.Mark("issued")
	}, func(t testing.TB, state *disktest.Disk) {
		if len(state.Marks()) == 0 {
			return
		}
		b := batch{fsys: state, dir: "/line"}
		r, book := deskOn(t, state, v)
		line := b.issue(t.Context(), r, "gw-1")
		if line.State != stateIssued || len(state.Marks()) == 2 && line.Serial != serial {
			t.Fatalf("after the cut: %+v", line)
		}
		d, err := book.Device("gw-1")
		if err != nil || len(d.Certificates) != 1 || d.Certificates[0].Serial != line.Serial {
			t.Errorf("the record: %+v, %v", d, err)
		}
		if again := b.issue(t.Context(), r, "gw-1"); again != line {
			t.Errorf("again: %+v", again)
		}
		if opened++; opened > 20 {
			return // an activation takes 20 ms
		}
		text, _ := state.Content("/line/gw-1" + deliveryFile)
		var delivery wire.Delivery
		if err := json.Unmarshal(text, &delivery); err != nil {
			t.Fatal(err)
		}
		if chain, err := one.unseal(t.Context(), delivery); err != nil || !bytes.Contains(chain, []byte("BEGIN CERTIFICATE")) {
			t.Errorf("the delivery does not open: %v", err)
		}
	})
	t.Logf("%d disks", states)
}

// An order that is there is never replaced, whatever is cut.
func TestPlanPowerCut(t *testing.T) {
	disktest.Replay(t, func(d *disktest.Disk) {
		b := batch{fsys: d, dir: "/line"}
		if err := disk.MakeFolder(d, b.dir); err != nil {
			t.Fatal(err)
		}
		for _, device := range []string{"gw-1", "gw-2"} {
			if _, err := b.plan(device); err != nil {
				t.Fatal(err)
			}
			text, _ := d.Content("/line/" + device + orderFile)
			d.Mark(string(text))
		}
	}, func(t testing.TB, state *disktest.Disk) {
		b := batch{fsys: state, dir: "/line"}
		if err := disk.MakeFolder(state, b.dir); err != nil {
			t.Fatal(err)
		}
		for n, device := range []string{"gw-1", "gw-2"} {
			if _, err := b.plan(device); err != nil {
				t.Fatal(err)
			}
			if text, _ := state.Content("/line/" + device + orderFile); n < len(state.Marks()) && string(text) != state.Marks()[n] {
				t.Errorf("the order of %s is another one", device)
			}
		}
	})
}

// FuzzDevices: whatever a spreadsheet writes, there is an error, or ids that are fit for files,
// each once.
func FuzzDevices(f *testing.F) {
	for _, text := range []string{"device,gateway,tpm\ngw-1,local:/,auto\n", "\ufeffdevice\r\ngw-1\r\n", "device\n\"gw-1\n", "device,device\n", ""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		devices, err := parseDevices(text)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, device := range devices {
			if records.CheckDevice(device) != nil || seen[device] {
				t.Errorf("device %q", device)
			}
			seen[device] = true
		}
	})
}

// FuzzLabels: no line of a record becomes a part of the page.
func FuzzLabels(f *testing.F) {
	f.Add([]byte(`{"device":"gw-1","serial":"1a","ek":"00","certificate_sha256":"ff"}`))
	f.Add([]byte(`{"device":"gw-1","serial":"<script>"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := readLabel(line)
		if err != nil {
			return
		}
		if text := l.Device + l.Serial + l.EK + l.Fingerprint + l.text(); strings.ContainsAny(text, "<>\"'\x00\n") {
			t.Errorf("a label says %q", text)
		}
		if code := string(l.Code); strings.Count(code, "<") != 3 {
			t.Errorf("a code of %q", code)
		}
	})
}

func TestProgressWithoutATerminal(t *testing.T) {
	for total, want := range map[int]int{1: 1, 3: 3, 10: 10, 1000: 10} {
		var out bytes.Buffer
		p := newProgress(&out, total)
		for range total {
			p.step()
		}
		p.done()
		if lines := strings.Count(out.String(), "\n"); lines != want || !strings.Contains(out.String(), "(100 %)") {
			t.Errorf("of %d devices: %d lines, want %d:\n%s", total, lines, want, &out)
		}
	}
}

// The makers' certificates come as one file or as a folder; roots are told from what is below.
func TestMakersCertificates(t *testing.T) {
	dir := t.TempDir()
	authority, err := ca.Init(disk.OS(), filepath.Join(dir, "ca"), "maker")
	if err != nil {
		t.Fatal(err)
	}
	root, below := authority.Root(), authority.DeviceCA()
	folder := filepath.Join(dir, "makers")
	put := func(name string, text []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("acme/root.cer", root.Raw)
	o := issuingOptions{tpmRoots: folder}
	v, err := o.verifier()
	if err != nil || v.Roots.Equal(v.Intermediates) {
		t.Fatal(err)
	}
	put("acme/below.der", below.Raw)
	put(".git/config", []byte("no certificate"))
	if v, err = o.verifier(); err != nil {
		t.Fatal(err)
	}
	if v.Roots.Equal(v.Intermediates) {
		t.Error("roots and intermediates are the same")
	}
	for name, path := range map[string]string{
		"without a root":  filepath.Join(folder, "acme/below.der"),
		"that is missing": filepath.Join(folder, "nothing"),
		"of a key":        filepath.Join(dir, "ca/root.key"),
		"that is empty":   filepath.Join(folder, "empty"),
	} {
		if name == "that is empty" {
			put("empty", nil)
		}
		if _, err := (issuingOptions{tpmRoots: path}).verifier(); err == nil || hint.Of(err) == "" && name != "that is missing" {
			t.Errorf("a file %s: %v", name, err)
		}
	}
	if _, err := readPool(filepath.Join(dir, "ca/root.crt")); err != nil {
		t.Error(err)
	}
	leaf, err := authority.Device(ca.Leaf{Device: "gw-1", Key: root.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	put("leaf.crt", leaf[0].Raw)
	if _, err := readPool(filepath.Join(folder, "leaf.crt")); err == nil || hint.Of(err) == "" {
		t.Errorf("a device for an authority: %v", err)
	}
}
