package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/agent/session/cause"

	"ferrule/agent/session/dial"
)

// link is one MQTT connection: a paho client that is used once, and what is in flight on it.
// It ends when lost is closed; nothing of paho runs any more then.
type link struct {
	session *Session
	secured *dial.Conn
	conn    *conn
	client  mqtt.Client
	window  *window
	flight  chan *chunk // handed from the publisher to the reaper, in order

	lost    chan struct{}
	end     sync.Once
	leaving atomic.Bool // DISCONNECT is on its way
	err     error       // why lost was closed

	since time.Time // CONNACK
	owed  owed      // when the link has ended
	pacer pacer

	// clean drops what the broker keeps for us: a message that is too large to be skipped is in it.
	clean bool
	will  notice // what the broker was given for the case that we do not come back

	hears      chan struct{} // closed: SUBSCRIBE was answered, or held back
	subscribed sync.Once
	repeated   atomic.Bool // SUBSCRIBE was agreed to before: what was retained has come
	heard      atomic.Bool // it was agreed to
	rebirths   chan struct{}
	wanted     chan struct{} // rebirths that hosts ask for
	reborn     sync.Once
	witness    *witness    // stands beside it, or nil
	fed        atomic.Bool // readings may be on their way
}

// notice is a message of the session's own.
type notice struct {
	topic    string
	payload  []byte
	qos      byte
	retained bool
}

// open sends CONNECT on a proved or fresh connection and waits for CONNACK. The connection is
// the link's, whatever happens. The error is a *cause.StageError.
func (s *Session) open(ctx context.Context, sec *dial.Conn) (*link, error) {
	s.begin(cause.StageConnack)
	l := &link{
		session: s, secured: sec, window: newWindow(s.config.Window),
		conn:     newConn(sec, s.config.MaxInbound.Bytes(), s.config.WriteTimeout.Std()),
		since:    time.Now(),
		flight:   make(chan *chunk, s.config.Window),
		lost:     make(chan struct{}),
		hears:    make(chan struct{}),
		rebirths: make(chan struct{}, 1),
		wanted:   make(chan struct{}, 1),
		pacer:    pacer{rate: s.config.Rate, last: time.Now()},
	}
	l.clean = !s.quarantine.heldUntil(l.since).IsZero()
	l.will = s.lastWill()
	l.conn.watchPoison(s.quarantine.seed, l.judge, l.quarantined)
	l.client = mqtt.NewClient(l.options())
	stop := context.AfterFunc(ctx, func() { l.conn.fail(ctx.Err()) })
	token := l.client.Connect()
	<-token.Done() // the deadline that paho sets for CONNACK bounds it
	stop()
	if err := token.Error(); err != nil {
		_ = sec.Close()
		if refused, ok := token.(*mqtt.ConnectToken); ok && refused.ReturnCode() != 0 && refused.ReturnCode() < packets.ErrNetworkError {
			err = cause.Refusal(refused.ReturnCode())
		}
		if failure := l.conn.failed(); failure != nil {
			err = failure
		}
		if cause.IsTimeout(err) {
			err = fmt.Errorf("%w within %v: %w", cause.ErrStalled, s.timeouts.connack, err)
		}
		return nil, &cause.StageError{Stage: cause.StageConnack, Err: sec.Explain(err)}
	}
	l.since = time.Now()
	present := false
	if accepted, ok := token.(*mqtt.ConnectToken); ok {
		present = accepted.SessionPresent()
	}
	s.sessionPresent(l, present)
	return l, nil
}

// judge is asked about a PUBLISH that is too large, or malformed.
func (l *link) judge(p poison) error {
	return l.session.quarantine.judge(p, l.session.config.MaxInbound.Bytes(), time.Now())
}

// lastWill is the format's will, or else the session's own.
func (s *Session) lastWill() (w notice) {
	if s.format != nil {
		w.topic, w.payload, w.qos, w.retained = s.format.Will()
	}
	if w.topic == "" && s.topics.status != "" {
		w = notice{s.topics.status, s.offline, 1, true}
	}
	return w
}

// options binds paho as every connection needs it.
func (l *link) options() *mqtt.ClientOptions {
	s := l.session
	o := mqtt.NewClientOptions().
		SetClientID(s.clientID).
		SetProtocolVersion(4).   // or a refused CONNECT is tried again as MQTT 3.1
		SetAutoReconnect(false). // it completes tokens without error and without a PUBACK
		SetConnectRetry(false).
		SetCleanSession(l.clean). // off, so that commands sent while we were away arrive
		SetOrderMatters(true).
		SetAutoAckDisabled(true).
		SetStore(discard{}).
		SetKeepAlive(s.config.Keepalive.Std()).
		SetPingTimeout(s.config.WriteTimeout.Std()).
		SetWriteTimeout(handOver). // conn has the deadlines of writing
		SetConnectTimeout(s.timeouts.connack).
		SetDefaultPublishHandler(l.receive). // before Connect: a queued command comes before SUBACK
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { l.ended(err) }).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return l.conn, nil })
	o.AddBroker("tcp://" + l.secured.Broker.Address()) // never dialled: the function above is asked
	if w := l.will; w.topic != "" {
		o.SetBinaryWill(w.topic, w.payload, w.qos, w.retained)
	}
	return o
}

