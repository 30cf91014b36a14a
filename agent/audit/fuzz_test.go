package audit_test

import (
	"crypto/ed25519"
	"os"
	"testing"

	"ferrule/agent/audit"
	"ferrule/internal/disk/disktest"
)

// FuzzVerify gives a folder of rubbish to Verify, and to a start of the agent. A start hides no break but in lines that
// were never signed. Key and seeds are the same in every process, as the fuzzer needs.
func FuzzVerify(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	d := disktest.New()
	sample(f, &world{disk: d, key: key, conf: audit.Default()}, 1, 3)
	text, _ := d.Content(segmentsOf(d)[0])
	headName := headsOf(d)[0]
	signed, _ := d.Content(headName)
	f.Add(text, signed)
	f.Add(text[:len(text)-7], signed)
	f.Add(append(text[:300:300], text[301:]...), signed)
	f.Add([]byte("{\"seq\":1}\n\n"), []byte("..."))
	f.Fuzz(func(t *testing.T, text, signed []byte) {
		d := disktest.New()
		if err := d.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, d, dir+"/audit-0000000001.jsonl", text)
		put(t, d, headName, signed)
		w := &world{disk: d, key: key, conf: audit.Default()}
		before := w.verify(t)
		sample(t, w, 1, 1)
		after := w.verify(t)
		if before.Break != nil && before.Break.Code != audit.BreakHead && after.Break == nil {
			t.Errorf("a start hid %+v", *before.Break)
		}
	})
}

func put(t testing.TB, d *disktest.Disk, name string, data []byte) {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
