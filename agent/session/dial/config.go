package dial

import (
	"errors"
	"fmt"

	"ferrule/internal/hint"
)

// Config is the part of [session] that is about the way to the broker.
type Config struct {
	// Proxy that is asked for the way to the broker (HTTP CONNECT): http://HOST:PORT or
	// https://HOST:PORT, with USER:PASSWORD@ before the host where it wants them. "env" takes
	// HTTPS_PROXY and NO_PROXY from the environment. Empty: none.
	Proxy string `toml:"proxy"`
	// File with the PEM certificates of the authorities that a proxy reached by https:// is
	// checked against. Empty: those of the operating system.
	ProxyRoots string `toml:"proxy_roots"`
	// File with the PEM certificate of the authority of a firewall or proxy that opens TLS and
	// looks inside. A connection that it vouches for is reported as inspected; the broker does
	// not see the device's certificate on it. Empty: nobody may look inside.
	InspectionRoots string `toml:"inspection_roots"`
	// Key exchange that withstands quantum computers: auto offers it first, and for a day leaves
	// it out at a broker where two handshakes in a row got no answer to it; required refuses
	// brokers without it; never leaves it out. Where it is left out no TLS session is resumed,
	// so that the first message of a handshake fits into one packet.
	PostQuantum string `toml:"post_quantum"`
}

// DefaultConfig returns what absent keys mean.
func DefaultConfig() Config { return Config{PostQuantum: PostQuantumAuto} }

// What post_quantum may be.
const (
	PostQuantumAuto     = "auto"
	PostQuantumRequired = "required"
	PostQuantumNever    = "never"
)

// Validate names every key that cannot be used. Its errors hold no password.
func (c Config) Validate() error {
	var problems []error
	if _, err := parseProxy(c.Proxy); err != nil {
		problems = append(problems, hint.With(fmt.Errorf("session.proxy: %w", err),
			`write it as "http://proxy.example:3128", with "user:password@" before the host where it wants them, or as "env"`))
	}
	switch c.PostQuantum {
	case PostQuantumAuto, PostQuantumRequired, PostQuantumNever:
	default:
		problems = append(problems, hint.With(fmt.Errorf("session.post_quantum: %q", c.PostQuantum), "use auto, required or never"))
	}
	return errors.Join(problems...)
}
