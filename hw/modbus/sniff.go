package modbus

import (
	"context"
	"errors"
	"os"
	"time"
)

// Transaction is a request that was heard on a line, and its answer. Data of both is good until the
// function it was given to returns.
type Transaction struct {
	Time     time.Time // the end of the request, as near as the arrival of bytes tells
	Request  Request
	Answered bool
	Response Response      // the zero value if not Answered; of a broadcast always
	Took     time.Duration // from the end of the request to the end of its answer
}

// SnifferStats counts what a sniffer heard since it was made.
type SnifferStats struct {
	Requests   uint64 `json:"requests"`
	Answered   uint64 `json:"answered"`   // requests with an answer that is certainly theirs
	Unanswered uint64 `json:"unanswered"` // requests without, broadcasts aside
	Broadcasts uint64 `json:"broadcasts"`
	Exceptions uint64 `json:"exceptions"` // among the answers
	Late       uint64 `json:"late"`       // answers that may be those to an earlier request: not taken
	Strays     uint64 `json:"strays"`     // answers to nothing that was heard
	Spoilt     uint64 `json:"spoilt"`     // answers that were due, but for their checksum
	Malformed  uint64 `json:"malformed"`  // sound requests that the protocol cannot carry
	Unknown    uint64 `json:"unknown"`    // sound frames of functions that are not known
	Garbage    uint64 `json:"garbage"`    // bytes that belong to no frame
}

// SnifferConfig says what line is listened to.
type SnifferConfig struct {
	Framing   Framing
	Delimiter byte // ends ASCII frames; 0: LF
	Timing    Timing
	// Timeout is how long the master of the line waits for an answer, about; 0: one second.
	Timeout time.Duration
	// Spoilt is called with an answer that was due, but for its checksum, in its RTU form; it is good
	// until Spoilt returns.
	Spoilt func(unit byte, frame []byte)
}

// Sniffer pairs the requests and answers on a line that someone else masters. It sends nothing, knows
// no port and no clock, and its memory is bounded. An answer is taken for that of the request before it
// only if it cannot be that of an earlier one: a unit answers in order, so it is certain once the unit
// has nothing alike to answer still, or was silent for ten seconds.
type Sniffer struct {
	listener
	timing  Timing
	timeout time.Duration
	out     func(Transaction)
	spoilt  func(unit byte, frame []byte)
	stats   SnifferStats
	units   [256]*unit
	late    [256][6]byte // digest of the last answer of each unit that came late
	taken   [256][6]byte // and of the last that was taken,
	takenTo [256][6]byte // with that of its request
	asked   [6]byte      // digest of the current request
	hasty   int          // answers that were heard sooner after their request than the line can carry them

	waiting bool // a request waits for its answer
	request Request
	ended   time.Time // when the request did
	last    time.Time // when the last bytes came
	data    [MaxFrame]byte
}

// NewSniffer gives what it pairs to out.
func NewSniffer(c SnifferConfig, out func(Transaction)) *Sniffer {
	s := &Sniffer{timing: c.Timing.of(c.Framing), timeout: c.Timeout, out: out, spoilt: c.Spoilt}
	s.framing, s.delimiter = c.Framing, c.Delimiter
	if s.timeout <= 0 {
		s.timeout = time.Second
	}
	return s
}

// Stats is what was counted so far.
func (s *Sniffer) Stats() SnifferStats { return s.stats }

// Feed takes bytes that arrived at a time, the last of them then. After the last bytes came a
// silence of a frame's length at least, Silence is due.
func (s *Sniffer) Feed(p []byte, at time.Time) {
	if s.rd == s.wr {
		s.expire(at.Add(-s.timing.Chars(len(p))))
	}
	s.last = at
	for len(p) > 0 {
		n := copy(s.room(), p)
		s.wr += n
		p = p[n:]
		s.take(false)
	}
}

// Silence says that the line has been silent until now for longer than a frame can pause.
func (s *Sniffer) Silence(now time.Time) {
	s.take(true)
	s.expire(now)
}

// expire gives up the answer to a request that is too long ago. The answers that are the same bytes
// as their request could also be the request once more, so they have less time.
func (s *Sniffer) expire(now time.Time) {
	limit := s.timeout
	if s.waiting && repeats(s.request.Function) {
		limit = min(limit, max(4*s.unit(s.request.Unit).response, 100*time.Millisecond))
	}
	if s.waiting && now.Sub(s.ended) > limit {
		s.giveUp(true)
	}
}

func (s *Sniffer) unit(address byte) *unit {
	if s.units[address] == nil {
		s.units[address] = new(unit)
	}
	return s.units[address]
}

