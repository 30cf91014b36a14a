package handshake

// cursor reads big-endian fields and vectors (RFC 8446, section 3) from the front of a message. A read
// beyond the end makes it bad, and everything after that zero.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.rest) {
		c.bad, c.rest = true, nil
		return nil
	}
	head := c.rest[:n:n]
	c.rest = c.rest[n:]
	return head
}

// number reads an integer of n bytes.
func (c *cursor) number(n int) int {
	v := 0
	for _, b := range c.take(n) {
		v = v<<8 | int(b)
	}
	return v
}

func (c *cursor) u8() uint8   { return uint8(c.number(1)) }
func (c *cursor) u16() uint16 { return uint16(c.number(2)) }

// vector reads a vector whose length takes n bytes.
func (c *cursor) vector(n int) cursor {
	content := c.take(c.number(n))
	return cursor{rest: content, bad: c.bad}
}

// u16s reads what is left as 16-bit numbers.
func (c *cursor) u16s() []uint16 {
	list := make([]uint16, 0, len(c.rest)/2)
	for len(c.rest) >= 2 {
		list = append(list, c.u16())
	}
	c.bad = c.bad || len(c.rest) > 0
	return list
}

// more says whether something is left to be read.
func (c *cursor) more() bool { return !c.bad && len(c.rest) > 0 }

// over says whether all was read, and could be.
func (c *cursor) over() bool { return !c.bad && len(c.rest) == 0 }
