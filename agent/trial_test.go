package agent

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/config/trial"
	"ferrule/agent/session"
	"ferrule/internal/disk"
)

func TestConfigurationKept(t *testing.T) {
	p := newPlace(t)
	defer leaks(t)()
	p.run()
	p.up()
	old, next := p.file(), p.text(`every = "50ms"`, `every = "70ms"`)
	first := p.try("c1", next)
	o := p.news("c1", trial.Kept)
	if o.Reason != trial.Answered || o.SHA256 != trial.Digest([]byte(next)) || len(o.Lines) != 1 || o.Lines[0].Name != "rs485-1" {
		t.Errorf("%+v", o)
	}
	if p.file() != next {
		t.Error("the file is not the new one")
	}
	if previous, err := os.ReadFile(p.path("etc/ferrule.toml.previous")); err != nil || string(previous) != old {
		t.Errorf("previous: %v", err)
	}
	if first.Result.Changes == nil || first.Result.Changes[0] != "line" {
		t.Errorf("changes: %v", first.Result.Changes)
	}
	// The same command again is answered from the journal.
	p.send("c1", "config", ConfigArgs{TOML: old})
	replies := func() [][]byte { return p.on("ferrule/gw-1/reply/c1") }
	p.until("the stored reply", func() bool { return len(replies()) > 1 })
	if r := replies(); string(r[0]) != string(r[1]) {
		t.Errorf("%s, again %s", r[0], r[1])
	}
	if a := p.command("s1", "config", ConfigArgs{Action: "status"}); !a.OK || a.Result.Status.SHA256 != trial.Digest([]byte(next)) ||
		a.Result.Status.Trial != nil || a.Result.Status.Last.ID != "c1" || a.Result.Status.Path != p.path("etc/ferrule.toml") {
		t.Errorf("status: %+v", a)
	}
	if a := p.command("c2", "config", ConfigArgs{TOML: next}); !a.OK || !a.Result.Unchanged {
		t.Errorf("the same again: %+v", a)
	}
	p.complete(2)
}

func TestConfigurationReturns(t *testing.T) {
	dead := freeAddress(t)
	for name, test := range map[string]struct {
		text   func(p *place) string
		reason trial.Reason
		detail string
	}{
		"a broker that is not there": {func(p *place) string { return p.text(p.broker.Address(), dead) }, trial.NoSession, "tcp: "},
		"roots that are not there":   {func(p *place) string { return p.text("/roots.pem", "/nowhere.pem") }, trial.NotOpened, "nowhere.pem"},
		"roots of somebody else": {func(p *place) string {
			other, err := agenttest.NewCA("other")
			if err != nil {
				t.Fatal(err)
			}
			p.write("other.pem", other.RootPEM())
			return p.text("/roots.pem", "/other.pem")
		}, trial.NoSession, "tls: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.run()
			p.up()
			old := p.file()
			p.try("c1", test.text(p), within("3s"))
			o := p.news("c1", trial.Returned)
			if o.Reason != test.reason || !strings.Contains(o.Detail, test.detail) {
				t.Errorf("%+v", o)
			}
			if p.file() != old {
				t.Error("the file was changed")
			}
			// It hears commands as before.
			if a := p.command("s1", "config", ConfigArgs{Action: "status"}); !a.OK || a.Result.Status.SHA256 != trial.Digest([]byte(old)) {
				t.Errorf("status: %+v", a)
			}
			p.complete(1)
		})
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ca, err := agenttest.NewCA("gone")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := agenttest.StartBroker(agenttest.BrokerConfig{Address: "127.0.0.1:0", TLS: &tls.Config{ClientCAs: ca.Pool()}})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	return gone.Address()
}

