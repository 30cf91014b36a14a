package doctor

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	"ferrule/agent/session/cause"
)

// talk is one MQTT connection, spoken by hand.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTalk(conn net.Conn) *talk { return &talk{conn: conn, in: bufio.NewReader(conn)} }

// ask sends one packet and waits for the answer of that kind; messages that come in between are left
// to the session, which gets them again.
func (t *talk) ask(ctx context.Context, request []byte, answer byte, limit time.Duration) (packet, error) {
	_ = t.conn.SetDeadline(time.Now().Add(limit))
	stop := context.AfterFunc(ctx, func() { _ = t.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := t.conn.Write(request); err != nil {
		return packet{}, t.reason(err)
	}
	for {
		p, err := readPacket(t.in)
		switch {
		case cause.IsTimeout(err):
			return p, fmt.Errorf("%w within %v", cause.ErrStalled, limit)
		case err != nil:
			return p, err
		case p.kind == answer:
			return p, nil
		case p.kind != packetPublish:
			return p, fmt.Errorf("%w: a packet of type %d came", cause.ErrProtocol, p.kind)
		}
	}
}

// reason looks whether the other side said why it stopped listening.
func (t *talk) reason(err error) error {
	_ = t.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, alert := t.in.ReadByte(); alert != nil && cause.IsAlert(alert) {
		return alert
	}
	return err
}

// connect opens a session and says how long that took.
func (t *talk) connect(ctx context.Context, clientID string, clean bool, limit time.Duration) (present bool, took time.Duration, err error) {
	start := time.Now()
	p, err := t.ask(ctx, connectPacket(clientID, clean), packetConnack, limit)
	if err != nil {
		return false, 0, err
	}
	present, err = p.connack()
	return present, time.Since(start), err
}

func (t *talk) subscribe(ctx context.Context, filter string, limit time.Duration) (qos byte, took time.Duration, err error) {
	start := time.Now()
	p, err := t.ask(ctx, subscribePacket(filter), packetSuback, limit)
	if err != nil {
		return 0, 0, err
	}
	qos, err = p.suback()
	return qos, time.Since(start), err
}

func (t *talk) publish(ctx context.Context, topic string, limit time.Duration) (took time.Duration, err error) {
	start := time.Now()
	payload := fmt.Appendf(nil, `{"doctor":%q,"t":%q}`, rand.Text()[:8], start.UTC().Format(time.RFC3339))
	p, err := t.ask(ctx, publishPacket(topic, payload), packetPuback, limit)
	if err != nil {
		return 0, err
	}
	return time.Since(start), p.puback()
}

// close says good-bye.
func (t *talk) close() {
	_ = t.conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = t.conn.Write(disconnectPacket())
	_ = t.conn.Close()
}

// refusesID says whether a refusal of CONNECT may be one of the client id: brokers whose rules name the
// ids of devices answer by identifier rejected, by not authorised, or not at all.
func refusesID(err error) bool {
	code, ok := errors.AsType[cause.Refusal](err)
	if ok {
		return code == 2 || code == 4 || code == 5
	}
	return cause.IsClosed(err)
}
