package authorize

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"ferrule/internal/jws"
)

const (
	maxString = 256  // of iss and jti, in bytes
	maxTime   = 1e11 // seconds since 1970: the year 5138
)

// claims is what a token says, checked for form only (RFC 7519, 4.1; RFC 7800, 3.1 with the member jkt of RFC 9449, 6.1).
type claims struct {
	issuer, audience, id, binding, scope string
	args                                 string // "" where the token does not fix them
	issued, expires                      time.Time
	notBefore                            time.Time // zero where absent
}

// readClaims reads names exactly as they are spelt. Claims that are not known are passed over (RFC 7519, 4).
func readClaims(t *jws.Token) (claims, *Refusal) {
	var members map[string]json.RawMessage
	if err := t.Claims(&members); err != nil {
		return claims{}, refuse(CodeMalformed, "%w", err)
	}
	var c claims
	var confirmation map[string]json.RawMessage
	for _, m := range []struct {
		name     string
		read     func(json.RawMessage) error
		optional bool
	}{
		{name: "iss", read: text(&c.issuer)},
		{name: "aud", read: c.readAudience},
		{name: "jti", read: text(&c.id)},
		{name: "iat", read: date(&c.issued)},
		{name: "exp", read: date(&c.expires)},
		{name: "nbf", read: date(&c.notBefore), optional: true},
		{name: "scope", read: func(raw json.RawMessage) error { return json.Unmarshal(raw, &c.scope) }},
		{name: "cnf", read: func(raw json.RawMessage) error { return json.Unmarshal(raw, &confirmation) }},
		{name: "args", read: text(&c.args), optional: true},
	} {
		raw, there := members[m.name]
		if !there && m.optional {
			continue
		}
		if !there {
			return c, refuse(CodeClaims, "the token has no %q", m.name)
		}
		if err := m.read(raw); err != nil {
			return c, refuse(CodeClaims, "reading %q of the token: %w", m.name, err)
		}
	}
	raw, there := confirmation["jkt"]
	if !there || len(confirmation) != 1 {
		return c, refuse(CodeClaims, `the token is not bound to the device's key alone by "cnf":{"jkt":…}`)
	}
	if err := text(&c.binding)(raw); err != nil {
		return c, refuse(CodeClaims, `reading "cnf" of the token: %w`, err)
	}
	return c, nil
}

// text reads a string that says something and is not too long.
func text(to *string) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if err := json.Unmarshal(raw, to); err != nil {
			return err
		}
		if *to == "" || len(*to) > maxString {
			return fmt.Errorf("%d bytes; 1 to %d are allowed", len(*to), maxString)
		}
		return nil
	}
}

// readAudience takes one audience, alone or in a list: a token for several devices could be used once at each.
func (c *claims) readAudience(raw json.RawMessage) error {
	if err := text(&c.audience)(raw); err == nil {
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	if len(list) != 1 {
		return fmt.Errorf("%d audiences; a token is for one device", len(list))
	}
	return text(&c.audience)(list[0])
}

// date reads a NumericDate: seconds since 1970, with or without a fraction.
func date(to *time.Time) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		seconds, err := strconv.ParseFloat(string(raw), 64)
		if err != nil || len(raw) > 32 {
			return fmt.Errorf("%.32q is no number of seconds", raw)
		}
		if !(seconds > 0 && seconds < maxTime) {
			return fmt.Errorf("%v seconds since 1970 are no time", seconds)
		}
		*to = time.UnixMilli(int64(seconds * 1000))
		return nil
	}
}
