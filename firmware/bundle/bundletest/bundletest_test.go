package bundletest_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"ferrule/firmware/bundle/bundletest"
)

func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	out := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(out)
	return out
}

func TestNew(t *testing.T) {
	old := random(1, 3<<20)
	fresh := bytes.Clone(old)
	copy(fresh[1<<20:], "changed")
	r, err := bundletest.New(t.TempDir(), nil, bundletest.Of("1.0.0", old), bundletest.Of("1.1.0", fresh))
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Manifest("1.1.0")
	if err != nil {
		t.Fatal(err)
	}
	if m.Release() != 2 || len(m.Parts()[0].Deltas) != 1 {
		t.Errorf("release %d, parts %+v", m.Release(), m.Parts()[0].Deltas)
	}
}
