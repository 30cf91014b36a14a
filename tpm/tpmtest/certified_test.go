package tpmtest_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ferrule/tpm/tpmtest"
)

func TestMakerMakesDifferentTPMs(t *testing.T) {
	dir := t.TempDir()
	m, err := tpmtest.NewMaker(dir)
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for i := range 3 {
		states = append(states, filepath.Join(dir, fmt.Sprint(i)))
		if err := os.Mkdir(states[i], 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.MakeAll(context.Background(), states); err != nil {
		t.Fatal(err)
	}
	if roots := m.Roots(); len(roots) != 2 || roots[1].CheckSignatureFrom(roots[0]) != nil {
		t.Fatalf("roots %v", roots)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(m.RootsPEM()) {
		t.Error("the roots are no PEM file")
	}
	seen := make(map[string]bool)
	for _, s := range states {
		data, err := os.ReadFile(filepath.Join(s, "tpm2-00.permall"))
		if err != nil || seen[string(data)] {
			t.Errorf("%s: %v, seen before: %t", s, err, seen[string(data)])
		}
		seen[string(data)] = true
	}
	again, err := tpmtest.NewMaker(dir) // the authority stays
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Make(context.Background(), states[0]); err != nil {
		t.Fatal(err)
	}
	if !again.Roots()[0].Equal(m.Roots()[0]) {
		t.Error("the manufacturer was founded twice")
	}
}

func TestCertifiedTPMsKeepTheirMemory(t *testing.T) {
	s := tpmtest.Certified(t)
	other := tpmtest.Other(t)
	if ask(t, s.Address())[9] != 0 || ask(t, other.Address())[9] != 0 {
		t.Error("no answer")
	}
	if len(s.Roots()) != 2 || !bytes.Equal(s.RootsPEM(), other.RootsPEM()) {
		t.Error("two chips of one manufacturer have different roots")
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(s.StateDir(), "tpm2-00.permall")
	if err := os.WriteFile(state, []byte("of the test"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := tpmtest.StartCertified(context.Background(), s.StateDir()); err == nil {
		_ = again.Stop()
		t.Error("a memory that was there was replaced")
	}
}

func BenchmarkMakeAll(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		m, err := tpmtest.NewMaker(dir)
		if err != nil {
			b.Fatal(err)
		}
		var states []string
		for i := range 100 {
			states = append(states, filepath.Join(dir, fmt.Sprint(i)))
			if err := os.Mkdir(states[i], 0o700); err != nil {
				b.Fatal(err)
			}
		}
		if err := m.MakeAll(context.Background(), states); err != nil {
			b.Fatal(err)
		}
	}
}
