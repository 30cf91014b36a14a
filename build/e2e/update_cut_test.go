package e2e

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"ferrule/agent"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
)

// The agent is killed with -9 at random moments of whole updates: while it fetches, verifies, arms, is
// started by the launcher, is on trial, is committed and tells of it. Each time a program starts that
// was released, and each update becomes in the end; nothing is lost.
func TestUpdateKilled(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	var mu sync.Mutex
	total := make(map[string]int)
	for _, name := range []string{"first gateway", "second gateway", "third gateway"} {
		at(t, &all, name, func(t *testing.T) {
			u := newUpdating(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 2}, "floor = \"tpm\"\ntries = 9\nrate = \"512KiB\"")
			u.base(t)
			kills := u.killed(t, number(t, "E2E_UPDATE_KILLS", 24)/3, func(where string) {
				mu.Lock()
				defer mu.Unlock()
				total[where]++
			})
			u.whole(t, kills...)
		})
	}
	all.Wait()
	t.Logf("kills by the state that was to be hit: %v", total)
}

// killed kills the agent so many times in updates, and returns when.
func (u *updating) killed(t *testing.T, times int, count func(where string)) (kills []time.Time) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	released := map[string]bool{fileSum(t, slot.Program(u.program, "a")): true}
	later := func(most time.Duration) { pause(t, time.Duration(random.Int64N(int64(most)))) }
	for len(kills) < times {
		began := len(u.reports(t))
		m := u.release(t, u.next(), func(r *bundletest.Release) { r.NoDeltas, r.SecurityVersion = true, uint64(u.n) })
		released[hex.EncodeToString(m.Parts()[0].SHA256[:])] = true
		u.apply(t)
		for _, stage := range []struct {
			name string
			come func()
		}{
			{"fetching", func() { later(1200 * time.Millisecond) }},
			{"fetched to armed", func() {
				u.comes(t, m, func(s agent.UpdateStatus) bool { return s.State != firmware.Fetching || s.Target.Segments > 0 })
				later(150 * time.Millisecond)
			}},
			{"rebooting, the launcher", func() {
				starts := len(u.keeper.starts())
				waitFor(t, "a restart", func() bool {
					s := u.stands(t)
					return len(u.keeper.starts()) > starts || s.State == firmware.Trial || s.Version == m.Version()
				})
				later(250 * time.Millisecond)
			}},
			{"trial", func() {
				u.comes(t, m, func(s agent.UpdateStatus) bool { return s.State == firmware.Trial })
				later(2 * time.Second)
			}},
			{"commit, report", func() {
				u.comes(t, m, func(s agent.UpdateStatus) bool { return s.State == firmware.Trial })
				u.waitUp(t)
				go func() { // ends with the agent
					_, _ = u.local().Command(context.Background(), "update", agent.UpdateArgs{Action: "commit"})
				}()
				later(30 * time.Millisecond)
			}},
		} {
			if len(kills) == times {
				break
			}
			stage.come()
			kills = append(kills, u.keeper.kill())
			count(stage.name)
			u.sound(t, released)
		}
		u.tried(t, m)
		if all := u.reports(t)[began:]; slices.ContainsFunc(all, func(r firmware.Report) bool { return r.Outcome != firmware.OutcomeCommitted }) {
			t.Errorf("reports %+v", all)
		}
		if s := u.stands(t); s.Floor.Value != m.SecurityVersion() || s.Floor.Weak != "" {
			t.Errorf("the floor is %+v", s.Floor)
		}
	}
	return kills
}

// comes waits for a state of an update, or of what follows it.
func (u *updating) comes(t *testing.T, m *manifest.Manifest, is func(agent.UpdateStatus) bool) {
	t.Helper()
	waitFor(t, "a state of "+m.Version(), func() bool {
		s := u.stands(t)
		return s.State != "" && s.Target != nil && (is(s) || s.Version == m.Version())
	})
}

// sound waits until the agent is there again, from a slot that holds what was released.
func (u *updating) sound(t *testing.T, released map[string]bool) {
	t.Helper()
	var s agent.UpdateStatus
	waitFor(t, "the agent after a kill", func() bool { s = u.stands(t); return s.State != "" })
	if s.Slot == "" || !released[fileSum(t, slot.Program(u.program, slot.Slot(s.Slot)))] {
		t.Errorf("what runs is none of the releases: %+v", s)
	}
}

// The broker is away while an update is on trial, and the device restarts again and again, more often
// than it has tries. That rolls nothing back: when the broker is there again, the update is kept.
func updateInAnOutage(t *testing.T) {
	u := newUpdating(t, siteOptions{sync: "1s", every: 200 * time.Millisecond, points: 1}, "floor = \"file\"\ntries = 2")
	u.base(t)
	m := u.release(t, u.next(), atTwo)
	u.apply(t)
	u.cloud.Cut()
	u.comes(t, m, func(s agent.UpdateStatus) bool { return s.State == firmware.Trial })
	var kills []time.Time
	const storm = 3
	for range storm {
		waitFor(t, "the tries to be given back", func() bool {
			s := u.stands(t)
			if s.State != "" && s.State != firmware.Trial {
				t.Fatalf("status %+v", s)
			}
			return s.Target != nil && s.Target.Trial != nil && s.Target.Trial.Deferred && u.environment(t).Tries == 2
		})
		kills = append(kills, u.keeper.kill())
		u.comes(t, m, func(s agent.UpdateStatus) bool { return s.State == firmware.Trial })
	}
	if s := u.stands(t); s.Target.Trial != nil && s.Target.Trial.Boots > 0 && s.Target.Trial.Boots <= storm {
		t.Errorf("%d boots of the trial, after %d restarts", s.Target.Trial.Boots, storm)
	}
	if err := u.cloud.Mend(); err != nil {
		t.Fatal(err)
	}
	u.committed(t, m)
	u.whole(t, kills...)
}

// SIGHUP again and again, while an update is fetched and while it is on trial: the agent takes up its
// configuration anew each time, and the update becomes all the same.
func TestUpdateUnderSignals(t *testing.T) {
	t.Parallel()
	u := newUpdating(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 1}, "floor = \"file\"\nrate = \"512KiB\"")
	u.base(t)
	m := u.release(t, u.next(), atTwo, func(r *bundletest.Release) { r.NoDeltas = true })
	u.apply(t)
	fetching, trial := 0, 0
	paces := []string{"every = \"100ms\"", "every = \"110ms\""} // the first of two units
	storm := func(n *int, while func(agent.UpdateStatus) bool) {
		for {
			if s := u.stands(t); s.State != "" && !while(s) || *n == 20 {
				return
			}
			*n++
			u.edit(t, paces[(*n+1)%2], paces[*n%2])
			u.keeper.signal(syscall.SIGHUP)
			pause(t, 100*time.Millisecond)
		}
	}
	storm(&fetching, func(s agent.UpdateStatus) bool { return s.State == firmware.Fetching })
	u.comes(t, m, func(s agent.UpdateStatus) bool { return s.State == firmware.Trial })
	storm(&trial, func(s agent.UpdateStatus) bool { return s.State == firmware.Trial })
	t.Logf("%d signals while it was fetched, %d on trial", fetching, trial)
	if fetching < 5 || trial < 13 {
		t.Error("this was no storm")
	}
	u.committed(t, m)
	u.whole(t)
}
