package hw

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"ferrule/hw/profile"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

func TestValidate(t *testing.T) {
	good := func() LineConfig {
		return lineOf(unitOf("meter-a", 3, time.Second, profile.Point{Name: "limit", At: "holding:100"}))
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(c *LineConfig, u *UnitConfig, p *profile.Point)
		want   string
		hint   string
	}{
		{"no name", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Name = "" }, `line "": name: the name is missing`, "letters"},
		{"slash", func(_ *LineConfig, u *UnitConfig, _ *profile.Point) { u.Name = "a/b" }, `line "rs485-1", unit "a/b": name: `, "letters"},
		{"plus", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Name = "a+b" }, `point "a+b": name: `, "letters"},
		{"NUL", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Name = "a\x00b" }, `name: the name has a control character`, "letters"},
		{"UTF-8", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Name = "a\xff" }, `name: the name is not UTF-8`, "letters"},
		{"long", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Name = strings.Repeat("x", 65) }, `name: 65 bytes are too many`, ""},
		{"no port", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Port = "" }, `line "rs485-1": port: `, "ferrule ports"},
		{"settings", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Settings = "fast" }, `line "rs485-1": settings: `, "19200 8E1"},
		{"7 data bits", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Settings = "9600 7E1" }, `settings: modbus-rtu needs 8 data bits`, "ASCII"},
		{"protocol", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Protocol = "profibus" }, `line "rs485-1": protocol: `, ""},
		{"priority", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Priority = "high" }, `line "rs485-1": priority: "high" is neither "normal" nor "urgent"`, ""},
		{"age", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.MaxAge = quantity.Duration(time.Millisecond) }, `line "rs485-1": max_age: 1ms is not between 1s and`, ""},
		{"address", func(_ *LineConfig, u *UnitConfig, _ *profile.Point) { u.Address = 0 }, `unit "meter-a": address: 0 is none of 1 to 247`, ""},
		{"every", func(_ *LineConfig, u *UnitConfig, _ *profile.Point) { u.Every = 1 }, `unit "meter-a": every: `, ""},
		{"timeout", func(_ *LineConfig, u *UnitConfig, _ *profile.Point) { u.Timeout = quantity.Duration(time.Hour) }, `timeout: 1h0m0s is not between`, ""},
		{"at", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.At = "register 5" }, `point "limit": at: `, "holding:100"},
		{"end of table", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.At, p.Type = "holding:65535", "int32" }, `at: int32 does not fit`, ""},
		{"type", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Type = "int24" }, `point "limit": type: `, ""},
		{"bit of a register", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Type = "bit" }, `type: a register has 16 bits`, "bit@0"},
		{"number in a coil", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.At, p.Type = "coil:1", "int16" }, `type: what is in the table coil is a bit`, "leave"},
		{"order", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Order = "ACBD" }, `order: `, "ferrule read"},
		{"scale of text", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Type, p.Scale = "string(4)", 2 }, `scale: `, ""},
		{"deadband", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Deadband = -1 }, `deadband: `, ""},
		{"write to input", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.At, p.Write = "input:1", &profile.Write{} }, `write: the table input is read only`, "holding registers"},
		{"bounds", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) {
			p.Write = &profile.Write{Min: ptr(5), Max: ptr(4)}
		}, `write: min 5 is above max 4`, ""},
		{"bounds of a bit", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) {
			p.At, p.Write = "coil:1", &profile.Write{Max: ptr(4)}
		}, `write: bit has no smallest`, "leave"},
		{"long write", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) {
			p.Type, p.Write = "string(250)", &profile.Write{}
		}, `write: string(250) is longer`, ""},
		{"same unit", func(c *LineConfig, u *UnitConfig, _ *profile.Point) { c.Units = append(c.Units, *u) }, `unit "meter-a": address: unit "meter-a" has the address 3 already`, "own"},
		{"key of another protocol", func(_ *LineConfig, u *UnitConfig, _ *profile.Point) { u.Secondary = "12345678" }, `unit "meter-a": secondary: it means nothing`, "leave"},
		{"settings of a unit that is heard", func(c *LineConfig, u *UnitConfig, _ *profile.Point) { c.Role, u.Settings = Listen, "9600 8N1" }, `settings: it means nothing`, "leave"},
		{"period of a unit that answers", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Role = UnitRole }, `every: it means nothing`, "leave"},
		{"nothing to ask", func(c *LineConfig, _ *UnitConfig, _ *profile.Point) { c.Protocol, c.Role = "text", Master }, `text.request: `, "leave"},
		{"factor of itself", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.ScaleFactor = "limit" }, `scale_factor: the scale factor has one itself`, ""},
		{"factor that is text", func(_ *LineConfig, u *UnitConfig, p *profile.Point) {
			u.Points = append(u.Points, profile.Point{Name: "label", At: "holding:1", Type: "string(4)"})
			u.Points[0].ScaleFactor = "label"
		}, `scale_factor: the point "label" is no whole number`, ""},
		{"factor of text", func(_ *LineConfig, _ *UnitConfig, p *profile.Point) { p.Type, p.ScaleFactor = "string(4)", "holding:1" }, `scale_factor: string(4) has no scale factor`, ""},
		{"longer than an answer", func(_ *LineConfig, u *UnitConfig, p *profile.Point) { u.MaxRegisters, p.Type = 10, "string(40)" }, `at: string(40) has 20 registers`, ""},
		{"same point", func(_ *LineConfig, u *UnitConfig, p *profile.Point) { u.Points = append(u.Points, *p) }, `point "limit": name: another point`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := good()
			test.change(&c, &c.Units[0], &c.Units[0].Points[0])
			err := c.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if h := hint.Of(err); (h == "") != (test.hint == "") || !strings.Contains(h, test.hint) {
				t.Errorf("the hint is %q, want %q", h, test.hint)
			}
			if _, err := New(c, nil, slog.New(slog.DiscardHandler)); err == nil {
				t.Error("New accepted it")
			}
		})
	}
}
