package e2e

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// configured is a site that takes its configuration from afar.
type configured struct {
	*site
	broker   *watchedBroker
	switches []time.Time // when parts were started anew, on either side of which a poll may be lost
}

func newConfigured(t *testing.T, o siteOptions) *configured {
	t.Helper()
	c := &configured{site: newSite(t, o)}
	folder := filepath.Join(c.dir, "etc")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(folder, "ferrule.toml")
	if err := os.Rename(c.config, moved); err != nil {
		t.Fatal(err)
	}
	c.config = moved
	c.broker = c.watched(t, filepath.Join(c.ca, "broker"), readFile(t, filepath.Join(c.ca, "root.crt")))
	return c
}

// send publishes the command config.
func (c *configured) send(t *testing.T, id string, args map[string]any) {
	t.Helper()
	payload, err := json.Marshal(map[string]any{"id": id, "expires": soon(), "args": args})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.broker.Publish("ferrule/"+siteDevice+"/command/config", payload, false); err != nil {
		t.Fatal(err)
	}
}

// becoming is what the status message says of the last configuration.
type becoming struct {
	ID, Outcome, Reason, Detail string
	At                          time.Time
	SHA256                      string
}

// news is what the last status message of the device says of the configuration id, if it is decided.
func (c *configured) news(t *testing.T, id string) (becoming, bool) {
	t.Helper()
	ledger, err := agenttest.ReadLedger(c.ledger())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Backward(ledger) {
		if m.Topic != "ferrule/"+siteDevice+"/status" {
			continue
		}
		var status struct {
			Online bool
			Config becoming
		}
		if err := json.Unmarshal(m.Payload, &status); err != nil {
			t.Fatalf("%s: %v", m.Payload, err)
		}
		if status.Online {
			return status.Config, status.Config.ID == id && status.Config.Outcome != "trying"
		}
	}
	return becoming{}, false
}

func (c *configured) wait(t *testing.T, id, outcome string) (o becoming) {
	t.Helper()
	waitFor(t, "what became of "+id, func() (is bool) { o, is = c.news(t, id); return is })
	if o.Outcome != outcome {
		t.Fatalf("%s: %+v; want %s", id, o, outcome)
	}
	return o
}

// A good configuration is kept. One whose broker is dead returns by itself when its time is over, and
// the cloud learns why. Under load, nothing is lost over both.
func TestConfigurationFromAfar(t *testing.T) {
	t.Parallel()
	c := newConfigured(t, siteOptions{sync: "1s", every: 50 * time.Millisecond, points: 4})
	c.run(t)
	c.waitUp(t)
	old := readFile(t, c.config)

	good := strings.Replace(old, `every = "50ms"`, `every = "40ms"`, 1)
	c.switches = append(c.switches, time.Now())
	c.send(t, "c1", map[string]any{"toml": good, "confirm_within": "45s"})
	if reply := c.reply(t, "c1"); !strings.Contains(reply, `"trying":true`) || !strings.Contains(reply, `"deadline":"`) || strings.Contains(reply, c.broker.Address()) {
		t.Errorf("reply: %s", reply)
	}
	kept := c.wait(t, "c1", "kept")
	c.switches = append(c.switches, kept.At)
	if kept.Reason != "answered" || readFile(t, c.config) != good || readFile(t, c.config+".previous") != old {
		t.Errorf("%+v", kept)
	}
	if sum := field(c.status(t), "config", "sha256"); sum != kept.SHA256 {
		t.Errorf("status says %v runs, the cloud was told of %s", sum, kept.SHA256)
	}

	dead := strings.Replace(good, c.broker.Address(), "127.0.0.1:"+freePort(t), 1)
	began := time.Now()
	c.switches = append(c.switches, began)
	c.send(t, "c2", map[string]any{"toml": dead, "confirm_within": "30s"})
	c.reply(t, "c2")
	waitFor(t, "the trial", func() bool { return field(c.status(t), "config", "trial", "id") == "c2" })
	people := mustRun(t, "", with(c.ferrule, "status", "--config", c.config)...)
	if !strings.Contains(people, "on trial") {
		t.Errorf("status for people does not say that a configuration is on trial:\n%s", people)
	}
	returned := c.wait(t, "c2", "returned")
	c.switches = append(c.switches, returned.At)
	if returned.Reason != "no-session" || !strings.Contains(returned.Detail, "tcp") || readFile(t, c.config) != good {
		t.Errorf("%+v", returned)
	}
	if took := returned.At.Sub(began); took < 29*time.Second || took > 45*time.Second {
		t.Errorf("it returned after %s", took)
	}
	c.waitUp(t)
	c.atTheSite(t, good, old)
	c.stop(t)
	c.whole(t, nil)
}

