package sparkplug

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// host is a Sparkplug host that takes nothing which the specification does not allow, and remembers
// what it was told.
type host struct {
	group, edge string
	will        uint64 // bdSeq of the will of the connection
	online      bool
	next        byte
	devices     map[string]map[uint64]*hostMetric // by alias
	rebirths    int
	seen        []told
}

type hostMetric struct {
	name     string
	datatype uint64
	quality  uint64
	value    any
	ms       uint64
}

// told is one reading that came as data.
type told struct {
	device, name string
	boot, seq    uint64
	ms           uint64
	value        any // nil: bad
	quality      uint64
	reason       string
	historical   bool
	unsynced     bool
}

type got struct {
	timestamp uint64
	seq       *uint64
	metrics   []gotMetric
}

type gotMetric struct {
	name                                  string
	alias, timestamp, datatype            uint64
	hasAlias, hasTime, historical, isNull bool
	value                                 any
	quality                               uint64
	unit, reason                          string
}

func readPayload(b []byte) (p got, err error) {
	f := fields{rest: b}
	for f.next() {
		switch f.tag {
		case payloadTimestamp:
			p.timestamp = f.n
		case payloadSeq:
			n := f.n
			p.seq = &n
		case payloadMetric:
			m, err := readMetric(f.value)
			if err != nil {
				return p, err
			}
			p.metrics = append(p.metrics, m)
		default:
			return p, fmt.Errorf("field %d of a payload", f.tag>>3)
		}
	}
	if len(f.rest) > 0 {
		return p, fmt.Errorf("damaged payload %x", f.rest)
	}
	return p, nil
}

func readMetric(b []byte) (m gotMetric, err error) {
	m.quality = qualityGood
	f := fields{rest: b}
	for {
		before := f.rest
		if !f.next() {
			break
		}
		switch f.tag {
		case metricName:
			m.name = string(f.value)
		case metricAlias:
			m.alias, m.hasAlias = f.n, true
		case metricTimestamp:
			m.timestamp, m.hasTime = f.n, true
		case metricDatatype:
			m.datatype = f.n
		case metricHistorical:
			m.historical = f.n != 0
		case metricNull:
			m.isNull = f.n != 0
		case metricProperties:
			readProperties(&m, f.value)
		case metricLong:
			m.value = f.n
		case metricBoolean:
			m.value = f.n != 0
		case metricString:
			m.value = string(f.value)
		case metricDouble:
			m.value = math.Float64frombits(binary.LittleEndian.Uint64(before[1:]))
		default:
			return m, fmt.Errorf("field %d of a metric", f.tag>>3)
		}
	}
	if len(f.rest) > 0 || m.isNull != (m.value == nil) {
		return m, fmt.Errorf("damaged metric %x", b)
	}
	return m, nil
}

func readProperties(m *gotMetric, b []byte) {
	var keys []string
	for f := (fields{rest: b}); f.next(); {
		if f.tag == propertyKeys {
			keys = append(keys, string(f.value))
			continue
		}
		for v := (fields{rest: f.value}); v.next(); {
			switch {
			case v.tag == propertyInt && keys[0] == "Quality":
				m.quality = v.n
			case v.tag == propertyString && keys[0] == "engUnit":
				m.unit = string(v.value)
			case v.tag == propertyString && keys[0] == "bad":
				m.reason = string(v.value)
			}
		}
		keys = keys[1:]
	}
}

// connect is what a broker does with a CONNECT.
func (h *host) connect(will Message) error {
	p, err := readPayload(will.Payload)
	if err != nil || will.Topic != "spBv1.0/"+h.group+"/NDEATH/"+h.edge || p.seq != nil || len(p.metrics) != 1 || p.metrics[0].name != "bdSeq" {
		return fmt.Errorf("will %q: %v, %+v", will.Topic, err, p)
	}
	h.will, h.online = p.metrics[0].value.(uint64), false
	return nil
}

// take is what a host does with a message.
func (h *host) take(m Message) error {
	p, err := readPayload(m.Payload)
	if err != nil {
		return err
	}
	level := strings.Split(m.Topic, "/")
	if len(level) < 4 || level[0] != "spBv1.0" || level[1] != h.group || level[3] != h.edge || strings.ContainsAny(m.Topic, "+#") {
		return fmt.Errorf("topic %q", m.Topic)
	}
	if p.seq == nil || p.timestamp == 0 {
		return fmt.Errorf("%s without seq or timestamp", m.Topic)
	}
	if level[2] == "NBIRTH" {
		return h.birth(p)
	}
	if !h.online || *p.seq != uint64(h.next) {
		return fmt.Errorf("%s with seq %d, want %d; online: %t", m.Topic, *p.seq, h.next, h.online)
	}
	h.next++
	switch level[2] {
	case "DBIRTH":
		return h.deviceBirth(level[4], p)
	case "DDATA":
		return h.data(level[4], p)
	}
	return fmt.Errorf("topic %q", m.Topic)
}

