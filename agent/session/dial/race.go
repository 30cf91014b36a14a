package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ferrule/agent/session/cause"
)

const (
	// raceDelay is the head start of an address over the next one (RFC 8305, section 5).
	raceDelay = 250 * time.Millisecond
	// maxAddresses bounds how many addresses of one name are tried.
	maxAddresses = 16
)

// race is a competition of addresses for one connection.
type race struct {
	addresses []netip.Addr // in the order in which they begin
	port      string
	limit     time.Duration
	dial      func(ctx context.Context, address string) (net.Conn, error)

	began    time.Time
	attempts []Attempt
	won      net.Conn
	winner   netip.Addr
	errs     []error
}

// finish is how an attempt ended.
type finish struct {
	n    int
	conn net.Conn
	err  error
}

// run connects to the first of the addresses that answers, giving each a head start over the
// next: an address family that leads nowhere costs a quarter of a second.
func (r *race) run(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	r.began = time.Now()
	results, running := make(chan finish), 0
	head := time.NewTimer(0)
	defer head.Stop()
	waiting := func() bool { return len(r.attempts) < len(r.addresses) && r.won == nil }
	for waiting() || running > 0 {
		select {
		case <-head.C:
			if waiting() {
				r.start(limited, results)
				running++
				head.Reset(raceDelay)
			}
		case f := <-results:
			running--
			if r.settle(f) {
				cancel()
			} else if f.err != nil {
				head.Reset(0) // the next one need not wait
			}
		}
	}
	switch {
	case r.won != nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("%w within %v: %w", cause.ErrStalled, r.limit, errors.Join(r.errs...))
	}
	return errors.Join(r.errs...)
}

// start begins the next attempt.
func (r *race) start(ctx context.Context, results chan<- finish) {
	n := len(r.attempts)
	address := net.JoinHostPort(r.addresses[n].String(), r.port)
	r.attempts = append(r.attempts, Attempt{Address: address, Began: time.Since(r.began)})
	go func() { // ends with its dial, which ctx bounds; run takes what it says
		conn, err := r.dial(ctx, address)
		results <- finish{n, conn, err}
	}()
}

// settle notes how an attempt ended, and says whether it has won.
func (r *race) settle(f finish) bool {
	a := &r.attempts[f.n]
	a.Took = time.Since(r.began) - a.Began
	switch {
	case f.err == nil && r.won == nil:
		r.won, r.winner = f.conn, r.addresses[f.n]
		return true
	case f.err == nil:
		_ = f.conn.Close()
		a.Error = "another was faster"
	case r.won != nil:
		a.Error = "another was faster"
	default:
		a.Error = cause.Printable(f.err.Error())
		r.errs = append(r.errs, f.err)
	}
	return false
}

// interleave orders addresses so that the families take turns (RFC 8305, section 4), beginning
// with first where there is one of it, else with the resolver's choice.
func interleave(addresses []netip.Addr, first string) []netip.Addr {
	if len(addresses) == 0 {
		return nil
	}
	lead := family(addresses[0])
	var own, other []netip.Addr
	for _, a := range addresses {
		if a = a.Unmap(); family(a) == first {
			lead = first
		}
	}
	for _, a := range addresses {
		if a = a.Unmap(); family(a) == lead {
			own = append(own, a)
		} else {
			other = append(other, a)
		}
	}
	var all []netip.Addr
	for n := 0; len(all) < min(len(addresses), maxAddresses); n++ {
		if n < len(own) {
			all = append(all, own[n])
		}
		if n < len(other) {
			all = append(all, other[n])
		}
	}
	return all
}
