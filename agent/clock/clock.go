// Package clock says what time it is and whether to believe it. A gateway without a battery
// wakes in 1970: Now never goes below a floor, and only a clock the kernel calls synchronised
// may raise the stored part of it, so a clock far in the future cannot poison the next start.
package clock

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

const (
	// storeEvery bounds the writes: one small file a day while the clock is trusted.
	storeEvery = 24 * time.Hour
	// lookEvery is how soon a clock that becomes synchronised is noticed for storing.
	lookEvery = time.Minute
	// A time that lies further than leap after the floor is stored when the clock was trusted with
	// it for so long: a time server that is wrong by years (a week number that rolled over) must be
	// mended by then, or every certificate looks expired for years.
	leap      = 366 * 24 * time.Hour
	leapAfter = 7 * 24 * time.Hour
	// credible is how far past the build time a stored floor may lie; beyond it the file is
	// damaged, and believing it would make every certificate look expired.
	credible = 30 * 365 * 24 * time.Hour
)

// Clock is the agent's view of the time. Its methods may be called from any goroutine.
type Clock struct {
	fsys         disk.FS
	path         string
	log          *slog.Logger
	synchronised func() bool
	floor        atomic.Int64 // nanoseconds since the Unix epoch
	stored       time.Time    // owned by Run
	leaping      time.Time    // since when, as stored
}

// Open reads the stored floor from path and raises it to built, the time this binary was
// built. A missing or damaged file costs only the stored part of the floor.
func Open(fsys disk.FS, path string, built time.Time, log *slog.Logger) *Clock {
	c := &Clock{fsys: fsys, path: path, log: log, synchronised: kernelSynchronised}
	c.floor.Store(built.UnixNano())
	stored, err := readFloor(fsys, path, built)
	switch {
	case err == nil:
		c.stored = stored
		c.Raise(stored)
	case !errors.Is(err, fs.ErrNotExist):
		log.LogAttrs(context.Background(), slog.LevelWarn, "stored time not usable", slog.Any("err", err))
	}
	return c
}

func readFloor(fsys disk.FS, path string, built time.Time) (time.Time, error) {
	text, err := disk.ReadFile(fsys, path, 64)
	if err != nil {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(text)))
	if err != nil {
		return time.Time{}, err
	}
	if t.After(built.Add(credible)) {
		return time.Time{}, errors.New("stored time lies more than thirty years after the build")
	}
	return t, nil
}

// Now is the system's time, but never before the floor.
func (c *Clock) Now() time.Time {
	now := time.Now()
	if floor := c.Floor(); now.Before(floor) {
		return floor
	}
	return now
}

// Floor is the latest of the build time, the last time stored while the clock was trusted,
// and every time given to Raise.
func (c *Clock) Floor() time.Time { return time.Unix(0, c.floor.Load()) }

// Raise lifts the floor to t, for example the NotBefore of our own certificate, which its
// issuer's clock vouches for. A t below the floor changes nothing.
func (c *Clock) Raise(t time.Time) {
	for {
		old := c.floor.Load()
		if t.UnixNano() <= old || c.floor.CompareAndSwap(old, t.UnixNano()) {
			return
		}
	}
}

// BelowFloor reports whether the system's clock is certainly wrong: it stands before a time
// that has already passed.
func (c *Clock) BelowFloor() bool { return time.Now().Before(c.Floor()) }

// Trusted reports whether the kernel or systemd-timesyncd calls the system clock
// synchronised and it does not contradict the floor.
func (c *Clock) Trusted() bool { return !c.BelowFloor() && c.synchronised() }

// Run stores the time once a day while the clock is trusted. It ends with ctx.
func (c *Clock) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		if now := time.Now(); c.believable(now) && now.Sub(c.stored) >= storeEvery {
			c.store(ctx, now)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// believable says whether now may raise the floor for good.
func (c *Clock) believable(now time.Time) bool {
	switch {
	case !c.Trusted():
		c.leaping = time.Time{}
		return false
	case now.Sub(c.Floor()) <= leap:
		c.leaping = time.Time{}
		return true
	case c.leaping.IsZero():
		c.leaping = now
		c.log.LogAttrs(context.Background(), slog.LevelWarn, "clock is far ahead of all that is known; it is not stored for a week",
			slog.Time("now", now), slog.Time("floor", c.Floor()))
	}
	return now.Sub(c.leaping) >= leapAfter
}

func (c *Clock) store(ctx context.Context, now time.Time) {
	text := now.UTC().Format(time.RFC3339) + "\n"
	if err := atomicfile.Write(c.fsys, c.path, []byte(text), 0o644); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "storing the time", slog.Any("err", err))
		return
	}
	c.stored = now
	c.Raise(now)
}

// kernelSynchronised asks the kernel (adjtimex(2), STA_UNSYNC) and, because some time
// daemons never clear that bit, systemd-timesyncd's stamp.
func kernelSynchronised() bool {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err == nil && tx.Status&unix.STA_UNSYNC == 0 {
		return true
	}
	_, err := os.Stat("/run/systemd/timesync/synchronized")
	return err == nil
}
