// Package encode turns one poll of a unit into (topic, payload), and joins payloads without
// decoding them. The trap is the foreign byte: a unit's text or a sentence's name may hold
// anything, and must neither leave its JSON string nor its level of the topic.
package encode

import (
	"fmt"
	"strings"
	"sync"

	"ferrule/agent/encode/sparkplug"
	"ferrule/hw"
	"ferrule/hw/point"
)

// maxUnits bounds the cache of topics. Streaming lines name units after what they hear, so
// their number is not ours to decide.
const maxUnits = 1024

// timeLayout is RFC 3339 in UTC with milliseconds.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Encoder writes entries. It may be used by several goroutines.
type Encoder struct {
	config   Config
	encoding string
	template string
	device   string
	boot     uint64

	node       *sparkplug.Node // of format sparkplug-b
	compressor *compressor     // of compression zstd

	mu    sync.Mutex
	units map[unitKey]*unit
}

type unitKey struct{ line, unit string }

// unit is what is the same in every entry of one unit.
type unit struct {
	topic                string
	names                []byte // ,"line":"…","unit":"…"
	cbor                 []byte // the same pairs
	senMLJSON, senMLCBOR []byte // the pair of the base name
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
	if err := checkTemplate("readings", topic, "device", "line", "unit", "encoding"); err != nil {
		return nil, err
	}
	e := &Encoder{config: c, encoding: c.Format, template: topic, device: device, boot: boot, units: make(map[unitKey]*unit)}
	if c.Compress == "zstd" {
		var err error
		if e.compressor, err = newCompressor(); err != nil {
			return nil, fmt.Errorf("preparing compression: %w", err)
		}
		e.encoding += "+zstd"
	}
	if c.Format == SparkplugB {
		e.node = sparkplug.New(sparkplug.Options{Group: c.Sparkplug.Group, Edge: device, Boot: boot, Kind: kindSparkplug})
	}
	return e, nil
}

// Entry appends one poll to dst, as the outbox stores it, and returns its topic and the extended
// slice. Join makes messages of such entries.
func (e *Encoder) Entry(dst []byte, seq uint64, p hw.Poll, unsynced bool) (topic string, entry []byte) {
	u := e.unit(p.Line, p.Unit)
	switch e.config.Format {
	case CBOR:
		return u.topic, e.appendCBOR(append(dst, kindCBOR), u, seq, p, unsynced)
	case SenMLJSON:
		return u.topic, e.appendSenMLJSON(dst, u, seq, p, unsynced)
	case SenMLCBOR:
		return u.topic, e.appendSenMLCBOR(dst, u, seq, p, unsynced)
	case SparkplugB:
		return u.topic, e.node.Entry(dst, u.topic, seq, p, unsynced)
	}
	return u.topic, e.appendJSON(dst, u, seq, p, unsynced)
}

// appendJSON appends one poll as JSON:
//
//	{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","line":"rs485-1","unit":"meter-a","readings":{"voltage_l1":230.1},"bad":{"energy":"timeout"}}
//
// t is the time of the poll in UTC, cut to milliseconds; "unsynced":true follows it while the
// clock is not trusted. bad is absent while all is well.
func (e *Encoder) appendJSON(dst []byte, u *unit, seq uint64, p hw.Poll, unsynced bool) []byte {
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
	return append(dst, '}')
}

// JSON appends one poll as JSON to dst, whatever the format of messages is: what those who watch the
// device itself read.
func (e *Encoder) JSON(dst []byte, seq uint64, p hw.Poll, unsynced bool) []byte {
	return e.appendJSON(dst, e.unit(p.Line, p.Unit), seq, p, unsynced)
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
	u := e.newUnit(line, name)
	e.units[unitKey{line, name}] = u
	return u
}

func (e *Encoder) newUnit(line, name string) *unit {
	u := &unit{}
	u.names = appendText(append(u.names, `,"line":`...), line)
	u.names = appendText(append(u.names, `,"unit":`...), name)
	switch e.config.Format {
	case CBOR:
		u.cbor = appendCBORText(append(u.cbor, "\x64line"...), line)
		u.cbor = appendCBORText(append(u.cbor, "\x64unit"...), name)
	case SenMLJSON, SenMLCBOR:
		u.senMLJSON, u.senMLCBOR = senMLBases(e.device, line, name)
	case SparkplugB:
		u.topic = e.node.Topic(sparkplugDevice(e.config.Sparkplug.Device, line, name))
		return u
	}
	u.topic = expand(e.template, map[string]string{
		"device": e.device, "line": line, "unit": name,
		"encoding": strings.ReplaceAll(e.encoding, "+", "-"),
	})
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
