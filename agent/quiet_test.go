package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestARepeatedEventIsCountedNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(Quiet(slog.NewTextHandler(&out, nil)))
		for range 500 {
			log.Warn("poll timed out", "line", "rs485-1")
			time.Sleep(100 * time.Millisecond) // virtual
		}
		log.Warn("poll timed out", "line", "rs485-2")
		if got := strings.Count(out.String(), "poll timed out"); got != 2 {
			t.Errorf("501 events in 50 s on two lines were written %d times; want 2", got)
		}
		time.Sleep(time.Minute)
		log.Warn("poll timed out", "line", "rs485-1")
		if !strings.Contains(out.String(), "repeated=499") {
			t.Errorf("the count of repetitions is missing:\n%s", out.String())
		}
	})
}

func TestBoundAttributesTellEventsApart(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(Quiet(slog.NewTextHandler(&out, nil)))
	log.With("line", "a").Warn("line stopped")
	log.With("line", "b").Warn("line stopped")
	log.With("line", "b").Error("line stopped")
	if got := strings.Count(out.String(), "line stopped"); got != 3 {
		t.Errorf("three different events were written %d times", got)
	}
}

// The states of an update follow each other within a minute, and each is told.
func TestEveryStateThatFollowsIsWritten(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(Quiet(slog.NewTextHandler(&out, nil)))
	for _, to := range []string{"fetching", "verifying", "armed", "fetching"} {
		log.Info("update", "from", "idle", "to", to)
	}
	if got := strings.Count(out.String(), "msg=update"); got != 3 {
		t.Errorf("three states, one of them twice, were written %d times", got)
	}
}

// Whoever sends SIGHUP twice within a minute is told twice, and the second error is another.
func TestAnAnswerToASignalIsAlwaysWritten(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(Quiet(slog.NewTextHandler(&out, nil)))
	log.Error("certificate not reloaded", "signal", "SIGHUP", "err", "first")
	log.Error("certificate not reloaded", "signal", "SIGHUP", "err", "second")
	if got := out.String(); !strings.Contains(got, "first") || !strings.Contains(got, "second") {
		t.Errorf("written: %s", got)
	}
}

func TestRememberedEventsAreBounded(t *testing.T) {
	q := Quiet(slog.DiscardHandler).(*quiet)
	for i := range 10 * maxQuiet {
		q.seen.note(strings.Repeat("x", i%100)+string(rune(i)), time.Unix(int64(i), 0))
	}
	if len(q.seen.events) > maxQuiet {
		t.Errorf("%d events are remembered; the bound is %d", len(q.seen.events), maxQuiet)
	}
}
