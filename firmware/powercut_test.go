package firmware_test

import (
	"flag"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/disk/disktest"
)

// story is what happens to a device, and how it must end wherever the power is cut.
type story struct {
	name    string
	health  func(version string) firmware.Health
	hangs   bool
	version string // that runs in the end
	outcome string
}

var stories = []story{
	{name: "commit", version: "1.1.0", outcome: "1.1.0 committed"},
	{name: "rollback", version: "1.0.0", outcome: "1.1.0 rolled-back", health: func(version string) firmware.Health {
		h := well()
		h.Lines[0].OK = version == "1.0.0"
		return h
	}},
	{name: "dead", version: "1.0.0", outcome: "1.1.0 rolled-back", hangs: true},
}

// floorMark is what the TPM held when the power was cut.
type floorMark uint64

// tell makes the story's history on a disk that knows only what was before.
func (s story) tell(t *testing.T, harness slottest.Harness) *world {
	w := newWorld(t, harness)
	w.publish("1.1.0", image(2, 5200), func(r *bundletest.Release) { r.SecurityVersion = 2 })
	if s.health != nil {
		w.health = s.health
	}
	w.hangs["1.1.0"] = s.hangs
	w.marksFloor()
	m := w.live(3*time.Hour, settled(w))
	s.check(w, m, nil)
	return w
}

func (w *world) marksFloor() {
	disk := w.disk
	w.chip.raised = func(to uint64) { disk.Mark(floorMark(to)) }
}

// after is the world whose power was cut when its disk was in a state.
func (w *world) after(t testing.TB, state *disktest.Disk) (*world, []firmware.Report) {
	next := *w
	next.t, next.disk, next.chip, next.reports = t, state, &chip{}, nil
	next.tried = make(map[string]int)
	next.asks = false
	next.boots += 100
	next.born = time.Now() // or what is signed would have expired by the thousandth cut
	next.cuts++
	var before []firmware.Report
	for _, m := range state.Marks() {
		switch m := m.(type) {
		case floorMark:
			next.chip.value = max(next.chip.value, uint64(m))
		case firmware.Report:
			before = append(before, m)
		}
	}
	next.marksFloor()
	return &next, before
}

// check holds the end of a story against how it must end; before is what the cloud was told before
// the last power cut.
func (s story) check(w *world, m *machine, before []firmware.Report) {
	w.t.Helper()
	if m.version != s.version {
		w.t.Errorf("%s: %s runs, %v, reports %v after %v", s.name, m.version, w.tried, w.reports, before)
	}
	told := reportsOf(append(slices.Clone(before), w.reports...))
	if !slices.Contains(told, s.outcome) || slices.ContainsFunc(told, func(r string) bool { return r != s.outcome }) {
		w.t.Errorf("%s: the cloud was told %v", s.name, told)
	}
	if s.version == "1.1.0" && w.chip.value != 2 || s.version == "1.0.0" && w.chip.value != 0 {
		w.t.Errorf("%s: the floor is %d", s.name, w.chip.value)
	}
	// A cut between the boot loader's environment and the journal costs all tries once more.
	if most := 3 * (1 + w.cuts); w.tried["1.1.0"] > most && s.version == "1.0.0" {
		w.t.Errorf("%s: tried %d times", s.name, w.tried["1.1.0"])
	}
	if st, err := w.env(m.slot).State(); err != nil || st.Active != m.slot || st.Trial != "" {
		w.t.Errorf("%s: in the end %+v, %v", s.name, st, err)
	}
}

var exhaustive = flag.Bool("exhaustive", false, "cut the power a second time in every state, too: takes an hour")

// each is every how many states are looked at, of a first and of a second cut; 0: none.
var each = map[string][2]int{
	"uboot script": {1, 211}, "tryboot": {2, 499}, "uboot": {9, 0}, "grub": {17, 0}, "efi": {17, 0}, "directory": {9, 0},
}

// emulated: another processor's tests run ten times as long here.
const emulated = runtime.GOARCH == "arm" || runtime.GOARCH == "arm64"

// Acceptance 2 in memory: the power is cut in every state that the disk can be left in during a
// whole update, a rollback and a commit, and once more on the way back, with the slots, the boot
// loader's environment, the journal and all else on one disk.
func TestPowerCuts(t *testing.T) {
	total := 0
	for name, harness := range harnesses {
		for _, s := range stories {
			t.Run(name+"/"+s.name, func(t *testing.T) {
				strides := each[name]
				switch {
				case *exhaustive:
					strides = [2]int{1, 1}
				case emulated:
					strides = [2]int{9 * strides[0], 9 * strides[1]}
				}
				synctest.Test(t, func(t *testing.T) {
					w := s.tell(t, harness())
					first, second := w.cutEach(t, s, strides)
					t.Logf("%d states, %d of a second cut, 0 bricks", first, second)
					total += first + second
				})
			})
		}
	}
	t.Logf("%d states in all", total)
}

// cutEach goes through the states of a disk, and of those that live on from them.
func (w *world) cutEach(t *testing.T, s story, strides [2]int) (first, second int) {
	i, j := 0, 0
	for where, state := range w.disk.CrashStates() {
		if i++; i%strides[0] != 0 {
			continue
		}
		first++
		next, before := w.after(t, state)
		s.check(next, next.live(6*time.Hour, settled(next)), before)
		if t.Failed() {
			t.Fatalf("power cut %s", where)
		}
		for again, state := range state.CrashStates() {
			if j++; strides[1] == 0 || j%strides[1] != 0 {
				continue
			}
			second++
			last, before := next.after(t, state) // its marks are those of both lives
			s.check(last, last.live(6*time.Hour, settled(last)), before)
			if t.Failed() {
				t.Fatalf("power cut %s, then %s", where, again)
			}
		}
	}
	return first, second
}
