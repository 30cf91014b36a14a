// Package frame cuts byte streams into frames. How a protocol marks its frames is one pure
// function, a Split; the Cutter holds the bytes. The trap is the chunk: a read returns whatever
// has arrived, so a Split must say of a beginning only what every continuation leaves true. Then
// the same bytes give the same frames, however they were chopped.
package frame

// Fault is why bytes became no frame.
type Fault uint8

// The kinds of Fault. NoFault is the zero value.
const (
	NoFault   Fault = iota
	Garbage         // bytes outside of any frame
	Checksum        // a frame whose checksum is wrong
	Malformed       // a frame that breaks a rule of its protocol
	Oversize        // more bytes than a frame may have, and no end in sight
	Cutoff          // a frame that never became whole before the line fell silent

)

func (f Fault) String() string {
	return [...]string{"none", "garbage", "checksum", "malformed", "oversize", "cutoff"}[f]
}

// Cut is what a Split says of the bytes it was given. The zero Cut wants more of them.
type Cut struct {
	// Skip is how many bytes at the head belong to no frame.
	Skip int
	// Size is how many bytes after them are a frame; 0: none that is known yet.
	Size int
	// Fault counts the cut as one fault. A frame with a fault is not handed out. Bytes that
	// are skipped without a Fault are Garbage.
	Fault Fault
	// Quiet skips without counting: line ends and fill bytes that a protocol allows.
	Quiet bool
}

// Split finds the first frame in data, which is never empty; it keeps no state. What it says must
// hold for data with any bytes behind it. After a bad checksum it skips no more than shows that
// no good frame begins there, often one byte, so that the next good frame is found.
//
// lost says that the bytes before data are not known: the port was just opened, or they were too
// many. A protocol whose frames have no mark at their beginning skips the first, whose head may
// be missing.
type Split func(data []byte, lost bool) Cut

// Stats counts what a Cutter saw.
type Stats struct {
	Bytes     uint64 `json:"bytes"`     // taken in
	Frames    uint64 `json:"frames"`    // handed out
	Garbage   uint64 `json:"garbage"`   // bytes outside of any frame
	Checksum  uint64 `json:"checksum"`  // frames with a wrong checksum
	Malformed uint64 `json:"malformed"` // frames that break a rule of their protocol
	Oversize  uint64 `json:"oversize"`  // beginnings given up because no frame is that long
	Cutoff    uint64 `json:"cutoff"`    // beginnings given up because the line fell silent
}

// Cutter feeds bytes to a Split and hands out its frames. It holds two frames of the greatest
// size at most and allocates nothing after NewCutter. One goroutine may use it.
type Cutter struct {
	split Split
	max   int
	buf   []byte
	rd    int // buf[rd:] is not cut yet
	lost  bool
	gap   bool
	whole bool
	stats Stats
	fault func(kind Fault, data []byte)
}

// NewCutter returns a Cutter for frames of max bytes at most, marks and checksum included.
func NewCutter(split Split, max int) *Cutter {
	return &Cutter{split: split, max: max, buf: make([]byte, 0, 2*max), lost: true}
}

// Gap says that a silence of the line lies between any two frames, as where frames have a fixed
// length and no mark: after a silence nothing is lost.
func (c *Cutter) Gap() { c.gap = true }

// Whole says that a silence of the line ends a frame: what came since the last one is handed out,
// not given up.
func (c *Cutter) Whole() { c.whole = true }

// OnFault has f called with each fault and the bytes that show it, from the beginning of what was no
// frame on, good until f returns. Bytes outside of any frame are none.
func (c *Cutter) OnFault(f func(kind Fault, data []byte)) { c.fault = f }

// blame tells of a fault.
func (c *Cutter) blame(kind Fault, data []byte) {
	if c.fault != nil {
		c.fault(kind, data)
	}
}

// Feed takes all of p and calls take with each frame that is whole now. A frame is good until
// take returns.
func (c *Cutter) Feed(p []byte, take func(frame []byte)) {
	c.stats.Bytes += uint64(len(p))
	for len(p) > 0 {
		if c.rd > 0 && cap(c.buf)-len(c.buf) < min(len(p), c.max-(len(c.buf)-c.rd)) {
			c.buf = c.buf[:copy(c.buf, c.buf[c.rd:])]
			c.rd = 0
		}
		n := min(len(p), c.max-(len(c.buf)-c.rd))
		c.buf = append(c.buf, p[:n]...)
		p = p[n:]
		c.cut(take)
	}
}

// cut hands out what is whole. Afterwards there is room for one more byte.
func (c *Cutter) cut(take func(frame []byte)) {
	for c.rd < len(c.buf) {
		cut := c.split(c.buf[c.rd:], c.lost)
		if cut.Skip == 0 && cut.Size == 0 {
			if len(c.buf)-c.rd == c.max {
				c.stats.Oversize++
				c.stats.Garbage += uint64(c.max)
				c.blame(Oversize, c.buf[c.rd:])
				c.rd, c.lost = len(c.buf), true
			}
			break
		}
		c.lost = false
		c.count(cut, c.buf[c.rd:])
		frame := c.buf[c.rd+cut.Skip : c.rd+cut.Skip+cut.Size]
		c.rd += cut.Skip + cut.Size
		if cut.Size > 0 && cut.Fault == NoFault {
			c.stats.Frames++
			take(frame)
		}
	}
	if c.rd == len(c.buf) {
		c.buf, c.rd = c.buf[:0], 0
	}
}

func (c *Cutter) count(cut Cut, data []byte) {
	if !cut.Quiet {
		c.stats.Garbage += uint64(cut.Skip)
	}
	if cut.Size > 0 {
		data = data[cut.Skip : cut.Skip+cut.Size]
	}
	if cut.Fault > Garbage {
		c.blame(cut.Fault, data)
	}
	switch cut.Fault {
	case Checksum:
		c.stats.Checksum++
	case Malformed:
		c.stats.Malformed++
	case Oversize:
		c.stats.Oversize++
	}
}

// Silence says that the line was silent for longer than a frame can pause: what is not whole
// will not be. The bytes are searched for frames behind the beginning that led nowhere.
func (c *Cutter) Silence(take func(frame []byte)) {
	if rest := c.buf[c.rd:]; c.whole && len(rest) > 0 {
		c.stats.Frames++
		c.rd = len(c.buf)
		take(rest)
	}
	if c.rd < len(c.buf) {
		c.stats.Cutoff++
		c.blame(Cutoff, c.buf[c.rd:])
		c.lost = true
	}
	for c.rd < len(c.buf) {
		c.rd++
		c.stats.Garbage++
		c.cut(take)
	}
	c.buf, c.rd = c.buf[:0], 0
	c.lost = c.lost && !c.gap
}

// Pending returns the bytes that are not cut yet, good until the next call.
func (c *Cutter) Pending() []byte { return c.buf[c.rd:] }

// Reset forgets the bytes that are not cut yet, as after the port was opened anew. The counts stay.
func (c *Cutter) Reset() { c.buf, c.rd, c.lost = c.buf[:0], 0, true }

// Stats returns the counts so far.
func (c *Cutter) Stats() Stats { return c.stats }
