package firmware_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot/slottest"
)

// inTrial is a world that has come as far as the trial of 1.1.0, with its power off.
func inTrial(t *testing.T, harness slottest.Harness, edit func(*bundletest.Release)) *world {
	t.Helper()
	w := newWorld(t, harness)
	w.publish("1.1.0", image(2, 5200), edit)
	healthy := w.health
	w.health = func(version string) firmware.Health {
		h := healthy(version)
		h.Session = version == "1.0.0"
		return h
	}
	m := w.live(3*time.Hour, func(m *machine, s firmware.Status) bool { return s.State == firmware.Trial })
	if m.version != "1.1.0" {
		t.Fatalf("%s runs", m.version)
	}
	w.health = healthy
	return w
}

// away is how a device is whose network is out.
func away(string) firmware.Health {
	h := well()
	h.Session, h.Reported, h.Network = false, false, "dns: no such host"
	return h
}

// Acceptance 5: a week's outage of the network, with a power cut every few hours, is no reason to roll back
// a healthy image.
func TestAWeekWithoutNetworkIsNoRollback(t *testing.T) {
	for _, name := range []string{"uboot script", "tryboot"} {
		harness := harnesses[name]
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := inTrial(t, harness(), nil)
				w.health = away
				for start := time.Now(); time.Since(start) < 7*24*time.Hour; {
					s, version := w.power()
					if version != "1.1.0" {
						if name == "tryboot" && w.harness.Once { // its firmware boots a trial once: it comes again
							m := w.start(s, version)
							if !m.until(time.Hour, func(firmware.Status) bool { return false }) {
								t.Fatal("no second try")
							}
							m.stop()
							continue
						}
						t.Fatalf("after %v: %s runs", time.Since(start), version)
					}
					m := w.start(s, version)
					begun := time.Now()
					restarted := m.until(10*time.Hour, func(st firmware.Status) bool {
						if st.State != firmware.Trial {
							t.Fatalf("after %v: %+v", time.Since(start), st)
						}
						return time.Since(begun) > 3*time.Hour
					})
					m.stop() // the power is cut: nothing is said to anybody
					if restarted {
						t.Fatalf("after %v: given up, %+v", time.Since(start), m.engine.Status())
					}
				}
				w.health = func(string) firmware.Health { return well() }
				m := w.live(3*time.Hour, settled(w))
				if m.version != "1.1.0" || !slices.Equal(reportsOf(w.reports), []string{"1.1.0 committed"}) {
					t.Errorf("%s, %v", m.version, w.reports)
				}
			})
		})
	}
}

func TestAnOutageBeyondItsGraceIsARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inTrial(t, slottest.UBootScript(), nil)
		w.health = away
		start := time.Now()
		m := w.live(15*24*time.Hour, func(m *machine, s firmware.Status) bool {
			return m.version == "1.0.0" && s.State == firmware.Reporting || quiet(s)
		})
		if m.version != "1.0.0" || time.Since(start) < 14*24*time.Hour || len(w.reports) != 1 || !strings.Contains(w.reports[0].Reason, "the network was out for 336h") {
			t.Errorf("after %v: %s, %+v", time.Since(start), m.version, w.reports)
		}
	})
}

// What is wrong with the image counts in an outage, too.
func TestALineThatFailsInAnOutageIsARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inTrial(t, slottest.UBootScript(), nil)
		w.health = func(version string) firmware.Health {
			h := away(version)
			h.Lines[0].OK, h.Lines[0].Why = version == "1.0.0", "timeout\x1b[2J"
			return h
		}
		start := time.Now()
		m := w.live(3*time.Hour, settled(w))
		if m.version != "1.0.0" || time.Since(start) > 2*time.Hour || !strings.Contains(w.reports[0].Reason, `unit rs485-1/meter-a does not answer: timeout\x1b[2J`) {
			t.Errorf("after %v: %s, %+v", time.Since(start), m.version, w.reports)
		}
	})
}

func TestAUnitThatWasSilentBeforeIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.health = func(string) firmware.Health {
			h := well()
			h.Lines = append(h.Lines, firmware.LineHealth{Name: "rs485-1/broken", Why: "timeout"})
			return h
		}
		if m := w.live(3*time.Hour, settled(w)); m.version != "1.1.0" {
			t.Errorf("%s, %+v", m.version, w.reports)
		}
	})
}

// An agent that dies over and over in a system that does not is given up by its own journal.
func TestAnAgentThatKeepsDyingIsARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inTrial(t, slottest.UBootScript(), nil)
		w.health = func(version string) firmware.Health {
			h := well()
			h.Reported = version == "1.0.0"
			return h
		}
		s, version := w.power()
		for starts := 1; ; starts++ {
			m := w.start(s, version)
			begun := time.Now()
			restarted := m.until(time.Hour, func(firmware.Status) bool { return time.Since(begun) > 8*time.Second })
			m.stop()
			if restarted {
				t.Logf("given up after %d starts", starts)
				break
			}
			if starts > 20 {
				t.Fatal("never given up")
			}
		}
		if m := w.live(3*time.Hour, settled(w)); m.version != "1.0.0" || !strings.Contains(w.reports[0].Reason, "the agent started") {
			t.Errorf("%s, %+v", m.version, w.reports)
		}
	})
}

