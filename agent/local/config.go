package local

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"ferrule/agent/local/role"
	"ferrule/internal/hint"
)

// Config is the [local] section.
type Config struct {
	// Path of the unix socket of the status API; empty switches it off. Its directory is
	// made when missing. Members of the agent's group may use it (mode 0660).
	Socket string `toml:"socket"`
	// Address of the TLS listener, as "192.168.1.5:8443" or ":8443"; empty: nothing listens (docs/local.md).
	Listen string `toml:"listen"`
	// Whether clients of the listener show a certificate: none (never asked for), optional, required.
	ClientAuth ClientAuth `toml:"client_auth"`
	// What clients without a certificate may do where client_auth is none or optional: none or viewer.
	Anonymous role.Role `toml:"anonymous"`
	// Whether a client that offers HTTP/1.1 alone is asked for a certificate too. Browsers open
	// WebSockets in that way, and give up when they are asked before they have chosen a certificate
	// for this address; so by default it is not asked, and needs a ticket.
	AskWebSocket bool `toml:"ask_websocket"`
	// PEM file of the CA of the clients' certificates. A role may name one of its own.
	Roots string `toml:"roots"`
	// PEM file of the listener's certificate chain, relative to state_dir. Together with key; both
	// empty: a self-made P-256 certificate, kept in state_dir and renewed by itself.
	Certificate string `toml:"certificate"`
	// PEM file of the key of that certificate, relative to state_dir.
	Key string `toml:"key"`
	// Who may do what at the listener. What no role grants is denied; of several that match the
	// highest counts.
	Roles []role.Rule `toml:"role"`
}

// ClientAuth says whether clients show a certificate.
type ClientAuth string

// The values of Config.ClientAuth.
const (
	AuthNone     ClientAuth = "none"
	AuthOptional ClientAuth = "optional"
	AuthRequired ClientAuth = "required"
)

// Default returns the section as it is when the file says nothing.
func Default() Config {
	return Config{Socket: "/run/ferrule/ferrule.sock", ClientAuth: AuthRequired}
}

// Validate says what is wrong with c. It opens no file.
func (c Config) Validate() error {
	var problems []error
	add := func(repair, format string, args ...any) {
		problems = append(problems, hint.With(fmt.Errorf("local."+format, args...), repair))
	}
	if c.Listen != "" && !address(c.Listen) {
		add(`write it as "192.168.1.5:8443", "[::1]:8443" or ":8443"`, "listen %q is not an address with a port", c.Listen)
	}
	if c.ClientAuth != AuthNone && c.ClientAuth != AuthOptional && c.ClientAuth != AuthRequired {
		add("", "client_auth %q is not none, optional or required", c.ClientAuth)
	}
	if c.Anonymous > role.Viewer {
		add("give the role to a certificate, in [[local.role]]", "anonymous %q: who shows no certificate may be none or viewer", c.Anonymous)
	}
	if (c.Certificate == "") != (c.Key == "") {
		add("name both, or neither for a self-made certificate", "certificate and local.key belong together")
	}
	asked := c.Listen != "" && c.ClientAuth != AuthNone
	if asked && c.Roots == "" && len(c.Roles) == 0 {
		add("name the CA of the clients' certificates", "roots is missing: client_auth is %s", c.ClientAuth)
	}
	for n, rule := range c.Roles {
		if err := rule.Validate(); err != nil {
			problems = append(problems, hint.With(fmt.Errorf("local.role %d: %w", n+1, err), hint.Of(err)))
		}
		if rule.Roots == "" && c.Roots == "" {
			add("name the CA that may give this name", "role %d has no roots, and neither has [local]", n+1)
		}
	}
	return errors.Join(problems...)
}

func address(text string) bool {
	host, port, err := net.SplitHostPort(text)
	number, portErr := strconv.ParseUint(port, 10, 16)
	_ = host
	return err == nil && portErr == nil && number <= 65535
}

// Advice returns what somebody who checks the configuration should know about it, a sentence
// each. Nothing of it is an error.
func (c Config) Advice() []string {
	if c.Listen == "" {
		return nil
	}
	var all []string
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch {
	case c.ClientAuth == AuthNone && c.Anonymous == role.None:
		say("local.client_auth is none and local.anonymous is none: the listener refuses everybody; use required with [[local.role]], or anonymous = \"viewer\".")
	case c.ClientAuth == AuthNone:
		say("local.client_auth is none: whoever reaches %s sees status and readings.", c.Listen)
	case c.ClientAuth == AuthRequired && c.Anonymous != role.None:
		say("local.anonymous = %q has no effect: client_auth is required.", c.Anonymous)
	case c.Anonymous != role.None:
		say("local.anonymous is %s: whoever reaches %s and shows no certificate sees status and readings.", c.Anonymous, c.Listen)
	}
	if c.ClientAuth == AuthNone && len(c.Roles) > 0 {
		say("local.client_auth is none: nobody is asked for a certificate, so no [[local.role]] is ever given.")
	}
	if c.ClientAuth != AuthNone && len(c.Roles) == 0 {
		say("There is no [[local.role]]: every certificate is refused.")
	}
	return append(all, c.adviceOnBrowsers()...)
}

func (c Config) adviceOnBrowsers() (all []string) {
	switch {
	case c.ClientAuth == AuthNone:
	case c.AskWebSocket:
		all = append(all, "local.ask_websocket: a browser that has not loaded a page from this address before cancels a WebSocket whose server asks for a certificate, even if client_auth is optional.")
	default:
		all = append(all, "Clients that offer HTTP/1.1 alone are not asked for a certificate, because browsers open WebSockets in that way and cancel those that ask; they need a ticket for /ws. A program with a certificate offers h2 too, or no ALPN at all; or set local.ask_websocket = true.")
	}
	if c.Certificate == "" {
		all = append(all, "The listener's certificate is self-made: clients compare its SHA-256 or its pin with those of ferrule status.")
	}
	return all
}
