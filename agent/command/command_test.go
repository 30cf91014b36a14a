package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/command/journal"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

// stoppedClock is a clock that a test sets.
type stoppedClock struct {
	now   time.Time
	wrong bool
}

func (c *stoppedClock) Now() time.Time   { return c.now }
func (c *stoppedClock) BelowFloor() bool { return c.wrong }

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// bench is a set of commands over a journal on fsys: "move" acts and counts, "look" does not
// act, "fail" refuses with a hint.
type bench struct {
	*Executor
	clock *stoppedClock
	moved int
}

func newBench(t testing.TB, fsys disk.FS) *bench {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	j, err := journal.Open(fsys, "journal", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	b := &bench{clock: &stoppedClock{now: noon}}
	b.Executor = New(Options{Journal: j, Clock: b.clock, Log: log, Table: map[string]Command{
		"move": {Acts: true, Run: func(context.Context, json.RawMessage) (any, error) {
			b.moved++
			return map[string]int{"moved": b.moved}, nil
		}},
		"look": {Run: func(_ context.Context, args json.RawMessage) (any, error) { return args, nil }},
		"fail": {Acts: true, Run: func(context.Context, json.RawMessage) (any, error) {
			return nil, hint.With(errors.New("the line is down"), "plug it in")
		}},
	}})
	return b
}

func (b *bench) ask(t testing.TB, name, payload string) reply {
	t.Helper()
	id, answer := b.Handle(t.Context(), Message{Name: name, Payload: []byte(payload)})
	if answer == nil {
		return reply{}
	}
	var r reply
	if err := json.Unmarshal(answer, &r); err != nil || r.ID != id {
		t.Fatalf("reply %s for id %q: %v", answer, id, err)
	}
	return r
}

func TestACommandIsExecutedOnceAndAnsweredTwice(t *testing.T) {
	b := newBench(t, disktest.New())
	const payload = `{"id":"c1","expires":"2026-11-21T12:05:00Z"}`
	first := b.ask(t, "move", payload)
	b.clock.now = noon.Add(time.Hour) // a redelivery may come after the expiry
	again := b.ask(t, "move", payload)
	if !first.OK || !again.OK || b.moved != 1 || fmt.Sprint(first.Result) != fmt.Sprint(again.Result) {
		t.Errorf("moved %d times; replies %+v and %+v", b.moved, first, again)
	}
}

func TestCommandsThatAreRefused(t *testing.T) {
	for _, test := range []struct{ name, payload, code string }{
		{"move", `{"id":"a"}`, "expires-missing"},
		{"move", `{"id":"b","expires":"2026-11-21T11:59:59Z"}`, "expired"},
		{"jump", `{"id":"c","expires":"2026-11-21T12:05:00Z"}`, "unknown-command"},
		{"fail", `{"id":"d","expires":"2026-11-21T12:05:00Z"}`, "failed"},
	} {
		b := newBench(t, disktest.New())
		if r := b.ask(t, test.name, test.payload); r.OK || r.Code != test.code || r.Error == "" {
			t.Errorf("%s %s: %+v; want code %s", test.name, test.payload, r, test.code)
		}
		if b.moved != 0 {
			t.Errorf("%s %s: it moved", test.name, test.payload)
		}
	}
}

func TestNothingMovesWhileTheClockIsWrong(t *testing.T) {
	b := newBench(t, disktest.New())
	b.clock.wrong = true
	if r := b.ask(t, "move", `{"id":"a","expires":"2026-11-21T12:05:00Z"}`); r.Code != "clock" || b.moved != 0 {
		t.Errorf("%+v, moved %d", r, b.moved)
	}
	if r := b.ask(t, "look", `{"id":"b","args":{}}`); !r.OK {
		t.Errorf("a command that does not act: %+v", r)
	}
}

func TestARetainedCommandIsNeverExecuted(t *testing.T) {
	b := newBench(t, disktest.New())
	_, answer := b.Handle(t.Context(), Message{Name: "move", Retained: true,
		Payload: []byte(`{"id":"a","expires":"2026-11-21T12:05:00Z"}`)})
	if !strings.Contains(string(answer), `"retained"`) || b.moved != 0 {
		t.Errorf("%s, moved %d", answer, b.moved)
	}
}

func TestACommandWithoutAUsableIDGetsNoAnswer(t *testing.T) {
	for _, payload := range []string{``, `{`, `{}`, `{"id":""}`, `{"id":"a/b"}`, `{"id":"+"}`, `{"id":"` + strings.Repeat("x", 65) + `"}`,
		`{"id":"a","surprise":1}`, `[]`, `{"id":7}`} {
		b := newBench(t, disktest.New())
		if r := b.ask(t, "move", payload); r.ID != "" || b.moved != 0 || b.refused.Load() != 1 {
			t.Errorf("%s: %+v, moved %d, refused %d", payload, r, b.moved, b.refused.Load())
		}
	}
}

// A disk that cannot note a command cannot promise to execute it only once.
func TestNothingMovesThatCannotBeJournalled(t *testing.T) {
	fsys := disktest.New()
	fsys.Fail(func(op disktest.Op) error {
		if op.Kind.Changes() {
			return syscall.EROFS
		}
		return nil
	})
	b := newBench(t, fsys)
	if r := b.ask(t, "move", `{"id":"a","expires":"2026-11-21T12:05:00Z"}`); r.Code != "journal" || b.moved != 0 {
		t.Errorf("%+v, moved %d", r, b.moved)
	}
	if r := b.ask(t, "look", `{"id":"b","args":{}}`); !r.OK {
		t.Errorf("a command that does not act: %+v", r)
	}
}

// Whatever the power cut leaves of the disk, a command that was executed before the cut is
// not executed again after it.
func TestAPowerCutNeverMovesTwice(t *testing.T) {
	const payload = `{"id":"c1","expires":"2026-11-21T12:05:00Z"}`
	type executed struct{}
	build := func(d *disktest.Disk) {
		b := newBench(t, d)
		move := b.Table["move"]
		b.Table["move"] = Command{Acts: true, Run: func(ctx context.Context, args json.RawMessage) (any, error) {
			d.Mark(executed{})
			return move.Run(ctx, args)
		}}
		b.ask(t, "move", payload)
	}
	states := disktest.Replay(t, build, func(t testing.TB, state *disktest.Disk) {
		before := len(state.Marks())
		b := newBench(t, state)
		r := b.ask(t, "move", payload)
		if before+b.moved > 1 {
			t.Errorf("it moved twice; the second reply was %+v", r)
		}
		if before == 1 && !r.OK && r.Code != "interrupted" {
			t.Errorf("a command that was executed is answered %+v", r)
		}
	})
	t.Logf("%d disk states", states)
	if states < 3 {
		t.Errorf("only %d disk states were tried", states)
	}
}

func FuzzHandle(f *testing.F) {
	f.Add("move", []byte(`{"id":"c1","expires":"2026-11-21T12:05:00Z","args":{"line":"a"}}`))
	f.Add("look", []byte(`{"id":"c1"}`))
	f.Fuzz(func(t *testing.T, name string, payload []byte) {
		b := newBench(t, disktest.New())
		id, answer := b.Handle(t.Context(), Message{Name: name, Payload: payload})
		if answer != nil && (!validID.MatchString(id) || !json.Valid(answer)) {
			t.Errorf("id %q, answer %q", id, answer)
		}
	})
}
