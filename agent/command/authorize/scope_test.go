package authorize_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"ferrule/agent/command/authorize"
)

func write(line, unit, point string, value any) authorize.Operation {
	return authorize.Operation{Command: "write", Line: line, Unit: unit, Point: point, Value: value}
}

func update(version string) authorize.Operation {
	return authorize.Operation{Command: "update", Value: version}
}

func TestScopeGrants(t *testing.T) {
	n := func(text string) any { return json.Number(text) }
	negativeZero := math.Copysign(0, -1)
	for _, c := range []struct {
		scope string
		op    authorize.Operation
		want  bool
	}{
		{"update", update(""), true},
		{"update", update("1.4.0"), true},
		{"update:1.4.0", update("1.4.0"), true},
		{"update:1.4.0", update("1.4.1"), false},
		{"update:1.4.0", update(""), false}, // whatever is newest then
		{"update:1.4.0", authorize.Operation{Command: "update"}, false},
		{"update:1.4.0", write("l", "u", "p", "1.4.0"), false},
		{"update:1.4.0%2B7", update("1.4.0+7"), true},
		{"write:l/u/p=0..50", write("l", "u", "p", n("0")), true},
		{"write:l/u/p=0..50", write("l", "u", "p", n("50")), true},
		{"write:l/u/p=0..50", write("l", "u", "p", n("5e1")), true},
		{"write:l/u/p=0..50", write("l", "u", "p", n("50.0000000000000000000001")), false},
		{"write:l/u/p=0..50", write("l", "u", "p", n("-0")), true},
		{"write:l/u/p=0..50", write("l", "u", "p", negativeZero), true},
		{"write:l/u/p=0..50", write("l", "u", "p", n("-1e-300")), false},
		{"write:l/u/p=0..50", write("l", "u", "p", -5e-324), false},
		{"write:l/u/p=0..50", write("l", "u", "p", math.NaN()), false},
		{"write:l/u/p=0..", write("l", "u", "p", math.Inf(1)), false},
		{"write:l/u/p=..0", write("l", "u", "p", math.Inf(-1)), false},
		{"write:l/u/p=0..", write("l", "u", "p", n("1e999999999")), false},
		{"write:l/u/p=0..", write("l", "u", "p", n("1e400")), true}, // the line refuses it
		{"write:l/u/p=0..50", write("l", "u", "p", n("nan")), false},
		{"write:l/u/p=0..50", write("l", "u", "p", n("")), false},
		{"write:l/u/p=0..50", write("l", "u", "p", n("0x10")), false},
		{"write:l/u/p=0..50", write("l", "u", "p", n(strings.Repeat("1", 1000))), false},
		{"write:l/u/p=0..50", write("l", "u", "p", "12.5"), false}, // text is text
		{"write:l/u/p=0..50", write("l", "u", "p", true), false},
		{"write:l/u/p=0..50", write("l", "u", "p", nil), false},
		{"write:l/u/p=0..50", write("l", "u", "p", []any{1.0}), false},
		{"write:l/u/p=0..50", write("l", "u", "p", 12), true},
		{"write:l/u/p=0..50", write("l", "u", "p", int64(51)), false},
		{"write:l/u/p=0..50", write("l", "u", "p", uint64(math.MaxUint64)), false},
		{"write:l/u/p=0..0.1", write("l", "u", "p", 0.1), true}, // a tenth, not its nearest float64
		{"write:l/u/p=0.1", write("l", "u", "p", 0.1), true},
		{"write:l/u/p=..9007199254740992", write("l", "u", "p", n("9007199254740993")), false},
		{"write:l/u/p=..9007199254740993", write("l", "u", "p", n("9007199254740993")), true},
		{"write:l/u/p=18446744073709551615", write("l", "u", "p", uint64(math.MaxUint64)), true},
		{"write:l/u/p=18446744073709551615", write("l", "u", "p", n("18446744073709551614")), false},
		{"write:l/u/p=-5..-1", write("l", "u", "p", n("-3")), true},
		{"write:l/u/p=true", write("l", "u", "p", true), true},
		{"write:l/u/p=true", write("l", "u", "p", false), false},
		{"write:l/u/p=true", write("l", "u", "p", n("1")), false},
		{"write:l/u/p=true", write("l", "u", "p", "true"), false},
		{"write:l/u/p=1", write("l", "u", "p", true), false},
		{"write:l/u/p='eco%20plus'", write("l", "u", "p", "eco plus"), true},
		{"write:l/u/p='eco'", write("l", "u", "p", "ECO"), false},
		{"write:l/u/p=''", write("l", "u", "p", ""), true},
		{"write:l/u/p='12.5'", write("l", "u", "p", n("12.5")), false},
		{"write:l/u/p", write("l", "u", "p", "anything"), true},
		{"write:l/u/p", write("l", "u", "p", nil), false},
		{"write:l/u/p", write("l", "u", "P", 1.0), false},
		{"write:*/*/*", write("any", "thing", "at all", 1.0), true},
		{"write:*/*/*", write("", "u", "p", 1.0), false},
		{"write:%2A/u/p", write("l", "u", "p", 1.0), false},
		{"write:%2A/u/p", write("*", "u", "p", 1.0), true},
		{"write:K%C3%BChler%20%231/u%2Fv/p%3D1", write("Kühler #1", "u/v", "p=1", 1.0), true},
		{"write:l/u/p%", write("l", "u", "p%", 1.0), false},
		{"write:l/u/p=0..10 write:l/u/p=20..30", write("l", "u", "p", n("25")), true},
		{"write:l/u/p=0..10 write:l/u/p=20..30", write("l", "u", "p", n("15")), false},
		{"restart", authorize.Operation{Command: "restart"}, true},
		{"restart", authorize.Operation{Command: "config"}, false},
		{"restart", write("l", "u", "p", 1.0), false},
		{"write:*/*/*", authorize.Operation{Command: "restart"}, false},
		{"config update renew roots", authorize.Operation{Command: "roots"}, true},
		{"*", authorize.Operation{Command: "restart"}, false},
		{"read", authorize.Operation{Command: "read"}, false},
	} {
		s, err := authorize.ParseScope(c.scope)
		got := err == nil && s.Grants(c.op) != ""
		if got != c.want {
			t.Errorf("%s grants %v: %v (%v)", c.scope, c.op, got, err)
		}
	}
}

