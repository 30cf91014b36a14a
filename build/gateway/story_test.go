package gateway

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// A program that fails at once, in the agent's place.
const dies = "package main\n\nimport \"os\"\n\nfunc main() { os.Exit(1) }\n"

// The releases of the story.
var (
	flashed     = kind{version: "1.0.0"}
	goodRelease = kind{version: "1.1.0"}
	panics      = kind{version: "1.2.0", broken: "panic"}
	dead        = kind{version: "1.3.0", agent: dies}
	harmless    = kind{version: "1.4.0"}
)

// TestStory is a gateway's life: flashed, enrolled with its TPM, updated by a delta, saved from three
// bad updates, and not to be talked into an old one.
func TestStory(t *testing.T) {
	t.Parallel()
	w, m := newWorld(t), newMachine(t)
	r := newReleases(t, w)
	r.publish(t, flashed)
	w.provision(t, m, r.table(3), map[string]string{"root.json": r.root})
	m.on(t)
	t.Logf("agent started after %s", m.seconds(m.next(t, "slot a, agent started")))
	t.Logf("first reading acknowledged after %s, enrollment included", m.seconds(w.reading(t, 0)))

	// A security version of 2 is committed with it.
	r.publish(t, goodRelease, "--security-version", "2", "--allow", "security-jump", "--within", "60s")
	r.hold(nil)
	began := time.Now()
	w.apply(t)
	m.next(t, "slot b, version 1.1.0")
	w.outcome(t, "committed", "1.1.0")
	t.Logf("updated to 1.1.0 in %.1f s by %d bytes", time.Since(began).Seconds(), r.served)
	w.runs(t, "1.1.0", "b")

	for _, bad := range []struct {
		kind
		spoil func(on bool)
	}{
		{panics, nil}, {dead, nil},
		{harmless, func(on bool) { m.silence(on) }},
	} {
		r.publish(t, bad.kind, "--within", "10s")
		w.apply(t)
		if bad.spoil != nil {
			m.next(t, "slot a, version "+bad.version)
			bad.spoil(true)
		}
		reason := w.outcome(t, "rolled-back", bad.version)
		if bad.spoil != nil {
			bad.spoil(false)
		}
		t.Logf("%s was rolled back: %s", bad.version, reason)
		w.runs(t, "1.1.0", "b")
	}

	r.publish(t, kind{version: "1.0.1"}, "--security-version", "1", "--allow", "lower-security")
	if reply := w.command(t, "update", `{"version":"1.0.1"}`); !strings.Contains(reply, "update-refused") {
		t.Errorf("a release below the floor was answered %s", reply)
	}
	m.cut()
	m.forget(t)
	m.on(t)
	w.reading(t, w.heard())
	if reply := w.command(t, "update", `{"version":"1.0.1"}`); !strings.Contains(reply, "update-refused") {
		t.Errorf("with the state directory wiped, a release below the floor was answered %s", reply)
	}
	w.judge(t, m)
}

// apply asks the gateway for the newest release.
func (w *world) apply(t *testing.T) {
	t.Helper()
	if reply := w.command(t, "update", `{"now":true}`); !strings.Contains(reply, `"ok":true`) {
		t.Fatalf("the update was refused: %s", reply)
	}
}

// news is the part of the status message about updates.
type news struct {
	Update struct {
		State, Version, Slot, Reason string
		Report                       struct{ Outcome, Version, Reason string }
	}
}

// status waits for a status message that ok takes.
func (w *world) status(t *testing.T, from int, ok func(news) bool) news {
	t.Helper()
	for {
		l, n := w.witness.wait(t, from, "ferrule/"+device+"/status ")
		_, payload, _ := strings.Cut(l.text, " ")
		var said news
		if json.Unmarshal([]byte(payload), &said) == nil && ok(said) {
			return said
		}
		from = n + 1
	}
}

// outcome waits until the cloud is told what came of a version, and returns the reason.
func (w *world) outcome(t *testing.T, outcome, version string) string {
	t.Helper()
	said := w.status(t, 0, func(n news) bool { return n.Update.Report.Version == version })
	if said.Update.Report.Outcome != outcome {
		t.Fatalf("%s was %s: %s; want %s", version, said.Update.Report.Outcome, said.Update.Report.Reason, outcome)
	}
	return said.Update.Report.Reason
}

// runs asks the gateway what it is.
func (w *world) runs(t *testing.T, version, slot string) {
	t.Helper()
	w.reading(t, w.heard())
	reply := w.command(t, "update", `{"action":"status"}`)
	if !strings.Contains(reply, fmt.Sprintf(`"version":%q`, version)) || !strings.Contains(reply, fmt.Sprintf(`"slot":%q`, slot)) {
		t.Errorf("the gateway does not run %s in slot %s: %s", version, slot, reply)
	}
}

// silence has the sensor answer nothing more, or again.
func (m *machine) silence(on bool) {
	if !on {
		m.unit.Script(nil)
		return
	}
	m.unit.Script(func(int, modbus.Request) hwtest.Fault { return hwtest.Fault{Drop: true} })
}
