package modbus

import "bytes"

// scanASCII is scan for a line in ASCII. The frame it returns is in its RTU form.
func (c *Client) scanASCII(u *unit, d *debt) ([]byte, verdict) {
	for c.rd < c.wr {
		skip, size := cutASCII(c.rx[c.rd:c.wr], c.delimiter)
		c.rd += skip
		c.stats.Garbage += uint64(skip)
		if size == 0 {
			break
		}
		line := c.rx[c.rd : c.rd+size]
		soon := c.rd < c.before
		c.rd += size
		frame, err := DecodeASCII(c.frame[:0], line, c.delimiter)
		switch {
		case err == ErrCRC && d != nil && u == c.units[frame[0]] && ResponseLength(frame) == len(frame) && d.settledBy(frame):
			c.stats.CRCErrors++
			c.blame(ErrCRC, line[:min(size, MaxFrame)])
			fallthrough
		case err != nil:
			c.stats.Garbage += uint64(size)
			continue
		case d != nil && c.echo != echoOff && !c.heard && bytes.Equal(frame, c.sent):
			c.hear()
			continue
		case ResponseLength(frame) == len(frame):
			return frame, c.classify(u, d, frame, soon)
		case c.foreignRequest(frame, d) != len(frame): // sound, and of no known function
			c.stats.Foreign++
		}
	}
	if c.rd == c.wr {
		return nil, nothing
	}
	return nil, partial
}

// missingASCII is how many characters the frame that begins with head lacks, if that can be told.
func (c *Client) missingASCII(head []byte) int {
	if c.echo == echoOn && !c.heard {
		return max(c.framing.onWire(len(c.sent))-len(head), 0)
	}
	var known [identityHead]byte
	n := 0
	for i := 1; i+1 < len(head) && n < len(known); i += 2 {
		high, low := unhex(head[i]), unhex(head[i+1])
		if high|low > 15 {
			return 0
		}
		known[n] = high<<4 | low
		n++
	}
	if n = ResponseLength(known[:n]); n <= 0 {
		return 0
	}
	return max(c.framing.onWire(n)-len(head), 0)
}

// unhex is the value of a hexadecimal digit; of anything else more than 15.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xFF
}
