package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

const (
	day = 24 * time.Hour
	// reserve is the part of the budget that readings leave to urgent lines, status and commands.
	reserve = 10
	// marks is how many times at most a day's use is written, and how precise the file is.
	marks = 32
	// hourly is how often the time is written that has passed of a day nobody knows the date of.
	hourly = time.Hour
	// leastRun is the smallest room that a run of readings begins in.
	leastRun = 1 << 10
)

// Budget is the bytes of one day.
type Budget struct {
	// Limit and Spent are bytes; readings wait when Spent comes within a tenth of Limit.
	Limit int64 `json:"limit"`
	Spent int64 `json:"spent"`
	// UsedUp says that readings wait; Continues is when they go on.
	UsedUp    bool      `json:"used_up"`
	Continues time.Time `json:"continues,omitzero"`
}

// budget bounds what a day may cost. Its day is UTC's where somebody vouches for the clock; else it
// has 24 hours from the start, those of earlier starts included. The clock going back begins no new
// day, nor does it end one.
//
// What was spent is written ahead, in steps of a 32nd: after a power cut at most that much counts as
// spent that was not, and never less than was.
type budget struct {
	limit   int64
	fs      disk.FS // nil: nothing is kept
	path    string
	now     func() time.Time // by which days are told
	trusted func() bool
	log     *slog.Logger
	wake    chan struct{} // something is to be written

	mu      sync.Mutex
	date    int64     // the day since 1970; 0: nobody knows
	ends    time.Time // by this machine's own clock
	spent   int64
	ahead   int64     // as it is to be in the file
	written time.Time // when
	failed  bool      // the last time
}

// newBudget reads what earlier starts have spent.
func newBudget(limit int64, fsys disk.FS, path string, now func() time.Time, trusted func() bool, log *slog.Logger) *budget {
	b := &budget{limit: limit, fs: fsys, path: path, now: now, trusted: trusted, log: log, wake: make(chan struct{}, 1)}
	b.ends = time.Now().Add(day)
	if limit > 0 && fsys != nil {
		if err := b.read(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.LogAttrs(context.Background(), slog.LevelWarn, "what the day has cost so far is not known", slog.Any("err", err))
		}
	}
	return b
}

// read takes over the file: the date, what was spent, and how many seconds of the day have passed.
func (b *budget) read() error {
	text, err := disk.ReadFile(b.fs, b.path, 256)
	if err != nil {
		return err
	}
	date, spent, passed, err := parseBudget(string(text))
	if err != nil {
		return fmt.Errorf("reading %s: %w", b.path, err)
	}
	b.date, b.spent, b.ahead = date, spent, spent
	b.ends = time.Now().Add(day - passed)
	return nil
}

const budgetFormat = "ferrule-budget date=%d spent=%d passed=%d\n"

// parseBudget reads what write writes.
func parseBudget(text string) (date, spent int64, passed time.Duration, err error) {
	var seconds int64
	if _, err := fmt.Sscanf(text, budgetFormat, &date, &spent, &seconds); err != nil {
		return 0, 0, 0, err
	}
	if date < 0 || spent < 0 || seconds < 0 || seconds > int64(day/time.Second) {
		return 0, 0, 0, errors.New("a number is out of range")
	}
	if text != fmt.Sprintf(budgetFormat, date, spent, seconds) {
		return 0, 0, 0, errors.New("it was not written by this program")
	}
	return date, spent, time.Duration(seconds) * time.Second, nil
}

// spend counts n bytes.
func (b *budget) spend(n int64) {
	if b.limit == 0 || n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn()
	b.spent += n
	if b.spent > b.ahead-b.limit/marks/4 || b.date == 0 && time.Since(b.written) >= hourly {
		b.ahead = max(b.ahead, b.spent+b.limit/marks)
		ask(b.wake)
	}
}

// turn begins a new day when it is time.
func (b *budget) turn() {
	if b.trusted() {
		now := b.now().UTC()
		date := now.Unix() / int64(day/time.Second)
		if b.date != 0 && date > b.date {
			b.spent, b.ahead = 0, 0
		}
		if b.date != date {
			ask(b.wake)
		}
		b.date = date
		b.ends = time.Now().Add(now.Truncate(day).Add(day).Sub(now))
		return
	}
	if time.Now().Before(b.ends) {
		return
	}
	b.spent, b.ahead, b.date = 0, 0, 0
	b.ends = time.Now().Add(day)
	ask(b.wake)
}

// room returns how many bytes readings may still cost, and when the day ends. all includes what is
// reserved. Without a budget there is always room.
func (b *budget) room(all bool) (bytes int64, ends time.Time) {
	if b.limit == 0 {
		return 1 << 40, time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn()
	limit := b.limit
	if !all {
		limit -= limit / reserve
	}
	return max(limit-b.spent, 0), b.ends
}

// status returns nil where there is no budget.
func (b *budget) status() *Budget {
	if b.limit == 0 {
		return nil
	}
	bytes, ends := b.room(false)
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Budget{Limit: b.limit, Spent: b.spent}
	if bytes < leastRun {
		s.UsedUp, s.Continues = true, b.now().Add(time.Until(ends)).Round(time.Second)
	}
	return s
}

// keep writes what is to be kept until ctx ends, and then once more, exactly.
func (b *budget) keep(ctx context.Context) {
	for {
		select {
		case <-b.wake:
			b.write(false)
		case <-ctx.Done():
			b.write(true)
			return
		}
	}
}

// write replaces the file. A disk that does not take it is logged once: the budget goes on from
// memory.
func (b *budget) write(exact bool) {
	if b.limit == 0 || b.fs == nil {
		return
	}
	b.mu.Lock()
	spent := b.ahead
	if exact {
		spent = b.spent
	}
	passed := min(max(day-time.Until(b.ends), 0), day)
	text := fmt.Sprintf(budgetFormat, b.date, spent, int64(passed/time.Second))
	b.written = time.Now()
	b.mu.Unlock()
	err := atomicfile.Write(b.fs, b.path, []byte(text), 0o600)
	b.mu.Lock()
	first := err != nil && !b.failed
	b.failed = err != nil
	b.mu.Unlock()
	if first {
		b.log.LogAttrs(context.Background(), slog.LevelWarn, "what the day has cost is kept in memory only", slog.Any("err", err))
	}
}
