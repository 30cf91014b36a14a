package modbus

import (
	"context"
	"encoding/binary"
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
	// Timing is that of the line.
	Timing Timing
	// Timeout is the longest wait for the first byte of an answer, from the last byte of the request.
	Timeout time.Duration
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
	// minGap is the shortest silence inside of a frame that makes its head doubtful: USB adapters
	// hold bytes back.
	minGap = 10 * time.Millisecond
)

// Client is the master of one line. It is owned by one goroutine, starts none, and allocates
// nothing while units answer. It keeps the silence of t3.5 before each request, from the last byte
// sent or received.
type Client struct {
	port   Port
	try    tryReader // nil: port has none
	timing Timing
	now    func() time.Time
	sleep  func(time.Duration)
	slack  time.Duration // how much too long sleep may take

	timeout time.Duration
	echo    echoState
	units   [256]*unit
	stats   Stats

	last            time.Time     // the last byte on the line, sent or received
	quiet           time.Duration // silence wanted before the next request, if more than t3.5
	readBy, writeBy time.Time     // the deadlines that the port has

	tx     [MaxFrame]byte
	sent   []byte // the current request, in tx
	heard  bool   // its echo
	fault  error  // why there is no answer, so far
	data   [2 * MaxWriteRegisters]byte
	rx     [4 * MaxFrame]byte
	rd, wr int // what is unread of rx
}

// unit is what the client remembers of a unit.
type unit struct {
	debts    debts
	response time.Duration // how long it takes to answer: grows at once, shrinks slowly
}

// NewClient is the master of the line behind p.
func NewClient(p Port, c ClientConfig) *Client {
	m := &Client{port: p, timing: c.Timing, timeout: c.Timeout, now: c.Now, sleep: c.Sleep}
	m.try, _ = p.(tryReader)
	if c.Echo {
		m.echo = echoOn
	}
	if m.timeout <= 0 {
		m.timeout = time.Second
	}
	if m.now == nil {
		m.now = time.Now
	}
	if m.sleep == nil {
		m.sleep, m.slack = sleepFor(c.Timing)
	}
	return m
}

// SetTimeout changes the Timeout of the configuration, from the next request on.
func (c *Client) SetTimeout(d time.Duration) {
	if d > 0 {
		c.timeout = d
	}
}

// Stats is what was counted so far.
func (c *Client) Stats() Stats { return c.stats }

// Read reads n bits or registers from a on: packed bits, the first in the lowest bit of the first
// byte, or registers big-endian. The result is in dst if that is large enough.
func (c *Client) Read(ctx context.Context, unit byte, a Address, n uint16, dst []byte) ([]byte, error) {
	r := Request{Unit: unit, Function: a.Table.readFunction(), Address: a.Offset, Count: n}
	frame, err := c.do(ctx, &r)
	if err != nil {
		return nil, fmt.Errorf("reading %d at %s of unit %d: %w", n, a, unit, err)
	}
	return append(dst[:0], frame[3:len(frame)-2]...), nil
}

// WriteCoil sets one coil (function 5).
func (c *Client) WriteCoil(ctx context.Context, unit byte, addr uint16, on bool) error {
	v := uint16(0)
	if on {
		v = 0xFF00
	}
	return c.write(ctx, &Request{Unit: unit, Function: WriteSingleCoil, Address: addr, Data: c.words(v)})
}

// WriteRegister sets one holding register (function 6).
func (c *Client) WriteRegister(ctx context.Context, unit byte, addr, v uint16) error {
	return c.write(ctx, &Request{Unit: unit, Function: WriteSingleRegister, Address: addr, Data: c.words(v)})
}

// WriteCoils sets coils from addr on (function 15).
func (c *Client) WriteCoils(ctx context.Context, unit byte, addr uint16, on []bool) error {
	if len(on) > MaxWriteBits {
		return tooMany(WriteCoils, len(on))
	}
	data := c.data[:bitBytes(uint16(len(on)))]
	clear(data)
	for i, set := range on {
		if set {
			data[i/8] |= 1 << (i % 8)
		}
	}
	return c.write(ctx, &Request{Unit: unit, Function: WriteCoils, Address: addr, Count: uint16(len(on)), Data: data})
}

