package dial

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk/disktest"
)

const stateFile = "/state/ways.json"

// brokersOf parses brokers.
func brokersOf(t testing.TB, all ...string) []Broker {
	t.Helper()
	var brokers []Broker
	for _, text := range all {
		brokers = append(brokers, must[Broker](t)(ParseBroker(text)))
	}
	return brokers
}

// machine is a device that may be started again, with a clock of its own.
type machine struct {
	t    testing.TB
	disk *disktest.Disk
	now  time.Time
	log  testLog
}

func newMachine(t testing.TB) *machine {
	m := &machine{t: t, disk: disktest.New(), now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}
	if err := m.disk.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) start() *memory {
	return remember(State{FS: m.disk, Path: stateFile}, func() time.Time { return m.now }, m.log.logger())
}

// put makes the state file hold text.
func put(t testing.TB, d *disktest.Disk, text string) {
	t.Helper()
	_ = d.MkdirAll("/state", 0o700)
	if err := atomicfile.Write(d, stateFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWhatWorkedIsTriedFirst(t *testing.T) {
	m := newMachine(t)
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test:443?alpn=mqtt", "wss://c.test")
	first := m.start()
	if got := first.order(b); !slices.Equal(got, b) || first.family(b[0]) != "" {
		t.Error("something is known before anything worked:", got)
	}
	first.worked(b[1], Path{Family: "ipv4"})
	for name, mem := range map[string]*memory{"now": first, "after a restart": m.start()} {
		if got := mem.order(b); !slices.Equal(got, []Broker{b[1], b[0], b[2]}) || mem.family(b[1]) != "ipv4" || mem.family(b[0]) != "" {
			t.Errorf("%s: %v", name, got)
		}
	}
	again := m.start()
	again.worked(b[2], Path{Family: "ipv6"})
	if got := m.start().order(b); !slices.Equal(got, []Broker{b[2], b[0], b[1]}) {
		t.Error(got)
	}
	if mem := m.start(); mem.family(b[1]) != "ipv4" || mem.family(b[2]) != "ipv6" {
		t.Error("a family was forgotten")
	}
	if got := m.start().order(b[:1]); !slices.Equal(got, b[:1]) {
		t.Error("a broker that is not configured any more:", got)
	}
	if &b[0] == &first.order(b)[0] {
		t.Error("the caller's own list was given back")
	}
}

func TestNothingIsWrittenThatIsNotNew(t *testing.T) {
	m := newMachine(t)
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test")
	mem := m.start()
	for range 100 {
		mem.worked(b[0], Path{Family: "ipv4"})
	}
	written := m.disk.Count(disktest.Rename)
	mem = m.start()
	for range 100 {
		mem.worked(b[0], Path{Family: "ipv4"})
	}
	if again := m.disk.Count(disktest.Rename); written != 1 || again != 1 {
		t.Errorf("written %d times, and %d more", written, again-written)
	}
	mem.worked(b[1], Path{Family: "ipv4"})
	if again := m.disk.Count(disktest.Rename); again != 2 {
		t.Errorf("written %d times", again)
	}
	none := remember(State{}, time.Now, m.log.logger())
	none.worked(b[0], Path{Family: "ipv6"})
	if none.family(b[0]) != "ipv6" {
		t.Error("without a file nothing is known even now")
	}
}

// A disk that cannot be written is complained of once, and costs nothing else.
func TestMemoryOfAFullDisk(t *testing.T) {
	m := newMachine(t)
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test")
	m.disk.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Write {
			return errors.New("no space left")
		}
		return nil
	})
	mem := m.start()
	for n := range 10 {
		mem.worked(b[n%2], Path{Family: "ipv4"})
	}
	if n := strings.Count(m.log.String(), "no space left"); n != 1 {
		t.Errorf("said %d times", n)
	}
	m.disk.Fail(nil)
	mem.worked(b[1], Path{Family: "ipv4"})
	if m.start().order(b)[0] != b[1] {
		t.Error("not written when it could be again")
	}
}

