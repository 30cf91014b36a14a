package e2e

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"
)

// spoofed is a name that would forge a line of a log, or of a terminal.
const spoofed = "\x1b[31mgw\n time=now level=ERROR msg=\"owned\" \x00\u202e"

// What a broker can do to the agent, or somebody in its place.
func TestMemoryUnderHostileBrokers(t *testing.T) {
	t.Parallel()
	a := newSiege(t, false)
	a.strangeBrokers(t)
	a.hugePackets(t)
	a.deafBrokers(t)
	a.oddPackets(t)
	a.rivals(t)
	a.inventors(t)
	a.signals(t)
}

// What stands between the agent and its broker, or below it.
func TestMemoryOnHostileWays(t *testing.T) {
	t.Parallel()
	a := newSiege(t, true)
	a.hostileWebSockets(t)
	a.hostileProxies(t)
	a.stalls(t)
	a.troubledTPM(t)
}

// What clients can do to the listener, before they are in and after.
func TestMemoryUnderHostileClients(t *testing.T) {
	t.Parallel()
	a := newSiege(t, false)
	a.handshakes(t)
	a.slowRequests(t)
	a.watchers(t)
	a.forgedNames(t)
}

// A23: the broker was away for so long that half of the outbox is full. What waits goes out in order,
// with nothing missing, and takes no more memory than anything else.
func TestMemoryAfterALongOutage(t *testing.T) {
	t.Parallel()
	const waiting = 400_000 // entries; ten a second for eleven hours
	s := newSite(t, siteOptions{sync: "1s", every: 250 * time.Millisecond, points: 1, weak: true})
	s.process.Kill()
	size := s.fill(t, waiting)
	a := &siege{listening: &listening{site: s}}
	ca := newCA(t)
	s.trust(t, ca)
	a.rogue = newRogue(t, s.broker, ca)
	var drained, wrong int // rogue's goroutines, of which one at a time serves
	var done atomic.Bool
	last := make(map[string]entryID)
	heard := func(topic string, payload []byte) {
		if !strings.Contains(topic, "/readings/") {
			return
		}
		if payload[0] != '[' {
			payload = slices.Concat([]byte{'['}, payload, []byte{']'})
		}
		var all []arrival
		if err := json.Unmarshal(payload, &all); err != nil {
			t.Error(err)
		}
		for _, e := range all {
			if before := last[topic]; e.Boot < before.boot || e.Boot == before.boot && e.Seq <= before.seq {
				wrong++
			}
			last[topic] = entryID{e.Boot, e.Seq}
			drained++
		}
		done.Store(drained > waiting)
	}
	a.rogue.heard.Store(&heard)
	began := time.Now()
	s.run(t)
	waitFor(t, "the backlog to drain", done.Load)
	took, peak := time.Since(began), memory(t, s.agent.Process.Pid, "VmHWM")
	t.Logf("%d entries of %d KiB drained in %v, %d KiB in memory at most", waiting, size>>10, took.Round(time.Millisecond), peak)
	s.stop(t)
	a.rogue.close()
	if peak > mostMemory {
		t.Errorf("%d KiB in memory, want %d at most", peak, mostMemory)
	}
	if wrong > 0 || drained < waiting {
		t.Errorf("%d entries out of order, %d of %d", wrong, drained, waiting)
	}
}

// fill puts entries into the outbox as an agent does whose broker is away, and returns their size.
func (s *site) fill(t *testing.T, count int) (size int64) {
	t.Helper()
	o := outbox.Options{FS: disk.OS(), Dir: filepath.Join(s.state, "outbox"), Config: outbox.Default(),
		Lines: []outbox.LineConfig{{Name: "rs485-1"}}, Log: slog.New(slog.DiscardHandler)}
	box, err := outbox.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for n := range count {
		unit := []string{"meter-a", "meter-b"}[n%2]
		err := box.Append(t.Context(), "rs485-1", func(dst []byte, seq uint64) (string, []byte) {
			return "ferrule/" + siteDevice + "/readings/rs485-1/" + unit, fmt.Appendf(dst,
				`{"boot":%d,"seq":%d,"t":"2026-11-21T04:00:00.125Z","line":"rs485-1","unit":%q,"readings":{"counter":%d,"p0":%d,"p1":%d,"p2":%d,"p3":%d}}`,
				box.Boot(), seq, unit, n, n%1000, n%999, n%998, n%997)
		})
		if err == nil && n%1000 == 0 {
			err = box.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	size = box.Status().Bytes
	if err := box.Close(); err != nil {
		t.Fatal(err)
	}
	return size
}
