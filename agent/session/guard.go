package session

import (
	"bufio"
	"fmt"
	"io"
	"sync/atomic"

	"ferrule/agent/session/cause"
)

// The packets that a broker may send (MQTT 3.1.1, 2.2.1).
const (
	packetConnack  = 2
	packetPublish  = 3
	packetPuback   = 4
	packetPubrel   = 6
	packetSuback   = 9
	packetPingresp = 13
)

// guard passes a stream of packets on, and refuses one that is too large or malformed before
// its length has left guard. paho allocates what the length announces, up to 256 MiB, and
// indexes a list of one with what a SUBACK holds.
type guard struct {
	r      *bufio.Reader
	max    int64
	packet func(kind byte) // told of every packet that begins

	connected atomic.Bool // CONNACK was seen
	head      [5]byte
	n, off    int   // of head: how much there is, how much was passed on
	body      int64 // what is still to come of the packet
}

// newGuard reads from r. packet is called with the type of each packet.
func newGuard(r io.Reader, max int64, packet func(kind byte)) *guard {
	return &guard{r: bufio.NewReaderSize(r, 4<<10), max: max, packet: packet}
}

func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if g.off == g.n && g.body == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	if g.off < g.n {
		n := copy(p, g.head[g.off:g.n])
		g.off += n
		return n, nil
	}
	if int64(len(p)) > g.body {
		p = p[:g.body]
	}
	n, err := g.r.Read(p)
	g.body -= int64(n)
	return n, err
}

// next reads a fixed header (MQTT 3.1.1, 2.2) and judges it.
func (g *guard) next() error {
	first, err := g.r.ReadByte()
	if err != nil {
		return err
	}
	g.head[0], g.n, g.off, g.body = first, 1, 0, 0
	for shift := 0; ; shift += 7 {
		b, err := g.r.ReadByte()
		if err != nil {
			g.n, g.body = 0, 0
			return err
		}
		if g.n == len(g.head)-1 && b&0x80 != 0 {
			return fmt.Errorf("%w: malformed length", cause.ErrProtocol)
		}
		g.head[g.n] = b
		g.n++
		g.body |= int64(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
	}
	if err := g.judge(first>>4, first&0x0f); err != nil {
		return err
	}
	g.packet(first >> 4)
	return nil
}

// judge says whether a packet of this type, with these flags and of length body may pass.
func (g *guard) judge(kind, flags byte) error {
	if g.connected.Load() == (kind == packetConnack) {
		return fmt.Errorf("%w: packet type %d is out of place", cause.ErrProtocol, kind)
	}
	if kind == packetConnack {
		g.connected.Store(true)
	}
	length := int64(-1)
	switch kind {
	case packetConnack, packetPuback, packetPubrel:
		length = 2
	case packetSuback:
		length = 3 // we subscribe to one filter at a time
	case packetPingresp:
		length = 0
	case packetPublish:
		if flags>>1&3 == 3 {
			return fmt.Errorf("%w: PUBLISH with QoS 3", cause.ErrProtocol)
		}
		if g.body > g.max {
			return fmt.Errorf("%w: PUBLISH of %d bytes, the limit is %d", cause.ErrTooLarge, g.body, g.max)
		}
		return nil
	default:
		return fmt.Errorf("%w: packet type %d from a broker", cause.ErrProtocol, kind)
	}
	if g.body != length {
		return fmt.Errorf("%w: packet type %d with %d bytes", cause.ErrProtocol, kind, g.body)
	}
	return nil
}