func TestTheHealthCommandDecides(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, slottest.UBootScript())
			w.publish("1.1.0", image(2, 5200), nil)
			w.config.HealthCommand = []string{"/usr/bin/check", "--fast"}
			w.command = func(_ context.Context, argv []string) error {
				if fails || !slices.Equal(argv, w.config.HealthCommand) {
					return errors.New("exit status 1: pump 3 is dry")
				}
				return nil
			}
			m := w.live(3*time.Hour, settled(w))
			if fails != (m.version == "1.0.0") || fails && !strings.Contains(w.reports[0].Reason, "pump 3 is dry") {
				t.Errorf("fails %v: %s, %+v", fails, m.version, w.reports)
			}
		})
	}
}

func TestAPolicyThatAsksForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), func(r *bundletest.Release) {
			r.Health = &manifest.Health{Within: time.Minute}
		})
		w.health = func(version string) firmware.Health {
			if version == "1.1.0" {
				return firmware.Health{}
			}
			return well()
		}
		if m := w.live(3*time.Hour, settled(w)); m.version != "1.1.0" {
			t.Errorf("%s, %+v", m.version, w.reports)
		}
	})
}

func TestCommitAndRollbackByHand(t *testing.T) {
	for _, commit := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := inTrial(t, slottest.UBootScript(), nil)
			sick := func(string) firmware.Health { return firmware.Health{} }
			w.health = sick
			m := w.start(w.power())
			if err := m.engine.Propose(t.Context(), firmware.Request{}); !errors.Is(err, firmware.ErrBusy) {
				t.Errorf("proposing in a trial: %v", err)
			}
			if commit {
				if err := m.engine.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				m.until(time.Minute, quiet)
				if err := m.engine.Rollback(t.Context(), "too late"); !errors.Is(err, firmware.ErrNoTrial) {
					t.Errorf("rolling back what is committed: %v", err)
				}
				m.stop()
			} else {
				if err := m.engine.Rollback(t.Context(), "the customer\nsays so"); err != nil {
					t.Fatal(err)
				}
				if !m.until(time.Minute, func(firmware.Status) bool { return false }) {
					t.Error("no restart")
				}
				m.stop()
			}
			w.health = func(string) firmware.Health { return well() }
			m = w.live(3*time.Hour, settled(w))
			if commit != (m.version == "1.1.0") || !commit && !strings.Contains(w.reports[0].Reason, `the customer\nsays so`) {
				t.Errorf("%s, %+v", m.version, w.reports)
			}
			m = w.start(m.slot, m.version)
			if err := m.engine.Commit(t.Context()); !errors.Is(err, firmware.ErrNoTrial) {
				t.Errorf("committing nothing: %v", err)
			}
			m.stop()
		})
	}
}

// The boot loader's environment is the authority: a trial that the journal knows nothing of is
// judged like any other.
func TestATrialThatTheJournalLost(t *testing.T) {
	for _, healthy := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := inTrial(t, slottest.UBootScript(), nil)
			for _, name := range w.disk.Names() {
				if strings.HasPrefix(name, rootDir) {
					_ = w.disk.Remove(name)
				}
			}
			w.handler = nil
			if !healthy {
				w.health = func(version string) firmware.Health {
					h := well()
					h.Session = version == "1.0.0"
					return h
				}
			}
			m := w.live(3*time.Hour, func(_ *machine, s firmware.Status) bool { return quiet(s) })
			want := map[bool]string{true: "1.1.0", false: "1.0.0"}[healthy]
			if state, err := w.env(m.slot).State(); m.version != want || err != nil || state.Active != m.slot || state.Trial != "" {
				t.Errorf("%s, %+v, %+v", m.version, w.reports, state)
			}
		})
	}
}

func TestNobodyRestartsTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.deaf = true
		m := w.start(w.power())
		m.until(3*time.Hour, func(s firmware.Status) bool { return len(w.told()) > 0 })
		s := m.engine.Status()
		m.stop()
		if w.reports[0].Outcome != firmware.OutcomeFailed || !strings.Contains(w.reports[0].Reason, "nobody restarted the device within 5m0s") || !strings.Contains(s.Advice, "ferrule-reboot.path") {
			t.Errorf("%+v, %+v", w.reports, s)
		}
		if state, err := w.env(m.slot).State(); err != nil || state.Trial != "" {
			t.Errorf("the trial is still to come: %+v, %v", state, err)
		}
		w.deaf = false
		if m := w.live(3*time.Hour, settled(w)); m.version != "1.1.0" {
			t.Errorf("the next attempt: %s, %+v", m.version, w.reports)
		}
	})
}

// A cloud that acknowledges nothing undoes no commit, and keeps no later update from the device.
func TestACloudThatIsDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.refuses = true
		waits := func(version string) func(m *machine, s firmware.Status) bool {
			return func(m *machine, s firmware.Status) bool { return m.version == version && s.State == firmware.Reporting }
		}
		m := w.live(3*time.Hour, waits("1.1.0"))
		m = w.start(m.slot, m.version)
		begun := time.Now()
		m.until(100*time.Hour, func(s firmware.Status) bool {
			if s.State != firmware.Reporting || s.Unreported != 1 {
				t.Fatalf("%+v", s)
			}
			return time.Since(begun) > 72*time.Hour
		})
		m.stop()
		w.publish("1.2.0", image(3, 5300), nil)
		w.live(5*time.Hour, waits("1.2.0"))
		w.refuses = false
		m = w.live(3*time.Hour, settled(w))
		if m.version != "1.2.0" || !slices.Equal(reportsOf(w.reports), []string{"1.1.0 committed", "1.2.0 committed"}) || w.reports[0].ID == w.reports[1].ID {
			t.Errorf("%s, %+v", m.version, w.reports)
		}
	})
}
