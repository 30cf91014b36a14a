package attest

import (
	"encoding/json"
	"testing"
)

// BenchmarkCheck is what one enrollment costs the registrar: reading the item, Check and
// Challenge.
func BenchmarkCheck(b *testing.B) {
	m := newMaker(b)
	for kind, which := range ekNames {
		b.Run(which, func(b *testing.B) {
			e, c := newSoftTPM(b, m, kind).evidence(b, nonce, device, nil)
			item, err := json.Marshal(e)
			if err != nil {
				b.Fatal(err)
			}
			v := m.verifier()
			b.ReportAllocs()
			for b.Loop() {
				e, err := ParseEvidence(item)
				if err != nil {
					b.Fatal(err)
				}
				p, err := v.Check(e, c)
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := p.Challenge(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
