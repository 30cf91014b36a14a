package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent"
	"ferrule/agent/agenttest"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// nvIncrement is TPM_CC_NV_Increment (TPM 2.0 Part 2, 6.5.2).
const nvIncrement = 0x134

// What was committed with a security version cannot be undone: an older one is refused after the commit,
// after a reset of the TPM, and after the state directory was wiped and the device enrolled anew. A
// power cut between the commit and the TPM's counter is made up for by the next start. The broker is
// mosquitto, commands come by mosquitto_pub, and mosquitto_sub is the witness.
func TestUpdateFloor(t *testing.T) {
	t.Parallel()
	u, proxy := newUpdatingAtMosquitto(t, "floor = \"tpm\"")
	m := u.release(t, u.next(), security(2))
	u.run(t)
	u.apply(t)
	u.committed(t, m)

	stop := make(chan struct{})
	reached := make(chan struct{}, 1)
	proxy.Inject(func(code uint32) tpmtest.Fault {
		if code != nvIncrement {
			return tpmtest.Fault{}
		}
		select {
		case reached <- struct{}{}:
		default:
		}
		<-stop
		return tpmtest.Fault{Drop: true}
	})
	m = u.release(t, u.next(), security(3))
	u.apply(t)
	waitFor(t, "the trial", func() bool { return u.stands(t).State == firmware.Trial })
	u.waitUp(t)
	go func() { // ends with the agent
		_, _ = u.local().Command(context.Background(), "update", agent.UpdateArgs{Action: "commit"})
	}()
	select {
	case <-reached:
	case <-time.After(time.Minute):
		t.Fatal("the counter was not raised")
	}
	if e := u.environment(t); e.Active != "b" || e.Trial != "" {
		t.Errorf("the counter is raised before the commit: %+v", e)
	}
	u.keeper.hold()
	u.keeper.kill()
	close(stop)
	proxy.Inject(nil)
	if got := u.counter(t); got != 2 {
		t.Errorf("the TPM counts %d after the cut", got)
	}
	u.keeper.let()
	u.committed(t, m)
	waitFor(t, "the floor", func() bool { return u.stands(t).Floor.Value == 3 })
	u.keeper.end(t)
	if got := u.counter(t); got != 3 {
		t.Errorf("the TPM counts %d after the next start", got)
	}

	old := u.release(t, u.next(), func(r *bundletest.Release) { r.SecurityVersion, r.LowerSecurity = 2, true })
	refused := func(when string, versions ...string) {
		t.Helper()
		u.run(t)
		before := u.running(t)
		for _, version := range versions {
			const why = "has the security version 2, and the floor of this device is 3"
			if a := u.command(t, agent.UpdateArgs{Version: version, Now: true}); a.Code != "update-refused" || !strings.Contains(a.Error, why) || !strings.Contains(u.said(t), why) {
				t.Errorf("%s: %+v; %s", when, a, u.said(t))
			}
		}
		if s := u.stands(t); s.Floor.Value != 3 || s.Floor.Weak != "" || u.running(t) != before {
			t.Errorf("%s: %+v", when, s)
		}
		u.keeper.end(t)
	}
	refused("after the commit", "", old.Version())
	if err := u.tpm.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("after a reset of the TPM", "", old.Version())
	if err := os.RemoveAll(u.state); err != nil {
		t.Fatal(err)
	}
	mustRun(t, u.token(t, siteDevice), with(u.ferrule, "enroll", "--config", u.config, "--token", "-")...)
	// Unasked it would install the newest that may be, once more: it does not know any more what runs.
	refused("after the state directory was wiped", old.Version())

	u.run(t)
	m = u.release(t, u.next(), security(3))
	u.apply(t)
	u.tried(t, m)
	u.keeper.end(t)
	u.unbroken(t)
}

func security(version uint64) func(*bundletest.Release) {
	return func(r *bundletest.Release) { r.SecurityVersion = version }
}

// counter asks the TPM while no agent does.
func (u *updating) counter(t *testing.T) uint64 {
	t.Helper()
	device, err := tpm.Open(t.Context(), tpm.Options{Path: u.tpm.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	value, err := device.Counter(0).Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// newUpdatingAtMosquitto has nothing of ours around the agent but its TPM's proxy.
func newUpdatingAtMosquitto(t *testing.T, table string) (*updating, *tpmtest.Proxy) {
	t.Helper()
	w := newWorld(t)
	proxy, err := tpmtest.StartProxy(w.tpm.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	u := &updating{site: &site{world: w, ferrule: build(t, "ferrule", native), state: filepath.Join(w.dir, "state")}}
	u.config = w.configure(t, siteDevice, w.startUnit(t))
	u.edit(t, w.tpm.Address(), proxy.Address())
	u.program = filepath.Join(w.dir, "program")
	mustRun(t, u.token(t, siteDevice), with(u.ferrule, "enroll", "--config", u.config, "--token", "-")...)
	witness := w.subscriber(t)
	u.heard = func(*testing.T) (all []agenttest.Message) {
		for line := range strings.Lines(witness.output()) {
			if topic, payload, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok && strings.HasSuffix(line, "\n") {
				all = append(all, agenttest.Message{Topic: topic, Payload: []byte(payload)})
			}
		}
		return all
	}
	u.tell = func(t *testing.T, topic, payload string) { w.publish(t, topic, payload) }
	u.prepare(t, table)
	return u, proxy
}

// unbroken says that of each start's readings none is missing before the last that came.
func (u *updating) unbroken(t *testing.T) {
	t.Helper()
	numbers := make(map[uint64][]uint64)
	for _, m := range u.heard(t) {
		if !strings.Contains(m.Topic, "/readings/") {
			continue
		}
		payload := m.Payload
		if payload[0] != '[' {
			payload = slices.Concat([]byte{'['}, payload, []byte{']'})
		}
		var entries []arrival
		if err := json.Unmarshal(payload, &entries); err != nil {
			t.Fatalf("%s: %v", m.Payload, err)
		}
		for _, e := range entries {
			numbers[e.Boot] = append(numbers[e.Boot], e.Seq)
		}
	}
	readings := 0
	for boot, all := range numbers {
		slices.Sort(all)
		all = slices.Compact(all)
		readings += len(all)
		if all[0] != 1 || all[len(all)-1] != uint64(len(all)) {
			t.Errorf("boot %d: %d readings, numbered from %d to %d", boot, len(all), all[0], all[len(all)-1])
		}
	}
	t.Logf("%d readings of %d starts reached the witness", readings, len(numbers))
	if readings == 0 {
		t.Error("no reading came")
	}
}