// WriteRegisters sets holding registers from addr on (function 16).
func (c *Client) WriteRegisters(ctx context.Context, unit byte, addr uint16, v []uint16) error {
	if len(v) > MaxWriteRegisters {
		return tooMany(WriteRegisters, len(v))
	}
	return c.write(ctx, &Request{Unit: unit, Function: WriteRegisters, Address: addr, Count: uint16(len(v)), Data: c.words(v...)})
}

// MaskWrite makes a holding register (it AND and) OR (or AND NOT and), in the unit (function 22).
func (c *Client) MaskWrite(ctx context.Context, unit byte, addr, and, or uint16) error {
	return c.write(ctx, &Request{Unit: unit, Function: MaskWriteRegister, Address: addr, And: and, Or: or})
}

// ReadWrite writes v from writeAddr on, then reads n holding registers from readAddr on, in one
// transaction (function 23). The result is as with Read.
func (c *Client) ReadWrite(ctx context.Context, unit byte, readAddr, n uint16, writeAddr uint16, v []uint16, dst []byte) ([]byte, error) {
	if len(v) > MaxReadWriteRegisters {
		return nil, tooMany(ReadWriteRegisters, len(v))
	}
	r := Request{Unit: unit, Function: ReadWriteRegisters, Address: readAddr, Count: n, WriteAddress: writeAddr, Data: c.words(v...)}
	frame, err := c.do(ctx, &r)
	if err != nil {
		return nil, fmt.Errorf("writing at holding:%d and reading %d at holding:%d of unit %d: %w", writeAddr, n, readAddr, unit, err)
	}
	return append(dst[:0], frame[3:len(frame)-2]...), nil
}

func (c *Client) write(ctx context.Context, r *Request) error {
	if _, err := c.do(ctx, r); err != nil {
		return fmt.Errorf("writing at %d of unit %d by function %d: %w", r.Address, r.Unit, r.Function, err)
	}
	return nil
}

func (c *Client) words(v ...uint16) []byte {
	data := c.data[:0]
	for _, w := range v {
		data = binary.BigEndian.AppendUint16(data, w)
	}
	return data
}

func tooMany(f Function, n int) error {
	return fmt.Errorf("%w: function %d for %d items", ErrRequest, f, n)
}

// do has r answered and returns the sound frame of the answer, or why there is none.
func (c *Client) do(ctx context.Context, r *Request) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if r.Unit == 0 {
		return nil, fmt.Errorf("%w: nobody answers at unit 0", ErrRequest)
	}
	if c.units[r.Unit] == nil {
		c.units[r.Unit] = new(unit)
	}
	u, d := c.units[r.Unit], debtOf(r)
	if err := c.hush(ctx); err != nil {
		return nil, err
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
	if err != nil {
		return nil, err
	}
	if Function(frame[1])&exceptionBit != 0 {
		c.stats.Exceptions++
		return nil, Exception(frame[2])
	}
	return frame, nil
}

