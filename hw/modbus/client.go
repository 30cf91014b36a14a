package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Port is what the client needs of a serial port. A Read returns at least one byte or an error;
// past its deadline Read and Write fail with os.ErrDeadlineExceeded.
//
// A port that also has TryRead(p []byte) (int, error), which returns what has arrived without
// waiting (0, nil if nothing has), is spared timers between two polls.
type Port interface {
	io.ReadWriter
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

type tryReader interface {
	TryRead(p []byte) (int, error)
}

// ClientConfig says how a client treats its line.
type ClientConfig struct {
	Framing Framing
	// Delimiter ends ASCII frames; 0: LF.
	Delimiter byte
	// Timing is that of the line; zero for RTU over TCP.
	Timing Timing
	// Timeout is the longest wait for the first byte of an answer, from the last byte of the request.
	Timeout time.Duration
	// Turnaround is the silence after a broadcast, in which the units do what it says; 0: 100 ms, the
	// least that V1.02, 2.4.1 recommends.
	Turnaround time.Duration
	// Echo tells that the adapter returns what is sent. The client finds out by itself too.
	Echo bool
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Sleep waits; nil: time.Sleep, or on fast lines a more exact wait.
	Sleep func(time.Duration)
}

// Stats counts what a client saw since it was made.
type Stats struct {
	Requests   uint64        `json:"requests"`   // sent, barriers included
	Responses  uint64        `json:"responses"`  // accepted, exceptions included
	Exceptions uint64        `json:"exceptions"` // refusals among them
	Timeouts   uint64        `json:"timeouts"`
	CRCErrors  uint64        `json:"crc_errors"` // frames that looked like the answer but for the checksum
	Mismatches uint64        `json:"mismatches"` // sound frames of the unit that answer nothing it was asked
	Foreign    uint64        `json:"foreign"`    // sound frames of other units and masters
	Late       uint64        `json:"late"`       // sound answers dropped because their request was over
	Barriers   uint64        `json:"barriers"`   // requests sent only to learn that no late answer is under way
	Echoes     uint64        `json:"echoes"`     // own requests heard
	Garbage    uint64        `json:"garbage"`    // bytes that belong to no frame
	WireTime   time.Duration `json:"wire_time"`  // the line was busy with our requests and their answers
}

const (
	// writeOff is the age, from its sending, at which a request that neither an answer nor a
	// barrier settled counts as lost, if the unit sent nothing meanwhile.
	writeOff = 10 * time.Second
	// patience is how long a barrier is waited for before another is sent.
	patience = time.Second
	// maxDrain bounds the silence waited for after a failure.
	maxDrain = 250 * time.Millisecond
	// slice is the longest wait that does not look at the context.
	slice = 200 * time.Millisecond
	// nap is the longest wait before a request that does not look at the context.
	nap = 20 * time.Millisecond
	// maxSpin bounds what is not slept through: on a fast line a wake-up that comes late by as much
	// costs a per cent of it.
	maxSpin = 100 * time.Microsecond
	// turnaround is the silence after a broadcast.
	turnaround = 100 * time.Millisecond
	// minGap is the shortest silence inside of a frame that makes its head doubtful: USB adapters
	// hold bytes back.
	minGap = 10 * time.Millisecond
)

// Client is the master of one line. It is owned by one goroutine, starts none, and allocates
// nothing while units answer. It keeps the silence of t3.5 before each request, from the last byte
// sent or received.
type Client struct {
	port      Port
	try       tryReader // nil: port has none
	framing   Framing
	delimiter byte
	timing    Timing
	now       func() time.Time
	sleep     func(time.Duration)
	slack     time.Duration // how much too long sleep may take
	spin      time.Duration // the end of a silence that is not slept through, on fast lines

	sleepsItself bool // sleep is none of the configuration's

	timeout    time.Duration
	turnaround time.Duration
	echo       echoState
	units      [256]*unit
	stats      Stats

	last            time.Time     // the last byte on the line, sent or received
	quiet           time.Duration // silence wanted before the next request, if more than t3.5
	readBy, writeBy time.Time     // the deadlines that the port has

	tx     [MaxFrame]byte
	sent   []byte // the current request as an RTU frame, in tx
	heard  bool   // its echo
	fault  error  // why there is no answer, so far
	data   [2 * MaxWriteRegisters]byte
	rx     [4 * MaxASCIIFrame]byte
	rd, wr int       // what is unread of rx
	before int       // rx before it had arrived when the request was not out yet
	out    time.Time // when the request is out, at the earliest
	seen   time.Time // when bytes were read last
	pacing pacing

	wasLate bool                // the current request has had its read after the deadline
	line    [MaxASCIIFrame]byte // the current request in ASCII
	frame   [MaxFrame]byte      // the RTU form of an ASCII frame received
	bad     []byte              // the frame that fault is about
	taken   taken               // the answer that is not certain yet
}

// unit is what the client remembers of a unit.
type unit struct {
	debts    debts
	response time.Duration // how long it takes to answer: grows at once, shrinks slowly
	soonest  time.Duration // the same by its quick answers: shrinks at once, grows slowly
	steady   bool          // its last answer was a good one
	rest     time.Duration // silence wanted before it is addressed

	overslept bool // the current answer was there when the client woke up for its end
}

// NewClient is the master of the line behind p.
func NewClient(p Port, c ClientConfig) *Client {
	m := &Client{
		framing: c.Framing, delimiter: c.Delimiter, timing: c.Timing.of(c.Framing),
		timeout: c.Timeout, turnaround: c.Turnaround, now: c.Now, sleep: c.Sleep,
	}
	m.Resume(p)
	if c.Echo {
		m.echo = echoOn
	}
	if m.turnaround <= 0 {
		m.turnaround = turnaround
	}
	if m.timeout <= 0 {
		m.timeout = time.Second
	}
	if m.now == nil {
		m.now = time.Now
	}
	m.sleepsItself = m.sleep == nil
	m.SetTiming(c.Timing)
	return m
}

// Resume goes on with another port, as when the old one was unplugged and is back. What the units
// owe stays: an adapter or a gateway in between may still hold their answers.
func (c *Client) Resume(p Port) {
	c.port = p
	c.try, _ = p.(tryReader)
	c.rd, c.wr = 0, 0
	c.pacing = pacing{}
	c.readBy, c.writeBy = time.Time{}, time.Time{}
}

// SetTurnaround says how long the line is to be silent before the unit is addressed, as some units
// want it; t3.5 is kept anyway.
func (c *Client) SetTurnaround(unit byte, d time.Duration) { c.unit(unit).rest = max(d, 0) }

// Response is how long the unit takes to answer, from the last byte of a request to the first of
// its answer, as far as is known: it grows at once and shrinks slowly. 0: not known.
func (c *Client) Response(unit byte) time.Duration {
	if c.units[unit] == nil {
		return 0
	}
	return c.units[unit].response
}

func (c *Client) unit(address byte) *unit {
	if c.units[address] == nil {
		c.units[address] = new(unit)
	}
	return c.units[address]
}

// SetTimeout changes the Timeout of the configuration, from the next request on.
func (c *Client) SetTimeout(d time.Duration) {
	if d > 0 {
		c.timeout = d
	}
}

// Stats is what was counted so far.
func (c *Client) Stats() Stats { return c.stats }

// do has r answered and returns the sound frame of the answer, or why there is none. A broadcast has
// no answer, and no frame.
func (c *Client) do(ctx context.Context, r *Request) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	u, d := c.unit(r.Unit), debtOf(r)
	if err := c.hush(ctx, u.rest); err != nil {
		return nil, err
	}
	if r.Unit == 0 {
		return nil, c.broadcast(ctx, r)
	}
	if c.echo == echoUnknown && repeats(r.Function) {
		if err := c.learnEcho(ctx, u, r); err != nil {
			return nil, err
		}
	}
	u.debts.expire(c.now().Add(-writeOff))
	if u.debts.blocks(&d) {
		if err := c.barrier(ctx, u, r, &d); err != nil {
			return nil, err
		}
	}
	frame, err := c.transact(ctx, u, r, &d, debt{})
	if err == nil {
		frame, err = c.confirm(ctx, u, &d, frame)
	}
	if err != nil {
		return nil, err
	}
	if u.steady = Function(frame[1])&exceptionBit == 0; !u.steady {
		c.stats.Exceptions++
		return nil, Exception(frame[2])
	}
	return frame, nil
}