// atTheSite does the same by the command line.
func (c *configured) atTheSite(t *testing.T, current, next string) {
	t.Helper()
	config := func(words ...string) []string {
		return with(c.ferrule, append([]string{"config", "--config", c.config}, words...)...)
	}
	if out := mustRun(t, "", config("status")...); !strings.Contains(out, "no-session") {
		t.Errorf("config status: %s", out)
	}
	bad := c.file(t, "bad.toml", current+"\nnonsense = 1\n")
	if _, stderr, code := run(t, "", config("apply", bad)...); code != 3 || !strings.Contains(stderr, "nonsense") {
		t.Errorf("a bad one: exit code %d, %s", code, stderr)
	}
	file := c.file(t, "next.toml", next)
	if out := mustRun(t, "", config("apply", file, "--dry-run")...); !strings.Contains(out, "valid") {
		t.Errorf("dry run: %s", out)
	}
	c.switches = append(c.switches, time.Now())
	if out := mustRun(t, "", config("apply", file, "--within", "45s")...); !strings.Contains(out, "trying") {
		t.Errorf("apply: %s", out)
	}
	c.switches = append(c.switches, c.wait(t, "site", "kept").At)
	if readFile(t, c.config) != next {
		t.Error("the file is not the one that was applied")
	}
	waitFor(t, "the outcome", func() bool {
		out, _, _ := run(t, "", config("status")...)
		return strings.Contains(out, "kept on")
	})
	c.waitUp(t)
}

// whole judges the ledgers: what a part that was started anew was asking for does not count.
func (c *configured) whole(t *testing.T, kills []time.Time) {
	t.Helper()
	all := slices.Clone(kills)
	for _, at := range c.switches {
		all = append(all, at.Add(promised.window/2))
	}
	slices.SortFunc(all, time.Time.Compare)
	if v := c.judge(t, all, promised); v.gaps > 0 {
		t.Errorf("%d numbers are missing", v.gaps)
	}
}

// promised: see promise; around a switch the window is for the lines to stop and start in.
var promised = promise{window: time.Second}

// The agent is killed with -9 at every stage of a trial: exactly the old or the new configuration is
// there afterwards, the cloud is told which and why, and it fits.
func TestConfigurationTrialKilled(t *testing.T) {
	t.Parallel()
	c := newConfigured(t, siteOptions{sync: "1s", every: 50 * time.Millisecond, points: 4})
	texts := [2]string{readFile(t, c.config)}
	texts[1] = strings.Replace(texts[0], `every = "50ms"`, `every = "60ms"`, 1)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	stages := c.stages(t, random)
	outcomes := map[string]int{}
	var kills []time.Time
	current := 0
	for n := range number(t, "E2E_CONFIG_KILLS", 2*len(stages)) {
		stage := stages[n%len(stages)]
		c.run(t)
		c.waitUp(t)
		id := "k" + string(rune('a'+n%26)) + string(rune('a'+n/26))
		said := c.killAt(t, stage, id, texts[current], texts[1-current], &kills)
		if said.Outcome == "kept" {
			current = 1 - current
		}
		outcomes[stage.name+": "+said.Outcome]++
		c.stop(t)
		kills = append(kills, c.stopped)
	}
	t.Logf("outcomes: %v", outcomes)
	c.run(t)
	c.waitDrained(t)
	c.stop(t)
	c.whole(t, kills)
}

// stage is a moment of a trial, and how to wait for it.
type stage struct {
	name string
	wait func(id string)
}

func (c *configured) stages(t *testing.T, random *rand.Rand) []stage {
	there := func(name string) bool { _, err := os.Stat(name); return err == nil }
	previous := c.config + ".previous"
	return []stage{
		{"at once", func(string) { pause(t, time.Duration(random.IntN(20))*time.Millisecond) }},
		{"as the folder is tried", func(string) { moment(t, func() bool { return there(c.config+".tmp") || there(previous) }) }},
		{"before the switch", func(id string) {
			moment(t, func() bool {
				record, err := os.ReadFile(filepath.Join(c.state, "trial.json"))
				return err == nil && strings.Contains(string(record), `{"trial":{"id":"`+id)
			})
		}},
		{"during", func(string) { pause(t, time.Duration(500+random.IntN(1500))*time.Millisecond) }},
		{"before the file is replaced", func(string) { moment(t, func() bool { return there(previous+".tmp") || there(previous) }) }},
		{"as it is replaced", func(id string) {
			moment(t, func() bool { return there(previous) })
			moment(t, func() bool { return there(c.config+".tmp") || c.decided(t, id) })
		}},
		{"after it was replaced", func(string) { c.changes(t, c.config) }},
		{"about then", func(string) { pause(t, 2200*time.Millisecond+time.Duration(random.IntN(700))*time.Millisecond) }},
	}
}

