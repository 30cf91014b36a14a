package local

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"ferrule/agent/local/role"
)

const (
	// maxSent bounds what a client may send in one message, in bytes: nothing is expected of it.
	maxSent = 512
	// pongTimeout is how long a client may be silent that is pinged every keepalive.
	pongTimeout = 2*keepalive + writeTimeout
	// pingPause is how often a client may ping at most.
	pingPause    = 500 * time.Millisecond
	closeTimeout = time.Second
)

// serveWebSocket carries what /readings and /events carry: {"event":…,"data":…} in a text
// message each. Who showed no certificate needs a ticket.
func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	p := peerOf(r)
	if text := r.URL.Query().Get("ticket"); text != "" && p.Role < role.Viewer {
		if p = s.tickets.redeem(text); p == nil {
			writeJSON(w, http.StatusForbidden, Error{Text: "the ticket is unknown, used, or older than 30 seconds", Code: "bad-ticket",
				Hint: "get a new one by POST /ticket"})
			return
		}
	}
	if !s.may(w, p, role.Viewer) {
		return
	}
	if r.ProtoMajor != 1 {
		writeJSON(w, http.StatusUpgradeRequired, Error{Text: "a WebSocket begins with HTTP/1.1", Code: "bad-protocol", Hint: "offer http/1.1 alone by ALPN"})
		return
	}
	watcher := &watcher{readings: true, status: true}
	if !s.feed.watch(watcher, places(p)) {
		writeJSON(w, http.StatusServiceUnavailable, Error{Text: "too many watchers", Code: "busy"})
		return
	}
	defer s.feed.leave(watcher)
	s.sockets.Add(1) // before http.Server lets go of the connection
	defer s.sockets.Done()
	upgrader := websocket.Upgrader{
		ReadBufferSize: 512, WriteBufferSize: 4096, HandshakeTimeout: writeTimeout,
		CheckOrigin: func(*http.Request) bool { return true }, // protect has
		Error: func(w http.ResponseWriter, _ *http.Request, status int, why error) {
			writeJSON(w, status, Error{Text: why.Error(), Code: "bad-request"})
		},
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // answered by Error
	}
	if at := peerOf(r); at.conn != nil && !p.anonymous {
		at.conn.Welcome()
	}
	ctx := r.Context()
	if !p.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.until.Sub(s.now()))
		defer cancel()
	}
	s.talk(ctx, conn, watcher)
}

// talk sends events until somebody has enough.
func (s *Server) talk(ctx context.Context, conn *websocket.Conn, watcher *watcher) {
	ended := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(ended)
		hear(conn)
	})
	defer reading.Wait()
	defer conn.Close()
	ping := time.NewTicker(keepalive)
	defer ping.Stop()
	send := func(e event) bool {
		_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		return conn.WriteMessage(websocket.TextMessage, e.message()) == nil
	}
	if !send(event{statusEvent, s.statusText()}) {
		return
	}
	for {
		ok := true
		select {
		case <-ctx.Done():
			_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, "the agent stops or the certificate ended"), time.Now().Add(closeTimeout))
			return
		case <-ended:
			return
		case e := <-watcher.events:
			if missed := s.feed.takeMissed(watcher); missed > 0 {
				ok = send(event{missedEvent, strconv.AppendInt(nil, int64(missed), 10)})
			}
			ok = ok && send(e)
		case e := <-watcher.latest:
			ok = send(e)
		case <-ping.C:
			ok = conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)) == nil
		}
		if !ok {
			return
		}
	}
}

// hear reads what the client sends: pongs, a few pings, and the end. Anything else is refused.
func hear(conn *websocket.Conn) {
	conn.SetReadLimit(maxSent)
	alive := func(string) error { return conn.SetReadDeadline(time.Now().Add(pongTimeout)) }
	_ = alive("")
	conn.SetPongHandler(alive)
	var last time.Time
	conn.SetPingHandler(func(text string) error {
		if time.Since(last) < pingPause {
			return websocket.ErrCloseSent // ends the reading
		}
		last = time.Now()
		_ = conn.WriteControl(websocket.PongMessage, []byte(text), time.Now().Add(closeTimeout))
		return alive("")
	})
	if _, _, err := conn.NextReader(); err == nil {
		_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseUnsupportedData, "nothing is taken here"), time.Now().Add(closeTimeout))
	}
}

// message is the event as a WebSocket carries it.
func (e event) message() []byte {
	b := make([]byte, 0, len(e.data)+len(e.name)+24)
	b = append(b, `{"event":"`...)
	b = append(b, e.name...)
	b = append(b, `","data":`...)
	b = append(b, e.data...)
	return append(b, '}')
}