func (h *host) birth(p got) error {
	if *p.seq != 0 || p.metrics[0].name != "bdSeq" || p.metrics[0].value != h.will {
		return fmt.Errorf("NBIRTH with seq %d, %+v; the will has %d", *p.seq, p.metrics[0], h.will)
	}
	if m := p.metrics[1]; m.name != "Node Control/Rebirth" || m.datatype != typeBoolean || m.value != false {
		return fmt.Errorf("no rebirth in NBIRTH: %+v", m)
	}
	h.online, h.next, h.devices = true, 1, make(map[string]map[uint64]*hostMetric)
	h.rebirths++
	return nil
}

func (h *host) deviceBirth(device string, p got) error {
	metrics := make(map[uint64]*hostMetric)
	names := make(map[string]bool)
	for _, m := range p.metrics {
		if m.name == "" || names[m.name] || !m.hasAlias || !m.hasTime || m.datatype == 0 || !fits(m) {
			return fmt.Errorf("DBIRTH of %s: %+v", device, m)
		}
		for other, of := range h.devices {
			if of[m.alias] != nil && other != device {
				return fmt.Errorf("alias %d is of %s and of %s", m.alias, device, other)
			}
		}
		if metrics[m.alias] != nil {
			return fmt.Errorf("alias %d twice", m.alias)
		}
		names[m.name] = true
		metrics[m.alias] = &hostMetric{name: m.name, datatype: m.datatype, quality: m.quality, value: m.value, ms: m.timestamp}
	}
	h.devices[device] = metrics
	return nil
}

// fits says whether the value of m is of its data type.
func fits(m gotMetric) bool {
	switch m.value.(type) {
	case nil:
		return true
	case bool:
		return m.datatype == typeBoolean
	case string:
		return m.datatype == typeString
	case float64:
		return m.datatype == typeDouble
	}
	return m.datatype == typeInt64 || m.datatype == typeUInt64 || m.datatype == typeDateTime
}

func (h *host) data(device string, p got) error {
	metrics := h.devices[device]
	boots := metricNamed(metrics, ownBoot)
	unsynced := metricNamed(metrics, ownUnsynced)
	var boot, seq uint64
	if boots != nil {
		boot = boots.value.(uint64)
	}
	var of []told
	for _, m := range p.metrics {
		known := metrics[m.alias]
		if known == nil || m.name != "" || !m.hasTime {
			return fmt.Errorf("DDATA of %s: metric that was not born: %+v", device, m)
		}
		m.datatype = known.datatype
		if !fits(m) {
			return fmt.Errorf("DDATA of %s: %s is %T, born as %d", device, known.name, m.value, known.datatype)
		}
		if m.isNull {
			known.quality = m.quality
		} else if m.quality != known.quality && known.quality == qualityGood {
			return fmt.Errorf("quality %d of %s", m.quality, known.name)
		}
		if m.value != nil && known.quality != qualityGood && m.reason == "" {
			known.quality = m.quality // said anew, or this test is wrong
		}
		if !m.historical {
			known.value, known.ms = m.value, m.timestamp
		}
		switch known.name {
		case ownBoot:
			boot, boots.value = m.value.(uint64), m.value
		case ownUnsynced:
			unsynced.value = m.value
		case ownSeq:
			seq = m.value.(uint64)
			of = append(of, told{device: device, boot: boot, seq: seq, ms: m.timestamp, name: ownSeq, historical: m.historical})
		default:
			of = append(of, told{device: device, name: known.name, boot: boot, seq: seq, ms: m.timestamp, value: m.value,
				quality: known.quality, reason: m.reason, historical: m.historical, unsynced: unsynced.value.(bool)})
		}
	}
	h.seen = append(h.seen, of...)
	return nil
}

func metricNamed(metrics map[uint64]*hostMetric, name string) *hostMetric {
	for _, m := range metrics {
		if m.name == name {
			return m
		}
	}
	return nil
}
