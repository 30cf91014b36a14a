package hw

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
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
	// silence says that the line was silent for longer than a frame pauses, since bytes came last
	// or since the port was opened.
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
	words  []byte
	every  time.Duration
	next   time.Time
	begins func() // what comes next is the beginning of the answer
}

// hear returns the work of a line that listens to talkers.
func (l *Line) hear(p port.Port) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		cutter, decoder, err := l.protocol.listen(l.config)
		if err != nil {
			return err
		}
		pause := l.pauseOfFrames()
		t := &talk{line: l, cutter: cutter, decoder: decoder}
		cutter.OnFault(func(kind frame.Fault, data []byte) { t.damaged(ctx, kind, data) })
		s := &listener{Line: l, port: p, ear: t, pause: pause, gather: min(gather, pause/5)}
		if l.role == Master {
			s.ask = asking{words: []byte(l.config.Text.Request), every: l.asksEvery(), begins: cutter.Begin}
		}
		return s.work(ctx)
	}
}

// asksEvery is how often a talker is asked to speak.
func (l *Line) asksEvery() time.Duration {
	return cmp.Or(l.config.Text.Every.Std(), defaultEvery)
}

// hush is how long a unit may be silent that says nothing of it; 0: for ever.
func (l *Line) hush() time.Duration {
	switch {
	case l.role == Listen:
		return l.protocol.hush
	case l.role == Master && l.protocol.open == nil && l.config.Text != nil: // it is asked to speak
		return missLimit*l.asksEvery() + l.protocol.silence
	}
	return 0
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
	s.last, s.pending = time.Now(), true
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
			// Until the next multiple of gather, a moment that all lines have in common: one wake-up of
			// the process for all of them costs half as much as one for each.
			time.Sleep(s.gather - time.Duration(time.Now().UnixNano())%s.gather)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case s.pending && now.Sub(s.last) >= s.pause:
			s.pending = false
			s.ear.silence(ctx, now)
			s.count(func() { s.ear.count(&s.wire) })
		}
		s.remind(ctx, now)
	}
}

// prompt asks the talker to speak when it is time.
func (s *listener) prompt(now time.Time) error {
	if len(s.ask.words) == 0 || now.Before(s.ask.next) {
		return nil
	}
	next := nextSlot(s.schedule.base, s.ask.every, now)
	if !s.ask.next.IsZero() {
		s.count(func() { s.missed += uint64(next.Sub(s.ask.next)/s.ask.every) - 1 })
	}
	s.ask.next = next
	if err := s.port.SetWriteDeadline(now.Add(defaultTimeout + time.Second)); err != nil {
		return err
	}
	s.ask.begins()
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
	between := len(t.cutter.Pending()) == 0
	t.cutter.Silence(func(frame []byte) { t.decode(ctx, frame) })
	if between { // what comes next is a beginning, and not the rest of what was cut off
		t.cutter.Begin()
	}
}

func (t *talk) count(w *wire) { w.frames = t.cutter.Stats() }

// decode gives the readings of one frame to the unit that they are of.
func (t *talk) decode(ctx context.Context, frame []byte) {
	name, readings, err := t.decoder.Decode(t.readings[:0], frame)
	t.readings = readings
	if err != nil {
		t.line.spoilt(ctx, t.line.known(name), name, faultFrame, err, frame, t.now)
		return
	}
	if len(readings) == 0 {
		return
	}
	if u := t.line.talker(name); u != nil {
		t.line.tell(ctx, u, readings, t.now)
	}
}

// damaged counts bytes that became no frame. The bytes outside of any are not worth a word.
func (t *talk) damaged(ctx context.Context, kind frame.Fault, data []byte) {
	fault := faultFrame
	if kind == frame.Checksum {
		fault = faultCRC
	}
	t.line.spoilt(ctx, nil, "", fault, faultErrors[kind], data, t.now)
}

var faultErrors = map[frame.Fault]error{
	frame.Checksum:  frame.ErrChecksum,
	frame.Malformed: errors.New("a frame against the rules of its protocol"),
	frame.Oversize:  errors.New("a frame that does not end"),
	frame.Cutoff:    errors.New("a frame that was cut off"),
}

// spoilt counts a frame that could not be decoded; u is nil where nobody knows whose it is.
func (l *Line) spoilt(ctx context.Context, u *unit, name string, kind fault, err error, frame []byte, now time.Time) {
	if u == nil && len(l.units) == 1 && !l.protocol.registers && (len(l.config.Units) == 0 || l.config.Units[0].Match == "") {
		u = l.units[0] // who else?
	}
	first := false
	l.count(func() {
		first = l.errors[kind] == 0
		l.errors[kind]++
		l.wrong.note(err, frame, now)
		if u != nil {
			u.errors[kind]++
			u.wrong.note(err, frame, now)
		}
	})
	if first {
		l.log.LogAttrs(ctx, slog.LevelWarn, "frame not decoded", slog.String("name", name), slog.Any("err", err))
	}
}

// known returns the unit that is called name on the wire; nil where there is none.
func (l *Line) known(name string) *unit {
	for _, u := range l.units {
		if l.calls(u, name) {
			return u
		}
	}
	return nil
}

// calls tells whether u is called name on the wire.
func (l *Line) calls(u *unit, name string) bool {
	if len(l.config.Units) == 0 { // the name is what the unit was found by
		return u.match == name
	}
	return matches(u.match, name)
}

// talker returns the unit that is called name on the wire; nil: nobody asked for this one. Where no
// unit is configured, every talker is one.
func (l *Line) talker(name string) *unit {
	u := l.known(name)
	if u != nil || len(l.config.Units) > 0 || len(l.units) >= maxTalkers || len(name) > maxName {
		return u
	}
	u = &unit{line: l.config.Name, name: orDefault(name, l.protocol.name), match: name, state: UnitNew, round: 1, discovers: true, timeout: l.hush()}
	l.count(func() { l.units = append(l.units, u) })
	return u
}
