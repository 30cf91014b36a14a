package e2e

import (
	"testing"
	"time"
)

// SIGTERM under load: what was taken is delivered before the agent ends, with exit code 0.
// With the broker away it ends all the same, and the next start delivers.
func TestCleanEnd(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 20 * time.Millisecond, points: 4})
	s.run(t)
	waitFor(t, "readings", func() bool { return len(s.messages(t)) > 50 })
	s.stop(t)
	s.judge(t, nil, promise{})
	first := s.stopped

	s.run(t)
	before := len(s.messages(t))
	waitFor(t, "more readings", func() bool { return len(s.messages(t)) > before+50 })
	s.process.Kill()
	waitFor(t, "a backlog", func() bool {
		depth, _ := field(s.status(t), "outbox", "depth").(float64)
		return depth > 50
	})
	s.stop(t)
	second := s.stopped
	s.startBroker(t)
	s.run(t)
	s.waitDrained(t)
	s.stop(t)
	s.judge(t, []time.Time{first, second}, promise{window: cutOff})
}
