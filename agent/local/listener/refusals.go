package listener

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// Bounds of the log: one line per source and second, and so many lines a second in all, since
// whoever has many addresses is many sources.
const (
	linePause   = time.Second
	maxLines    = 20
	maxSources  = 256
	acceptPause = 10 * time.Second
)

// refusals counts and logs who did not come in, without letting them fill the disk or the
// memory.
type refusals struct {
	mu      sync.Mutex
	causes  map[string]uint64
	last    *Refusal
	sources map[netip.Prefix]*source
	window  time.Time // lines are counted from here
	lines   int
	unsaid  int // lines left out of sources that are forgotten by now

	acceptErrors uint64
	acceptSaid   time.Time
}

// source is one that was refused lately.
type source struct {
	said   time.Time
	unsaid int
}

// note counts a refusal, and logs it unless its source had a line within the last second.
func (f *refusals) note(log *slog.Logger, c *Conn, r reason) {
	now := time.Now()
	address := c.Source()
	f.mu.Lock()
	if f.causes == nil {
		f.causes, f.sources = make(map[string]uint64), make(map[netip.Prefix]*source)
	}
	f.causes[r.cause]++
	f.last = &Refusal{At: now, Source: address, Cause: r.cause, Text: r.text}
	say, unsaid := f.permit(c.source, now)
	f.mu.Unlock()
	if !say {
		return
	}
	attrs := []slog.Attr{slog.String("source", address), slog.String("cause", r.cause), slog.String("reason", r.text)}
	if unsaid > 0 {
		attrs = append(attrs, slog.Int("lines_left_out", unsaid))
	}
	log.LogAttrs(context.Background(), slog.LevelWarn, "local client refused", attrs...)
}

// permit says whether a line may be written now, and how many were left out before it. The
// caller holds the lock.
func (f *refusals) permit(from netip.Prefix, now time.Time) (say bool, unsaid int) {
	if now.Sub(f.window) >= linePause {
		f.window, f.lines = now, 0
	}
	s := f.sources[from]
	if s == nil {
		f.forget(now)
		s = &source{}
		f.sources[from] = s
	}
	if now.Sub(s.said) < linePause || f.lines >= maxLines {
		s.unsaid++
		return false, 0
	}
	f.lines++
	unsaid = s.unsaid + f.unsaid
	s.said, s.unsaid, f.unsaid = now, 0, 0
	return true, unsaid
}

// forget makes room for one source: all that are quiet go, or else the one quiet for longest.
func (f *refusals) forget(now time.Time) {
	if len(f.sources) < maxSources {
		return
	}
	var oldest netip.Prefix
	first := now
	for from, s := range f.sources {
		if now.Sub(s.said) >= linePause {
			f.unsaid += s.unsaid
			delete(f.sources, from)
		} else if !s.said.After(first) {
			oldest, first = from, s.said
		}
	}
	if s := f.sources[oldest]; len(f.sources) >= maxSources && s != nil {
		f.unsaid += s.unsaid
		delete(f.sources, oldest)
	}
}

// acceptFailed counts an error of accept, and logs one in ten seconds.
func (f *refusals) acceptFailed(ctx context.Context, log *slog.Logger, err error) {
	now := time.Now()
	f.mu.Lock()
	f.acceptErrors++
	say := now.Sub(f.acceptSaid) >= acceptPause
	if say {
		f.acceptSaid = now
	}
	f.mu.Unlock()
	if say {
		log.LogAttrs(ctx, slog.LevelError, "accepting local clients", slog.Any("err", err))
	}
}

func (f *refusals) snapshot() (causes map[string]uint64, last *Refusal, acceptErrors uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.causes), f.last, f.acceptErrors
}
