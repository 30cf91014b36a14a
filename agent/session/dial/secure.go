package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/session/cause"
	"ferrule/internal/hint"
)

// classic are the groups without a post-quantum share: a ClientHello of 300 bytes, where the
// others make 1,500, which is two packets. There are boxes that know only one.
func classic() []tls.CurveID {
	return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
}

// quantum are the groups that withstand quantum computers.
func quantum() []tls.CurveID {
	return []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024}
}

// handshake makes TLS of the tunnel.
func (a *attempt) handshake(ctx context.Context) error {
	counted := a.wire
	if a.tunnel != a.wire {
		counted = &wire{Conn: a.tunnel}
	}
	before := counted.received.Load()
	config, inspected := a.trust.config(a.credential, a.broker.ServerName())
	without := a.groups(config)
	a.secure = tls.Client(a.observe.wrap(counted), a.prepare(config))
	key := watchKey(config) // which tls.Client has not looked at yet
	limited, cancel := context.WithTimeout(ctx, a.Timeouts.TLS)
	defer cancel()
	started := time.Now()
	err := a.secure.HandshakeContext(limited)
	a.took = time.Since(started)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if deadline, _ := limited.Deadline(); err != nil && limited.Err() != nil && key.signing(deadline) {
		err = fmt.Errorf("the device's key failed to sign within %v: %w", a.Timeouts.TLS, err)
	} else if err != nil && limited.Err() != nil {
		err = fmt.Errorf("%w within %v: %w", cause.ErrStalled, a.Timeouts.TLS, err)
	}
	a.memory.hello(a.broker, without, counted.received.Load() > before, errors.Is(err, cause.ErrStalled))
	if err != nil {
		return a.inspected(a.explain(err), *inspected)
	}
	a.describe(*inspected)
	return nil
}

// groups chooses the key exchange, and says whether the post-quantum share is left out of it
// because of what happened before. Where it is, no session is resumed: the ticket of a broker that
// keeps our chain in it makes a ClientHello of two packets again.
func (a *attempt) groups(config *tls.Config) (without bool) {
	if a.quantum == PostQuantumRequired {
		config.CurvePreferences, config.MinVersion = quantum(), tls.VersionTLS13
		return false
	}
	without = a.quantum != PostQuantumNever && a.memory.without(a.broker)
	if without || a.quantum == PostQuantumNever {
		config.CurvePreferences, config.ClientSessionCache = classic(), nil
	}
	return without
}

// prepare sets what a configuration needs beside trust and groups.
func (a *attempt) prepare(config *tls.Config) *tls.Config {
	if !a.at.IsZero() {
		at := a.at
		config.Time = func() time.Time { return at }
	}
	if a.broker.alpn != "" {
		config.NextProtos = []string{a.broker.alpn}
	}
	config.KeyLogWriter = a.keyLog
	a.observe.tls(config)
	return config
}

// explain adds to the error of a handshake what we know of it.
func (a *attempt) explain(err error) error {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	switch {
	case unknown && a.path.Proxy != "":
		return fmt.Errorf("through the proxy %s: %w", a.path.Proxy, err)
	case a.quantum == PostQuantumRequired && cause.IsAlert(err):
		return hint.With(err, `the broker may know no post-quantum key exchange: set session.post_quantum = "auto", or give the broker one`)
	}
	return err
}

// inspected says that an error came from somebody in between, where one vouched for the broker.
// Silence, and what is known of their certificate, needs no such reason.
func (a *attempt) inspected(err error, authority string) error {
	_, distrust := errors.AsType[*cause.Distrust](err)
	if err == nil || authority == "" || distrust || errors.Is(err, cause.ErrStalled) || errors.Is(err, context.Canceled) {
		return err
	}
	return &cause.Inspected{Authority: authority, Err: err}
}

// describe fills in the path what the handshake agreed on.
func (a *attempt) describe(inspected string) {
	state := a.secure.ConnectionState()
	a.top = a.secure
	a.path.ALPN, a.path.Inspected = state.NegotiatedProtocol, inspected
	if state.CurveID != 0 {
		a.path.Group = state.CurveID.String()
	}
	for _, group := range quantum() {
		a.path.PostQuantum = a.path.PostQuantum || state.CurveID == group
	}
	if a.quantum == PostQuantumAuto {
		a.path.ClassicUntil = a.memory.classicUntil(a.broker)
	}
}