// killAt kills the agent at a stage of a trial of next, and checks what is there when it has started
// again.
func (c *configured) killAt(t *testing.T, at stage, id, old, next string, kills *[]time.Time) becoming {
	t.Helper()
	_, _ = os.Remove(c.config+".previous"), os.Remove(c.config+".tmp") // what appears is of this one
	c.switches = append(c.switches, time.Now())
	c.send(t, id, map[string]any{"toml": next, "confirm_within": "45s"})
	at.wait(id)
	*kills = append(*kills, time.Now())
	c.agent.kill()
	c.run(t)
	said := c.afterwards(t, id)
	c.switches = append(c.switches, said.At)
	switch text := readFile(t, c.config); {
	case text == next && said.Outcome == "kept":
		waitFor(t, "the one that was kept to run", func() bool { return field(c.status(t), "config", "sha256") == said.SHA256 })
	case text == old && (said.Outcome == "returned" && said.Reason == "crash" || said.Outcome == ""):
	default:
		t.Errorf("killed %s: the file is new: %v, old: %v; the cloud was told %+v", at.name, text == next, text == old, said)
	}
	return said
}

// afterwards is what the cloud is told of id: its outcome, or none where the agent was killed before
// anything began, which the reply says.
func (c *configured) afterwards(t *testing.T, id string) (o becoming) {
	t.Helper()
	waitFor(t, "what became of "+id, func() (is bool) {
		if o, is = c.news(t, id); is {
			return true
		}
		ledger, err := agenttest.ReadLedger(c.ledger())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ledger {
			if m.Topic == "ferrule/"+siteDevice+"/reply/"+id && strings.Contains(string(m.Payload), `"interrupted"`) {
				// The record may be there all the same: then the status message has it, and comes first.
				if o, is = c.news(t, id); !is {
					o = becoming{At: time.Now()}
				}
				return true
			}
		}
		return false
	})
	return o
}

// moment waits without pause: the moment counts.
func moment(t *testing.T, come func() bool) {
	t.Helper()
	for limit := time.Now().Add(60 * time.Second); !come(); {
		if time.Now().After(limit) {
			t.Fatal("the moment did not come")
		}
	}
}

// decided says whether the record has the outcome of id.
func (c *configured) decided(t *testing.T, id string) bool {
	t.Helper()
	return strings.Contains(readFile(t, filepath.Join(c.state, "trial.json")), `"last":{"id":"`+id)
}

// changes waits until the file is another one.
func (c *configured) changes(t *testing.T, name string) {
	t.Helper()
	before, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	moment(t, func() bool {
		now, err := os.Stat(name)
		return err == nil && !os.SameFile(before, now)
	})
}

// A folder that cannot be written is found out before the trial, with the repair; nothing else happens.
func TestConfigurationReadOnlyFolder(t *testing.T) {
	t.Parallel()
	c := newConfigured(t, quietLine)
	c.agent = start(t, "ferrule run", append([]string{need(t, "unshare"), "--map-root-user", "--mount", "sh", "-ec",
		`mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"; shift; exec "$@"`, "sh", filepath.Dir(c.config)},
		with(c.ferrule, "run", "--config", c.config)...)...)
	c.waitUp(t)
	before := len(c.broker.Connections())
	c.send(t, "c1", map[string]any{"toml": readFile(t, c.config) + "\n# changed\n"})
	if reply := c.reply(t, "c1"); !strings.Contains(reply, `"code":"not-stored"`) || !strings.Contains(reply, "read-only") || !strings.Contains(reply, "ReadWritePaths") {
		t.Errorf("reply: %s", reply)
	}
	if trial := field(c.status(t), "config", "trial"); trial != nil || len(c.broker.Connections()) != before {
		t.Errorf("a trial began: %v", trial)
	}
	if _, err := os.Stat(filepath.Join(c.state, "trial.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a record: %v", err)
	}
	c.stop(t)
}
