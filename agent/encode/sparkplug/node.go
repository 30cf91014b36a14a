// Package sparkplug speaks Sparkplug B 3.0 as an edge node: births, data, a will, and entries that
// become data when they are sent. The trap is the entry of an earlier start: it names metrics that
// nobody has read in this one, and data may only name what a birth certificate has named before. So
// entries name their metrics themselves, and Join gives nothing until the birth that they need is out.
package sparkplug

import (
	"strings"
	"sync"
	"time"

	"ferrule/hw"
)

const (
	namespace = "spBv1.0/"
	// rebirth is the metric by which a host asks for all births again (3.0, 6.4.20).
	rebirth = "Node Control/Rebirth"
	// own begins the names of the metrics that are the encoder's, and no unit's.
	own = "Ferrule/"

	ownSeq      = own + "Seq"
	ownBoot     = own + "Boot"
	ownUnsynced = own + "Unsynced"
)

// What is kept of devices is bounded: streaming lines name units, and some points, after what they
// hear. Beyond, all is forgotten and born again. A metric takes about 250 bytes.
const (
	maxDevices       = 1024
	maxMetrics       = 32768
	maxDeviceMetrics = 2048
)

// Message is one PUBLISH.
type Message struct {
	Topic   string
	Payload []byte
}

// Options name a node.
type Options struct {
	// Group and Edge are levels of its topics.
	Group, Edge string
	// Boot is the number of this start.
	Boot uint64
	// Kind is the byte that entries begin with.
	Kind byte
}

// Node is an edge node. It may be used by several goroutines.
type Node struct {
	kind   byte
	boot   uint64
	prefix string // of the topics of its devices' data
	topics struct{ birth, death, command string }

	mu      sync.Mutex
	bdSeq   byte
	seq     byte   // of the next message
	born    bool   // the node, on this connection
	asked   bool   // for a rebirth
	lastSeq uint64 // of the entries of this start
	aliases uint64 // given so far
	known   int    // metrics
	devices map[string]*device
	order   []*device
	found   []*metric // scratch of Join
}

// device is one Sparkplug device, by the topic of its data.
type device struct {
	birth   string // topic
	metrics map[string]*metric
	order   []*metric
	born    bool      // with all its metrics, on this connection
	bornSeq uint64    // entries up to it are older than the birth
	aliases [3]uint64 // of ownSeq, ownBoot and ownUnsynced
	last    header    // of its last entry of this start
	told    header    // what the host was told last
}

// metric is one point of a unit.
type metric struct {
	name, uom string
	alias     uint64
	datatype  byte
	typed     bool // a value has told the type; until then it is a guess
	last      stored
	text      []byte // backs last.text
	ms        uint64 // of last; 0: no reading in this start
	bad       bool   // what the host was told last
	before    bool   // bad before the Join under way
}

// New returns a node. Its death certificates are numbered from the start's own number on, so that the
// will of a connection of the start before is not taken for one of this.
func New(o Options) *Node {
	level := namespace + o.Group + "/"
	n := &Node{
		kind: o.Kind, boot: o.Boot, devices: make(map[string]*device),
		prefix: level + "DDATA/" + o.Edge + "/",
		bdSeq:  byte(o.Boot*97) - 1, // 97: starts in a row are 97 connections apart
	}
	n.topics.birth = level + "NBIRTH/" + o.Edge
	n.topics.death = level + "NDEATH/" + o.Edge
	n.topics.command = level + "NCMD/" + o.Edge
	return n
}

// Topic returns the topic of the data of a device, which is one level.
func (n *Node) Topic(device string) string { return n.prefix + device }

// Filter is the topic of the commands to the node.
func (n *Node) Filter() string { return n.topics.command }

// Will returns the NDEATH of the next connection (3.0, 6.4.25): with a bdSeq that is one more than that
// of the last, from 255 to 0. What was born is dead from now on.
func (n *Node) Will() Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bdSeq++
	n.born = false
	payload := appendField(nil, payloadTimestamp, now())
	return Message{Topic: n.topics.death, Payload: n.appendBdSeq(payload)}
}

func (n *Node) appendBdSeq(dst []byte) []byte {
	dst, m := open(dst, payloadMetric)
	dst = appendText(dst, metricName, "bdSeq")
	dst = appendField(dst, metricTimestamp, now())
	dst = appendField(dst, metricDatatype, typeInt64)
	return closeAt(appendField(dst, metricLong, uint64(n.bdSeq)), m)
}

// Receive takes a command. It says whether births are due.
func (n *Node) Receive(topic string, payload []byte) bool {
	if topic != n.topics.command || !asksRebirth(payload) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = true
	return true
}

// Entry appends a poll of a device as the outbox stores it, and learns its metrics.
func (n *Node) Entry(dst []byte, topic string, seq uint64, p hw.Poll, unsynced bool) []byte {
	h := header{boot: n.boot, seq: seq, ms: uint64(max(p.Time.UnixMilli(), 0)), unsynced: unsynced}
	start := len(dst)
	dst = appendEntry(dst, n.kind, h, p.Readings)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastSeq = max(n.lastSeq, seq)
	d := n.device(topic)
	d.last = h
	r := reader{rest: dst[start:]}
	r.header()
	for s, ok := r.next(); ok; s, ok = r.next() {
		d.learn(n, &s).remember(&s, h.ms)
	}
	return dst
}

// device returns what is known of a device.
func (n *Node) device(topic string) *device {
	d, ok := n.devices[topic]
	if !ok && len(n.devices) >= maxDevices || ok && len(d.order) >= maxDeviceMetrics || n.known >= maxMetrics {
		n.forget()
		ok = false
	}
	if ok {
		return d
	}
	d = &device{metrics: make(map[string]*metric)}
	d.birth = strings.Replace(topic, "/DDATA/", "/DBIRTH/", 1)
	for i := range d.aliases {
		n.aliases++
		d.aliases[i] = n.aliases
	}
	n.devices[topic] = d
	n.order = append(n.order, d)
	return d
}

// forget makes room: everything is born again, the node first, since nothing but its birth takes a
// device from a host.
func (n *Node) forget() {
	clear(n.devices)
	n.order, n.known = nil, 0
	n.asked = n.asked || n.born
	n.born = false
}

// learn returns the metric of s. One that is new, or has another type than it was born with, makes a
// birth of the device necessary.
func (d *device) learn(n *Node, s *stored) *metric {
	m, ok := d.metrics[string(s.name)]
	if !ok {
		n.aliases++
		n.known++
		m = &metric{name: string(s.name), uom: string(s.uom), alias: n.aliases, datatype: typeDouble}
		d.metrics[m.name] = m
		d.order = append(d.order, m)
		d.born = false
	}
	if s.datatype == 0 {
		return m
	}
	datatype := s.datatype
	if m.typed {
		datatype = wider(m.datatype, datatype)
	}
	if datatype != m.datatype {
		d.born = false
	}
	m.datatype, m.typed = datatype, true
	if m.uom == "" && len(s.uom) > 0 {
		m.uom = string(s.uom)
		d.born = false
	}
	return m
}

// remember keeps the last reading of a metric, for births.
func (m *metric) remember(s *stored, ms uint64) {
	m.text = append(m.text[:0], s.text...)
	m.last = stored{datatype: s.datatype, n: s.n, text: m.text}
	m.ms = ms
}

func now() uint64 { return uint64(max(time.Now().UnixMilli(), 0)) }
