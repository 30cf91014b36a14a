package hw

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"ferrule/hw/frame"
	"ferrule/hw/point"
	"ferrule/hw/port"
)

const (
	// gather is how long a line that listens lets bytes gather before it reads again: one
	// wake-up for many chunks of an adapter. The port holds 4 KiB, which is 44 ms at 921600 baud.
	gather = 10 * time.Millisecond
	// idle is the longest wait for a byte. It bounds nothing but a mistake of this program.
	idle = time.Minute
	// maxTalkers and maxFound bound what talkers can make a line hold.
	maxTalkers = 256
	maxFound   = 512
)

// ear makes something of the bytes that a line hears.
type ear interface {
	// feed takes bytes that arrived until now.
	feed(ctx context.Context, p []byte, now time.Time)
	// silence says that the line was silent for longer than a frame pauses.
	silence(ctx context.Context, now time.Time)
	// count writes down what was heard.
	count(w *wire)
}

// listener is a line that hears what others say.
type listener struct {
	*Line
	port    port.Port
	ear     ear
	pause   time.Duration // longer than any inside of a frame
	gather  time.Duration
	last    time.Time // when bytes came last
	pending bool      // the ear was not told of the silence since
	ask     asking
}

// asking is what makes a talker speak, where one has to.
type asking struct {
	words []byte
	every time.Duration
	next  time.Time
}

// hear returns the work of a line that listens to talkers.
func (l *Line) hear(p port.Port) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		cutter, decoder, err := l.protocol.listen(l.config)
		if err != nil {
			return err
		}
		pause := l.pauseOfFrames()
		s := &listener{Line: l, port: p, ear: &talk{line: l, cutter: cutter, decoder: decoder}, pause: pause, gather: min(gather, pause/5)}
		if t := l.config.Text; t != nil && l.role == Master {
			s.ask = asking{words: []byte(t.Request), every: orSecond(t.Every.Std())}
		}
		return s.work(ctx)
	}
}

func orSecond(d time.Duration) time.Duration {
	if d == 0 {
		return time.Second
	}
	return d
}

// pauseOfFrames returns a silence that is longer than any inside of a frame.
func (l *Line) pauseOfFrames() time.Duration {
	if l.config.Frame != nil {
		return l.config.Frame.Pause()
	}
	return l.protocol.silence
}

func (s *listener) work(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.port.SetReadDeadline(time.Unix(1, 0)) })()
	var buf [4096]byte
	for {
		now := time.Now()
		if err := s.prompt(now); err != nil {
			return err
		}
		if err := s.port.SetReadDeadline(s.wake(now)); err != nil {
			return err
		}
		if ctx.Err() != nil { // before the deadline was set: the port must not wait for it
			return ctx.Err()
		}
		n, err := s.port.Read(buf[:])
		now = time.Now()
		switch {
		case n > 0:
			s.last, s.pending = now, true
			s.ear.feed(ctx, buf[:n], now)
			s.noteWire(ctx)
			time.Sleep(s.gather)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case s.pending && now.Sub(s.last) >= s.pause:
			s.pending = false
			s.ear.silence(ctx, now)
			s.noteWire(ctx)
		}
		s.remind(ctx, now)
	}
}

// prompt asks the talker to speak when it is time.
func (s *listener) prompt(now time.Time) error {
	if len(s.ask.words) == 0 || now.Before(s.ask.next) {
		return nil
	}
	s.ask.next = nextSlot(s.schedule.base, s.ask.every, now)
	if err := s.port.SetWriteDeadline(now.Add(defaultTimeout + time.Second)); err != nil {
		return err
	}
	_, err := s.port.Write(s.ask.words)
	return err
}

// wake returns when there is something to do although no byte has come.
func (s *listener) wake(now time.Time) time.Time {
	at := now.Add(idle)
	sooner := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if s.pending {
		sooner(s.last.Add(s.pause))
	}
	if len(s.ask.words) > 0 {
		sooner(s.ask.next)
	}
	return s.reminder(at)
}

// noteWire makes the counts visible.
func (s *listener) noteWire(ctx context.Context) {
	s.carried(ctx)
	s.count(func() { s.ear.count(&s.wire) })
}

// talk hears talkers: it cuts what they say into frames and decodes them.
type talk struct {
	line     *Line
	cutter   *frame.Cutter
	decoder  decoder
	readings []point.Reading
	now      time.Time // of the bytes that are being cut
}

func (t *talk) feed(ctx context.Context, p []byte, now time.Time) {
	t.now = now
	t.cutter.Feed(p, func(frame []byte) { t.decode(ctx, frame) })
}

func (t *talk) silence(ctx context.Context, now time.Time) {
	t.now = now
	t.cutter.Silence(func(frame []byte) { t.decode(ctx, frame) })
}

func (t *talk) count(w *wire) { w.frames = t.cutter.Stats() }

// decode gives the readings of one frame to the unit that they are of.
func (t *talk) decode(ctx context.Context, frame []byte) {
	name, readings, err := t.decoder.Decode(t.readings[:0], frame)
	t.readings = readings
	u := t.line.talker(name)
	if err != nil {
		t.line.spoilt(ctx, u, name, err, frame)
	} else if u != nil && len(readings) > 0 {
		t.line.tell(ctx, u, readings, t.now)
	}
}

// spoilt counts a frame that could not be decoded; u is nil where nobody knows whose it is.
func (l *Line) spoilt(ctx context.Context, u *unit, name string, err error, frame []byte) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.errors[faultFrame] == 0 {
		l.log.LogAttrs(ctx, slog.LevelWarn, "frame not decoded", slog.String("name", name), slog.Any("err", err))
	}
	l.errors[faultFrame]++
	l.wrong.note(err, frame, now)
	if u != nil {
		u.errors[faultFrame]++
		u.wrong.note(err, frame, now)
	}
}

// talker returns the unit that is called name on the wire. Where no unit is configured, every
// talker is one; nil: nobody asked for this one.
func (l *Line) talker(name string) *unit {
	for _, u := range l.units {
		if matches(u.match, name) {
			return u
		}
	}
	if len(l.config.Units) > 0 || len(l.units) >= maxTalkers {
		return nil
	}
	u := &unit{name: orDefault(name, l.protocol.name), match: name, state: UnitNew, discovers: true, timeout: l.protocol.hush}
	l.count(func() { l.units = append(l.units, u) })
	return u
}

// matches tells whether name is what the pattern says, in which * stands for any characters;
// the empty pattern for any name.
func matches(pattern, name string) bool {
	parts := strings.Split(orDefault(pattern, "*"), "*")
	last := len(parts) - 1
	if last == 0 {
		return pattern == name
	}
	if !strings.HasPrefix(name, parts[0]) || len(name) < len(parts[0])+len(parts[last]) || !strings.HasSuffix(name, parts[last]) {
		return false
	}
	name = name[len(parts[0]) : len(name)-len(parts[last])]
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(name, part)
		if !found {
			return false
		}
		name = after
	}
	return true
}
