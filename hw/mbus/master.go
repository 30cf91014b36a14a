package mbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Port is what the master needs of a serial port. A Read returns at least one byte or an error; past
// its deadline Read and Write fail with os.ErrDeadlineExceeded.
type Port interface {
	io.ReadWriter
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// tryReader is a Port that can say what has arrived without waiting: (0, nil) if nothing has.
type tryReader interface {
	TryRead(p []byte) (int, error)
}

// Config says how a master treats its line.
type Config struct {
	// Baud is the speed of the line in bits per second; 0: 2400.
	Baud int
	// Timeout is the longest wait for the first byte of an answer, from the last byte of the request;
	// 0: 330 bit times and 50 ms, which EN 13757-2, 5.5.4 grants a unit. Level converters behind a
	// network need more.
	Timeout time.Duration
	// Gap is the longest pause inside of a frame; 0: what a UART that hands on sixteen bytes at a time
	// takes for them, and 50 ms.
	Gap time.Duration
	// Telegrams is how many telegrams a unit may have for one read-out; 0: 16.
	Telegrams int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Stats counts what a master saw since it was made.
type Stats struct {
	Requests  uint64 `json:"requests"`  // frames sent
	Responses uint64 `json:"responses"` // telegrams and acknowledgements accepted
	Timeouts  uint64 `json:"timeouts"`  // requests after which nothing was heard
	Checksum  uint64 `json:"checksum"`  // frames with a wrong checksum
	Garbage   uint64 `json:"garbage"`   // bytes that belong to no frame
	Foreign   uint64 `json:"foreign"`   // sound frames of other units and masters
	Late      uint64 `json:"late"`      // sound answers to something asked before
	Echoes    uint64 `json:"echoes"`    // own requests heard
	Drained   uint64 `json:"drained"`   // bytes that came when nothing was asked
}

const (
	charBits = 11 // a start bit, eight of data, even parity, a stop bit
	// slice is the longest wait that does not look at the context.
	slice = 200 * time.Millisecond
	// repeatWindow is how long after a lost answer the unit is asked to repeat it. Later the repeated
	// telegram would be an old one.
	repeatWindow = 2 * time.Second
	// writeOff is how long after its request an answer may come.
	writeOff = 10 * time.Second
	// maxLate is how many late answers are waited for.
	maxLate = 3
)

// Master asks the units of one line. It is owned by one goroutine, starts none, and allocates nothing
// while units answer. It sends each request once: who calls it decides how often to try.
type Master struct {
	port Port
	try  tryReader // nil: port has none
	cfg  Config
	bit  time.Duration
	now  func() time.Time

	units    map[Address]*unit
	selected Address // by secondary addressing; the zero Address: none that is known of
	chosen   bool    // selected holds
	stats    Stats

	ackLost   bool // an acknowledgement may be under way
	ackLostAt time.Time

	last   time.Time // the last byte on the line, sent or received
	failed bool      // the last request went wrong

	tx     []byte
	rx     [2 * MaxFrame]byte
	rd, wr int
	heard  []byte // since the request, for whoever wants to see what came instead of an answer
	fault  error

	held      []byte // an answer, while another may come
	store     []byte // the telegrams of one read-out, back to back
	ends      []int
	telegrams [][]byte
}

// unit is what the master remembers of a unit.
type unit struct {
	fcb    bool // the frame count bit of the next request
	ready  bool // the unit knows fcb, and its next telegram is the first
	deaf   bool // it acknowledged no reset
	lost   bool // the answer to the last request; fcb still asks for it
	lostAt time.Time
	last   []byte
	owed   int // requests without an answer: what comes may answer them
}

// NewMaster is the master of the line behind p.
func NewMaster(p Port, c Config) *Master {
	m := &Master{port: p, cfg: c, now: c.Now, units: make(map[Address]*unit)}
	m.try, _ = p.(tryReader)
	if m.now == nil {
		m.now = time.Now
	}
	if m.cfg.Telegrams <= 0 {
		m.cfg.Telegrams = 16
	}
	m.SetBaud(c.Baud)
	return m
}

// SetBaud says that the line now runs at this speed; 0: 2400.
func (m *Master) SetBaud(baud int) {
	if baud <= 0 {
		baud = 2400
	}
	m.bit = time.Second / time.Duration(baud)
}

// SetTimeout changes the Timeout of the configuration, from the next request on.
func (m *Master) SetTimeout(d time.Duration) { m.cfg.Timeout = d }

// Stats is what was counted so far.
func (m *Master) Stats() Stats { return m.stats }

func (m *Master) timeout() time.Duration {
	if m.cfg.Timeout > 0 {
		return m.cfg.Timeout
	}
	return 330*m.bit + 50*time.Millisecond
}

func (m *Master) gap() time.Duration {
	if m.cfg.Gap > 0 {
		return m.cfg.Gap
	}
	return m.chars(16) + 50*time.Millisecond
}

func (m *Master) chars(n int) time.Duration { return time.Duration(n*charBits) * m.bit }

// Read asks unit a for its readings and returns the telegrams of one read-out, whole frames, good
// until the next call. Errors: ErrTimeout, ErrChecksum, ErrGarbage, ErrMismatch, ErrTooLong, the
// context's and the port's; what was heard comes in a *FrameError.
//
// The unit's link is reset, or the unit selected, before its first read-out, and again whenever it is
// not certain that its next telegram is the first. When an answer was lost, the next Read, if it
// comes soon, has the unit repeat it.
func (m *Master) Read(ctx context.Context, a Address) ([][]byte, error) {
	telegrams, err := m.read(ctx, a, m.unit(a))
	if err != nil {
		return nil, fmt.Errorf("reading unit %s: %w", a, err)
	}
	return telegrams, nil
}

func (m *Master) unit(a Address) *unit {
	u := m.units[a]
	if u == nil {
		u = &unit{}
		m.units[a] = u
	}
	return u
}

func (m *Master) read(ctx context.Context, a Address, u *unit) ([][]byte, error) {
	reachable := !a.secondary || m.chosen && m.selected == a
	repeat := u.lost && reachable && m.now().Sub(u.lostAt) <= repeatWindow
	u.lost = false
	if m.now().Sub(u.lostAt) > writeOff {
		u.owed = 0
	}
	if !repeat && (!u.ready || !reachable) {
		if err := m.prepare(ctx, a, u); err != nil {
			return nil, err
		}
	}
	u.ready = false
	m.store, m.ends = m.store[:0], m.ends[:0]
	for n := range m.cfg.Telegrams {
		frame, err := m.request(ctx, a, u, repeat && n == 0)
		if err != nil {
			u.lost, u.lostAt = n == 0 && !repeat, m.now()
			u.deaf = u.deaf && u.lost
			m.chosen = m.chosen && u.lost
			return nil, err
		}
		m.keep(frame)
		if !More(frame) {
			u.ready = n == 0 && u.owed == 0
			return m.kept(), nil
		}
	}
	return nil, ErrTooLong
}

// prepare makes the unit's next telegram the first of a read-out, asked for with FCB set. Since a unit
// answers in order, nothing that it owed can come after its acknowledgement.
func (m *Master) prepare(ctx context.Context, a Address, u *unit) (err error) {
	u.fcb = true
	switch {
	case a.secondary:
		err = m.choose(ctx, a)
	case u.deaf && u.owed == 0: // some meters do not know SND_NKE
		return nil
	default:
		err = m.reset(ctx, a.primary)
		u.deaf = errors.Is(err, ErrTimeout) && u.owed == 0
	}
	if err == nil {
		u.owed = 0
	}
	return err
}

func (m *Master) keep(frame []byte) {
	m.store = append(m.store, frame...)
	m.ends = append(m.ends, len(m.store))
}

func (m *Master) kept() [][]byte {
	m.telegrams = m.telegrams[:0]
	start := 0
	for _, end := range m.ends {
		m.telegrams = append(m.telegrams, m.store[start:end:end])
		start = end
	}
	return m.telegrams
}

// request asks for one telegram. The frame count bit changes only when it has come.
func (m *Master) request(ctx context.Context, a Address, u *unit, repeat bool) ([]byte, error) {
	c := ReqUD2
	if u.fcb {
		c |= fcb
	}
	w := wanted{a: a, to: a.primary}
	if len(m.ends) > 0 { // a unit that missed the toggled bit repeats its telegram
		w.previous = u.last
	}
	if a.secondary {
		w.to = networkAddress
	}
	m.tx = AppendShort(m.tx[:0], c, w.to)
	frame, err := m.exchange(ctx, &w)
	// The answer to a repeated request is that to the request before, whichever comes. Else what came
	// before may have come again, with the present answer behind it; or the unit does not count its answers.
	if err == nil && !repeat && bytes.Equal(frame, u.last) {
		frame, err = m.newest(ctx, &w, frame)
	}
	switch {
	case err == nil:
		u.fcb = !u.fcb
		u.last = append(u.last[:0], frame...)
	case heard(err):
		u.owed, u.lostAt = u.owed+1, m.now()
	}
	return frame, err
}

// newest returns the last of the answers that come, frame being the first: nothing in a telegram says
// which request it answers, but a unit answers in order.
func (m *Master) newest(ctx context.Context, w *wanted, frame []byte) ([]byte, error) {
	for range maxLate {
		m.held = append(m.held[:0], frame...)
		later, err := m.receive(ctx, w)
		if err != nil || later == nil {
			return m.held, err
		}
		m.stats.Late++
		frame = later
	}
	return frame, nil
}

// Reset resets the link of the unit with primary address a (SND_NKE). It is how one asks whether a unit
// is there.
func (m *Master) Reset(ctx context.Context, a byte) error {
	u := m.unit(Primary(a))
	*u = unit{fcb: true, last: u.last, owed: u.owed, lostAt: u.lostAt}
	if err := m.reset(ctx, a); err != nil {
		return fmt.Errorf("resetting unit %d: %w", a, err)
	}
	u.ready = true
	return nil
}

func (m *Master) reset(ctx context.Context, a byte) error {
	m.tx = AppendShort(m.tx[:0], SndNKE, a)
	return m.acknowledged(ctx)
}

// acknowledged sends tx and waits for E5. That byte says nothing of where it comes from: after one that
// did not come, all that may still come is waited for.
func (m *Master) acknowledged(ctx context.Context) error {
	w := wanted{ack: true}
	_, err := m.exchange(ctx, &w)
	if err != nil {
		m.ackLost, m.ackLostAt = true, m.now()
		return err
	}
	if m.ackLost && m.now().Sub(m.ackLostAt) < writeOff {
		_, err = m.newest(ctx, &w, nil)
	}
	m.ackLost = false
	return err
}

// Select has all units with secondary address a, which may leave parts open, answer at address 253
// until others are selected (EN 13757-7, 8.4). One acknowledgement may come from several.
func (m *Master) Select(ctx context.Context, a Address) error {
	if !a.secondary {
		return fmt.Errorf("selecting unit %s: %w: it is no secondary address", a, ErrFormat)
	}
	if err := m.choose(ctx, a); err != nil {
		return fmt.Errorf("selecting unit %s: %w", a, err)
	}
	return nil
}

func (m *Master) choose(ctx context.Context, a Address) (err error) {
	m.chosen = false
	if m.tx, err = AppendLong(m.tx[:0], SndUD, networkAddress, ciSelect, a.mask[:]); err != nil {
		return err
	}
	if err = m.acknowledged(ctx); err != nil {
		return err
	}
	m.selected, m.chosen = a, true
	return nil
}

// Deselect ends the selection. That nobody acknowledges it is no error: nobody may be selected.
func (m *Master) Deselect(ctx context.Context) error {
	m.chosen = false
	if err := m.reset(ctx, networkAddress); err != nil && !errors.Is(err, ErrTimeout) {
		return fmt.Errorf("deselecting: %w", err)
	}
	return nil
}

// ApplicationReset resets the application of unit a, which makes its next telegram the first (EN
// 13757-7, 8.3). sub, if there is one, selects what the unit is to send.
func (m *Master) ApplicationReset(ctx context.Context, a Address, sub ...byte) (err error) {
	u, to := m.unit(a), a.primary
	if a.secondary {
		to = networkAddress
		if !m.chosen || m.selected != a {
			err = m.choose(ctx, a)
		}
	}
	if err == nil {
		*u = unit{last: u.last, owed: u.owed, lostAt: u.lostAt}
		if m.tx, err = AppendLong(m.tx[:0], SndUD, to, ciReset, sub); err == nil {
			err = m.acknowledged(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("resetting the application of unit %s: %w", a, err)
	}
	return nil
}

// wanted is what answers the request in tx.
type wanted struct {
	ack      bool // an acknowledgement; else a telegram
	a        Address
	to       byte
	previous []byte // the telegram before, which is no answer
}

// judge says whether a sound frame is the answer, or why it is none; "nil, false" where that is of no
// matter, as with the echo.
func (m *Master) judge(w *wanted, raw []byte) (fault error, accepted bool) {
	f := parse(raw)
	switch {
	case f.Kind == Ack:
		if w.ack && (m.fault == ErrTimeout || m.fault == ErrMismatch) {
			return nil, true
		}
		if w.ack { // among noise, one byte says nothing
			return ErrGarbage, false
		}
		m.stats.Late++
		return ErrMismatch, false
	case f.C&primary != 0:
		if bytes.Equal(raw, m.tx) {
			m.stats.Echoes++
		} else {
			m.stats.Foreign++
		}
		return nil, false
	case f.Kind != Long || f.C&answer != RspUD || w.ack || bytes.Equal(raw, w.previous):
		m.stats.Late++
		return ErrMismatch, false
	case w.to != networkAddress && w.to != testAddress && f.A != w.to:
		m.stats.Foreign++
		return ErrMismatch, false
	}
	if w.a.secondary { // the answer shows the unit's primary address, which tells nothing
		h, _, err := parseHeader(&f)
		if (err == nil || errors.Is(err, ErrEncrypted)) && !w.a.Matches(&h) {
			m.stats.Foreign++
			return ErrMismatch, false
		}
	}
	return nil, true
}
