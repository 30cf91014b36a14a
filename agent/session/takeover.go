package session

import (
	"context"
	"fmt"
	"time"

	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
)

const (
	// briefly is how long a connection stands at most that counts as taken over.
	briefly = steady
	// takeovers connections in a row that worked and were closed briefly after make an alarm, if
	// witnessed of them were closed while the broker kept another connection of ours.
	takeovers = 4
	witnessed = 2
	// A session that was taken over stays away so long.
	shortestHold = 5 * time.Minute
	longestHold  = 15 * time.Minute
	// rivalQuiet is how long such a connection carries no readings.
	rivalQuiet = 15 * time.Second
	// witnessGrace is how long a witness must outlive the connection that it stands beside.
	witnessGrace = time.Second
)

// rival finds out that another client uses our client id: a broker closes the connection of a
// client whose id connects again (MQTT 3.1.1, 3.1.4), without a word, and two that both come back
// throw each other out for ever. What makes it hard is that others close connections without a word,
// too. So from the third such connection on a witness stands beside it: a TLS connection on which no
// CONNECT is sent. A broker that restarts takes both with it; one that serves a rival closes the
// session alone. And for a while the session sends no readings: what is closed then was not closed
// for an entry, for a rate, or for how much was sent.
type rival struct {
	closed int // connections in a row that worked and were closed by the broker briefly after
	alone  int // of these, those that had sent no reading, and whose witness lived on
}

// watches says whether the next connection is to have a witness.
func (r *rival) watches() bool { return r.closed >= takeovers-witnessed }

// ending is how a connection ended.
type ending struct {
	worked   bool // the broker acknowledged something, and had answered SUBSCRIBE
	closed   bool // the broker closed it, without a word
	poison   bool // an entry may be to blame
	stood    time.Duration
	quiet    bool // no reading was sent
	witness  bool // one was there
	outlived bool // and lives on
}

// ended is told how a connection ended, and says whether we were thrown out by another client
// again and again.
func (r *rival) ended(e ending) bool {
	switch {
	case !e.closed || e.poison || e.stood >= briefly:
		*r = rival{}
	case e.witness && !e.outlived:
		*r = rival{} // the broker ended everything: it restarts, or the way to it broke
	case !e.worked:
		// Closed too soon to tell; a broker that hangs up on everybody never gets further.
	default:
		r.closed++
		if e.outlived && e.quiet {
			r.alone++
		}
	}
	return r.closed >= takeovers && r.alone >= witnessed
}

// failed is told that an attempt to connect failed: a broker that serves a rival is there.
func (r *rival) failed() { *r = rival{} }

// held is told that we stayed away. If the rival is still there, one more takeover says so.
func (r *rival) held() { *r = rival{closed: takeovers - 1, alone: witnessed - 1} }

// holdOff returns how long to stay away. random is in [0, 1).
func holdOff(random float64) time.Duration {
	return shortestHold + time.Duration(random*float64(longestHold-shortestHold))
}

// standQuiet keeps readings back while a witness stands beside l, for a while.
func (l *link) standQuiet(ctx context.Context) bool {
	if l.witness == nil {
		return true
	}
	quiet := time.NewTimer(l.session.timeouts.quiet)
	defer quiet.Stop()
	select {
	case <-quiet.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// witness is a connection that stands beside a session's, without CONNECT.
type witness struct {
	done     chan struct{}
	outlived bool // after done: it lived on when the session's connection had ended
}

// stand has a witness stand beside l. It ends soon after l does, or with ctx.
func (s *Session) stand(ctx context.Context, l *link) *witness {
	w := &witness{done: make(chan struct{})}
	s.stale.Go(func() {
		defer close(w.done)
		limited, cancel := context.WithTimeout(ctx, briefly)
		defer cancel()
		for limited.Err() == nil {
			c, err := s.dialer.Dial(limited, l.secured.Broker, l.secured.Credential, func(cause.Stage) {})
			if err != nil {
				return
			}
			w.outlived = outlives(limited, c, l.lost)
			_ = c.Close()
			if w.outlived {
				return
			}
			// Brokers let go of a connection without CONNECT after a while; then another stands in.
			select {
			case <-l.lost:
				return
			case <-time.After(witnessGrace):
			}
		}
	})
	return w
}

// outlives waits until c ends, and says whether it lived on for witnessGrace after lost.
func outlives(ctx context.Context, c *dial.Conn, lost <-chan struct{}) bool {
	read, settled := make(chan struct{}), make(chan struct{})
	go func() { // ends with the read
		defer close(settled)
		select {
		case <-lost:
			_ = c.SetReadDeadline(time.Now().Add(witnessGrace))
			select {
			case <-ctx.Done():
				_ = c.SetReadDeadline(time.Unix(1, 0))
			case <-read:
			}
		case <-ctx.Done():
			_ = c.SetReadDeadline(time.Unix(1, 0))
		case <-read:
		}
	}()
	var b [1]byte
	_, err := c.Read(b[:])
	close(read)
	<-settled
	return ctx.Err() == nil && cause.IsTimeout(err)
}

// errRival is what a session that was taken over ends with.
type errRival struct {
	clientID string
	closed   int
}

func (e errRival) Error() string {
	return fmt.Sprintf("%d connections in a row, while the broker was there; client id %q", e.closed, e.clientID)
}

// Unwrap makes it cause.ErrDuplicate.
func (errRival) Unwrap() error { return cause.ErrDuplicate }
