package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"ferrule/agent/session/cause"
)

// probes is what both families and every address say, which a connection that stands does not show.
type probes struct {
	host     string   // empty: nobody is to be looked up
	targets  []string // host:port
	families []familyAnswer
	reached  []addressAnswer
}

// familyAnswer is what the name server said of one family.
type familyAnswer struct {
	name      string // IPv4 or IPv6
	addresses []string
	took      time.Duration
	servers   []string // that were asked, the last one answered
	err       error
}

// addressAnswer is what TCP said of one address.
type addressAnswer struct {
	address string
	took    time.Duration
	err     error
}

// mostAddresses bounds how many are tried.
const mostAddresses = 16

// newProbes takes what the dialler has learnt: whom it looked up, and which addresses it knows.
func (w *way) newProbes() *probes {
	p := &probes{host: w.facts.Host, targets: w.targets()}
	if p.host == "" && w.o.Dial.Proxy == "" {
		p.host, w.facts.Host = w.broker.Host(), w.broker.Host()
	}
	if _, err := netip.ParseAddr(p.host); err == nil {
		p.host = ""
	}
	return p
}

// run asks for both families, and connects to each address and closes at once.
func (p *probes) run(ctx context.Context, limits Timeouts) {
	if p.host != "" {
		p.lookup(ctx, limits.DNS)
	}
	p.connect(ctx, limits.Probe)
}

// lookup asks for both families at the same time.
func (p *probes) lookup(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p.families = make([]familyAnswer, 2)
	var both sync.WaitGroup
	for i, family := range []struct{ name, network string }{{"IPv4", "ip4"}, {"IPv6", "ip6"}} {
		both.Go(func() { p.families[i] = lookupFamily(ctx, p.host, family.name, family.network) })
	}
	both.Wait()
}

// lookupFamily asks with a resolver that says whom it asked.
func lookupFamily(ctx context.Context, host, name, network string) familyAnswer {
	a := familyAnswer{name: name}
	var mu sync.Mutex
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		if !slices.Contains(a.servers, address) {
			a.servers = append(a.servers, address)
		}
		mu.Unlock()
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	start := time.Now()
	found, err := resolver.LookupNetIP(ctx, network, host)
	mu.Lock()
	defer mu.Unlock()
	a.took, a.err = time.Since(start), err
	a.servers = slices.Clone(a.servers)
	for _, address := range found {
		a.addresses = append(a.addresses, address.Unmap().String())
	}
	return a
}

// connect tries all addresses at the same time.
func (p *probes) connect(ctx context.Context, limit time.Duration) {
	p.reached = make([]addressAnswer, len(p.targets))
	var all sync.WaitGroup
	for i, address := range p.targets {
		all.Go(func() {
			limited, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			start := time.Now()
			conn, err := new(net.Dialer).DialContext(limited, "tcp", address)
			if err == nil {
				_ = conn.Close()
			}
			p.reached[i] = addressAnswer{address, time.Since(start), err}
		})
	}
	all.Wait()
}

// targets are the addresses with the port: those that were tried, and those that were not.
func (w *way) targets() (targets []string) {
	port := ""
	for _, a := range w.tried {
		targets = append(targets, a.Address)
		_, port, _ = net.SplitHostPort(a.Address)
	}
	if port != "" {
		for _, address := range slices.Concat(w.facts.IPv4, w.facts.IPv6) {
			if target := net.JoinHostPort(address, port); !slices.Contains(targets, target) {
				targets = append(targets, target)
			}
		}
	}
	return targets[:min(len(targets), mostAddresses)]
}

// families parts addresses by theirs.
func families(addresses []netip.Addr) (v4, v6 []string) {
	for _, a := range addresses {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a.String())
		} else {
			v6 = append(v6, a.String())
		}
	}
	slices.Sort(v4)
	slices.Sort(v6)
	return v4, v6
}

// describeDNS tells which server said what, in both families.
func (w *way) describeDNS(r *Result) {
	if len(w.probes.families) == 0 {
		if _, err := netip.ParseAddr(w.facts.Host); err == nil {
			r.Saw = append(r.Saw, "an address is configured, so no name is looked up: "+w.facts.Host)
		}
		return
	}
	for _, f := range w.probes.families {
		server := "a file of this machine"
		if len(f.servers) > 0 {
			server = f.servers[len(f.servers)-1]
			w.facts.NameServers = append(w.facts.NameServers, server)
		}
		took := short(f.took)
		dns, notFound := errors.AsType[*net.DNSError](f.err)
		switch {
		case f.err == nil:
			r.Saw = append(r.Saw, fmt.Sprintf("%s of %s: %s (%s, %s)", f.name, w.facts.Host, strings.Join(f.addresses, " "), server, took))
		case notFound && dns.IsNotFound:
			r.Saw = append(r.Saw, fmt.Sprintf("%s of %s: none (%s, %s)", f.name, w.facts.Host, server, took))
		default:
			r.Saw = append(r.Saw, fmt.Sprintf("%s of %s: no answer (%s, %s)", f.name, w.facts.Host, server, took))
			r.Warn(fmt.Sprintf("the name server gives no answer for %s: %v", f.name, f.err), "check the gateway's name server and its way there")
		}
	}
	slices.Sort(w.facts.NameServers)
	w.facts.NameServers = slices.Compact(w.facts.NameServers)
}

// describeTCP tells what each address does.
func (w *way) describeTCP(r *Result) {
	works := slices.ContainsFunc(w.probes.reached, func(a addressAnswer) bool { return a.err == nil })
	for _, a := range w.probes.reached {
		text, repair := a.words()
		r.Saw = append(r.Saw, a.address+": "+text)
		if a.err == nil {
			w.facts.Connects = append(w.facts.Connects, a.address)
			continue
		}
		w.facts.Refuses = append(w.facts.Refuses, a.address)
		if works && !noWay(a.err) {
			r.Warn(fmt.Sprintf("one of several addresses does not work: %s: %s", a.address, text), repair)
		}
	}
}

// words says what became of an address, and the repair.
func (a addressAnswer) words() (text, repair string) {
	took := short(a.took)
	switch {
	case a.err == nil:
		return fmt.Sprintf("connected in %s", took), ""
	case errors.Is(a.err, syscall.ECONNREFUSED):
		return fmt.Sprintf("refused in %s: nothing listens there", took), "let the broker listen there too, or take the address out of its name"
	case noWay(a.err):
		return "no way there: this machine has no network that leads to it", ""
	case cause.IsTimeout(a.err), errors.Is(a.err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer in %s: black-holed", took), "a firewall drops packets to this address, or its family leads nowhere from here"
	}
	return cause.Printable(a.err.Error()), "look at the address: " + a.address
}

// noWay says whether this machine has no network for an address, as one without IPv6 has none.
func noWay(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EADDRNOTAVAIL)
}
