package session

import (
	"testing"

	"ferrule/agent/session/cause"
)

func TestEveryEntryArrivesOnceAndInOrder(t *testing.T) {
	w := newWorld(t)
	b, ledger := w.broker()
	w.fill(1000, 100)
	s := w.session(b.Address())
	stop := w.run(s)
	until(t, "the outbox to drain", w.drained)
	w.fill(50, 100)
	until(t, "the outbox to drain again", w.drained)
	if d := checkSeqs(t, seqs(t, ledger.of("readings/")), 1050); d != 0 {
		t.Errorf("%d duplicates without a cut", d)
	}
	st := s.Status()
	if st.Stage != cause.StageUp || st.Connects != 1 || st.Acked < 1050 || st.TLSVersion != "TLS 1.3" || st.LastFailure != nil {
		t.Errorf("status: %+v", st)
	}
	stop()
	if got := ledger.of("ferrule/device-1/status"); len(got) != 2 || got[0] != `{"online":true}` || got[1] != string(s.offline) {
		t.Errorf("status messages: %q", got)
	}
	if st := s.Status(); st.Stage != cause.StageStopped || st.Published != st.Acked {
		t.Errorf("status after the end: %+v", st)
	}
}
