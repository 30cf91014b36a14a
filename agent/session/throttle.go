package session

import "time"

// What a broker may have us do, as long as it likes. A message costs what paho allocates for it and
// what a command costs to read, so a small one counts as leastCost. What a device is told in a day is
// less than a burst.
const (
	inboundRate  = 1 << 20 // bytes a second
	inboundBurst = 2 << 20 // bytes at once
	leastCost    = 1 << 10 // bytes
	// longestPause bounds the wait behind one packet, since acknowledgements wait behind it too.
	longestPause = 250 * time.Millisecond
)

// throttle makes packets that come faster wait unread, so that TCP holds back whoever sends them:
// without it a flood of messages, which nobody has to acknowledge at QoS 0, takes a whole processor
// and more memory than the collector gives back in time.
type throttle struct {
	debt float64 // bytes that were taken and are not paid for by time yet
	last time.Time
}

// pause returns how long to wait behind a packet of this size at now.
func (t *throttle) pause(size int64, now time.Time) time.Duration {
	t.debt = max(0, t.debt-now.Sub(t.last).Seconds()*inboundRate) + float64(max(size, leastCost))
	t.last = now
	over := (t.debt - inboundBurst) / inboundRate
	return min(longestPause, max(0, time.Duration(over*float64(time.Second))))
}
