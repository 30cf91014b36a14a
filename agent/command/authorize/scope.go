package authorize

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A scope is a list of grants with one space between two (RFC 6749, 3.3):
//
//	scope  = grant *( " " grant )
//	grant  = command | "write:" name "/" name "/" name [ "=" values ] | "update:" name
//	name   = "*" | 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "%" HEX HEX )
//	values = number | [ number ] ".." [ number ] | "true" | "false" | "'" *( as in a name ) "'"
//
// A command is config, renew, restart, roots or update; the name behind update is the version that the command
// must name. A name stands for itself, percent-encoded as UTF-8 where it has other characters; "*" is any. A number is JSON's. Grants of words that are not known here grant nothing.
const (
	maxGrants   = 64
	maxNumber   = 64  // characters
	maxExponent = 400 // beyond float64's; bounds what a comparison costs
)

// Scope is what a token grants.
type Scope struct{ grants []grant }

// grant is one word of a scope.
type grant struct {
	text    string
	command string
	target  [3]string // line, unit, point; "" is any
	values  values
	version string // of an update; "" is any
}

// values is what a grant to write says of the value.
type values struct {
	kind      valueKind
	low, high *big.Rat // nil: no bound
	text      string
	truth     bool
}

type valueKind uint8

const (
	anyValue valueKind = iota
	numbers
	booleans
	texts
)

// ParseScope reads a scope. A grant of a word that is not a command of Commands is passed over.
func ParseScope(text string) (Scope, error) {
	var s Scope
	if text == "" {
		return s, fmt.Errorf("the scope is empty")
	}
	words := strings.Split(text, " ")
	if len(words) > maxGrants {
		return s, fmt.Errorf("the scope has %d grants; %d are allowed", len(words), maxGrants)
	}
	for _, word := range words {
		if word == "" {
			return s, fmt.Errorf("the scope %.80q has a space too many", text)
		}
		g, known, err := parseGrant(word)
		if err != nil {
			return Scope{}, fmt.Errorf("reading the grant %.120q: %w", word, err)
		}
		if known {
			s.grants = append(s.grants, g)
		}
	}
	return s, nil
}

func parseGrant(word string) (g grant, known bool, err error) {
	for i := range len(word) {
		if c := word[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' { // RFC 6749, 3.3
			return g, false, fmt.Errorf("it has the byte %#02x", c)
		}
	}
	command, target, hasTarget := strings.Cut(word, ":")
	g = grant{text: word, command: command}
	switch {
	case !slices.Contains(Commands(), command):
		return g, false, nil
	case command == "update" && hasTarget:
		g.version, err = unquote(target)
		if err == nil && (g.version == "" || target == "*") {
			err = fmt.Errorf("any version is written update, without a target")
		}
		return g, true, err
	case command != "write" && hasTarget:
		return g, true, fmt.Errorf("%s has no target", command)
	case command != "write":
		return g, true, nil
	case !hasTarget:
		return g, true, fmt.Errorf("a write needs a target, such as write:line/unit/point=0..50, or write:*/*/*")
	}
	target, limit, hasLimit := strings.Cut(target, "=")
	names := strings.Split(target, "/")
	if len(names) != len(g.target) {
		return g, true, fmt.Errorf("a target is line/unit/point, not %d names", len(names))
	}
	for i, name := range names {
		if name == "*" {
			continue
		}
		if g.target[i], err = unquote(name); err != nil {
			return g, true, err
		}
		if name == "" {
			return g, true, fmt.Errorf("a name is empty; any is written *")
		}
	}
	if hasLimit {
		g.values, err = parseValues(limit)
	}
	return g, true, err
}

