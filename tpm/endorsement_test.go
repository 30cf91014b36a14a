package tpm_test

import (
	"bytes"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

func TestEndorsementNameTellsChipsApartAndSurvivesARestart(t *testing.T) {
	name := func(s *tpmtest.Swtpm) []byte {
		d, err := tpm.Open(t.Context(), tpm.Options{Path: s.Address()})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		n, err := d.EndorsementName(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	one, other := tpmtest.Start(t), tpmtest.Start(t)
	first := name(one)
	one.Kill()
	if err := one.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, name(one)) {
		t.Error("the endorsement key changed its name over a restart")
	}
	if bytes.Equal(first, name(other)) {
		t.Error("two chips have one endorsement key")
	}
}
