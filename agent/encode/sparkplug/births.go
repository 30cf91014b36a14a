package sparkplug

// Births returns the births that are due: of the node and of all known devices on a new connection,
// when a host asked for it, and after too many devices were named; else of the devices that have new
// metrics. Births carry the last values that were read.
func (n *Node) Births(connected bool) []Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	var due []Message
	if connected || n.asked {
		n.born, n.asked, n.seq = true, false, 0
		due = append(due, Message{Topic: n.topics.birth, Payload: n.birth()})
		for _, d := range n.order {
			d.born = false
		}
	}
	if !n.born {
		return nil
	}
	for _, d := range n.order {
		if !d.born && len(d.order) > 0 {
			due = append(due, Message{Topic: d.birth, Payload: n.deviceBirth(d)})
		}
	}
	return due
}

// birth is an NBIRTH (3.0, 6.4.19), and begins the sequence numbers anew.
func (n *Node) birth() []byte {
	at := now()
	dst := n.appendBdSeq(appendField(nil, payloadTimestamp, at))
	dst, m := open(dst, payloadMetric)
	dst = appendText(dst, metricName, rebirth)
	dst = appendField(dst, metricTimestamp, at)
	dst = appendField(dst, metricDatatype, typeBoolean)
	dst = closeAt(appendBool(dst, metricBoolean, false), m)
	dst, m = open(dst, payloadMetric)
	dst = appendText(dst, metricName, ownBoot)
	dst = appendField(dst, metricTimestamp, at)
	dst = appendField(dst, metricDatatype, typeUInt64)
	dst = closeAt(appendField(dst, metricLong, n.boot), m)
	return n.appendSeq(dst)
}

// appendSeq appends the number of the message in its connection, from 0 to 255 and again
// (3.0, 6.4.17).
func (n *Node) appendSeq(dst []byte) []byte {
	dst = appendField(dst, payloadSeq, uint64(n.seq))
	n.seq++
	return dst
}

// deviceBirth is a DBIRTH (3.0, 6.4.22): every metric of d with its name, alias, type and last value.
func (n *Node) deviceBirth(d *device) []byte {
	at := now()
	dst := appendField(nil, payloadTimestamp, at)
	d.told = header{boot: n.boot, unsynced: d.last.unsynced}
	dst, m := d.openOwn(dst, at, ownSeq, 0, typeUInt64)
	if d.last.seq == 0 {
		dst = appendBool(dst, metricNull, true)
	} else {
		dst = appendField(dst, metricLong, d.last.seq)
	}
	dst = closeAt(dst, m)
	dst, m = d.openOwn(dst, at, ownBoot, 1, typeUInt64)
	dst = closeAt(appendField(dst, metricLong, n.boot), m)
	dst, m = d.openOwn(dst, at, ownUnsynced, 2, typeBoolean)
	dst = closeAt(appendBool(dst, metricBoolean, d.told.unsynced), m)
	for _, m := range d.order {
		dst = m.appendBirth(dst, at)
	}
	d.born, d.bornSeq = true, n.lastSeq
	return n.appendSeq(dst)
}

// openOwn begins one of the encoder's own metrics.
func (d *device) openOwn(dst []byte, at uint64, name string, alias int, datatype byte) ([]byte, int) {
	dst, m := open(dst, payloadMetric)
	dst = appendText(dst, metricName, name)
	dst = appendField(dst, metricAlias, d.aliases[alias])
	dst = appendField(dst, metricTimestamp, at)
	return appendField(dst, metricDatatype, uint64(datatype)), m
}

// appendBirth appends a metric as a birth has it. One that was not read in this start, but is named by
// an entry of an earlier one, is stale.
func (m *metric) appendBirth(dst []byte, at uint64) []byte {
	dst, start := open(dst, payloadMetric)
	dst = appendText(dst, metricName, m.name)
	dst = appendField(dst, metricAlias, m.alias)
	if m.ms != 0 {
		at = m.ms
	}
	dst = appendField(dst, metricTimestamp, at)
	dst = appendField(dst, metricDatatype, uint64(m.datatype))
	m.bad = m.ms == 0 || m.last.datatype == 0
	if m.bad {
		dst = appendBool(dst, metricNull, true)
	}
	switch {
	case m.ms == 0:
		dst = appendProperties(dst, m.uom, qualityStale, nil)
	case m.bad:
		dst = appendProperties(dst, m.uom, qualityBad, m.last.text)
	default:
		dst = appendProperties(dst, m.uom, qualityGood, nil)
		dst = appendValue(dst, m.datatype, &m.last)
	}
	return closeAt(dst, start)
}