// The cloud confirms, or does not, or changes its mind; the operator has the last word.
func TestConfigurationConfirmed(t *testing.T) {
	p := newPlace(t)
	p.run()
	p.up()
	old := p.file()
	one := p.text(`every = "50ms"`, `every = "60ms"`)

	p.try("c1", one, byCommand, within("6s"))
	if o := p.news("c1", trial.Returned); o.Reason != trial.NotConfirmed || p.file() != old {
		t.Errorf("%+v", o)
	}
	p.try("c2", one, byCommand)
	p.news("c2", trial.Trying)
	if a := p.command("b1", "config", ConfigArgs{TOML: p.text(`every = "50ms"`, `every = "1s"`)}); a.OK || a.Code != "busy" {
		t.Errorf("another one meanwhile: %+v", a)
	}
	if a := p.command("b2", "roots", RootsArgs{For: "broker", Action: "status"}); a.OK || a.Code != "busy" {
		t.Errorf("roots meanwhile: %+v", a)
	}
	if a := p.command("x1", "config", ConfigArgs{Action: "confirm", ID: "c1"}); a.OK || a.Code != "not-on-trial" {
		t.Errorf("confirming another: %+v", a)
	}
	if a := p.command("x2", "config", ConfigArgs{Action: "confirm", ID: "c2"}); !a.OK || !a.Result.Confirmed {
		t.Errorf("confirm: %+v", a)
	}
	if o := p.news("c2", trial.Kept); o.Reason != trial.Confirmed || p.file() != one {
		t.Errorf("%+v", o)
	}
	p.try("c3", old, byCommand)
	p.news("c3", trial.Trying)
	if a := p.command("x3", "config", ConfigArgs{Action: "cancel", ID: "c3"}); !a.OK || !a.Result.Cancelled {
		t.Errorf("cancel: %+v", a)
	}
	if o := p.news("c3", trial.Returned); o.Reason != trial.Cancelled || p.file() != one {
		t.Errorf("%+v", o)
	}
	p.try("c4", old, byCommand)
	p.news("c4", trial.Trying)
	p.reload <- syscall.SIGHUP
	if o := p.news("c4", trial.Returned); o.Reason != trial.Reloaded || p.file() != one {
		t.Errorf("%+v", o)
	}
	// Who changes the file while a configuration is on trial has the last word.
	p.try("c5", old, byCommand)
	p.news("c5", trial.Trying)
	three := p.text(`every = "50ms"`, `every = "65ms"`)
	p.write("etc/ferrule.toml", []byte(three))
	p.command("x5", "config", ConfigArgs{Action: "confirm", ID: "c5"})
	if o := p.news("c5", trial.Returned); o.Reason != trial.FileChanged || p.file() != three {
		t.Errorf("%+v", o)
	}
	if a := p.command("s1", "config", ConfigArgs{Action: "status"}); a.Result.Status.SHA256 != trial.Digest([]byte(three)) {
		t.Errorf("status: %+v", a)
	}
	p.complete(5)
}

// A stop and a restart during a trial: the old configuration, with the reason.
func TestConfigurationStopped(t *testing.T) {
	p := newPlace(t)
	p.run()
	p.up()
	old := p.file()
	next := p.text(`every = "50ms"`, `every = "60ms"`)
	p.try("c1", next, byCommand)
	p.news("c1", trial.Trying)
	p.end()
	p.run()
	if o := p.news("c1", trial.Returned); o.Reason != trial.Stopped || p.file() != old {
		t.Errorf("%+v", o)
	}
	p.try("c2", next, byCommand)
	p.news("c2", trial.Trying)
	p.send("r1", "restart", map[string]any{})
	if err := <-p.ended; !errors.Is(err, ErrRestart) {
		t.Fatalf("restart: %v", err)
	}
	p.ended <- ErrRestart
	p.end()
	p.run()
	if o := p.news("c2", trial.Returned); o.Reason != trial.Restarted || p.file() != old {
		t.Errorf("%+v", o)
	}
	p.complete(1)
}