// take takes what was heard off the buffer, as far as it can be told apart.
func (s *Sniffer) take(silent bool) {
	for {
		frame, n, k := s.next(silent)
		switch k {
		case undecided:
			return
		case noise:
			s.stats.Garbage += uint64(n)
		case request:
			s.hearRequest(frame)
		case reply:
			s.hearReply(frame)
		case stray:
			s.hearStray(frame)
		case unknown: // of a request or of an answer
			s.stats.Unknown++
			s.giveUp(true)
		case spoilt:
			s.stats.Spoilt++
			s.stats.Garbage += uint64(n)
			if s.spoilt != nil {
				s.spoilt(s.request.Unit, frame)
			}
			s.giveUp(false)
		}
	}
}

// giveUp ends the wait for an answer. owed tells whether it may still come.
func (s *Sniffer) giveUp(owed bool) {
	if !s.waiting {
		return
	}
	if u := s.unit(s.request.Unit); owed {
		d := s.expect.debt
		d.sent = s.ended
		if !u.debts.room(&d) {
			u.debts.drop(1)
		}
		u.debts.add(d)
	}
	s.stats.Unanswered++
	s.finish(Transaction{Time: s.ended, Request: s.request})
}

// finish hands out a transaction, after which no answer is due.
func (s *Sniffer) finish(t Transaction) {
	s.waiting = false
	s.expectNothing()
	s.out(t)
}

func (s *Sniffer) hearRequest(frame []byte) {
	s.giveUp(true)
	r, err := DecodeRequest(append(s.data[:0], frame...))
	switch {
	case err != nil:
		s.stats.Malformed++
	case r.Unit == 0:
		s.stats.Requests++
		s.stats.Broadcasts++
		s.out(Transaction{Time: s.last, Request: r})
	default:
		s.stats.Requests++
		s.waiting, s.request, s.ended, s.asked = true, r, s.last, digest(frame)
		s.expectAnswer(&r, frame)
		s.unit(r.Unit).debts.expire(s.last.Add(-writeOff))
	}
}

func (s *Sniffer) hearReply(frame []byte) {
	u := s.unit(frame[0])
	took := max(s.last.Sub(s.ended), 0)
	if s.isLate(u, frame) {
		return
	}
	soon := took < s.timing.T35+s.timing.Chars(s.framing.onWire(len(frame)))
	if soon && s.isCopy(frame) {
		s.stats.Late++
		return
	}
	answer, err := DecodeResponse(s.request, frame)
	if err != nil { // the records of function 20 are others than those asked for
		s.stats.Strays++
		s.giveUp(false)
		return
	}
	u.debts.n = 0
	s.late[frame[0]], s.taken[frame[0]], s.takenTo[frame[0]] = [6]byte{}, digest(frame), s.asked
	if soon {
		s.hasty++
	}
	u.learn(took - s.timing.Chars(s.framing.onWire(len(frame))))
	s.stats.Answered++
	if answer.Exception != 0 {
		s.stats.Exceptions++
	}
	s.finish(Transaction{Time: s.ended, Request: s.request, Answered: true, Response: answer, Took: took})
}

// isCopy tells whether an answer that the unit cannot have sent yet is the one before once more. To the
// same request it says the same, copy or not. And where a port hands on request and answer together,
// which a few answers show, their times tell nothing.
func (s *Sniffer) isCopy(frame []byte) bool {
	return digest(frame) == s.taken[frame[0]] && s.asked != s.takenTo[frame[0]] && s.hasty < maxAlone
}

func (s *Sniffer) hearStray(frame []byte) {
	if u := s.units[frame[0]]; u == nil || !s.isLate(u, frame) {
		s.stats.Strays++
	}
}

// isLate settles what u owed with an answer, if it owed any such. One that is the same bytes as the
// last late one may be that once more.
func (s *Sniffer) isLate(u *unit, frame []byte) bool {
	u.debts.heard = s.last
	if id := digest(frame); s.late[frame[0]] != id {
		if !u.debts.settle(frame) {
			return false
		}
		s.late[frame[0]] = id
	}
	s.stats.Late++
	return true
}

// Sniff listens on p until ctx ends or the port fails, whose error it returns, and calls out with
// what it pairs. It writes nothing.
func Sniff(ctx context.Context, p Port, c SnifferConfig, out func(Transaction)) error {
	s := NewSniffer(c, out)
	return s.Run(ctx, p)
}

// Run feeds the sniffer from a port until ctx ends or the port fails.
func (s *Sniffer) Run(ctx context.Context, p Port) error {
	gap := max(s.timing.T35, minGap)
	if s.framing == ASCII {
		gap = asciiGap
	}
	var buf [MaxFrame]byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		wait := slice
		if s.pending() > 0 {
			wait = min(gap, slice)
		}
		if err := p.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		n, err := p.Read(buf[:])
		now := time.Now()
		switch {
		case n > 0:
			s.Feed(buf[:n], now)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case now.Sub(s.last) >= gap:
			s.Silence(now)
		}
	}
}
