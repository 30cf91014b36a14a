package modbus

import (
	"bytes"
	"context"
	"errors"
)

// A copy of an answer that comes while the next request of its shape is out looks like the answer to
// that. Then the true one comes behind it. So an answer counts once the line was silent for t3.5,
// which has to pass before the next request anyway: if another frame of its shape came meanwhile, with
// other bytes, nobody knows which of them is the answer.

// taken is an answer that is not certain yet.
type taken struct {
	unit      *unit // nil: there is none
	debt      debt
	frame     []byte
	buffer    [MaxFrame]byte
	contested bool
}

// compare looks at a frame that came after the answer, from a unit.
func (t *taken) compare(from *unit, frame []byte) {
	if t.unit == from && t.debt.settledBy(frame) && !bytes.Equal(frame, t.frame) {
		t.contested = true
	}
}

// confirm waits until the line is silent after an answer and returns it, or says that it may be that to
// another request.
func (c *Client) confirm(ctx context.Context, u *unit, d *debt, frame []byte) ([]byte, error) {
	if c.try == nil || c.timing.T35 == 0 {
		return frame, nil
	}
	t := &c.taken
	t.unit, t.debt, t.contested = u, *d, false
	t.frame = append(t.buffer[:0], frame...)
	err := c.hush(ctx, 0)
	t.unit = nil
	switch {
	case t.contested:
		c.stats.Mismatches++
		u.steady = false
		c.quiet = c.drain(u)
		return nil, &FrameError{Err: ErrMismatch, Frame: bytes.Clone(t.frame)}
	case err != nil && !errors.Is(err, ErrTimeout): // a line that others keep busy: the answer came all the same
		return nil, err
	}
	return t.frame, nil
}
