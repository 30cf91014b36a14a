package modbus

// A frame that begins right behind an answer, a second copy of it or another unit's, is not seen
// before t3.5 is over: a UART hands bytes on in lumps of eight or more. The next request goes out
// meanwhile, and the frame may have its shape. But no unit answers a request that it has not heard to
// its end: what began to arrive before that is no answer.
//
// A pseudo terminal or an emulator has a baud rate and does not keep to it, so the pace of a line is
// learned. Its first answer cannot be a copy: if it came too soon, nothing there takes its time.
// Later, a frame that came too soon is kept while another answer may follow. If one does, the first
// was a copy. If none does, the line has no pace after all, unless it has proved to have one.

// pace is whether bytes take as long on the line as its settings say.
type pace uint8

const (
	paceUnknown  pace = iota
	pacePresumed      // no answer came too soon so far
	paced             // many did not, or one was a copy
	unpaced
)

const (
	// sureOfPace is how many answers in a row make a pace certain.
	sureOfPace = 20
	// maxAlone is how many answers may come too soon, on a line that is certain to be paced, and no
	// other behind them, before that is certain no more.
	maxAlone = 3
)

// pacing is what a client knows of the pace of its line.
type pacing struct {
	pace     pace
	punctual int // answers that came no sooner than they could
	alone    int
	kept     int // bytes of early, which came too soon; 0: none
	early    [MaxFrame]byte
}

// take judges a frame that has the form of the answer: it is, or it is kept.
func (p *pacing) take(frame []byte, soon bool) verdict {
	switch {
	case p.pace == unpaced:
	case p.pace == paceUnknown && soon:
		p.pace = unpaced
	case p.pace == paceUnknown:
		p.pace = pacePresumed
	case soon:
		p.kept = copy(p.early[:], frame)
		return dropped
	case p.kept > 0:
		p.pace, p.kept, p.alone = paced, 0, 0
	default:
		if p.punctual++; p.punctual >= sureOfPace {
			p.pace = paced
		}
	}
	return answer
}

// settle returns the frame that was kept and that no other has followed, if it may count as the answer.
func (p *pacing) settle() []byte {
	n := p.kept
	p.kept = 0
	switch {
	case n == 0:
	case p.pace == pacePresumed:
		p.pace = unpaced
		return p.early[:n]
	default:
		if p.alone++; p.alone == maxAlone {
			p.pace, p.punctual, p.alone = pacePresumed, 0, 0
		}
	}
	return nil
}

// hearWhileSending sorts what has arrived when the current request is about to be out, and returns
// the answer if it came meanwhile all the same: this goroutine may have woken up late.
func (c *Client) hearWhileSending(u *unit, d *debt) ([]byte, error) {
	if c.try == nil || c.timing.Char == 0 || c.pacing.pace == unpaced {
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
		c.before = c.wr
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
	return at < c.before || c.timing.Char > 0 && c.seen.Before(c.out.Add(c.chars(n)*15/16))
}