// barrier makes sure that no late answer is under way that could be taken for the answer to r,
// whose debt is d: it asks the unit for something whose answer looks different. As a unit answers in
// order, after that nothing older can come.
func (c *Client) barrier(ctx context.Context, u *unit, r *Request, d *debt) error {
	b := Request{Unit: r.Unit, Function: ReadHoldingRegisters, Address: r.Address}
	step := uint16(1)
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs, ReadInputRegisters:
		b.Function = r.Function
	case WriteSingleCoil, WriteCoils:
		b.Function = ReadCoils
	}
	if b.Function <= ReadDiscreteInputs {
		step = 8 // as many bits make another byte
	}
	for b.Count = 1; b.Count < 8*step; b.Count += step {
		if own := debtOf(&b); !own.like(d) && (u.debts.last(&own) || !u.debts.blocks(&own)) {
			break
		}
	}
	for b.Count > 1 && int(b.Address)+int(b.Count) > 65_536 {
		b.Address--
	}
	own, err := debtOf(&b), error(nil)
	if u.debts.last(&own) && c.now().Sub(u.debts.newest().sent) < patience {
		err = c.listen(ctx, u, *d)
	} else {
		c.stats.Barriers++
		_, err = c.transact(ctx, u, &b, &own, *d)
	}
	if errors.Is(err, ErrCRC) || errors.Is(err, ErrMismatch) {
		err = ErrTimeout // r itself was never sent, so nothing of its answer was seen
	}
	if err != nil && u.debts.blocks(d) {
		return fmt.Errorf("asking whether an answer is under way: %w", err)
	}
	if err != nil && !errors.Is(err, ErrTimeout) {
		return err
	}
	return c.hush(ctx)
}

// listen waits, as transact does, but for the barrier that is already under way: one sent on top of
// it would only make a slow unit slower.
func (c *Client) listen(ctx context.Context, u *unit, awaiting debt) error {
	none := debt{sent: c.now()} // that no frame settles
	c.rd, c.wr = 0, 0
	c.heard, c.fault = true, ErrTimeout
	_, err := c.receive(ctx, u, &none, awaiting)
	if u.debts.blocks(&awaiting) {
		c.stats.Timeouts++
	}
	return err
}

// learnEcho finds out whether the adapter returns what is sent, by a read: the answer to a write of
// one register is the same bytes as the request, so that the echo would confirm it in the name of a
// unit that is not there.
func (c *Client) learnEcho(ctx context.Context, u *unit, r *Request) error {
	probe := Request{Unit: r.Unit, Function: ReadHoldingRegisters, Address: r.Address, Count: 1}
	if r.Function == WriteSingleCoil {
		probe.Function = ReadCoils
	}
	own := debtOf(&probe)
	_, err := c.transact(ctx, u, &probe, &own, debt{})
	if err != nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrCRC) && !errors.Is(err, ErrMismatch) {
		return err
	}
	return c.hush(ctx)
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
		u.learn(c.last.Sub(d.sent) - c.timing.Chars(len(frame)))
		c.stats.Responses++
		return frame, nil
	case errors.Is(err, ErrTimeout) && (awaiting == debt{} || u.debts.blocks(&awaiting)):
		c.stats.Timeouts++
	}
	u.debts.add(*d)
	c.quiet = c.drain(u)
	return nil, err
}

func (c *Client) send(r *Request, now time.Time) error {
	c.sent, c.heard, c.fault = r.Append(c.tx[:0]), false, ErrTimeout
	c.rd, c.wr = 0, 0
	need := c.timing.Chars(len(c.sent)) + c.timeout
	if c.writeBy.Sub(now) < need {
		c.writeBy = now.Add(2*need + time.Second)
		if err := c.port.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	c.stats.Requests++
	_, err := c.port.Write(c.sent)
	c.last = c.now().Add(c.timing.Chars(len(c.sent)))
	return err
}

// learn takes the time of an answer into account.
func (u *unit) learn(d time.Duration) {
	u.response += (max(d, 0) - u.response) / 8
	u.response = max(u.response, d)
}

// drain is the silence after which nothing more is expected of u.
func (c *Client) drain(u *unit) time.Duration {
	return max(min(4*u.response, maxDrain), c.timing.T35)
}

// read reads into rx until t at the latest: then it fails with os.ErrDeadlineExceeded.
func (c *Client) read(ctx context.Context, t time.Time) (int, error) {
	if c.rd > 0 && len(c.rx)-c.wr < MaxFrame {
		c.wr = copy(c.rx[:], c.rx[c.rd:c.wr])
		c.rd = 0
	}
	for now := c.now(); ; now = c.now() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if !t.After(now) {
			return 0, os.ErrDeadlineExceeded
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
			c.wr += n
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
		c.readBy = time.Time{}
	}
}
