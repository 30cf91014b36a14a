package session

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io"
	"sync/atomic"
	"time"

	"ferrule/agent/session/cause"
)

// The packets that a broker may send (MQTT 3.1.1, 2.2.1).
const (
	packetConnack  = 2
	packetPublish  = 3
	packetPuback   = 4
	packetPubrec   = 5
	packetPubrel   = 6
	packetSuback   = 9
	packetPingresp = 13
)

// pongEvery is how often paho is told that the connection lives while a large message is skipped.
const pongEvery = 2 * time.Second

// guard passes a stream of packets on, and refuses one that is too large or malformed before
// its length has left guard. paho allocates what the length announces, up to 256 MiB, and
// indexes a list of one with what a SUBACK holds. What judge says is to be skipped is read and
// forgotten, and paho never hears of it.
type guard struct {
	r      *bufio.Reader
	max    int64
	packet func(kind byte) // told of every packet that begins
	// judge is asked about a PUBLISH that cannot be passed on: nil skips it. skipped is told when
	// it has gone by, and skipping while it does.
	judge    func(p poison) error
	skipped  func(p poison) error
	skipping func() error
	// wait is called behind the header of a packet of this size that nothing of ours has asked for.
	wait func(size int64)

	connected atomic.Bool // CONNACK was seen
	head      [5]byte
	n, off    int   // of head: how much there is, how much was passed on
	body      int64 // what is still to come of the packet

	skip poison
	left int64     // what is still to come of it
	pong time.Time // when paho heard of one
	seed maphash.Seed
}

// poison is a PUBLISH that paho must not see.
type poison struct {
	key      uint64 // of topic and size
	topic    string // the beginning of it
	size     int64  // the remaining length
	id       uint16 // of QoS 1 and 2
	qos      byte
	retained bool
	// malformed is one whose topic is longer than the packet: nobody knows its id.
	malformed bool
}

// topicShown is how much of a topic is kept.
const topicShown = 200

// newGuard reads from r. packet is called with the type of each packet.
func newGuard(r io.Reader, max int64, packet func(kind byte)) *guard {
	refuse := func(p poison) error { return p.refusal(max) }
	return &guard{
		r: bufio.NewReaderSize(r, 4<<10), max: max, packet: packet, seed: maphash.MakeSeed(),
		judge: refuse, skipped: refuse, skipping: func() error { return nil }, wait: func(int64) {},
	}
}

// refusal is what a connection ends with that p came on.
func (p poison) refusal(max int64) error {
	if p.malformed {
		return fmt.Errorf("%w: PUBLISH of %d bytes whose topic is longer", cause.ErrProtocol, p.size)
	}
	return fmt.Errorf("%w: PUBLISH of %d bytes on %q, the limit is %d", cause.ErrTooLarge, p.size, p.topic, max)
}

func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for g.off == g.n && g.body == 0 {
		if g.left > 0 {
			if err := g.forget(); err != nil {
				return 0, err
			}
			continue
		}
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

// forget reads a part of what is skipped. Now and then it makes a PINGRESP for paho, which would
// take its ping for lost behind a large message: bytes come, so the connection lives.
func (g *guard) forget() error {
	n, err := g.r.Discard(int(min(g.left, int64(g.r.Size()))))
	g.left -= int64(n)
	if err == nil {
		err = g.skipping()
	}
	if err != nil {
		return err
	}
	if g.left == 0 {
		return g.skipped(g.skip)
	}
	if time.Since(g.pong) >= pongEvery {
		g.pong = time.Now()
		g.head[0], g.head[1], g.n, g.off = packetPingresp<<4, 0, 2, 0
	}
	return nil
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
	pass, err := g.mayPass(first>>4, first&0x0f)
	if err != nil {
		return err
	}
	if first>>4 != packetPuback { // those are as many as we have published
		g.wait(g.body)
	}
	if !pass {
		g.n, g.body = 0, 0
		return nil
	}
	g.packet(first >> 4)
	return nil
}

// mayPass says whether a packet of this type, with these flags and of length body is passed on, or
// skipped; an error ends the connection.
func (g *guard) mayPass(kind, flags byte) (bool, error) {
	if g.connected.Load() == (kind == packetConnack) {
		return false, fmt.Errorf("%w: packet type %d is out of place", cause.ErrProtocol, kind)
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
		return g.publish(flags)
	default:
		return false, fmt.Errorf("%w: packet type %d from a broker", cause.ErrProtocol, kind)
	}
	if g.body != length {
		return false, fmt.Errorf("%w: packet type %d with %d bytes", cause.ErrProtocol, kind, g.body)
	}
	return true, nil
}

// publish judges a PUBLISH by its flags, its length, and that of its topic.
func (g *guard) publish(flags byte) (bool, error) {
	p := poison{size: g.body, qos: flags >> 1 & 3, retained: flags&1 != 0}
	if p.qos == 3 {
		return false, fmt.Errorf("%w: PUBLISH with QoS 3", cause.ErrProtocol)
	}
	least := int64(2) // topic length, and packet identifier (MQTT 3.1.1, 3.3.2)
	if p.qos > 0 {
		least = 4
	}
	topic := int64(0)
	if g.body >= least {
		length, err := g.r.Peek(2)
		if err != nil {
			return false, err
		}
		topic = int64(binary.BigEndian.Uint16(length))
	}
	p.malformed = g.body < least+topic
	if !p.malformed && g.body <= g.max {
		return true, nil
	}
	g.left = g.body
	if err := g.look(&p, topic); err != nil {
		return false, err
	}
	if err := g.judge(p); err != nil {
		return false, err
	}
	g.skip, g.pong = p, time.Now()
	if g.left == 0 {
		return false, g.skipped(p)
	}
	return false, nil
}

// look reads what tells p from others: its topic, of which the beginning is kept, and its id.
func (g *guard) look(p *poison, topic int64) error {
	var h maphash.Hash
	h.SetSeed(g.seed)
	maphash.WriteComparable(&h, p.size)
	if p.malformed {
		p.key = h.Sum64()
		return nil
	}
	shown := make([]byte, 0, topicShown)
	take := func(n int) ([]byte, error) {
		b, err := g.r.Peek(n)
		if err == nil {
			_, err = g.r.Discard(n)
			g.left -= int64(n)
		}
		return b, err
	}
	if _, err := take(2); err != nil {
		return err
	}
	for topic > 0 {
		b, err := take(int(min(topic, 1<<10)))
		if err != nil {
			return err
		}
		topic -= int64(len(b))
		_, _ = h.Write(b) // never fails
		shown = append(shown, b[:min(len(b), topicShown-len(shown))]...)
	}
	p.topic, p.key = cause.Printable(string(shown)), h.Sum64()
	if p.qos == 0 {
		return nil
	}
	b, err := take(2)
	if err == nil {
		p.id = binary.BigEndian.Uint16(b)
	}
	return err
}
