// Package encode turns one poll of a unit into (topic, payload), and joins payloads without
// decoding them. The trap is the foreign byte: a unit's text or a sentence's name may hold
// anything, and must neither leave its JSON string nor its level of the topic.
package encode

import (
	"fmt"
	"sync"

	"ferrule/hw"
	"ferrule/hw/point"
	"ferrule/internal/hint"
)

// Config is the [encode] section of the configuration.
type Config struct {
	// How readings are written: json.
	Format string `toml:"format"`
}

// Default returns what an empty [encode] section means.
func Default() Config { return Config{Format: "json"} }

// Validate names the key that cannot be used.
func (c Config) Validate() error {
	if c.Format != "json" {
		return hint.With(fmt.Errorf("encode.format: unknown format %q", c.Format), `use format = "json"`)
	}
	return nil
}

// maxUnits bounds the cache of topics. Streaming lines name units after what they hear, so
// their number is not ours to decide.
const maxUnits = 1024

// timeLayout is RFC 3339 in UTC with milliseconds.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Encoder writes entries. It may be used by several goroutines.
type Encoder struct {
	template string
	device   string
	boot     uint64

	mu    sync.Mutex
	units map[unitKey]*unit
}

type unitKey struct{ line, unit string }

// unit is what is the same in every entry of one unit.
type unit struct {
	topic string
	names []byte // ,"line":"…","unit":"…"
}

// New returns an encoder for one device and one start of the agent. topic is the template of
// the readings' topic with {device}, {line} and {unit}.
func New(c Config, topic, device string, boot uint64) (*Encoder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := checkLevel(device); err != nil {
		return nil, fmt.Errorf("making topics of device %q: %w", device, err)
	}
	if err := checkTemplate("readings", topic, "device", "line", "unit"); err != nil {
		return nil, err
	}
	return &Encoder{template: topic, device: device, boot: boot, units: make(map[unitKey]*unit)}, nil
}

// Entry appends one poll as JSON to dst and returns its topic and the extended slice:
//
//	{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","line":"rs485-1","unit":"meter-a","readings":{"voltage_l1":230.1},"bad":{"energy":"timeout"}}
//
// t is the time of the poll in UTC, cut to milliseconds; "unsynced":true follows it while the
// clock is not trusted. bad is absent while all is well.
func (e *Encoder) Entry(dst []byte, seq uint64, p hw.Poll, unsynced bool) (topic string, payload []byte) {
	u := e.unit(p.Line, p.Unit)
	dst = append(dst, `{"boot":`...)
	dst = appendUint(dst, e.boot)
	dst = append(dst, `,"seq":`...)
	dst = appendUint(dst, seq)
	dst = append(dst, `,"t":"`...)
	dst = p.Time.UTC().AppendFormat(dst, timeLayout)
	dst = append(dst, '"')
	if unsynced {
		dst = append(dst, `,"unsynced":true`...)
	}
	dst = append(dst, u.names...)
	dst = append(dst, `,"readings":{`...)
	dst = appendGood(dst, p.Readings)
	dst = append(dst, '}')
	dst = appendBad(dst, p.Readings)
	return u.topic, append(dst, '}')
}

// Join appends payloads to dst as one message: one payload as it is, several as a JSON array.
func (e *Encoder) Join(dst []byte, payloads [][]byte) []byte {
	if len(payloads) == 1 {
		return append(dst, payloads[0]...)
	}
	dst = append(dst, '[')
	for i, p := range payloads {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, p...)
	}
	return append(dst, ']')
}

// unit returns what is known of a unit, and learns it at its first entry.
func (e *Encoder) unit(line, name string) *unit {
	e.mu.Lock()
	defer e.mu.Unlock()
	if u, ok := e.units[unitKey{line, name}]; ok {
		return u
	}
	if len(e.units) >= maxUnits {
		clear(e.units)
	}
	u := &unit{topic: expand(e.template, map[string]string{"device": e.device, "line": line, "unit": name})}
	u.names = appendText(append(u.names, `,"line":`...), line)
	u.names = appendText(append(u.names, `,"unit":`...), name)
	e.units[unitKey{line, name}] = u
	return u
}

// badReason is why a reading has no value, or "" for a good one.
func badReason(r hw.Reading) string {
	if r.Bad == "" && r.Value.Kind() == point.None {
		return "invalid"
	}
	return r.Bad
}

func appendGood(dst []byte, readings []hw.Reading) []byte {
	first := true
	for i := range readings {
		if badReason(readings[i]) != "" {
			continue
		}
		dst = appendName(dst, readings[i].Point, first)
		dst = readings[i].Value.AppendJSON(dst)
		first = false
	}
	return dst
}

// appendBad appends the object "bad" if any reading is.
func appendBad(dst []byte, readings []hw.Reading) []byte {
	first := true
	for i := range readings {
		reason := badReason(readings[i])
		if reason == "" {
			continue
		}
		if first {
			dst = append(dst, `,"bad":{`...)
		}
		dst = appendName(dst, readings[i].Point, first)
		dst = appendText(dst, reason)
		first = false
	}
	if first {
		return dst
	}
	return append(dst, '}')
}

func appendName(dst []byte, name string, first bool) []byte {
	if !first {
		dst = append(dst, ',')
	}
	return append(appendText(dst, name), ':')
}

// appendText appends s as a JSON string, always valid UTF-8.
func appendText(dst []byte, s string) []byte { return point.String(s).AppendJSON(dst) }

func appendUint(dst []byte, n uint64) []byte { return point.Uint(n).AppendJSON(dst) }
