package local

import (
	"fmt"
	"testing"
)

// A watcher that is slow, and stays, keeps one status from being forgotten, not hundreds: one of
// a large gateway has a quarter of a megabyte.
func TestASlowWatcherKeepsOneStatus(t *testing.T) {
	f := newFeed()
	slow := &watcher{readings: true, status: true}
	if !f.watch(slow, maxGuests) {
		t.Fatal("there is no place")
	}
	for n := range 3 * watcherQueue {
		f.publish(statusEvent, fmt.Appendf(nil, `{"n":%d}`, n))
		f.publish(readingEvent, fmt.Appendf(nil, `{"seq":%d}`, n))
	}
	if e := <-slow.latest; string(e.data) != fmt.Sprintf(`{"n":%d}`, 3*watcherQueue-1) || e.name != statusEvent || len(slow.latest) != 0 {
		t.Errorf("%s %s, and %d more", e.name, e.data, len(slow.latest))
	}
	if e := <-slow.events; string(e.data) != `{"seq":0}` || len(slow.events) != watcherQueue-1 || f.takeMissed(slow) != 2*watcherQueue {
		t.Errorf("%s %s, and %d more", e.name, e.data, len(slow.events))
	}
}
