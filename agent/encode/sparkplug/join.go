package sparkplug

import "strings"

// Join appends entries of one device to dst as one DDATA payload of at most most bytes. It appends
// nothing where births must go first, and where the entries are too large together.
func (n *Node) Join(dst []byte, topic string, entries [][]byte, most int) []byte {
	if !strings.HasPrefix(topic, n.prefix) {
		return Orphan(dst, entries)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.born && !n.asked {
		return dst // not connected
	}
	d := n.device(topic)
	n.look(d, entries)
	if !n.born || !d.born {
		return dst
	}
	told, start := d.told, len(dst)
	dst = appendField(dst, payloadTimestamp, now())
	found := n.found
	for _, entry := range entries {
		r := reader{rest: entry}
		h := r.header()
		var historical bool
		dst, historical = d.appendHeader(dst, n, h)
		for s, ok := r.next(); ok; s, ok = r.next() {
			dst = found[0].appendData(dst, &s, h.ms, historical)
			found = found[1:]
		}
	}
	if len(entries) > 1 && len(dst)-start > most-4 { // less the seq
		d.told = told
		for _, m := range n.found {
			m.bad = m.before
		}
		return dst[:start]
	}
	return n.appendSeq(dst)
}

// look finds the metrics of entries, and learns those that nobody knows in this start.
func (n *Node) look(d *device, entries [][]byte) {
	n.found = n.found[:0]
	for _, entry := range entries {
		r := reader{rest: entry}
		r.header()
		for s, ok := r.next(); ok; s, ok = r.next() {
			m := d.learn(n, &s)
			m.before = m.bad
			n.found = append(n.found, m)
		}
	}
}

// appendHeader appends what is the same for all metrics of an entry: its number; and which start it is
// of, and whether the clock was trusted, where that is not what the host was told last. Entries from
// before the birth of their device are historical.
func (d *device) appendHeader(dst []byte, n *Node, h header) (_ []byte, historical bool) {
	historical = h.boot != n.boot || h.seq <= d.bornSeq
	number := func(alias int, tag byte, value uint64) {
		var m int
		dst, m = open(dst, payloadMetric)
		dst = appendField(dst, metricAlias, d.aliases[alias])
		dst = appendField(dst, metricTimestamp, h.ms)
		if historical {
			dst = appendBool(dst, metricHistorical, true)
		}
		dst = closeAt(appendField(dst, tag, value), m)
	}
	if h.boot != d.told.boot {
		number(1, metricLong, h.boot)
	}
	if h.unsynced != d.told.unsynced {
		unsynced := uint64(0)
		if h.unsynced {
			unsynced = 1
		}
		number(2, metricBoolean, unsynced)
	}
	number(0, metricLong, h.seq)
	d.told = h
	return dst, historical
}

// appendData appends a metric as data has it: by its alias. The quality is said where it changes.
func (m *metric) appendData(dst []byte, s *stored, ms uint64, historical bool) []byte {
	dst, start := open(dst, payloadMetric)
	dst = appendField(dst, metricAlias, m.alias)
	dst = appendField(dst, metricTimestamp, ms)
	if historical {
		dst = appendBool(dst, metricHistorical, true)
	}
	bad := s.datatype == 0
	switch {
	case bad:
		dst = appendBool(dst, metricNull, true)
		dst = appendProperties(dst, "", qualityBad, s.text)
	case m.bad:
		dst = appendProperties(dst, "", qualityGood, nil)
		fallthrough
	default:
		dst = appendValue(dst, m.datatype, s)
	}
	m.bad = bad
	return closeAt(dst, start)
}

// Orphan appends entries whose node is no more, since the configuration names another or another
// format: as one payload that needs no birth to be read, with names and types, and no seq.
func Orphan(dst []byte, entries [][]byte) []byte {
	dst = appendField(dst, payloadTimestamp, now())
	for _, entry := range entries {
		r := reader{rest: entry}
		h := r.header()
		for _, id := range [...]struct {
			name  string
			value uint64
		}{{ownBoot, h.boot}, {ownSeq, h.seq}} {
			var m int
			dst, m = open(dst, payloadMetric)
			dst = appendField(appendText(dst, metricName, id.name), metricTimestamp, h.ms)
			dst = appendBool(appendField(dst, metricDatatype, typeUInt64), metricHistorical, true)
			dst = closeAt(appendField(dst, metricLong, id.value), m)
		}
		for s, ok := r.next(); ok; s, ok = r.next() {
			dst = appendOrphan(dst, &s, h.ms)
		}
	}
	return dst
}

func appendOrphan(dst []byte, s *stored, ms uint64) []byte {
	dst, start := open(dst, payloadMetric)
	datatype := s.datatype
	if datatype == 0 {
		datatype = typeDouble
	}
	dst = appendField(appendText(dst, metricName, s.name), metricTimestamp, ms)
	dst = appendBool(appendField(dst, metricDatatype, uint64(datatype)), metricHistorical, true)
	if s.datatype == 0 {
		dst = appendProperties(appendBool(dst, metricNull, true), string(s.uom), qualityBad, s.text)
	} else {
		dst = appendProperties(dst, string(s.uom), -1, nil)
		dst = appendValue(dst, datatype, s)
	}
	return closeAt(dst, start)
}
