package dial

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ferrule/agent/session/cause"
)

// resolvePatience is how long the name server may take before each family is asked for by itself.
const resolvePatience = time.Second

// answer is what the name server said, or what became of a question.
type answer struct {
	addresses []netip.Addr
	err       error
	single    bool // of one family
}

// lookup returns the addresses of host, in the resolver's order of preference. Some routers
// swallow the question for the family that they do not know, and Go's resolver waits for both
// answers: then one of them is enough (RFC 8305, section 3).
func lookup(ctx context.Context, r *net.Resolver, host string, limit time.Duration) ([]netip.Addr, error) {
	if address, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{address}, nil
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, err := askTwice(limited, cancel, r, host)
	switch {
	case found != nil:
		return found, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, fmt.Errorf("%w within %v", cause.ErrStalled, limit)
	}
	return nil, err
}

// askTwice asks for both families at once, and for each by itself when that takes long. The first
// answer with addresses ends the other questions.
func askTwice(ctx context.Context, cancel func(), r *net.Resolver, host string) (found []netip.Addr, failed error) {
	answers, running := make(chan answer), 0
	ask := func(network string) {
		running++
		go func() { // ends with its question, which ctx bounds; the loop below takes the answer
			addresses, err := r.LookupNetIP(ctx, network, host)
			answers <- answer{addresses, err, network != "ip"}
		}()
	}
	ask("ip")
	slow := time.NewTimer(resolvePatience)
	defer slow.Stop()
	for running > 0 {
		select {
		case <-slow.C:
			if found == nil {
				ask("ip4")
				ask("ip6")
			}
		case a := <-answers:
			running--
			switch {
			case found != nil:
			case a.err == nil && len(a.addresses) > 0:
				found = a.addresses
				cancel()
			case failed == nil || !a.single:
				failed = a.err
			}
		}
	}
	return found, failed
}
