package modbus

// A frame that begins right behind an answer, a second copy of it or another unit's, is not seen
// before t3.5 is over: a UART hands bytes on in lumps of eight or more. The next request goes out
// meanwhile, and the frame may have its shape. But no unit answers a request that it has not heard to
// its end: what began to arrive before that is no answer.
//
// A pseudo terminal or an emulator has a baud rate and does not keep to it. The first answer tells:
// nothing was asked before that could come twice.

// pace is whether bytes take as long on the line as its settings say.
type pace uint8

const (
	paceUnknown pace = iota
	paced
	unpaced
)

// maxTooSoon is how many frames in a row may come too soon, with no good answer in between, before
// the line counts as one whose pace is not known.
const maxTooSoon = 3

// hearWhileSending sorts what has arrived when the current request is about to be out, and returns
// the answer if it came meanwhile all the same: this goroutine may have woken up late.
func (c *Client) hearWhileSending(u *unit, d *debt) ([]byte, error) {
	if c.try == nil || c.timing.Char == 0 || c.pace == unpaced {
		return nil, nil
	}
	if wait := c.out.Sub(c.now()) - c.slack; wait > 0 {
		c.sleep(wait)
	}
	n, err := c.try.TryRead(c.rx[c.wr:])
	if n == 0 || err != nil {
		return nil, err
	}
	c.wr += n
	if c.seen = c.now(); !c.seen.After(c.out.Add(c.timing.Char)) {
		c.early = c.wr
	}
	c.last = later(c.last, c.seen)
	if frame, v := c.sortAll(u, d); v == answer {
		return frame, nil
	}
	return nil, nil
}

// soon tells whether the frame of n bytes at rx[at:] began before the current request was out, by
// when its last bytes were read. Units that send a little too fast are given a sixteenth.
func (c *Client) soon(at, n int) bool {
	return at < c.early || c.timing.Char > 0 && c.seen.Before(c.out.Add(c.chars(n)*15/16))
}

// tooSoon tells whether a frame that has the form of an answer came too soon to be one, and learns
// the pace of the line from it.
func (c *Client) tooSoon(soon bool) bool {
	switch {
	case c.pace == paceUnknown && soon:
		c.pace = unpaced
	case c.pace == paceUnknown:
		c.pace = paced
	case c.pace == paced && soon:
		if c.hasty++; c.hasty == maxTooSoon {
			c.pace, c.hasty = paceUnknown, 0
		}
		return true
	case c.pace == paced:
		c.hasty = 0
	}
	return false
}
