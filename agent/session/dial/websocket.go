package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"ferrule/agent/session/cause"
)

const (
	// maxUpgrade bounds the header that a server answers the upgrade with, in bytes.
	maxUpgrade = 32 << 10
	// maxFrames bounds a WebSocket message, in bytes. MQTT packets may share messages and span
	// them; the largest that the session takes is half of this.
	maxFrames = 32 << 20
	// frameBuffer is how much goes into one frame; the session gathers as much for one write.
	frameBuffer = 16 << 10
	// goodbye bounds how long the frame that closes a WebSocket may take.
	goodbye = 250 * time.Millisecond
)

// upgrade makes a WebSocket of the TLS connection (RFC 6455, 4.1; MQTT 3.1.1, 6).
func (a *attempt) upgrade(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, a.Timeouts.WebSocket)
	defer cancel()
	under := &underlay{Conn: a.secure, left: maxUpgrade}
	stop := context.AfterFunc(limited, func() { _ = a.secure.SetDeadline(time.Unix(1, 0)) })
	d := websocket.Dialer{
		NetDialTLSContext: func(context.Context, string, string) (net.Conn, error) { return under, nil },
		Subprotocols:      []string{"mqtt"},
		ReadBufferSize:    4 << 10, WriteBufferSize: frameBuffer,
	}
	ws, answer, err := d.DialContext(ctx, "wss://"+a.broker.authority()+a.broker.path, http.Header{"User-Agent": {"ferrule"}})
	if !stop() && err == nil {
		err = limited.Err()
	}
	if answer != nil {
		a.observe.answered(cause.StageWebSocket, answer.Header)
	}
	if err = upgraded(answer, under, err); err != nil {
		return a.inspected(a.timely(ctx, limited, err, a.Timeouts.WebSocket), a.path.Inspected)
	}
	a.path.WebSocket = true
	a.top = newStream(ws, under)
	return nil
}

// upgraded says what is wrong with the answer to an upgrade, where something is.
func upgraded(answer *http.Response, under *underlay, err error) error {
	broken := under.failed()
	switch {
	case errors.Is(broken, errUpgradeTooLong):
		return fmt.Errorf("%w: %w", cause.ErrNotWebSocket, broken)
	case errors.Is(err, websocket.ErrBadHandshake) && answer.StatusCode != http.StatusSwitchingProtocols:
		return &cause.WebSocketAnswer{Code: answer.StatusCode, Status: clip(answer.Status)}
	case errors.Is(err, websocket.ErrBadHandshake):
		return fmt.Errorf("%w: the answer to the upgrade is wrong", cause.ErrNotWebSocket)
	case err != nil && broken != nil:
		return broken
	case err != nil:
		return fmt.Errorf("%w: %w", cause.ErrNotWebSocket, err)
	case answer.Header.Get("Sec-Websocket-Protocol") != "mqtt": // MQTT 3.1.1, 6.0.0-4
		return fmt.Errorf("%w: the subprotocol is %q", cause.ErrNotWebSocket, clip(answer.Header.Get("Sec-Websocket-Protocol")))
	case len(answer.Header.Values("Sec-Websocket-Extensions")) > 0: // RFC 6455, 4.1: none was asked for
		return fmt.Errorf("%w: an extension that was not asked for", cause.ErrNotWebSocket)
	}
	under.settle()
	return nil
}

// errUpgradeTooLong ends an answer to the upgrade that has no end.
var errUpgradeTooLong = fmt.Errorf("its answer is longer than %d bytes", maxUpgrade)

// underlay is what gorilla speaks on: TLS, with its first bytes counted. It keeps the error that
// ended reading, since gorilla gives another in its place and hides an alert so. gorilla writes
// pongs with deadlines of its own; none may stay behind, and none may outlive the stream's.
type underlay struct {
	net.Conn

	mu     sync.Mutex
	left   int       // bytes that may come before settle; -1: any number
	err    error     // that ended reading
	unsent error     // that ended writing
	own    time.Time // gorilla's deadline of the next write
	stream time.Time // the stream's
}

// settle ends the bound on what may come.
func (u *underlay) settle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.left = -1
}

// failed returns what ended reading.
func (u *underlay) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

func (u *underlay) Read(p []byte) (int, error) {
	u.mu.Lock()
	left := u.left
	u.mu.Unlock()
	switch {
	case left == 0:
		return 0, u.broke(errUpgradeTooLong)
	case left > 0:
		p = p[:min(len(p), left)]
	}
	n, err := u.Conn.Read(p)
	u.mu.Lock()
	if u.left > 0 {
		u.left -= n
	}
	u.mu.Unlock()
	if err != nil {
		return n, u.broke(err)
	}
	return n, nil
}

