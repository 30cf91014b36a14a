package agent

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// quietFor is how long a repeated event is counted instead of written.
	quietFor = time.Minute
	// maxQuiet bounds the events remembered; past it the oldest memory is given up.
	maxQuiet = 512
)

// Quiet returns a handler that writes an event once and then counts its repetitions: the
// next time it is written, a minute later at the earliest, it carries "repeated". Two
// events are the same when level, message and the values of line, unit, stage, cause,
// component and to (the state that follows) are. A broken line must not fill the flash that
// the outbox needs. An event with the attribute signal answers somebody, who would wait in
// vain, and is always written.
func Quiet(next slog.Handler) slog.Handler {
	return &quiet{next: next, seen: &seen{events: make(map[string]*repeats)}}
}

type quiet struct {
	next   slog.Handler
	prefix string // identifying attributes bound by WithAttrs
	seen   *seen
}

type seen struct {
	mu     sync.Mutex
	events map[string]*repeats
}

type repeats struct {
	written time.Time
	count   int
}

func (q *quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return q.next.Enabled(ctx, level)
}

func (q *quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	var key strings.Builder
	key.WriteString(q.prefix)
	for _, attr := range attrs {
		appendKey(&key, attr)
	}
	return &quiet{next: q.next.WithAttrs(attrs), prefix: key.String(), seen: q.seen}
}

func (q *quiet) WithGroup(name string) slog.Handler {
	return &quiet{next: q.next.WithGroup(name), prefix: q.prefix + name + ".", seen: q.seen}
}

func (q *quiet) Handle(ctx context.Context, record slog.Record) error {
	var key strings.Builder
	key.WriteString(record.Level.String())
	key.WriteString(record.Message)
	key.WriteString(q.prefix)
	answer := false
	record.Attrs(func(attr slog.Attr) bool {
		appendKey(&key, attr)
		answer = answer || attr.Key == "signal"
		return true
	})
	if answer {
		return q.next.Handle(ctx, record)
	}
	write, repeated := q.seen.note(key.String(), record.Time)
	if !write {
		return nil
	}
	if repeated > 0 {
		record = record.Clone()
		record.AddAttrs(slog.Int("repeated", repeated))
	}
	return q.next.Handle(ctx, record)
}

func appendKey(key *strings.Builder, attr slog.Attr) {
	switch attr.Key {
	case "line", "unit", "stage", "cause", "component", "to":
		key.WriteByte(0)
		key.WriteString(attr.Value.String())
	}
}

// note counts one event and tells whether to write it, and how often it was held back.
func (s *seen) note(key string, at time.Time) (write bool, repeated int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	event, known := s.events[key]
	if known && at.Sub(event.written) < quietFor {
		event.count++
		return false, 0
	}
	if !known {
		s.makeRoom()
		event = &repeats{}
		s.events[key] = event
	}
	repeated, event.count, event.written = event.count, 0, at
	return true, repeated
}

func (s *seen) makeRoom() {
	if len(s.events) < maxQuiet {
		return
	}
	var oldest string
	var when time.Time
	for key, event := range s.events {
		if when.IsZero() || event.written.Before(when) {
			oldest, when = key, event.written
		}
	}
	delete(s.events, oldest)
}
