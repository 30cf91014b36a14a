package registrar

import (
	"fmt"
	"testing"

	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
)

// BenchmarkEnroll is what the registrar does for one new device, without the network and without
// the checks of tpm/attest: three steps, one certificate, two files that are durable.
func BenchmarkEnroll(b *testing.B) {
	d := deskOn(b, disk.OS(), b.TempDir(), Config{})
	n := 0
	for b.Loop() {
		n++
		p, id := newPretender(b, fmt.Sprint(n)), fmt.Sprintf("gw-%d", n)
		from := caller{source: fmt.Sprint(n / 100)}
		begun, refused := d.begin(b.Context(), from, wire.Begin{Versions: []int{wire.Version}, Token: d.token(b, id)})
		must(b, refused)
		items, claim := p.items(b, begun.Nonce, id)
		challenged, refused := d.evidence(b.Context(), from, wire.Evidence{Session: begun.Session, Evidence: items})
		must(b, refused)
		c := challenged.Challenges[0].Data
		answer := wire.Item{Kind: wire.KindActivation, Data: claim.Answer(open(b, c), items[1].Data, c)}
		_, refused = d.finish(b.Context(), from, wire.Finish{Session: begun.Session, Answers: []wire.Item{answer}})
		must(b, refused)
	}
}
