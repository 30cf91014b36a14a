package dial

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
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/session/cause"
)

func addresses(all ...string) []netip.Addr {
	var a []netip.Addr
	for _, text := range all {
		a = append(a, netip.MustParseAddr(text))
	}
	return a
}

func TestInterleave(t *testing.T) {
	for name, test := range map[string]struct{ in, first, want string }{
		"resolver's choice":      {"2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2", "", "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2"},
		"IPv4 first":             {"192.0.2.1 192.0.2.2 2001:db8::1", "", "192.0.2.1 2001:db8::1 192.0.2.2"},
		"what worked":            {"2001:db8::1 2001:db8::2 192.0.2.1", "ipv4", "192.0.2.1 2001:db8::1 2001:db8::2"},
		"what worked is no more": {"2001:db8::1 2001:db8::2", "ipv4", "2001:db8::1 2001:db8::2"},
		"IPv4 in IPv6":           {"::ffff:192.0.2.1 2001:db8::1", "ipv6", "2001:db8::1 192.0.2.1"},
		"one":                    {"192.0.2.1", "ipv6", "192.0.2.1"},
	} {
		if got := interleave(addresses(strings.Fields(test.in)...), test.first); !slices.Equal(got, addresses(strings.Fields(test.want)...)) {
			t.Errorf("%s: %v", name, got)
		}
	}
	var many []netip.Addr
	for n := range 1000 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}))
	}
	if got := interleave(append(many, netip.MustParseAddr("2001:db8::1")), ""); len(got) != maxAddresses || got[1] != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("%d addresses, the second is %v", len(got), got[1])
	}
	if got := interleave(nil, "ipv4"); got != nil {
		t.Error(got)
	}
}

// outcome is what a fake network does with an address.
type outcome struct {
	after time.Duration
	err   error
}

// fakeNetwork connects, or not, as it is told; an address that it does not know is a black hole.
type fakeNetwork struct {
	mu     sync.Mutex
	known  map[string]outcome
	open   []net.Conn
	closed int
}

type countedClose struct {
	net.Conn
	n *fakeNetwork
}

func (c countedClose) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.n.closed++
	return nil
}

func (f *fakeNetwork) dial(ctx context.Context, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	o, ok := f.known[host]
	if !ok {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(o.after):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if o.err != nil {
		return nil, o.err
	}
	c := countedClose{n: f}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, c)
	return c, nil
}

func TestRace(t *testing.T) {
	const ms = time.Millisecond
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	for name, test := range map[string]struct {
		known  map[string]outcome
		winner string
		took   time.Duration
		errs   []string // of the attempts, in order
		err    error
	}{
		"first answers":         {map[string]outcome{"2001:db8::1": {after: 30 * ms}}, "2001:db8::1", 30 * ms, []string{""}, nil},
		"first is a black hole": {map[string]outcome{"192.0.2.1": {after: 30 * ms}}, "192.0.2.1", 280 * ms, []string{"another was faster", ""}, nil},
		"first is slow, but faster than the second": {map[string]outcome{"2001:db8::1": {after: 300 * ms}, "192.0.2.1": {after: 100 * ms}},
			"2001:db8::1", 300 * ms, []string{"", "another was faster"}, nil},
		"first is refused at once": {map[string]outcome{"2001:db8::1": {err: refused}, "192.0.2.1": {after: 30 * ms}}, "192.0.2.1", 30 * ms, []string{"connection refused", ""}, nil},
		"last answers":             {map[string]outcome{"192.0.2.2": {after: 30 * ms}}, "192.0.2.2", 780 * ms, []string{"faster", "faster", "faster", ""}, nil},
		"all are refused": {map[string]outcome{"2001:db8::1": {err: refused}, "192.0.2.1": {err: refused}, "2001:db8::2": {err: refused}, "192.0.2.2": {err: refused}},
			"", 0, []string{"refused", "refused", "refused", "refused"}, syscall.ECONNREFUSED},
		"all are black holes":                 {nil, "", 10 * time.Second, []string{"deadline", "deadline", "deadline", "deadline"}, cause.ErrStalled},
		"both answer at the very same moment": {map[string]outcome{"2001:db8::1": {after: 250 * ms}, "192.0.2.1": {}}, "", 250 * ms, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &fakeNetwork{known: test.known}
				r := race{addresses: interleave(addresses("2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"), ""), port: "8883", limit: 10 * time.Second, dial: network.dial}
				started := time.Now()
				err := r.run(t.Context())
				if !errors.Is(err, test.err) {
					t.Fatal(err)
				}
				if took := time.Since(started); took != test.took {
					t.Errorf("took %v", took)
				}
				if test.winner != "" && r.winner.String() != test.winner {
					t.Errorf("%v won", r.winner)
				}
				for n, want := range test.errs {
					if got := r.attempts[n].Error; (got == "") != (want == "") || !strings.Contains(got, want) {
						t.Errorf("attempt %d: %+v", n, r.attempts[n])
					}
				}
				if left := len(network.open) - network.closed; err == nil && left != 1 || err != nil && left != 0 {
					t.Errorf("%d connections were left open", left)
				}
			})
		})
	}
}

func TestRaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := race{addresses: addresses("192.0.2.1"), port: "1", limit: 10 * time.Second, dial: new(fakeNetwork).dial}
		if err := r.run(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cause.ErrStalled) {
			t.Error(err)
		}
	})
}

func TestLookup(t *testing.T) {
	four, six := net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1")
	both := func(name string, _ bool) []net.IP {
		if name != "broker.test" {
			return nil
		}
		return []net.IP{four, six}
	}
	for name, test := range map[string]struct {
		host   string
		silent func(string, bool) bool
		want   int
		err    error
	}{
		"both":                         {"broker.test", nil, 2, nil},
		"an address":                   {"192.0.2.9", nil, 1, nil},
		"an address with a zone":       {"fe80::1%lo", nil, 1, nil},
		"AAAA is swallowed":            {"broker.test", func(_ string, six bool) bool { return six }, 1, nil},
		"A is swallowed":               {"broker.test", func(_ string, six bool) bool { return !six }, 1, nil},
		"the name server says nothing": {"broker.test", func(string, bool) bool { return true }, 0, cause.ErrStalled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := lookup(t.Context(), dnsServer(t, test.silent, both), test.host, 3*time.Second)
			if len(got) != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	t.Run("no such name", func(t *testing.T) {
		_, err := lookup(t.Context(), dnsServer(t, nil, both), "other.test", patience)
		if f := cause.Classify(cause.StageDNS, err); f.Cause != cause.Name {
			t.Errorf("%+v", f)
		}
	})
}
