package modbus

import (
	"bytes"
	"context"
	"errors"
	"os"
	"time"
)

// ServerConfig says how a server treats its line.
type ServerConfig struct {
	Framing   Framing
	Delimiter byte // ends ASCII frames; 0: LF
	// Timing is that of the line; zero for RTU over TCP, where requests are answered at once.
	Timing Timing
	// Echo tells that the adapter returns what is sent. The server finds out by itself, too, but on a
	// line without Timing.
	Echo bool
}

// ServerStats counts what a server heard and did since it was made.
type ServerStats struct {
	Requests   uint64 `json:"requests"`   // to units of ours, broadcasts included
	Answers    uint64 `json:"answers"`    // sent, exceptions included
	Exceptions uint64 `json:"exceptions"` // among them
	Broadcasts uint64 `json:"broadcasts"`
	Stale      uint64 `json:"stale"`   // requests not executed, because more was heard before t3.5 was over
	Foreign    uint64 `json:"foreign"` // frames to and of other units
	Echoes     uint64 `json:"echoes"`  // own answers heard
	Garbage    uint64 `json:"garbage"` // bytes that belong to no frame
}

// Server answers for one or several units on a line that someone else masters. It is used by one
// goroutine.
type Server struct {
	listener
	port   Port
	try    tryReader
	timing Timing
	units  func(address byte) Unit
	sleep  func(time.Duration)
	stats  ServerStats

	last   time.Time // the last byte on the line, sent or received
	echo   echoState
	own    []byte         // our last answer as sent, while its echo may come; in tx
	repeat bool           // its request was the same bytes
	todo   []byte         // the request to answer once the line was silent; in mine
	mine   [MaxFrame]byte // its RTU form
	burst  []byte         // what was heard since the last silence or answer, up to a frame's size
	answer [MaxFrame]byte // the RTU form of the answer
	tx     [MaxASCIIFrame]byte
}

// NewServer makes a server for the units that units returns, at their addresses; nil: not ours.
func NewServer(p Port, c ServerConfig, units func(address byte) Unit) *Server {
	s := &Server{port: p, timing: c.Timing.of(c.Framing), units: units, burst: make([]byte, 0, MaxFrame)}
	s.framing, s.delimiter = c.Framing, c.Delimiter
	s.try, _ = p.(tryReader)
	s.sleep, _ = sleepFor(c.Timing)
	switch {
	case c.Echo:
		s.echo = echoOn
	case c.Timing.Char == 0:
		s.echo = echoOff
	}
	return s
}

// Serve answers on p until ctx ends or the port fails, whose error it returns.
func Serve(ctx context.Context, p Port, c ServerConfig, units func(address byte) Unit) error {
	return NewServer(p, c, units).Run(ctx)
}

// Stats is what was counted so far, for the goroutine of Run or after its end.
func (s *Server) Stats() ServerStats { return s.stats }

// Run answers until ctx ends or the port fails, whose error it returns.
func (s *Server) Run(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.read()
		switch {
		case n > 0:
			err = s.heard(false)
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err = nil; time.Since(s.last) >= s.gap() {
				err = s.heard(true)
			}
		}
		if err != nil {
			return err
		}
	}
}

// gap is a silence after which nothing continues a frame. USB adapters hold bytes back, so t3.5 alone
// would be too short.
func (s *Server) gap() time.Duration {
	switch {
	case s.own != nil:
		return max(s.timing.T35, 5*minGap)
	case s.framing == ASCII:
		return asciiGap
	case s.timing.Char == 0: // a network may pause
		return patience
	}
	return max(s.timing.T35, 2*minGap)
}

func (s *Server) read() (int, error) {
	now := time.Now()
	until := now.Add(slice)
	if s.pending() > 0 || s.own != nil || len(s.burst) > 0 {
		until = earlier(until, later(s.last.Add(s.gap()), now.Add(time.Millisecond)))
	}
	if err := s.port.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := s.port.Read(s.room())
	s.arrived(n)
	return n, err
}

// arrived takes n bytes that were read into the buffer.
func (s *Server) arrived(n int) {
	if n > 0 {
		s.last = time.Now()
		s.wr += n
		s.burst = append(s.burst, s.rx[s.wr-n : s.wr][:min(n, cap(s.burst)-len(s.burst))]...)
	}
}

// heard takes what was heard off the buffer and answers the request that it ends with.
func (s *Server) heard(silent bool) error {
	for more := true; more; silent = false {
		err := s.sortAll(silent)
		if silent && err == nil {
			s.judgeBurst()
		}
		if err != nil || s.todo == nil || s.pending() > 0 {
			return err
		}
		if more, err = s.hush(); err != nil {
			return err
		}
	}
	return s.reply()
}

