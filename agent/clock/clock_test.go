package clock

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// In a synctest bubble it is midnight, 1 January 2000, which serves as the wrong clock.

func open(fsys disk.FS, built time.Time, synchronised bool) *Clock {
	c := Open(fsys, "time", built, slog.New(slog.DiscardHandler))
	c.synchronised = func() bool { return synchronised }
	return c
}

func TestNowNeverGoesBelowTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		built := time.Now().Add(20 * 365 * 24 * time.Hour)
		c := open(disktest.New(), built, true)
		if !c.Now().Equal(built) || !c.BelowFloor() || c.Trusted() {
			t.Errorf("clock before the build: now %v, below floor %v, trusted %v", c.Now(), c.BelowFloor(), c.Trusted())
		}
		later := built.Add(time.Hour)
		c.Raise(later)
		c.Raise(built)
		if !c.Now().Equal(later) {
			t.Errorf("after Raise: %v; want %v", c.Now(), later)
		}
	})
}

func TestTrustedTimeIsStoredDailyAndBelievedAtTheNextStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys, built := disktest.New(), time.Now().Add(-time.Hour)
		c := open(fsys, built, true)
		ctx, cancel := context.WithTimeout(t.Context(), 49*time.Hour)
		defer cancel()
		_ = c.Run(ctx)
		next := open(fsys, built, false)
		want := time.Now().Add(-time.Hour).Truncate(time.Second)
		if got := next.Floor(); !got.Equal(want) {
			t.Errorf("floor at the next start: %v; want %v", got, want)
		}
	})
}

// A time server that is years ahead is believed for the moment, and not for good.
func TestALeapOfYearsIsNotStoredForAWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			trusted time.Duration
			stored  bool
		}{{6 * 24 * time.Hour, false}, {8*24*time.Hour + time.Minute, true}} {
			fsys, built := disktest.New(), time.Now().Add(-10*365*24*time.Hour)
			c := open(fsys, built, true)
			ctx, cancel := context.WithTimeout(t.Context(), test.trusted)
			_ = c.Run(ctx)
			cancel()
			if got := open(fsys, built, false).Floor(); got.Equal(built) == test.stored {
				t.Errorf("after %v: the floor at the next start is %v", test.trusted, got)
			}
			if !c.Now().Equal(time.Now()) {
				t.Errorf("meanwhile it is %v", c.Now())
			}
		}
	})
}

func TestUntrustedTimeIsNeverStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour)
		defer cancel()
		_ = open(fsys, time.Now().Add(-time.Hour), false).Run(ctx)
		if _, err := disk.ReadFile(fsys, "time", 64); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an untrusted clock left a stored time: %v", err)
		}
	})
}

func TestDamagedOrAbsurdStoredTimeCostsOnlyItself(t *testing.T) {
	built := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, text := range []string{"", "yesterday", "9999-01-01T00:00:00Z", "2026-01-01T00:00:00Z and much more than a time"} {
		fsys, path := disk.OS(), filepath.Join(t.TempDir(), "time")
		write(t, fsys, path, text)
		if got := Open(fsys, path, built, slog.New(slog.DiscardHandler)).Floor(); !got.Equal(built) {
			t.Errorf("stored %q: floor %v; want the build time", text, got)
		}
	}
}

func write(t *testing.T, fsys disk.FS, path, text string) {
	t.Helper()
	if err := atomicfile.Write(fsys, path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