// unquote decodes a name or a text.
func unquote(name string) (string, error) {
	for i := range len(name) {
		if c := name[i]; !unreserved(c) && c != '%' {
			return "", fmt.Errorf("%q must be written %%%02X", rune(c), c)
		}
	}
	text, err := url.PathUnescape(name)
	if err != nil {
		return "", err
	}
	if !utf8.ValidString(text) {
		return "", fmt.Errorf("%.40q is not UTF-8", name)
	}
	return text, nil
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// Quote writes a line's, unit's or point's name as a scope has it.
func Quote(name string) string {
	var b strings.Builder
	for i := range len(name) {
		if c := name[i]; unreserved(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func parseValues(text string) (v values, err error) {
	if inner, ok := strings.CutPrefix(text, "'"); ok {
		inner, ok = strings.CutSuffix(inner, "'")
		if !ok {
			return v, fmt.Errorf("the text has no end")
		}
		v.kind = texts
		v.text, err = unquote(inner)
		return v, err
	}
	if text == "true" || text == "false" {
		return values{kind: booleans, truth: text == "true"}, nil
	}
	v.kind = numbers
	low, high, isRange := strings.Cut(text, "..")
	if !isRange {
		high = low
	}
	if low == "" && high == "" {
		return v, fmt.Errorf("the range has no bound; leave it out where any value is meant")
	}
	if v.low, err = bound(low); err != nil {
		return v, err
	}
	if v.high, err = bound(high); err != nil {
		return v, err
	}
	if v.low != nil && v.high != nil && v.low.Cmp(v.high) > 0 {
		return v, fmt.Errorf("the range %q is empty", text)
	}
	return v, nil
}

func bound(text string) (*big.Rat, error) {
	if text == "" {
		return nil, nil
	}
	n, ok := number(text)
	if !ok {
		return nil, fmt.Errorf("%.40q is neither a number nor a range such as 0..50", text)
	}
	return n, nil
}

// number reads a number as JSON writes it, exactly: 0.1 is a tenth, and 9007199254740993 is no other.
func number(text string) (*big.Rat, bool) {
	if len(text) > maxNumber || !json.Valid([]byte(text)) || strings.Trim(text, "0123456789+-.eE") != "" {
		return nil, false
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		e, err := strconv.Atoi(text[i+1:])
		if err != nil || e < -maxExponent || e > maxExponent {
			return nil, false
		}
	}
	return new(big.Rat).SetString(text)
}

// exact is the number that v is. A float64 is the shortest decimal that names it, which is what was written in
// the command and what the line will scale.
func exact(v any) (*big.Rat, bool) {
	switch v := v.(type) {
	case json.Number:
		return number(string(v))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, false
		}
		return number(strconv.FormatFloat(v, 'e', -1, 64))
	case int:
		return new(big.Rat).SetInt64(int64(v)), true
	case int64:
		return new(big.Rat).SetInt64(v), true
	case uint64:
		return new(big.Rat).SetUint64(v), true
	}
	return nil, false
}

// allow says whether v is among the values. A number given as text is text: only the point knows what it will
// become, so no range vouches for it.
func (l values) allow(v any) bool {
	switch l.kind {
	case booleans:
		truth, ok := v.(bool)
		return ok && truth == l.truth
	case texts:
		text, ok := v.(string)
		return ok && text == l.text
	case numbers:
		n, ok := exact(v)
		return ok && (l.low == nil || n.Cmp(l.low) >= 0) && (l.high == nil || n.Cmp(l.high) <= 0)
	}
	return v != nil
}

// Grants returns the grant that covers op, "" where none does.
func (s Scope) Grants(op Operation) string {
	for _, g := range s.grants {
		if g.covers(op) {
			return g.text
		}
	}
	return ""
}

func (g grant) covers(op Operation) bool {
	if g.command != op.Command {
		return false
	}
	if g.command != "write" {
		return g.version == "" || op.Value == g.version
	}
	for i, name := range [3]string{op.Line, op.Unit, op.Point} {
		if name == "" || g.target[i] != "" && g.target[i] != name {
			return false
		}
	}
	return g.values.allow(op.Value)
}

// Len is how many grants of known commands there are.
func (s Scope) Len() int { return len(s.grants) }