// sortAll sorts what can be told apart. Without Timing every request is answered at once.
func (s *Server) sortAll(silent bool) error {
	for s.dropEcho(silent) {
		frame, n, k := s.next(silent)
		if k == undecided {
			break
		}
		s.sort(frame, n, k)
		if s.todo != nil && s.timing.Char == 0 {
			if err := s.reply(); err != nil {
				return err
			}
		}
	}
	return nil
}

// sort notes what a frame is. The request that counts is the last thing heard, but for the odd byte
// that a transmitter makes when it is switched off.
func (s *Server) sort(frame []byte, n int, k kind) {
	if s.todo != nil && (k != noise || n > 2) {
		s.stats.Stale++
		s.todo = nil
	}
	s.expectNothing()
	ours := (k == request || k == unknown) && (frame[0] == 0 || s.units(frame[0]) != nil)
	switch {
	case k == noise || k == spoilt:
		s.stats.Garbage += uint64(n)
	case ours:
		s.todo = append(s.mine[:0], frame...)
	default:
		s.stats.Foreign++
		if r, err := DecodeRequest(frame); k == request && err == nil {
			s.expectAnswer(&r, frame)
		}
	}
}

// judgeBurst takes all that was heard between two silences for a request of ours if it is a sound
// frame of a length that its function does not have: that deserves exception 3.
func (s *Server) judgeBurst() {
	p := s.burst
	s.burst = s.burst[:0]
	if s.framing == RTU && s.todo == nil && sound(p) && s.units(p[0]) != nil &&
		RequestLength(p) > 0 && RequestLength(p) != len(p) && ResponseLength(p) != len(p) {
		s.todo = append(s.mine[:0], p...)
	}
}

// hush waits until the line was silent for t3.5, and tells whether it was not.
func (s *Server) hush() (more bool, err error) {
	for wait := s.timing.T35 - time.Since(s.last); wait > 0; wait = s.timing.T35 - time.Since(s.last) {
		if s.try == nil {
			break
		}
		s.sleep(wait)
	}
	n := 0
	if s.try != nil {
		n, err = s.try.TryRead(s.room())
	} else if s.timing.T35 > 0 {
		if err = s.port.SetReadDeadline(s.last.Add(max(s.timing.T35, time.Millisecond))); err == nil {
			n, err = s.port.Read(s.room())
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
	}
	if n == 0 || err != nil {
		return false, err
	}
	s.arrived(n)
	return true, nil
}

// reply does what the request in todo says, and answers it unless it is for all.
func (s *Server) reply() error {
	frame := s.todo
	s.todo, s.burst = nil, s.burst[:0]
	s.stats.Requests++
	r, err := DecodeRequest(frame)
	if frame[0] == 0 {
		s.stats.Broadcasts++
		if err == nil && r.Function.writes() {
			s.broadcast(r)
		}
		return nil
	}
	answer := Response{Unit: r.Unit, Function: r.Function &^ exceptionBit}
	if err == nil {
		answer = Execute(s.units(r.Unit), r)
	} else if !errors.As(err, &answer.Exception) {
		return nil
	}
	if answer.Exception != 0 {
		s.stats.Exceptions++
	}
	adu := answer.Append(s.answer[:0])
	s.own, s.repeat = append(s.tx[:0], adu...), bytes.Equal(adu, frame)
	if s.framing == ASCII {
		s.own = AppendASCII(s.tx[:0], adu, s.delimiter)
	}
	return s.write()
}

func (s *Server) broadcast(r Request) {
	for address := 1; address <= 247; address++ {
		if u := s.units(byte(address)); u != nil {
			Execute(u, r)
		}
	}
}

func (s *Server) write() error {
	took := s.timing.Chars(len(s.own))
	if err := s.port.SetWriteDeadline(time.Now().Add(took + 2*time.Second)); err != nil {
		return err
	}
	_, err := s.port.Write(s.own)
	s.last = time.Now().Add(took)
	if s.stats.Answers++; s.echo == echoOff {
		s.own = nil
	}
	return err
}

// dropEcho takes our own answer off the buffer if the adapter returns it, and tells whether what is
// there can be looked at. An answer that is the same bytes as its request proves nothing of the
// adapter, since the master may ask again; but only an echo comes at once.
func (s *Server) dropEcho(silent bool) bool {
	if s.own == nil {
		return true
	}
	p := s.rx[s.rd:s.wr]
	n := min(len(p), len(s.own))
	same := bytes.Equal(p[:n], s.own[:n])
	switch {
	case same && n == len(s.own):
		s.rd += n
		s.stats.Echoes++
		if s.own = nil; !s.repeat {
			s.echo = echoOn
		}
		return true
	case same && !silent:
		return false
	}
	s.own = nil
	if s.echo == echoUnknown && !s.repeat {
		s.echo = echoOff
	}
	return true
}
