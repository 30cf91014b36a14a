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

// raceDelay is the head start of an address over the next one (RFC 8305, section 5).
const raceDelay = 250 * time.Millisecond

// lookup returns the addresses of host, in the resolver's order of preference.
func lookup(ctx context.Context, host string, limit time.Duration) ([]netip.Addr, error) {
	if address, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{address}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w within %v", cause.ErrStalled, limit)
	}
	return addresses, err
}

// race connects to the first of addresses that answers, giving each a head start over the
// next: an address family that leads nowhere costs a quarter of a second.
func race(ctx context.Context, addresses []netip.Addr, port string, limit time.Duration) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type attempt struct {
		conn net.Conn
		err  error
	}
	results := make(chan attempt)
	next, running := 0, 0
	start := func() {
		address := net.JoinHostPort(addresses[next].Unmap().String(), port)
		next, running = next+1, running+1
		go func() { // ends with its dial, which limited bounds; the loop below takes what it says
			conn, err := new(net.Dialer).DialContext(limited, "tcp", address)
			results <- attempt{conn, err}
		}()
	}
	var won net.Conn
	var errs []error
	head := time.NewTimer(0)
	defer head.Stop()
	for next < len(addresses) && won == nil || running > 0 {
		select {
		case <-head.C:
			if next < len(addresses) && won == nil {
				start()
				head.Reset(raceDelay)
			}
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				head.Reset(0) // the next one need not wait
			case won == nil:
				won = r.conn
				cancel()
			default:
				_ = r.conn.Close()
			}
		}
	}
	if won == nil && limited.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%w within %v: %w", cause.ErrStalled, limit, errors.Join(errs...))
	}
	if won == nil {
		return nil, errors.Join(errs...)
	}
	return won, nil
}