// transact sends r and waits for its answer, or, if awaiting is not zero, until u owes
// nothing any more that looks like awaiting. The line must have been silent for t3.5.
func (c *Client) transact(ctx context.Context, u *unit, r *Request, d *debt, awaiting debt) ([]byte, error) {
	if !u.debts.room(d) {
		c.stats.Timeouts++
		return nil, fmt.Errorf("unit owes too many answers: %w", ErrTimeout)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	begin := c.now()
	if err := c.send(r, begin); err != nil {
		return nil, err
	}
	d.sent = c.last
	frame, err := c.receive(ctx, u, d, awaiting)
	c.stats.WireTime += c.last.Sub(begin)
	c.judgeEcho(r.Function, err == nil)
	switch {
	case err == nil:
		c.quiet = 0
		u.debts.n = 0 // it answers in order: what was asked before is over
		u.learn(c.last.Sub(d.sent) - c.chars(len(frame)))
		c.stats.Responses++
		return frame, nil
	case errors.Is(err, ErrTimeout) && (awaiting == debt{} || u.debts.blocks(&awaiting)):
		c.stats.Timeouts++
	}
	u.steady = false
	u.debts.add(*d)
	c.quiet = c.drain(u)
	return nil, err
}

// broadcast sends r to all units and gives them the turnaround delay (V1.02, 2.4.1).
func (c *Client) broadcast(ctx context.Context, r *Request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	begin := c.now()
	if err := c.send(r, begin); err != nil {
		return err
	}
	c.stats.WireTime += c.last.Sub(begin)
	none := debt{sent: c.last} // that no frame settles
	w := wait{Client: c, deadline: c.last.Add(c.turnaround)}
	w.limit, w.gap = w.deadline, c.turnaround
	_, err := w.receive(ctx, &none)
	c.judgeEcho(r.Function, false)
	if errors.Is(err, ErrTimeout) {
		return nil
	}
	return err
}

// chars is how long an RTU frame of n bytes lasts on the line, in its framing.
func (c *Client) chars(n int) time.Duration { return c.timing.Chars(c.framing.onWire(n)) }

func (c *Client) send(r *Request, now time.Time) error {
	c.sent, c.heard, c.fault, c.bad = r.Append(c.tx[:0]), false, ErrTimeout, nil
	c.rd, c.wr, c.before, c.pacing.kept, c.wasLate = 0, 0, 0, 0, false
	bytes := c.sent
	if c.framing == ASCII {
		bytes = AppendASCII(c.line[:0], c.sent, c.delimiter)
	}
	need := c.timing.Chars(len(bytes)) + c.timeout
	if c.writeBy.Sub(now) < need {
		c.writeBy = now.Add(2*need + time.Second)
		if err := c.port.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	c.stats.Requests++
	c.out = c.now().Add(c.timing.Chars(len(bytes)))
	_, err := c.port.Write(bytes)
	c.last = c.now().Add(c.timing.Chars(len(bytes)))
	return err
}

// learn takes the time of an answer into account.
func (u *unit) learn(d time.Duration) {
	d = max(d, 0)
	u.response += (d - u.response) / 8
	u.response = max(u.response, d)
	switch {
	case u.overslept: // nobody saw when it came: sooner than d, and who knows how much
		u.soonest /= 2
	case d < u.soonest || !u.steady:
		u.soonest = d
	default:
		u.soonest += (d - u.soonest) / 8
	}
	u.overslept = false
}

// drain is the silence after which nothing more is expected of u.
func (c *Client) drain(u *unit) time.Duration {
	return max(min(4*u.response, maxDrain), c.timing.T35)
}

// read reads into rx until t at the latest: then it fails with os.ErrDeadlineExceeded.
func (c *Client) read(ctx context.Context, t time.Time) (int, error) {
	if c.rd > 0 && len(c.rx)-c.wr < MaxASCIIFrame {
		c.before = max(c.before-c.rd, 0)
		c.wr = copy(c.rx[:], c.rx[c.rd:c.wr])
		c.rd = 0
	}
	for now := c.now(); ; now = c.now() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if !t.After(now) {
			return c.readLate()
		}
		if c.readBy.After(t) || c.readBy.Before(earlier(t, now.Add(slice/2))) {
			c.readBy = t
			if ctx.Done() != nil {
				c.readBy = earlier(t, now.Add(slice))
			}
			if err := c.port.SetReadDeadline(c.readBy); err != nil {
				return 0, err
			}
		}
		n, err := c.port.Read(c.rx[c.wr:])
		if n > 0 {
			c.last = c.now()
			c.seen = c.last
			c.wr += n
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
		c.readBy = time.Time{}
	}
}

// readLate is the read of someone who woke up after the deadline: what is there may have come in
// time. Once for each request, so that a flood does not go on for ever.
func (c *Client) readLate() (n int, err error) {
	if c.try != nil && !c.wasLate {
		n, err = c.try.TryRead(c.rx[c.wr:])
		c.wasLate = true
	}
	if n == 0 && err == nil {
		return 0, os.ErrDeadlineExceeded
	}
	c.wr += n
	c.last = c.now()
	c.seen = c.last
	return n, err
}

// SetTiming is for a line whose units have settings of their own: the port has other ones from
// now on.
func (c *Client) SetTiming(t Timing) {
	c.timing = t.of(c.framing)
	if c.sleepsItself {
		c.sleep, c.slack = sleepFor(t)
		c.spin = 0
		if t.Char > 0 && c.slack <= 2*maxSpin {
			c.spin = maxSpin
		}
	}
}
