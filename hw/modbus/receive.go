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
	return f == WriteSingleCoil || f == WriteSingleRegister || f == MaskWriteRegister
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

// hush waits until the line was silent for t3.5, or after a failure until it is drained. What comes
// meanwhile is counted and dropped, and settles what its unit owed. It is the only place where
// bytes that belong to no current request are read, and it runs before each.
func (c *Client) hush(ctx context.Context) error {
	limit := c.now().Add(max(c.timeout, 4*maxDrain))
	for {
		now := c.now()
		end := c.last.Add(max(c.timing.T35, c.quiet))
		n, err := 0, error(nil)
		switch wait := end.Sub(now); {
		case c.try == nil || wait > 0 && c.quiet > c.timing.T35:
			n, err = c.read(ctx, later(end, now.Add(time.Millisecond)))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
		default:
			if wait > 0 {
				c.sleep(wait)
			}
			if n, err = c.try.TryRead(c.rx[c.wr:]); n > 0 {
				c.last = c.now()
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
	if c.rd == c.wr || len(c.rx)-c.wr < MaxFrame {
		c.stats.Garbage += uint64(c.wr - c.rd)
		c.rd, c.wr = 0, 0
	}
}

// receive reads until the answer that settles d is whole. It stops at the length that the
// answer's head gives, and does not wait for silence.
func (c *Client) receive(ctx context.Context, u *unit, d *debt, awaiting debt) ([]byte, error) {
	w := c.newWait(u, d, awaiting)
	for {
		_, err := c.read(ctx, w.until())
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && w.doubtful():
			w.rescanned = c.wr
			if frame := c.rescan(d); frame != nil {
				return frame, nil
			}
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, c.fault
		case err != nil:
			return nil, err
		}
		frame, v := c.sortAll(u, d)
		if v == answer {
			return frame, nil
		}
		rest := time.Duration(0)
		if v == partial {
			rest = c.timing.Chars(c.missing())
		}
		w.adjust(v, rest)
		if v == partial {
			w.pause(rest)
		}
	}
}

// wait is how long receive goes on.
type wait struct {
	*Client
	u         *unit
	awaiting  debt
	deadline  time.Time
	limit     time.Time     // of deadline
	gap       time.Duration // a silence inside of a frame that makes its head doubtful
	rescanned int           // what rescan has seen of rx
	whole     time.Time     // when the frame will be whole, by the earliest estimate
}

func (c *Client) newWait(u *unit, d *debt, awaiting debt) wait {
	longest := c.timing.Chars(MaxFrame)
	w := wait{Client: c, u: u, awaiting: awaiting, gap: max(c.drain(u), minGap)}
	w.deadline, w.limit = d.sent.Add(c.timeout), d.sent.Add(2*c.timeout+2*longest)
	return w
}

// doubtful tells whether rx begins with a frame that ought to be whole by now.
func (w *wait) doubtful() bool { return w.rd < w.wr && w.rescanned != w.wr }

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
		w.deadline = later(w.deadline, earlier(w.limit, w.last.Add(rest+w.timeout)))
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// pause sleeps until the rest of a frame should be there: one wake-up for it instead of one for
// each few bytes. The estimate never moves back, as bytes may have waited in the port.
func (w *wait) pause(rest time.Duration) {
	if whole := w.last.Add(rest); w.whole.IsZero() || whole.Before(w.whole) {
		w.whole = whole
	}
	if d := w.whole.Sub(w.now()) - w.slack; d > w.slack {
		w.sleep(min(d, slice))
	}
}

// sortAll sorts what is in rx up to the answer, or up to what is not whole yet.
func (c *Client) sortAll(u *unit, d *debt) ([]byte, verdict) {
	for {
		if frame, v := c.scan(u, d); v != dropped {
			return frame, v
		}
	}
}

// missing is how many bytes the frame at the head of rx lacks.
func (c *Client) missing() int {
	head := c.rx[c.rd:c.wr]
	if c.echo == echoOn && !c.heard {
		return max(len(c.sent)-len(head), 0)
	}
	return max(ResponseLength(head)-len(head), 0)
}

// scan takes one frame, or what cannot be one, from the head of rx. With a nil d no request is
// current. Frames count from the head on, so that an answer quoted inside of another unit's frame
// is not taken for one.
func (c *Client) scan(u *unit, d *debt) ([]byte, verdict) {
	for c.rd < c.wr {
		p := c.rx[c.rd:c.wr]
		if d != nil && c.echo != echoOff && !c.heard {
			n := min(len(p), len(c.sent))
			if bytes.Equal(p[:n], c.sent[:n]) {
				if n < len(c.sent) {
					return nil, partial
				}
				c.hear()
				continue
			}
		}
		n := ResponseLength(p)
		switch {
		case n > MaxFrame:
		case n == 0 || n > len(p):
			return nil, partial
		case n > 0 && sound(p[:n]):
			c.rd += n
			return p[:n], c.classify(u, d, p[:n])
		}
		if c.foreignRequest(p, d) {
			continue
		}
		c.rd++
		c.stats.Garbage++
		if n > 0 && d != nil && u == c.units[p[0]] && d.settledBy(p[:n]) {
			c.stats.CRCErrors++
			c.fault = ErrCRC
		}
	}
	return nil, nothing
}

func (c *Client) hear() {
	c.rd += len(c.sent)
	c.heard = true
	c.stats.Echoes++
}

// foreignRequest takes a sound request from the head of rx: that of another master, or our own
// returned by an adapter of which that was not known.
func (c *Client) foreignRequest(p []byte, d *debt) bool {
	n := RequestLength(p)
	if n <= 0 || n > len(p) || n > MaxFrame || !sound(p[:n]) {
		return false
	}
	if d != nil && bytes.Equal(p[:n], c.sent) {
		c.hear()
		return true
	}
	c.rd += n
	c.stats.Foreign++
	return true
}

// classify sorts a sound frame of the form of an answer.
func (c *Client) classify(u *unit, d *debt, frame []byte) verdict {
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
		c.stats.Late++
		return dropped
	case from != u:
		c.stats.Foreign++
		return dropped
	case d.settledBy(frame):
		return answer
	}
	c.stats.Mismatches++
	c.fault = ErrMismatch
	return dropped
}

// rescan looks for the answer behind a head that promised a frame and did not keep it. It takes
// nothing from rx unless it finds the answer, as the frame at the head may just be slow.
func (c *Client) rescan(d *debt) []byte {
	head := c.rd
	u := c.units[c.sent[0]]
	for i := head + 1; i < c.wr; i++ {
		p := c.rx[i:c.wr]
		n := ResponseLength(p)
		if n <= 0 || n > len(p) || n > MaxFrame || !sound(p[:n]) {
			continue
		}
		if p[0] != c.sent[0] || !d.settledBy(p[:n]) || repeats(d.function) && c.echo != echoOff && !c.heard {
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
