package session

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// rogue is a broker that does what its script says.
type rogue struct {
	address string
	t       testing.TB

	mu    sync.Mutex
	conns []net.Conn
	count int
}

// peer is one connection to a rogue.
type peer struct {
	net.Conn
	n int // the first connection is 1
}

// startRogue calls script for each connection after its handshake, or before it where config
// is nil. The connection is closed when script returns.
func startRogue(t testing.TB, config *tls.Config, script func(p peer)) *rogue {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rogue{address: l.Addr().String(), t: t}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			n := r.add(raw)
			running.Go(func() {
				defer raw.Close()
				p := peer{raw, n}
				if config != nil {
					secure := tls.Server(raw, config)
					if secure.Handshake() != nil {
						return
					}
					p.Conn = secure
				}
				script(p)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.drop()
		running.Wait()
	})
	return r
}

func (r *rogue) add(c net.Conn) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, c)
	r.count++
	return r.count
}

// drop closes all connections.
func (r *rogue) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
}

func (r *rogue) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// read returns the next packet, or nil at the end.
func (p peer) read() packets.ControlPacket {
	packet, err := packets.ReadPacket(p)
	if err != nil {
		return nil
	}
	return packet
}

// connack reads CONNECT and accepts it.
func (p peer) connack() bool {
	if _, ok := p.read().(*packets.ConnectPacket); !ok {
		return false
	}
	return p.write([]byte{packetConnack << 4, 2, 0, 0})
}

func (p peer) write(b []byte) bool { _, err := p.Write(b); return err == nil }

// hangUp says that nothing more will come. What was sent before arrives for certain, as it does
// not where a connection is closed on bytes that nobody has read.
func (p peer) hangUp() { _ = p.Conn.(*tls.Conn).CloseWrite() }

func (p peer) puback(id uint16) bool {
	return p.write([]byte{packetPuback << 4, 2, byte(id >> 8), byte(id)})
}

// publish sends a QoS 1 message.
func (p peer) publish(id uint16, topic, payload string) bool {
	packet := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	packet.Qos, packet.MessageID, packet.TopicName, packet.Payload = 1, id, topic, []byte(payload)
	return packet.Write(p) == nil
}

// behave answers as a good broker does until the connection ends. See is asked about every
// PUBLISH, and withholds the PUBACK, or ends the connection with errStop.
func (p peer) behave(see func(m *packets.PublishPacket) error) {
	for {
		switch m := p.read().(type) {
		case nil:
			return
		case *packets.SubscribePacket:
			p.write([]byte{packetSuback << 4, 3, byte(m.MessageID >> 8), byte(m.MessageID), 1})
		case *packets.PingreqPacket:
			p.write([]byte{packetPingresp << 4, 0})
		case *packets.PublishPacket:
			err := error(nil)
			if see != nil {
				err = see(m)
			}
			if errors.Is(err, errStop) {
				return
			}
			if err == nil && m.Qos > 0 {
				p.puback(m.MessageID)
			}
		}
	}
}

var (
	errStop     = errors.New("close the connection")
	errWithhold = errors.New("no PUBACK")
)

// freezer is a link that can stop moving without a word, as behind a NAT that forgot it.
type freezer struct {
	address string
	mu      sync.Mutex
	frozen  chan struct{} // closed: nothing moves
	done    chan struct{} // closed: the test is over
}

func startFreezer(t testing.TB, target string) *freezer {
	t.Helper()
	f := newFreezer()
	f.address = f.start(t, target).address
	return f
}

func newFreezer() *freezer {
	return &freezer{frozen: make(chan struct{}), done: make(chan struct{})}
}

// start relays connections to target.
func (f *freezer) start(t testing.TB, target string) *rogue {
	r := startRogue(t, nil, func(p peer) {
		f.mu.Lock()
		frozen := f.frozen
		f.mu.Unlock()
		up, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer up.Close()
		var both sync.WaitGroup
		both.Go(func() { f.copy(up, p, frozen); _ = up.Close() })
		both.Go(func() { f.copy(p, up, frozen); _ = p.Close() })
		both.Wait()
	})
	t.Cleanup(func() { close(f.done) })
	return r
}

// copy ends with its connections; frozen, not even the end of one gets through.
func (f *freezer) copy(to, from net.Conn, frozen chan struct{}) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		select {
		case <-frozen:
			_, _ = io.Copy(io.Discard, from)
			<-f.done
			return
		default:
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// freeze stops every link there is; new ones move.
func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.frozen)
	f.frozen = make(chan struct{})
}

// untilSubscribe acknowledges what comes before SUBSCRIBE, which it leaves without an answer.
func (p peer) untilSubscribe() {
	for {
		switch m := p.read().(type) {
		case nil, *packets.SubscribePacket:
			return
		case *packets.PublishPacket:
			p.puback(m.MessageID)
		}
	}
}