// ended makes it known that nothing of paho runs any more.
func (l *link) ended(err error) {
	l.end.Do(func() {
		l.err = err
		if failure := l.conn.failed(); failure != nil && !l.leaving.Load() {
			l.err = failure
		}
		close(l.lost)
	})
}

// errDisconnected: the link was ended in order.
var errDisconnected = errors.New("disconnected")

// disconnect sends DISCONNECT, so that the broker forgets the will, and waits until the link
// has ended.
func (l *link) disconnect() {
	l.leaving.Store(true)
	// paho waits this long for DISCONNECT to be written, and then for its own goroutines.
	patience := l.session.config.WriteTimeout.Std() + 5*time.Second
	l.client.Disconnect(uint(patience.Milliseconds()))
	l.ended(errDisconnected)
}

// handOver is how long paho may take to hand a packet to its writer. It is short, since nobody
// takes the packet any more when the client has ended meanwhile; while the writer is busy,
// handing over is tried again.
const handOver = 250 * time.Millisecond

// publish hands one message to paho's writer.
func (l *link) publish(topic string, payload []byte, retained bool) mqtt.Token {
	return l.hand(func() mqtt.Token { return l.client.Publish(topic, 1, retained, payload) })
}

// hand tries until paho's writer has taken a packet, write_timeout is over, or the link. A
// packet that was not taken fails the link: it was announced, and what was gathered would wait
// for it.
func (l *link) hand(try func() mqtt.Token) mqtt.Token {
	for started := time.Now(); ; {
		token := try()
		select {
		case <-token.Done():
		default:
			return token
		}
		err := token.Error()
		busy := err != nil && strings.HasSuffix(err.Error(), "was broken by timeout") // of Publish and Subscribe
		if busy && !l.over() && time.Since(started) < l.conn.writeTimeout {
			continue
		}
		if busy {
			err = fmt.Errorf("%w for %v: handing over a packet", cause.ErrFrozen, l.conn.writeTimeout)
		}
		if err != nil {
			l.conn.fail(err)
		}
		return token
	}
}

// deliver publishes one message and waits for its PUBACK, the link's end, or that of ctx.
func (l *link) deliver(ctx context.Context, m notice) error {
	l.window.add(1)
	defer l.window.done(1)
	l.conn.expect(1)
	token := l.hand(func() mqtt.Token { return l.client.Publish(m.topic, m.qos, m.retained, m.payload) })
	l.session.count(func(st *Status) { st.Published++ })
	select {
	case <-token.Done():
	case <-l.lost:
		if !acknowledged(token) {
			return l.err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := token.Error(); err != nil {
		return err
	}
	l.session.count(func(st *Status) { st.Acked++ })
	return nil
}

// over says whether the link has ended.
func (l *link) over() bool {
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}

// acknowledged says whether token has ended without error.
func acknowledged(token mqtt.Token) bool {
	select {
	case <-token.Done():
		return token.Error() == nil
	default:
		return false
	}
}

// watch ends the link when messages are in flight and nothing moves: TCP would take many
// minutes to notice, and with a bounded window there is nothing to write that could block. It
// ends with the link.
func (l *link) watch() {
	limit := l.session.config.WriteTimeout.Std()
	tick := time.NewTicker(min(limit/8, 500*time.Millisecond))
	defer tick.Stop()
	asked := false
	for {
		select {
		case <-l.lost:
			return
		case <-tick.C:
		}
		l.session.meter.read()
		n, since := l.window.inFlight()
		quiet := l.conn.sinceIn(since)
		switch {
		case n == 0 || quiet < limit/2:
			asked = false
		case quiet >= limit:
			l.conn.fail(fmt.Errorf("%w for %v", cause.ErrFrozen, limit))
		case !asked:
			asked = true
			l.conn.ping(limit - quiet)
		}
		if n > 0 && l.conn.sinceAck(since) >= ackPatience*limit {
			l.conn.fail(fmt.Errorf("%w for %v", cause.ErrNoAck, ackPatience*limit))
		}
	}
}

// ackPatience is how many write timeouts a broker may live without acknowledging anything
// that is in flight.
const ackPatience = 3

// discard is paho's store. Nothing is kept: a client lives for one connection, and the outbox
// knows what is owed.
type discard struct{}

func (discard) Open()                             {}
func (discard) Put(string, packets.ControlPacket) {}
func (discard) Get(string) packets.ControlPacket  { return nil }
func (discard) All() []string                     { return nil }
func (discard) Del(string)                        {}
func (discard) Close()                            {}
func (discard) Reset()                            {}
