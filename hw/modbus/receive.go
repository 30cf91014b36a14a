package modbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// echoState is what is known of the adapter: some return every byte that is sent.
type echoState uint8

const (
	echoUnknown echoState = iota
	echoOff
	echoOn
)

// repeats tells whether a good answer to f is the same bytes as its request.
func repeats(f Function) bool {
	return f == WriteSingleCoil || f == WriteSingleRegister || f == WriteFileRecord || f == MaskWriteRegister
}

// judgeEcho learns from a request whether its echo was heard.
func (c *Client) judgeEcho(f Function, answered bool) {
	switch {
	case repeats(f):
	case c.heard:
		c.echo = echoOn
	case answered || c.echo == echoUnknown:
		c.echo = echoOff
	}
}

// verdict is what scan found at the head of rx.
type verdict uint8

const (
	nothing verdict = iota // rx is empty
	partial                // the beginning of what may be a frame
	answer                 // to the current request
	dropped                // anything else
)

// hush waits until the line was silent for t3.5, or for rest if that is longer, or after a failure until
// it is drained. What comes meanwhile is counted and dropped, and settles what its unit owed. It is the
// only place where bytes that belong to no current request are read, and it runs before each request and
// after each answer.
func (c *Client) hush(ctx context.Context, rest time.Duration) error {
	limit := c.now().Add(max(c.timeout, 4*maxDrain) + rest)
	for {
		now := c.now()
		end := c.last.Add(max(c.timing.T35, c.quiet, rest))
		n, err := 0, error(nil)
		switch wait := end.Sub(now); {
		case c.try == nil || wait > nap || wait > 0 && c.quiet > c.timing.T35:
			n, err = c.read(ctx, later(end, now.Add(time.Millisecond)))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
		default:
			for ; wait > 0; wait = end.Sub(c.now()) {
				if wait > c.spin {
					c.sleep(wait - c.spin)
				}
			}
			if n, err = c.try.TryRead(c.rx[c.wr:]); n > 0 {
				c.last = c.now()
				c.seen = c.last
				c.wr += n
			}
		}
		switch {
		case err != nil:
			return err
		case n == 0:
			c.strays(true)
			c.quiet = 0
			return nil
		case c.last.After(limit):
			c.strays(true)
			c.stats.Timeouts++
			return fmt.Errorf("waiting for a silent line: %w", ErrTimeout)
		}
		c.strays(false)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// strays sorts what came outside of any request; the rest, at the end, is garbage.
func (c *Client) strays(end bool) {
	for c.rd < c.wr {
		if _, v := c.scan(nil, nil); v == partial {
			if !end {
				break
			}
			c.rd++
			c.stats.Garbage++
		}
	}
	if c.rd == c.wr || len(c.rx)-c.wr < MaxASCIIFrame {
		c.stats.Garbage += uint64(c.wr - c.rd)
		c.rd, c.wr = 0, 0
	}
}

// receive waits for the answer that settles d, or until u owes nothing like awaiting.
func (c *Client) receive(ctx context.Context, u *unit, d *debt, awaiting debt) ([]byte, error) {
	longest := c.chars(MaxFrame)
	w := wait{Client: c, u: u, awaiting: awaiting, gap: max(c.drain(u), minGap)}
	w.deadline, w.limit = d.sent.Add(c.timeout), d.sent.Add(2*c.timeout+2*longest)
	u.overslept = false
	if c.framing == ASCII {
		w.gap = asciiGap
		w.limit = w.limit.Add(4 * asciiGap)
	}
	if frame, err := c.hearWhileSending(u, d); frame != nil || err != nil {
		return frame, err
	}
	if n := d.answerLength(); u.steady && n > 0 && c.timing.Char > 0 {
		w.doze(d.sent.Add(u.soonest+c.chars(n)), c.chars(n))
	}
	return w.receive(ctx, d)
}

// wait is how long receive goes on.
type wait struct {
	*Client
	u         *unit // nil: of a broadcast
	awaiting  debt
	deadline  time.Time
	limit     time.Time     // of deadline
	gap       time.Duration // a silence inside of a frame that makes its head doubtful
	rescanned int           // what rescan has seen of rx
	whole     time.Time     // when the frame will be whole, by the earliest estimate
	slept     bool          // before the last read: nobody saw when its bytes came
}

// doze sleeps until shortly before the answer is whole, if it is as long as a good one and the unit
// as quick as it can be: one wake-up instead of two. The deadline for its first byte moves to where
// its last byte would be.
func (w *wait) doze(whole time.Time, frame time.Duration) {
	d := whole.Sub(w.now()) - w.slack
	if d <= w.slack {
		return
	}
	w.deadline = w.deadline.Add(frame)
	w.sleep(min(d, slice))
	w.slept, w.u.overslept = true, true
}

// receive reads until the answer that settles d is whole. It stops at the length that the
// answer's head gives, and does not wait for silence.
func (w *wait) receive(ctx context.Context, d *debt) ([]byte, error) {
	for {
		_, err := w.read(ctx, w.until())
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && w.doubtful():
			w.rescanned = w.wr
			if frame := w.rescan(w.u, d); frame != nil {
				return frame, nil
			}
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			if frame := w.pacing.settle(); frame != nil {
				return frame, nil
			}
			return nil, w.failure()
		case err != nil:
			return nil, err
		}
		frame, v := w.sortAll(w.u, d)
		if v == answer {
			return frame, nil
		}
		if w.u != nil {
			w.u.overslept = false
		}
		rest := time.Duration(0)
		if v == partial {
			rest = w.timing.Chars(w.missing())
		}
		w.adjust(v, rest)
		if slept := w.slept; v == partial {
			w.slept = !slept && w.pause(rest)
		}
	}
}

// failure is why there is no answer, with what came instead.
func (w *wait) failure() error {
	switch {
	case w.bad != nil:
		return &FrameError{Err: w.fault, Frame: w.bad}
	case w.rd < w.wr:
		p := w.rx[w.rd:w.wr]
		return &FrameError{Err: w.fault, Frame: bytes.Clone(p[:min(len(p), MaxFrame)])}
	}
	return w.fault
}

// doubtful tells whether rx begins with a frame that ought to be whole by now.
func (w *wait) doubtful() bool { return w.u != nil && w.rd < w.wr && w.rescanned != w.wr }

func (w *wait) until() time.Time {
	if w.doubtful() {
		return earlier(w.deadline, w.last.Add(w.gap))
	}
	return w.deadline
}

// adjust moves the deadline: on while a frame arrives; near once the answer is known to be spoilt,
// or once what a barrier is for has happened.
func (w *wait) adjust(v verdict, rest time.Duration) {
	switch {
	case w.fault != ErrTimeout || w.awaiting != debt{} && !w.u.debts.blocks(&w.awaiting):
		w.deadline = earlier(w.limit, w.last.Add(rest+w.gap))
	case v == partial:
		w.deadline = later(w.deadline, earlier(w.limit, w.last.Add(rest+max(w.timeout, w.gap))))
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// pause sleeps until the rest of a frame should be there: one wake-up for it instead of one for
// each few bytes. The estimate never moves back, as bytes may have waited in the port. It tells
// whether it slept.
func (w *wait) pause(rest time.Duration) bool {
	if whole := w.last.Add(rest); w.whole.IsZero() || whole.Before(w.whole) {
		w.whole = whole
	}
	d := w.whole.Sub(w.now()) - w.slack
	if d <= w.slack {
		return false
	}
	w.sleep(min(d, slice))
	return true
}

// sortAll sorts what is in rx up to the answer, or up to what is not whole yet.
func (c *Client) sortAll(u *unit, d *debt) ([]byte, verdict) {
	for {
		if frame, v := c.scan(u, d); v != dropped {
			return frame, v
		}
	}
}

// missing is how many bytes the frame at the head of rx lacks on the line.
func (c *Client) missing() int {
	head := c.rx[c.rd:c.wr]
	if c.framing == ASCII {
		return c.missingASCII(head)
	}
	if c.echo == echoOn && !c.heard {
		return max(len(c.sent)-len(head), 0)
	}
	return max(ResponseLength(head)-len(head), 0)
}

// scan takes one frame, or what cannot be one, from the head of rx. With a nil d no request is
// current. Frames count from the head on, so that an answer quoted inside of another unit's frame
// is not taken for one.
func (c *Client) scan(u *unit, d *debt) ([]byte, verdict) {
	if c.framing == ASCII {
		return c.scanASCII(u, d)
	}
	for c.rd < c.wr {
		p := c.rx[c.rd:c.wr]
		if d != nil && c.echo != echoOff && !c.heard {
			n := min(len(p), len(c.sent))
			if bytes.Equal(p[:n], c.sent[:n]) {
				if n < len(c.sent) {
					return nil, partial
				}
				c.hear()
				c.rd += len(c.sent)
				continue
			}
		}
		n := ResponseLength(p)
		switch {
		case n > MaxFrame:
		case n == 0 || n > len(p):
			return nil, partial
		case n > 0 && sound(p[:n]):
			soon := c.soon(c.rd, n)
			c.rd += n
			return p[:n], c.classify(u, d, p[:n], soon)
		}
		if n := c.foreignRequest(p, d); n > 0 {
			c.rd += n
			continue
		}
		c.rd++
		c.stats.Garbage++
		if n > 0 && n <= MaxFrame && d != nil && u == c.units[p[0]] && d.settledBy(p[:n]) {
			c.stats.CRCErrors++
			c.blame(ErrCRC, p[:n])
		}
	}
	return nil, nothing
}

// blame notes why there will be no answer, and the frame that shows it.
func (c *Client) blame(fault error, frame []byte) {
	c.fault, c.bad = fault, bytes.Clone(frame)
}

func (c *Client) hear() {
	c.heard = true
	c.stats.Echoes++
}

// foreignRequest returns the length of a sound request at the head of p: that of another master, or
// our own returned by an adapter of which that was not known.
func (c *Client) foreignRequest(p []byte, d *debt) int {
	n := RequestLength(p)
	if n <= 0 || n > len(p) || n > MaxFrame || !sound(p[:n]) {
		return 0
	}
	if d != nil && bytes.Equal(p[:n], c.sent) {
		c.hear()
	} else {
		c.stats.Foreign++
	}
	return n
}

// classify sorts a sound frame of the form of an answer. soon says that it began before the current
// request was out.
func (c *Client) classify(u *unit, d *debt, frame []byte, soon bool) verdict {
	from := c.units[frame[0]]
	if from != nil {
		from.debts.heard = c.last
	}
	switch {
	case from == nil:
		c.stats.Foreign++
		return dropped
	case from.debts.settle(frame):
		c.stats.Late++
		return dropped
	case d == nil: // a second answer, or one to a request written off
		c.taken.compare(from, frame)
		c.stats.Late++
		return dropped
	case from != u:
		c.stats.Foreign++
		return dropped
	case !d.settledBy(frame):
		c.stats.Mismatches++
		c.blame(ErrMismatch, frame)
		return dropped
	}
	kept := c.pacing.kept
	v := c.pacing.take(frame, soon)
	if kept > 0 { // a second answer to the request before
		c.stats.Late++
	}
	return v
}

// rescan looks for the answer behind a head that promised a frame and did not keep it. It takes
// nothing from rx unless it finds the answer, as the frame at the head may just be slow. In ASCII
// nothing hides behind a head: a colon always begins a frame.
func (c *Client) rescan(u *unit, d *debt) []byte {
	if c.framing == ASCII {
		return nil
	}
	head := c.rd
	for i := head + 1; i < c.wr; i++ {
		p := c.rx[i:c.wr]
		n := ResponseLength(p)
		if n <= 0 || n > len(p) || n > MaxFrame || !sound(p[:n]) {
			continue
		}
		if c.units[p[0]] != u || !d.settledBy(p[:n]) || c.pacing.pace != unpaced && c.soon(i, n) || repeats(d.function) && c.echo != echoOff && !c.heard {
			continue
		}
		c.stats.Garbage += uint64(i - head)
		c.rd = i + n
		if u.debts.settle(p[:n]) {
			c.stats.Late++
			head = c.rd
			continue
		}
		return p[:n]
	}
	return nil
}
