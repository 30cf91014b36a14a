package session

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"ferrule/agent/agenttest"

	"ferrule/agent/session/cause"
)

// renew puts another certificate for the same key in place, and stages it.
func (w *world) renew(ca *agenttest.CA, l agenttest.Leaf) *agenttest.Issued {
	w.t.Helper()
	l.Key = w.identity.Current().Leaf().PublicKey
	if l.CommonName == "" {
		l.CommonName = "device-1"
	}
	issued := must[*agenttest.Issued](w.t)(ca.Issue(l))
	w.write("device.crt", issued.ChainPEM)
	if changed, err := w.identity.Reload(context.Background()); err != nil || !changed {
		w.t.Fatal(changed, err)
	}
	return issued
}

func TestRotationLosesNothing(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		old := w.identity.Current().Fingerprint()
		b, got := w.broker(func(c *agenttest.BrokerConfig) { c.TLS.MaxVersion = version })
		s := w.session(b.Address())
		w.run(s)
		w.fill(500, 50)
		until(t, "something to flow", func() bool { return len(got.of("readings/")) > 10 })
		fresh := w.renew(w.ca, agenttest.Leaf{})
		s.Rotate()
		total := 500
		until(t, "the rotation", func() bool {
			w.fill(5, 50)
			total += 5
			return s.Status().Rotations == 1
		})
		b.Cut()
		b.Mend()
		w.fill(100, 50)
		until(t, "the outbox to drain", w.drained)
		checkSeqs(t, seqs(t, got.of("readings/")), total+100)
		leaves := b.Connections()
		if len(leaves) < 3 || leaves[0].Leaf != old || w.identity.Staged() != nil {
			t.Errorf("connections: %+v", leaves)
		}
		for _, c := range leaves[1:] {
			if c.Leaf != fresh.Fingerprint() {
				t.Errorf("a later connection showed another certificate: %+v", c)
			}
		}
		if leaves[1].Resumed || !leaves[len(leaves)-1].Resumed {
			t.Errorf("resumed: %+v", leaves)
		}
		if st := s.Status(); st.Leaf != fresh.Fingerprint() || st.TLSVersion != tls.VersionName(version) {
			t.Errorf("status: %+v", st)
		}
	})
}

// A certificate that the broker refuses takes nothing down.
func TestRefusedRotationLeavesTheLink(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		old := w.identity.Current().Fingerprint()
		b, got := w.broker(func(c *agenttest.BrokerConfig) { c.TLS.MaxVersion = version })
		s := w.session(b.Address())
		w.run(s)
		until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
		// The broker judges it by a clock that is a day behind.
		w.renew(w.ca, agenttest.Leaf{NotBefore: time.Now().Add(24 * time.Hour)})
		s.Rotate()
		f := failure(t, s, cause.CertificateExpired) // crypto/tls says so of both ends of the validity
		if f.Stage != cause.StageRotate {
			t.Errorf("failure: %+v", f)
		}
		w.fill(100, 50)
		until(t, "the outbox to drain", w.drained)
		checkSeqs(t, seqs(t, got.of("readings/")), 100)
		if st := s.Status(); st.Connects != 1 || st.Rotations != 0 || len(b.Connections()) != 1 || b.Connections()[0].Leaf != old {
			t.Errorf("status: %+v", st)
		}
		b.Cut()
		b.Mend()
		until(t, "the next connection", func() bool { return s.Status().Connects == 2 })
		if st := s.Status(); st.Leaf != old {
			t.Errorf("the refused certificate was used: %+v", st)
		}
	})
}

// While the session is down, the staged certificate and the one in use are tried by turns.
func TestRotationWhileDown(t *testing.T) {
	w := newWorld(t)
	other := must[*agenttest.CA](t)(agenttest.NewCA("other"))
	address := freeAddress(t)
	s := w.session(address)
	w.run(s)
	failure(t, s, cause.Refused)
	fresh := w.renew(other, agenttest.Leaf{})
	s.Rotate()
	w.broker(func(c *agenttest.BrokerConfig) { c.Address, c.TLS.ClientCAs = address, other.Pool() })
	until(t, "the session with the new certificate", func() bool {
		st := s.Status() // the rotation counts before the session is up with it
		return st.Rotations == 1 && st.Stage == cause.StageUp
	})
	if st := s.Status(); st.Leaf != fresh.Fingerprint() {
		t.Errorf("status: %+v", st)
	}
}
