package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ferrule/agent/identity"
)

// timeouts of the stages.
type timeouts struct {
	dns, tcp, tls, connack, suback time.Duration
}

// stageTimeouts bounds each stage by itself, so that a failure says where it was.
var stageTimeouts = timeouts{dns: 10 * time.Second, tcp: 10 * time.Second, tls: 10 * time.Second, connack: 10 * time.Second, suback: 10 * time.Second}

// raceDelay is the head start of an address over the next one (RFC 8305, section 5).
const raceDelay = 250 * time.Millisecond

// secured is a connection after its handshake, before CONNECT.
type secured struct {
	tls        *tls.Conn
	broker     broker
	credential *identity.Credential
	took       time.Duration // of the handshake
}

// stageError is an error with the stage that it happened in.
type stageError struct {
	stage Stage
	err   error
}

func (e *stageError) Error() string { return string(e.stage) + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// dial connects to b and shows credential. begin is told of each stage. The error is a
// *stageError. A broker that is refused on a resumed TLS session is asked once more, in a full
// handshake: what was wrong may be the proof that the session was made with. One whose certificate
// begins later than a clock that nobody vouches for is judged by the time at which it begins.
func (s *Session) dial(ctx context.Context, b broker, credential *identity.Credential, begin func(Stage)) (*secured, error) {
	var at time.Time
	sec, err := s.dialOnce(ctx, b, credential, at, begin)
	for range chainMost {
		later, ok := credential.Later(at, err)
		if !ok {
			break
		}
		at = later
		sec, err = s.dialOnce(ctx, b, credential, at, begin)
	}
	if d, ok := errors.AsType[*distrust](err); ok && d.resumed {
		credential.Forget()
		sec, err = s.dialOnce(ctx, b, credential, at, begin)
	}
	return sec, err
}

// chainMost bounds how many certificates of one chain may be younger than the clock.
const chainMost = 4

// dialOnce judges the broker's certificate at the time at; the zero time is the clock's.
func (s *Session) dialOnce(ctx context.Context, b broker, credential *identity.Credential, at time.Time, begin func(Stage)) (*secured, error) {
	begin(StageDNS)
	addresses, err := lookup(ctx, b.host, s.timeouts.dns)
	if err != nil {
		return nil, &stageError{StageDNS, err}
	}
	begin(StageTCP)
	raw, err := race(ctx, addresses, b.port, s.timeouts.tcp)
	if err != nil {
		return nil, &stageError{StageTCP, err}
	}
	begin(StageTLS)
	started := time.Now()
	config := s.trust.config(credential, s.identity, b.host)
	if !at.IsZero() {
		config.Time = func() time.Time { return at }
	}
	secure := tls.Client(raw, config)
	handshake, cancel := context.WithTimeout(ctx, s.timeouts.tls)
	defer cancel()
	if err := secure.HandshakeContext(handshake); err != nil {
		_ = raw.Close()
		if handshake.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w within %v: %w", errStalled, s.timeouts.tls, err)
		}
		return nil, &stageError{StageTLS, err}
	}
	return &secured{tls: secure, broker: b, credential: credential, took: time.Since(started)}, nil
}

// lookup returns the addresses of host, in the resolver's order of preference.
func lookup(ctx context.Context, host string, limit time.Duration) ([]netip.Addr, error) {
	if address, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{address}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w within %v", errStalled, limit)
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
		return nil, fmt.Errorf("%w within %v: %w", errStalled, limit, errors.Join(errs...))
	}
	if won == nil {
		return nil, errors.Join(errs...)
	}
	return won, nil
}

// refusalGrace is the shortest silence after which a handshake counts as accepted.
const refusalGrace = 500 * time.Millisecond

// prove waits whether the broker refuses the certificate after all. With TLS 1.2 the broker
// has judged it before the handshake ends. With TLS 1.3 the client is done first, and hears a
// refusal at its first read: silence of half a second, and of twice the time that the
// handshake took, counts as acceptance. Nothing else may come before CONNECT.
func (s *secured) prove(ctx context.Context) error {
	if s.tls.ConnectionState().Version < tls.VersionTLS13 {
		return nil
	}
	silence := min(max(refusalGrace, 2*s.took), 5*time.Second)
	_ = s.tls.SetReadDeadline(time.Now().Add(silence))
	stop := context.AfterFunc(ctx, func() { _ = s.tls.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	n, err := s.tls.Read(b[:])
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case n > 0:
		return fmt.Errorf("%w: the broker spoke before CONNECT", errProtocol)
	case isTimeout(err):
		return s.tls.SetReadDeadline(time.Time{})
	}
	return err
}