func (u *underlay) broke(err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.err = err
	}
	return err
}

// SetWriteDeadline is gorilla's, for its next write.
func (u *underlay) SetWriteDeadline(t time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.own = t
	return nil
}

func (u *underlay) Write(p []byte) (int, error) {
	u.mu.Lock()
	until := u.stream
	if !u.own.IsZero() && (until.IsZero() || u.own.Before(until)) {
		until = u.own
	}
	_ = u.Conn.SetWriteDeadline(until)
	u.mu.Unlock()
	n, err := u.Conn.Write(p)
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.Conn.SetWriteDeadline(u.stream)
	if err != nil && u.unsent == nil {
		u.unsent = err
	}
	return n, err
}

// explain gives the error of the write that gorilla ended with err.
func (u *underlay) explain(err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.unsent != nil {
		return u.unsent
	}
	return err
}

// limit is the stream's deadline of writes, also of one that is under way.
func (u *underlay) limit(t time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stream = t
	return u.Conn.SetWriteDeadline(t)
}

// stream is a WebSocket as the stream of bytes that MQTT takes it for. A goroutine of its own
// reads it: gorilla never reads again once a deadline has passed, and a net.Conn must.
type stream struct {
	ws     *websocket.Conn
	under  *underlay
	pumped chan struct{} // the goroutine has ended

	mu       sync.Mutex
	changed  sync.Cond
	ready    []byte // read, and not taken yet
	err      error  // why nothing more comes
	closed   bool
	deadline time.Time
	alarm    *time.Timer
}

func newStream(ws *websocket.Conn, under *underlay) *stream {
	s := &stream{ws: ws, under: under, pumped: make(chan struct{})}
	s.changed.L = &s.mu
	ws.SetReadLimit(maxFrames)
	go s.pump() // Close ends it, and waits
	return s
}

// pump reads until the connection ends.
func (s *stream) pump() {
	defer close(s.pumped)
	buffer := make([]byte, 4<<10)
	for {
		kind, message, err := s.ws.NextReader()
		if err == nil && kind != websocket.BinaryMessage { // MQTT 3.1.1, 6.0.0-1
			err = fmt.Errorf("%w: a WebSocket message of text", cause.ErrProtocol)
		}
		for err == nil {
			var n int
			n, err = message.Read(buffer)
			if n > 0 && !s.hand(buffer[:n]) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			s.fail(s.reason(err))
			return
		}
	}
}

// hand waits until p was taken. It answers false when the stream was closed.
func (s *stream) hand(p []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = p
	s.changed.Broadcast()
	for len(s.ready) > 0 && !s.closed {
		s.changed.Wait()
	}
	return !s.closed
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.changed.Broadcast()
}

// reason gives the error behind gorilla's.
func (s *stream) reason(err error) error {
	var closing *websocket.CloseError
	switch broken := s.under.failed(); {
	case errors.As(err, &closing) && closing.Code != websocket.CloseAbnormalClosure:
		return fmt.Errorf("%w: the WebSocket was closed with %d %q", io.EOF, closing.Code, closing.Text)
	case broken != nil:
		return broken
	case errors.Is(err, websocket.ErrReadLimit):
		return fmt.Errorf("%w: a WebSocket message above %d bytes", cause.ErrTooLarge, maxFrames)
	case errors.Is(err, cause.ErrProtocol):
		return err
	}
	return fmt.Errorf("%w: %w", cause.ErrProtocol, err)
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case !s.deadline.IsZero() && !time.Now().Before(s.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(s.ready) > 0:
			n := copy(p, s.ready)
			if s.ready = s.ready[n:]; len(s.ready) == 0 {
				s.changed.Broadcast()
			}
			return n, nil
		case s.err != nil:
			return 0, s.err
		}
		s.changed.Wait()
	}
}

// Write implements net.Conn: p is one message.
func (s *stream) Write(p []byte) (int, error) {
	if err := s.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, s.under.explain(err)
	}
	return len(p), nil
}

// Close says good-bye, if that takes no time, and closes everything beneath.
func (s *stream) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	if s.alarm != nil {
		s.alarm.Stop()
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	if again {
		<-s.pumped
		return net.ErrClosed
	}
	_ = s.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(goodbye))
	err := s.under.Conn.Close()
	<-s.pumped
	return err
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.under.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.under.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.deadline = t
	if s.alarm != nil {
		s.alarm.Stop()
	}
	if !t.IsZero() {
		s.alarm = time.AfterFunc(time.Until(t), func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		})
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.under.limit(t) }