// What is refused changes nothing and ends no session.
func TestConfigurationRefused(t *testing.T) {
	p := newPlace(t)
	p.write("etc/ferrule.toml", []byte(p.text("[local]", "[authorize]\nmode = \"off\"\n[local]")))
	base := p.file()
	with := func(old, next string) string {
		t.Helper()
		if !strings.Contains(base, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(base, old, next, 1)
	}
	p.run()
	p.up()
	session := len(p.broker.Connections())
	for name, test := range map[string]struct {
		args ConfigArgs
		code string
		says []string
	}{
		"misspelt":    {ConfigArgs{TOML: with("every =", "evry =") + "\nmore = 1\n"}, "invalid", []string{"ferrule.toml:", "evry", `did you mean "every"`, "more"}},
		"no value":    {ConfigArgs{TOML: with("address = 1", "address = ")}, "invalid", []string{"ferrule.toml:20:"}},
		"bad key":     {ConfigArgs{TOML: with("[session]", "[session]\nwindow = 0")}, "invalid", []string{"ferrule.toml:8:1: session.window"}},
		"a password":  {ConfigArgs{TOML: with("mqtts://", "mqtts://me:secret@")}, "invalid", []string{"session.brokers", "://…@"}},
		"overload":    {ConfigArgs{TOML: with("115200 8E1", "1200 8E1")}, "invalid", []string{"of the wire"}},
		"nothing":     {ConfigArgs{}, "bad-args", []string{"toml"}},
		"state_dir":   {ConfigArgs{TOML: with("/state", "/state2")}, "not-from-afar", []string{"state_dir"}},
		"identity":    {ConfigArgs{TOML: with(`[identity]`, "[identity]\ncertificate = \"other.crt\"")}, "not-from-afar", []string{"identity"}},
		"authorize":   {ConfigArgs{TOML: with(`mode = "off"`, `mode = "audit"`)}, "not-from-afar", []string{"authorize"}},
		"audit":       {ConfigArgs{TOML: base + "\n[audit]\nmax_bytes = \"1MiB\"\n"}, "not-from-afar", []string{"audit"}},
		"socket":      {ConfigArgs{TOML: with("f.sock", "g.sock")}, "not-from-afar", []string{"local"}},
		"a program":   {ConfigArgs{TOML: base + "\n[enroll]\nmethod = \"exec\"\ncommand = [\"/bin/sh\"]\nroots = \"/roots.pem\"\n"}, "not-from-afar", []string{"enroll"}},
		"too short":   {ConfigArgs{TOML: base, ConfirmWithin: "500ms"}, "bad-args", []string{"confirm_within"}},
		"too long":    {ConfigArgs{TOML: base, ConfirmWithin: "61m"}, "bad-args", []string{"confirm_within"}},
		"no time":     {ConfigArgs{TOML: base, ConfirmWithin: "soon"}, "bad-args", []string{"confirm_within"}},
		"no such way": {ConfigArgs{TOML: base, Confirm: "never"}, "bad-args", []string{"confirm"}},
		"no action":   {ConfigArgs{Action: "undo"}, "bad-args", []string{"undo"}},
		"too large":   {ConfigArgs{TOML: base + "#" + strings.Repeat("x", trial.MaxText)}, "too-large", nil},
		"no trial":    {ConfigArgs{Action: "confirm", ID: "c1"}, "not-on-trial", nil},
		"nor cancel":  {ConfigArgs{Action: "cancel", ID: "c1"}, "not-on-trial", nil},
	} {
		a := p.command(strings.ReplaceAll("r-"+name, " ", "-"), "config", test.args)
		if a.OK || a.Code != test.code || strings.Contains(a.Error, "secret") {
			t.Errorf("%s: %+v", name, a)
		}
		for _, want := range test.says {
			if !strings.Contains(a.Error, want) {
				t.Errorf("%s: %q does not say %q", name, a.Error, want)
			}
		}
	}
	if a := p.command("dry", "config", ConfigArgs{TOML: with(`every = "50ms"`, `every = "1s"`), DryRun: true}); !a.OK || !a.Result.Valid || !slices.Equal(a.Result.Changes, []string{"line"}) {
		t.Errorf("dry run: %+v", a)
	}
	if n := len(p.broker.Connections()); n != session || p.file() != base {
		t.Errorf("%d connections after %d", n, session)
	}
	if _, err := os.Stat(p.path("state/trial.json")); err == nil {
		t.Error("there is a record")
	}
	p.write("etc/ferrule.toml", []byte(base+"\n# by hand\n[outbox]\nsync = \"2s\"\n"))
	if a := p.command("edited", "config", ConfigArgs{TOML: with(`every = "50ms"`, `every = "1s"`)}); a.OK || a.Code != "file-changed" || !strings.Contains(a.Hint, "SIGHUP") {
		t.Errorf("a file that was not loaded: %+v", a)
	}
	p.complete(1)
}

// Roots that were confirmed in the place of the file's survive a trial that names another file.
func TestTrialKeepsConfirmedRoots(t *testing.T) {
	p := newPlace(t)
	good, err := os.ReadFile(p.path("roots.pem"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := agenttest.NewCA("old")
	if err != nil {
		t.Fatal(err)
	}
	p.write("roots.pem", old.RootPEM())
	text, err := json.Marshal(map[string]any{"confirmed": map[string]any{"pem": string(good), "replaces": trial.Digest(old.RootPEM()), "at": time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	text = slices.Concat([]byte(trial.Digest(text)), []byte("\n"), text)
	p.write("state/roots/broker.json", text)
	p.run()
	p.up()
	p.write("other.pem", []byte(string(old.RootPEM())+"\n"))
	p.try("c1", p.text("/roots.pem", "/other.pem"), within("3s"))
	if o := p.news("c1", trial.Returned); o.Reason != trial.NoSession || !strings.HasPrefix(o.Detail, "tls: ") {
		t.Errorf("%+v", o)
	}
	if after, err := os.ReadFile(p.path("state/roots/broker.json")); err != nil || string(after) != string(text) {
		t.Errorf("the confirmed roots: %v, %s", err, after)
	}
	p.complete(1)
}

// Where any command needs a token, a configuration does too: it could do what that command may not.
func TestConfigurationIsGuardedAsOthersAre(t *testing.T) {
	p := newPlace(t)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	p.write("issuer.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	p.write("etc/ferrule.toml", []byte(p.text("[local]", fmt.Sprintf("[authorize]\ncommands = { write = \"enforce\" }\nissuers = [%q]\n[local]", p.path("issuer.pem")))))
	p.run()
	p.up()
	if a := p.command("c1", "config", ConfigArgs{TOML: strings.Replace(p.file(), `"50ms"`, `"60ms"`, 1)}); a.OK || a.Code != "unguarded" || !strings.Contains(a.Hint, "enforce") {
		t.Errorf("%+v", a)
	}
	p.complete(1)
}

// Entries that a trial left behind go out under the topics of the configuration that returned, with
// everything else: its broker may hang up at those of the trial.
func TestTrialLeavesNoTopics(t *testing.T) {
	p := newPlace(t)
	p.run()
	p.up()
	topics := "[session]\ntopics = { readings = \"other/{line}/{device}/{unit}\" }"
	p.try("c1", p.text(p.broker.Address(), freeAddress(t), "[session]", topics), within("3s"))
	p.news("c1", trial.Returned)
	p.complete(2)
	if other := p.on("other/rs485-1/gw-1/meter-a"); len(other) > 0 {
		t.Errorf("%d messages on the topic of the trial", len(other))
	}
	// And the other way round: what waits when a configuration is kept goes out under its topics.
	p.run()
	p.up()
	p.try("c2", p.text("[session]", topics))
	p.news("c2", trial.Kept)
	before := len(p.on("ferrule/gw-1/readings/rs485-1/meter-a"))
	p.until("readings on the new topic", func() bool { return len(p.on("other/rs485-1/gw-1/meter-a")) > 0 })
	p.end()
	if after := len(p.on("ferrule/gw-1/readings/rs485-1/meter-a")); after != before {
		t.Errorf("%d messages on the old topic", after-before)
	}
}

func TestRename(t *testing.T) {
	r := renaming{former: []string{"a/{device}/{line}/{unit}", "b/{line}/x-{unit}", "c/{unit}"}, current: "n/{unit}/{device}/{line}"}
	for topic, want := range map[string]string{
		"a/gw/l%2F1/u":    "n/u/gw/l%2F1",
		"n/u/gw/l":        "n/u/gw/l",
		"b/l/x-u":         "b/l/x-u", // part of a level
		"c/u":             "c/u",     // names no line
		"spBv1.0/g/DDATA": "spBv1.0/g/DDATA",
		"":                "",
	} {
		if got := r.rename(topic); got != want {
			t.Errorf("%s: %s; want %s", topic, got, want)
		}
	}
}

// What counts as an answer, step by step.
func TestWitness(t *testing.T) {
	at := time.Unix(0, 0)
	status := func(stage string, subscribed bool, connects, acked uint64) (st session.Status) {
		text := fmt.Sprintf(`{"stage":%q,"subscribed":%t,"connects":%d,"acked":%d}`, stage, subscribed, connects, acked)
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	type step struct {
		after time.Duration
		st    session.Status
		want  bool
	}
	for name, test := range map[string]struct {
		w     witness
		steps []step
		why   trial.Reason
	}{
		"never": {witness{commands: true, status: true}, []step{{0, status("tcp", false, 0, 0), false}}, trial.NoSession},
		"answered": {witness{commands: true, status: true}, []step{
			{0, status("up", true, 1, 3), false}, {settle, status("up", true, 1, 3), false}, {time.Second, status("up", true, 1, 4), true}}, trial.NotConfirmed},
		"too early":          {witness{commands: true, status: true}, []step{{0, status("up", true, 1, 3), false}, {time.Second, status("up", true, 1, 4), false}}, trial.NoAnswer},
		"not granted":        {witness{commands: true, status: true}, []step{{0, status("up", false, 1, 3), false}, {settle, status("up", false, 1, 9), false}}, trial.NoCommands},
		"no commands":        {witness{status: true}, []step{{0, status("up", false, 1, 3), false}, {settle, status("up", false, 1, 4), true}}, trial.NotConfirmed},
		"no status":          {witness{commands: true}, []step{{0, status("up", true, 1, 0), false}, {settle, status("up", true, 1, 0), true}}, trial.NotConfirmed},
		"nothing to publish": {witness{}, []step{{0, status("up", false, 1, 0), false}, {settle, status("up", false, 1, 0), false}}, trial.NoAnswer},
		"another connection": {witness{commands: true, status: true}, []step{
			{0, status("up", true, 1, 3), false}, {settle, status("up", true, 2, 9), false}, {time.Second, status("up", true, 2, 10), false}}, trial.NoAnswer},
		"lost again": {witness{commands: true, status: true}, []step{
			{0, status("up", true, 1, 3), false}, {settle, status("waiting", false, 1, 9), false}}, trial.Unstable},
	} {
		now, announced := at, 0
		var last session.Status
		for n, s := range test.steps {
			now, last = now.Add(s.after), s.st
			if got := test.w.look(s.st, now, func() { announced++ }); got != s.want {
				t.Errorf("%s, step %d: %v", name, n, got)
			}
		}
		if why, _ := test.w.verdict(last); why != test.why {
			t.Errorf("%s: %s; want %s", name, why, test.why)
		}
		if last.Connects > 0 && test.why != trial.NoCommands && announced == 0 {
			t.Errorf("%s: nothing was published", name)
		}
	}
}

// On trial, trust reads what is there and changes nothing.
func TestHeldFileSystem(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := held{disk.OS()}
	if text, err := disk.ReadFile(h, name, 10); err != nil || string(text) != "x" {
		t.Errorf("%q, %v", text, err)
	}
	_, err := h.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	for _, err := range []error{err, h.Rename(name, name+"2"), h.Remove(name), h.MkdirAll(name+"3", 0o700)} {
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "on trial") {
			t.Errorf("%v", err)
		}
	}
}