func TestScopeSyntax(t *testing.T) {
	for _, bad := range []string{
		"", " ", "restart ", " restart", "restart  config", "restart\tconfig", "write", "write:", "write:l", "write:l/u", "write:l/u/p/x", "write://",
		"write:l//p", "write:l/u/p=", "write:l/u/p=..", "write:l/u/p=50..0", "write:l/u/p=nan", "write:l/u/p=0..inf", "write:l/u/p=0x10", "write:l/u/p=+1",
		"write:l/u/p=01", "write:l/u/p=1_000", "write:l/u/p=.5", "write:l/u/p=1...2", "write:l/u/p=1..2..3", "write:l/u/p=1e999", "write:l/u/p='x", "write:l/u/p=x'", "write:l/u/p='it's'",
		"write:l/u/p=True", "write:l/u/p=on", "write:ü/u/p", "write:l/u/p%2", "write:l/u/%zz", "write:l/u/%ff", "write:l+m/u/p", "write:l/**/p", "restart:now", "config:*", "update:", "update:*",
		"write:l/u/p=" + strings.Repeat("1", 65), strings.TrimSpace(strings.Repeat("restart ", 65)),
	} {
		if _, err := authorize.ParseScope(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzScope: what is granted is named in full, and quoting a name gives back that name alone.
func FuzzScope(f *testing.F) {
	f.Add("write:rs485-1/meter-a/limit=0..50", "rs485-1", "meter-a", "limit", "12.5")
	f.Add("write:*/%2F/p='x' restart", "a", "/", "p", "x")
	f.Fuzz(func(t *testing.T, scope, line, unit, point, value string) {
		s, err := authorize.ParseScope(scope)
		op := write(line, unit, point, json.Number(value))
		if err == nil {
			if grant := s.Grants(op); grant != "" && !strings.Contains(" "+scope+" ", " "+grant+" ") {
				t.Fatalf("%q granted %q", scope, grant)
			}
		}
		quoted := "write:" + authorize.Quote(line) + "/" + authorize.Quote(unit) + "/" + authorize.Quote(point)
		if s, err := authorize.ParseScope(quoted); err == nil {
			if s.Grants(op) == "" {
				t.Fatalf("%q does not grant itself", quoted)
			}
			op.Point += "x"
			if s.Grants(op) != "" {
				t.Fatalf("%q grants %q", quoted, op.Point)
			}
		}
	})
}
