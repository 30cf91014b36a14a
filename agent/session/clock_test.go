package session

import (
	"context"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/internal/disk"

	"ferrule/agent/session/cause"
)

// slowClock is two hours behind.
type slowClock struct{ trusted bool }

func (slowClock) Now() time.Time   { return time.Now().Add(-2 * time.Hour) }
func (slowClock) Floor() time.Time { return time.Now().Add(-3 * time.Hour) }

func (c slowClock) Trusted() bool { return c.trusted }

// The broker's certificate is an hour old, or has expired, and our clock is two hours behind. One
// that nobody vouches for is no reason to stay away from a young broker; one that is trusted is, and
// a broker whose certificate is over stays refused, and so does one of another authority.
func TestBrokerYoungerThanTheClock(t *testing.T) {
	now := time.Now()
	stranger := must[*agenttest.CA](t)(agenttest.NewCA("stranger"))
	for name, test := range map[string]struct {
		trusted bool
		leaf    agenttest.Leaf
		by      *agenttest.CA
		want    cause.Cause // "" is a session
	}{
		"nobody vouches": {},
		"trusted":        {trusted: true, want: cause.Clock},
		"over by the clock, too": {leaf: agenttest.Leaf{NotBefore: now.Add(-9 * time.Hour), NotAfter: now.Add(-4 * time.Hour)},
			want: cause.BrokerExpired},
		"young and of another authority": {by: stranger, want: cause.BrokerUnknownCA},
		"young and of another name":      {leaf: agenttest.Leaf{Names: []string{"other.example"}}, want: cause.BrokerName},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			ca := w.ca
			if test.by != nil {
				ca = test.by
			}
			test.leaf.CommonName = "broker"
			if test.leaf.Names == nil {
				test.leaf.Names = []string{"127.0.0.1"}
			}
			w.server = must[*agenttest.Issued](t)(ca.Issue(test.leaf))
			b, _ := w.broker()
			w.identity = must[*identity.Identity](t)(identity.Open(context.Background(),
				identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true},
				identity.Options{StateDir: w.dir, FS: disk.OS(), Clock: slowClock{test.trusted}, Log: w.log.logger()}))
			t.Cleanup(func() { _ = w.identity.Close() })
			s := w.session(b.Address())
			w.run(s)
			until(t, "the outcome", func() bool { st := s.Status(); return st.Stage == cause.StageUp || st.LastFailure != nil })
			st := s.Status()
			if test.want == "" {
				if st.LastFailure != nil {
					t.Errorf("%+v", st.LastFailure)
				}
			} else if st.LastFailure == nil || st.LastFailure.Cause != test.want || len(b.Connections()) > 0 {
				t.Errorf("%+v, %d connections; want %s", st.LastFailure, len(b.Connections()), test.want)
			}
		})
	}
}
