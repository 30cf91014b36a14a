// Package authorize says whether a command may act: the device is the resource server of RFC 6749, and whoever
// holds an issuer's key, not whoever holds the broker, moves an actuator. The trap is everything between the
// signature and the act: a token that is sound may come twice, late, for another device, or for another point.
package authorize

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// Mode says what becomes of a command without a good token.
type Mode string

// The modes.
const (
	Off     Mode = "off"     // tokens are not looked at
	Audit   Mode = "audit"   // executed all the same, and what enforce would have refused is noted
	Enforce Mode = "enforce" // refused
)

const (
	// MaxToken is the longest token that is looked at, in bytes.
	MaxToken = 4 << 10
	// MaxLife is the longest a token may live: exp - iat.
	MaxLife = 15 * time.Minute
	// maxLeeway bounds the difference of clocks that may be allowed.
	maxLeeway = 5 * time.Minute
	// maxIssuers bounds the keys that are pinned, and with them what one check costs at most.
	maxIssuers = 8
)

// Config is the [authorize] section.
type Config struct {
	// What becomes of a command that acts and carries no good token of an issuer: `off` (tokens are not
	// looked at), `audit` (it is executed, and what enforce would have refused is noted) or `enforce` (it is refused).
	Mode Mode `toml:"mode"`
	// Modes of single commands, which go before `mode`: `{ write = "enforce", restart = "off" }`.
	Commands map[string]Mode `toml:"commands"`
	// PEM files with the public keys or certificates (P-256 or Ed25519) of those who may authorise; `NAME=FILE`
	// asks in addition that the token's `iss` is NAME. Relative paths start at `state_dir`.
	Issuers []string `toml:"issuers"`
	// How far the issuer's clock and ours may differ.
	Leeway quantity.Duration `toml:"leeway"`
}

// Default returns the section as it is when the file says nothing.
func Default() Config {
	return Config{Mode: Off, Leeway: quantity.Duration(time.Minute)}
}

// Commands lists the commands that can be authorised, which are the words of a scope.
func Commands() []string {
	return []string{"config", "renew", "restart", "roots", "update", "write"}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	problems := []error{checkMode("authorize.mode", c.Mode)}
	for _, name := range slices.Sorted(maps.Keys(c.Commands)) {
		if !slices.Contains(Commands(), name) {
			problems = append(problems, hint.With(fmt.Errorf("authorize.commands has no command %q", name),
				"the commands that can be authorised are "+strings.Join(Commands(), ", ")))
		}
		problems = append(problems, checkMode("authorize.commands."+name, c.Commands[name]))
	}
	if len(c.Issuers) == 0 && c.uses(Enforce) {
		problems = append(problems, hint.With(errors.New("authorize enforces, and authorize.issuers is empty: no command could ever be authorised"),
			"make a key with: ferrule-factory authorize init DIR, and name its issuer.pem in authorize.issuers"))
	}
	if len(c.Issuers) > maxIssuers {
		problems = append(problems, fmt.Errorf("authorize.issuers has %d files; %d are allowed", len(c.Issuers), maxIssuers))
	}
	if slices.Contains(c.Issuers, "") {
		problems = append(problems, errors.New("authorize.issuers has an empty name"))
	}
	if c.Leeway.Std() > maxLeeway {
		problems = append(problems, fmt.Errorf("authorize.leeway is %v; at most %v is allowed", c.Leeway, maxLeeway))
	}
	return errors.Join(problems...)
}

func checkMode(key string, m Mode) error {
	switch m {
	case Off, Audit, Enforce:
		return nil
	}
	return fmt.Errorf("%s is %q; it is off, audit or enforce", key, string(m))
}

// uses reports whether any command has mode m.
func (c Config) uses(m Mode) bool {
	for _, name := range Commands() {
		if c.mode(name) == m {
			return true
		}
	}
	return c.Mode == m
}

func (c Config) mode(command string) Mode {
	if m, ok := c.Commands[command]; ok {
		return m
	}
	return c.Mode
}

// Operation is what a command is about to do, made from its decoded arguments and from nothing else: what is
// judged here must be what is then done.
type Operation struct {
	// ID is the command's id, Command its name.
	ID, Command string
	// Line, Unit and Point are the target of a write.
	Line, Unit, Point string
	// Value is the physical value of a write, the very one that the line is given: json.Number, float64, an
	// integer, bool or string. Of an update it is the version that it names, a string.
	Value any
	// Args are the bytes of the payload's "args" as they came.
	Args []byte
}

// Refusal says why a token does not authorise an operation. Code is stable (docs/authorised-commands.md).
type Refusal struct {
	Code string
	Err  error
}

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// The codes of refusals.
const (
	CodeMissing     = "authorization-missing"   // the command carries no token
	CodeMalformed   = "authorization-malformed" // no compact JWS of unambiguous JSON, or too long
	CodeAlgorithm   = "authorization-algorithm" // neither ES256 nor EdDSA, or the key is of the other kind
	CodeHeader      = "authorization-header"    // the header has more than alg, kid and typ
	CodeKey         = "authorization-key"       // kid names no pinned key
	CodeSignature   = "authorization-signature" // no pinned key made the signature
	CodeIssuer      = "authorization-issuer"    // iss is missing or another, or the issuer's certificate is out of date
	CodeClaims      = "authorization-claims"    // a claim is missing or of the wrong form
	CodeAudience    = "authorization-audience"  // for another device
	CodeBinding     = "authorization-binding"   // for another key than this device's
	CodeExpired     = "authorization-expired"   // exp has passed
	CodeEarly       = "authorization-early"     // iat or nbf lies ahead
	CodeLife        = "authorization-life"      // lives longer than 15 minutes
	CodeClock       = "authorization-clock"     // the device's clock cannot judge an expiry
	CodeScope       = "authorization-scope"     // the operation is not granted
	CodeScopeSyntax = "authorization-syntax"    // the scope cannot be read
	CodeArgs        = "authorization-args"      // for other arguments
	CodeReplayed    = "authorization-replayed"  // used before
	CodeStale       = "authorization-stale"     // issued before the store of used tokens was lost
	CodeStore       = "authorization-store"     // single use cannot be guaranteed: the store is full or cannot be written
)

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Err: fmt.Errorf(format, args...)}
}