// Whatever state a power cut leaves: what was there before, or what came after.
func TestMemorySurvivesPowerCuts(t *testing.T) {
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test")
	states := disktest.Replay(t, func(d *disktest.Disk) {
		m := &machine{t: t, disk: d, now: time.Unix(1e9, 0)}
		_ = d.MkdirAll("/state", 0o700)
		mem := m.start()
		for n := range 3 {
			mem.worked(b[n%2], Path{Family: "ipv4"})
			d.Mark(n)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		m := &machine{t: t, disk: state, now: time.Unix(1e9, 0)}
		_ = state.MkdirAll("/state", 0o700)
		mem := m.start()
		if strings.Contains(m.log.String(), "WARN") {
			t.Errorf("spoilt: %s", m.log.String())
		}
		marks := state.Marks()
		first := mem.order(b)[0]
		if n := len(marks); n > 0 && first != b[(n-1)%2] && first != b[n%2] {
			t.Errorf("after %d: %v", n, first)
		}
		mem.worked(b[1], Path{Family: "ipv6"})
		if again := m.start(); again.order(b)[0] != b[1] || again.family(b[1]) != "ipv6" {
			t.Error("nothing is kept from here on")
		}
	})
	t.Log(states, "states")
}

// The file is a help, and nobody's word.
func TestHostileMemory(t *testing.T) {
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test")
	const good = `{"version":1,"ways":[{"broker":"mqtts://b.test","family":"ipv4"}]}`
	many := strings.Repeat(`{"broker":"mqtts://x.test"},`, 99)
	for name, text := range map[string]string{
		"empty": "", "zeros": strings.Repeat("\x00", 512), "half": good[:40], "twice": good + good, "words behind": good + "x",
		"no JSON": "mqtts://b.test", "null": "null", "list": "[]", "other version": strings.Replace(good, "1", "2", 1),
		"unknown key": strings.Replace(good, `"family"`, `"password"`, 1), "unknown family": strings.Replace(good, "ipv4", "ipx", 1),
		"no broker": strings.Replace(good, "mqtts://b.test", "x", 1), "bad time": strings.Replace(good, `"ipv4"`, `"ipv4","classic":"soon"`, 1),
		"too many":       `{"version":1,"ways":[` + strings.TrimSuffix(many, ",") + `]}`,
		"twice the same": `{"version":1,"ways":[{"broker":"mqtts://b.test"},{"broker":"mqtts://b.test"}]}`,
		"huge":           good + strings.Repeat(" ", maxState),
	} {
		m := newMachine(t)
		put(t, m.disk, text)
		mem := m.start()
		if got := mem.order(b); !slices.Equal(got, b) {
			t.Errorf("%s: %v", name, got)
		}
		if !strings.Contains(m.log.String(), "WARN") {
			t.Errorf("%s: nothing was said", name)
		}
		mem.worked(b[1], Path{Family: "ipv6"})
		if m.start().order(b)[0] != b[1] {
			t.Errorf("%s: nothing is kept from there on", name)
		}
	}
	m := newMachine(t)
	put(t, m.disk, strings.Replace(good, "b.test", "evil.test", 1))
	if got := m.start().order(b); !slices.Equal(got, b) {
		t.Error("a broker that is not configured:", got)
	}
}

func TestClassicGroups(t *testing.T) {
	m := newMachine(t)
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test")
	mem := m.start()
	stall := func(n int) { mem.hello(b[n], mem.without(b[n]), false, true) }
	answer := func(n int) { mem.hello(b[n], mem.without(b[n]), true, false) }
	check := func(what string, a, other bool) {
		t.Helper()
		if mem.without(b[0]) != a || mem.without(b[1]) != other {
			t.Errorf("%s: without the share: %t and %t", what, mem.without(b[0]), mem.without(b[1]))
		}
	}
	stall(0)
	stall(1)
	check("one each", false, false)
	answer(1)
	mem.hello(b[0], false, true, true) // a broker that begins to answer has had the hello
	stall(0)
	check("not in a row", false, false)
	mem.hello(b[0], false, false, false) // refused, or closed
	stall(0)
	check("another error between", false, false)
	stall(0)
	check("two in a row", true, false)
	stall(0)
	check("the classic groups get no answer either", false, false)
	stall(0)
	stall(0)
	answer(0)
	check("the classic groups are answered", true, false)
	if until := mem.classicUntil(b[0]); !until.Equal(m.now.Add(24 * time.Hour)) {
		t.Error(until)
	}
}

// What was found out holds for a day, also over a restart, and no longer, whatever the clock does.
func TestClassicGroupsForADay(t *testing.T) {
	m := newMachine(t)
	b := brokersOf(t, "mqtts://a.test")
	mem := m.start()
	stall := func() { mem.hello(b[0], mem.without(b[0]), false, true) }
	answer := func() { mem.hello(b[0], mem.without(b[0]), true, false) }
	check := func(what string, want bool) {
		t.Helper()
		if got := mem.without(b[0]); got != want {
			t.Errorf("%s: without the share: %t", what, got)
		}
	}
	stall()
	stall()
	answer()
	mem.worked(b[0], Path{Family: "ipv4"})
	mem = m.start()
	check("after a restart", true)
	answer()
	m.now = m.now.Add(23 * time.Hour)
	answer()
	check("after 23 hours", true)
	m.now = m.now.Add(time.Hour)
	check("after a day", false)
	stall()
	stall()
	check("still a bad way", true)
	answer()
	m.now = m.now.Add(-time.Hour)
	check("the clock was set back", false)
	m.now = m.now.Add(time.Hour)
	m.now = m.now.Add(25 * time.Hour)
	answer()
	mem.worked(b[0], Path{Family: "ipv4"})
	if text, _ := m.disk.Content(stateFile); bytes.Contains(text, []byte("classic")) {
		t.Errorf("the share is answered, and the file says %s", text)
	}
}

// A broker of which only the groups are known did not work.
func TestGroupsAreNoSuccess(t *testing.T) {
	m := newMachine(t)
	b := brokersOf(t, "mqtts://a.test", "mqtts://b.test")
	mem := m.start()
	for range 2 {
		mem.hello(b[1], false, false, true)
	}
	mem.hello(b[1], true, true, false)
	if mem.order(b)[0] != b[0] {
		t.Error("a broker that never answered CONNECT goes first")
	}
	var all []Broker
	for n := range 100 {
		all = append(all, brokersOf(t, fmt.Sprintf("mqtts://b%d.test", n))...)
		mem.worked(all[n], Path{Family: "ipv4"})
	}
	if len(mem.known.Ways) > maxRemembered || m.start().order(all)[0] != all[99] {
		t.Errorf("%d ways", len(mem.known.Ways))
	}
	if text, _ := m.disk.Content(stateFile); len(text) > maxState {
		t.Errorf("%d bytes", len(text))
	}
}

func FuzzMemory(f *testing.F) {
	f.Add([]byte(`{"version":1,"ways":[{"broker":"mqtts://b.test","family":"ipv4","classic":"2026-06-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"version":1,"ways":null}`))
	b := brokersOf(f, "mqtts://a.test", "mqtts://b.test")
	f.Fuzz(func(t *testing.T, text []byte) {
		d := disktest.New()
		put(t, d, string(text))
		now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
		mem := remember(State{FS: d, Path: stateFile}, func() time.Time { return now }, slog.New(slog.DiscardHandler))
		if got := mem.order(b); len(got) != 2 || got[0] == got[1] {
			t.Errorf("%q: %v", text, got)
		}
		if until := mem.classicUntil(b[0]); until.Sub(now) > classicFor {
			t.Errorf("%q: classic until %v", text, until)
		}
		mem.worked(b[0], Path{Family: "ipv6"})
		again := remember(State{FS: d, Path: stateFile}, func() time.Time { return now }, slog.New(slog.DiscardHandler))
		if again.order(b)[0] != b[0] || again.family(b[0]) != "ipv6" {
			t.Errorf("%q: %+v", text, again.known)
		}
	})
}
