package firmware

import (
	"fmt"
	"testing"

	"ferrule/firmware/slot"
)

// Every state of the journal meets every state of the environment: what comes of it never takes the
// slot that runs for one that can be written, nor a slot that is not on trial for one that is, and
// never goes on with an update that the environment does not know.
func TestReconcile(t *testing.T) {
	states := []State{Idle, Fetching, Verifying, Armed, Rebooting, Trial, Committed, RolledBack, Failed, Reporting}
	n := 0
	for _, state := range states {
		for _, running := range []slot.Slot{slot.A, slot.B, ""} {
			for _, active := range []slot.Slot{slot.A, slot.B, ""} {
				for _, trial := range []slot.Slot{slot.A, slot.B, ""} {
					for tries := range 4 {
						for _, same := range []bool{false, true} {
							for _, oneShot := range []bool{false, true} {
								if trial == active && trial != "" || trial == "" && tries > 0 || trial != "" && tries == 0 && trial != running {
									continue // no environment says so
								}
								env := slot.State{Running: running, Active: active, Trial: trial, Tries: tries}
								s := &saved{State: state, Update: &update{Target: slot.B, OneShot: oneShot, Tries: tries}}
								next, err := reconcile(s, env, same)
								checkReconciled(t, state, env, next, err)
								n++
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d combinations", n)
}

func checkReconciled(t *testing.T, state State, env slot.State, next State, err error) {
	t.Helper()
	what := fmt.Sprintf("%s with %+v becomes %s (%v)", state, env, next, err)
	over := state == Idle || state == Reporting
	if next == Trial && !env.OnTrial() || next.onTheWay() && env.Running == slot.B {
		t.Error(what)
	}
	if next == Committed && env.Active != slot.B || next == Committed && over {
		t.Error(what)
	}
	if env.OnTrial() && env.Running == slot.B && next != Trial && next != RolledBack {
		t.Errorf("a trial that nobody judges: %s", what)
	}
	if next == RolledBack && env.Active == slot.B && env.Running == slot.B {
		t.Errorf("what is committed is rolled back: %s", what)
	}
	if over && next != state && next != Trial {
		t.Error(what)
	}
	if (next == RolledBack || next == Failed) && next != state && err == nil && state != Failed {
		t.Errorf("without a reason: %s", what)
	}
}

func TestStepsThatLeadNowhere(t *testing.T) {
	for _, s := range []State{Idle, Fetching, Verifying, Armed, Rebooting, Trial, Committed, RolledBack, Failed, Reporting} {
		if next := s.otherwise(); s.onTheWay() && next != Failed || s == Trial && next != RolledBack || s == Committed && next != Committed {
			t.Errorf("%s fails into %s", s, next)
		}
	}
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain": "plain", `a "quoted" \ text`: `a "quoted" \ text`, "a\nb": `a\nb`, "\x1b[2J": `\x1b[2J`, "ü €": "ü €", "\xff": `\xff`, "\u202e": `\u202e`,
	} {
		if got := clean(text); got != want || clean(got) != got {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	for n := range 2000 {
		long := ""
		for len(long) < n {
			long += "ü"
		}
		if got := clean(long); len(got) > textMax+4 {
			t.Fatalf("%d bytes became %d", n, len(got))
		}
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		a, b  string
		order int
		known bool
	}{
		{"1.0.0", "1.0.0", 0, true}, {"v1.10.0", "1.9.9", 1, true}, {"1.0", "1.0.0", 0, true}, {"1.0.1-rc1+x", "1.0.1", 0, true},
		{"2", "10", -1, true}, {"(devel)", "1.0", 0, false}, {"", "1.0", 0, false}, {"1..2", "1", 0, false}, {"99999999999999999999", "1", 0, false},
	} {
		if order, known := compare(c.a, c.b); order != c.order || known != c.known {
			t.Errorf("%q and %q: %d, %v", c.a, c.b, order, known)
		}
	}
}
