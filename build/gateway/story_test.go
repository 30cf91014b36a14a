package gateway

import "testing"

// TestStory is a gateway's life, from a flashed disk to an update that was refused.
func TestStory(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	w.provision(t, m, "", nil)
	m.on(t)
	t.Logf("agent started after %s", m.seconds(m.next(t, "slot a, agent started")))
	t.Logf("first reading acknowledged after %s, enrollment included", m.seconds(w.reading(t, 0)))
}
