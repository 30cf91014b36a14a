package rauc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// The few of D-Bus's messages that are needed, by hand: the library for all of them adds 328 kB to
// the program. D-Bus Specification 0.43, "Type System" and "Message Protocol".

const (
	kindCall   = 1
	kindReturn = 2
	kindError  = 3
	kindSignal = 4
)

const (
	fixedHeader = 16        // bytes before the header's fields
	maxMessage  = 256 << 10 // bytes; the specification allows 128 MiB, RAUC needs some KiB
	maxFields   = 64 << 10  // bytes of the header's fields
	maxDepth    = 16        // values within values; the specification allows 64
)

var errMessage = errors.New("no D-Bus message")

// message is one message, in either direction. body holds Go's types: byte, bool, int16…uint64,
// float64, string, []any (array, struct), map[string]any (dictionary with strings as keys).
type message struct {
	kind        byte
	serial      uint32
	replyTo     uint32
	path        string
	iface       string
	member      string
	errorName   string
	destination string
	sender      string
	signature   string
	body        []any
}

// writer marshals, little-endian.
type writer struct{ b []byte }

func (w *writer) align(n int) {
	for len(w.b)%n != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *writer) u32(v uint32) {
	w.align(4)
	w.b = binary.LittleEndian.AppendUint32(w.b, v)
}

func (w *writer) str(s string) {
	w.u32(uint32(len(s)))
	w.b = append(append(w.b, s...), 0)
}

func (w *writer) sig(s string) { w.b = append(append(append(w.b, byte(len(s))), s...), 0) }

func (w *writer) field(code byte, signature, value string) {
	if value == "" {
		return
	}
	w.align(8)
	w.b = append(w.b, code)
	w.sig(signature)
	if signature == "g" {
		w.sig(value)
	} else {
		w.str(value)
	}
}

// option is one entry of a dictionary a{sv}; its value is a string or a bool.
type option struct {
	name  string
	value any
}

// argument marshals what our calls carry and says its signature.
func (w *writer) argument(v any) (signature string) {
	switch v := v.(type) {
	case string:
		w.str(v)
		return "s"
	case bool:
		var n uint32
		if v {
			n = 1
		}
		w.u32(n)
		return "b"
	case []option:
		w.u32(0)
		length := len(w.b) - 4
		w.align(8)
		began := len(w.b)
		for _, o := range v {
			w.align(8)
			w.str(o.name)
			value := new(writer)
			w.sig(value.argument(o.value))
			w.argument(o.value)
		}
		binary.LittleEndian.PutUint32(w.b[length:], uint32(len(w.b)-began))
		return "a{sv}"
	}
	return ""
}

// marshal is a method call as bytes.
func (m *message) marshal() []byte {
	body := new(writer)
	signature := ""
	for _, v := range m.body {
		signature += body.argument(v)
	}
	w := &writer{b: []byte{'l', kindCall, 0, 1}}
	w.u32(uint32(len(body.b)))
	w.u32(m.serial)
	w.u32(0)
	w.field(1, "o", m.path)
	w.field(2, "s", m.iface)
	w.field(3, "s", m.member)
	w.field(6, "s", m.destination)
	w.field(8, "g", signature)
	binary.LittleEndian.PutUint32(w.b[12:], uint32(len(w.b)-fixedHeader))
	w.align(8)
	return append(w.b, body.b...)
}

// size is how many bytes the whole message has whose first fixedHeader bytes are head.
func size(head []byte) (int, error) {
	order, err := byteOrder(head[0])
	if err != nil {
		return 0, err
	}
	body, fields := order.Uint32(head[4:]), order.Uint32(head[12:])
	if head[3] != 1 || fields > maxFields || body > maxMessage {
		return 0, fmt.Errorf("%w: version %d, %d bytes of header, %d of body", errMessage, head[3], fields, body)
	}
	return fixedHeader + (int(fields)+7)&^7 + int(body), nil
}

func byteOrder(mark byte) (binary.ByteOrder, error) {
	switch mark {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, fmt.Errorf("%w: byte order %q", errMessage, mark)
}

// unmarshal reads a message whose length is what size said.
func unmarshal(b []byte) (*message, error) {
	if len(b) < fixedHeader {
		return nil, errMessage
	}
	whole, err := size(b)
	if err != nil {
		return nil, err
	}
	if len(b) != whole {
		return nil, fmt.Errorf("%w: %d bytes of %d", errMessage, len(b), whole)
	}
	order, err := byteOrder(b[0])
	if err != nil {
		return nil, err
	}
	m := &message{kind: b[1], serial: order.Uint32(b[8:])}
	fields := int(order.Uint32(b[12:]))
	r := &reader{b: b[:fixedHeader+fields], at: fixedHeader - 4, order: order}
	header, err := r.value("a(yv)", 0)
	if err != nil {
		return nil, err
	}
	if err := m.setFields(header.([]any)); err != nil {
		return nil, err
	}
	r = &reader{b: b[fixedHeader+(fields+7)&^7:], order: order}
	for rest := m.signature; rest != ""; {
		var one string
		if one, rest, err = nextType(rest, 0); err != nil {
			return nil, err
		}
		v, err := r.value(one, 0)
		if err != nil {
			return nil, err
		}
		m.body = append(m.body, v)
	}
	if r.at != len(r.b) {
		return nil, fmt.Errorf("%w: %d bytes too many", errMessage, len(r.b)-r.at)
	}
	return m, nil
}

func (m *message) setFields(header []any) error {
	for _, f := range header {
		pair := f.([]any)
		code, value := pair[0].(byte), pair[1]
		if code == 5 {
			n, ok := value.(uint32)
			if !ok {
				return fmt.Errorf("%w: field %d is no number", errMessage, code)
			}
			m.replyTo = n
			continue
		}
		into := map[byte]*string{1: &m.path, 2: &m.iface, 3: &m.member, 4: &m.errorName, 6: &m.destination, 7: &m.sender, 8: &m.signature}[code]
		if into == nil {
			continue // unknown fields are to be ignored
		}
		text, ok := value.(string)
		if !ok {
			return fmt.Errorf("%w: field %d is no text", errMessage, code)
		}
		*into = text
	}
	return nil
}

// reader unmarshals. Offsets count from where b begins, which is aligned to 8 in the message.
type reader struct {
	b     []byte
	at    int
	order binary.ByteOrder
}

func (r *reader) align(n int) error {
	to := (r.at + n - 1) / n * n
	if to > len(r.b) {
		return fmt.Errorf("%w: it ends too early", errMessage)
	}
	for ; r.at < to; r.at++ {
		if r.b[r.at] != 0 {
			return fmt.Errorf("%w: padding is not zero", errMessage)
		}
	}
	return nil
}

// take is the next n bytes after alignment to n0.
func (r *reader) take(n0, n int) ([]byte, error) {
	if err := r.align(n0); err != nil {
		return nil, err
	}
	if n < 0 || n > len(r.b)-r.at {
		return nil, fmt.Errorf("%w: it ends too early", errMessage)
	}
	b := r.b[r.at : r.at+n]
	r.at += n
	return b, nil
}

func (r *reader) u32() (uint32, error) {
	b, err := r.take(4, 4)
	if err != nil {
		return 0, err
	}
	return r.order.Uint32(b), nil
}

// text is n bytes and a zero.
func (r *reader) text(n uint32) (string, error) {
	if n > maxMessage {
		return "", fmt.Errorf("%w: a text of %d bytes", errMessage, n)
	}
	b, err := r.take(1, int(n)+1)
	if err != nil {
		return "", err
	}
	if s := string(b[:n]); b[n] == 0 && !strings.Contains(s, "\x00") {
		return s, nil
	}
	return "", fmt.Errorf("%w: a text with a zero in it", errMessage)
}

// value reads one value of one complete type.
func (r *reader) value(signature string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: too many values within values", errMessage)
	}
	switch c := signature[0]; c {
	case 's', 'o':
		n, err := r.u32()
		if err != nil {
			return nil, err
		}
		return r.text(n)
	case 'g':
		n, err := r.take(1, 1)
		if err != nil {
			return nil, err
		}
		return r.text(uint32(n[0]))
	case 'v':
		return r.variant(depth)
	case 'a':
		return r.array(signature[1:], depth)
	case '(':
		if err := r.align(8); err != nil {
			return nil, err
		}
		return r.members(signature[1:len(signature)-1], depth)
	default:
		return r.number(c)
	}
}

func (r *reader) number(c byte) (any, error) {
	n, ok := map[byte]int{'y': 1, 'n': 2, 'q': 2, 'b': 4, 'i': 4, 'u': 4, 'h': 4, 'x': 8, 't': 8, 'd': 8}[c]
	if !ok {
		return nil, fmt.Errorf("%w: type %q", errMessage, c)
	}
	b, err := r.take(n, n)
	if err != nil {
		return nil, err
	}
	switch c {
	case 'y':
		return b[0], nil
	case 'n':
		return int16(r.order.Uint16(b)), nil
	case 'q':
		return r.order.Uint16(b), nil
	case 'b':
		if v := r.order.Uint32(b); v <= 1 {
			return v == 1, nil
		}
		return nil, fmt.Errorf("%w: a truth that is neither", errMessage)
	case 'i':
		return int32(r.order.Uint32(b)), nil
	case 'x':
		return int64(r.order.Uint64(b)), nil
	case 't':
		return r.order.Uint64(b), nil
	case 'd':
		return math.Float64frombits(r.order.Uint64(b)), nil
	}
	return r.order.Uint32(b), nil
}

func (r *reader) variant(depth int) (any, error) {
	signature, err := r.value("g", depth+1)
	if err != nil {
		return nil, err
	}
	one, rest, err := nextType(signature.(string), 0)
	if err != nil {
		return nil, err
	}
	if rest != "" {
		return nil, fmt.Errorf("%w: a variant of %q", errMessage, signature)
	}
	return r.value(one, depth+1)
}

// array is []any, or map[string]any where it is a dictionary with strings as keys. Every element
// takes a byte at least: zero bytes of many elements there are none.
func (r *reader) array(element string, depth int) (any, error) {
	n, err := r.u32()
	if err != nil {
		return nil, err
	}
	if err := r.align(alignment(element[0])); err != nil {
		return nil, err
	}
	if uint64(n) > uint64(len(r.b)-r.at) {
		return nil, fmt.Errorf("%w: an array of %d bytes", errMessage, n)
	}
	end := r.at + int(n)
	part := &reader{b: r.b[:end], at: r.at, order: r.order}
	r.at = end
	if element[0] == '{' {
		return part.dictionary(element[1:len(element)-1], depth)
	}
	list := []any{}
	for part.at < end {
		v, err := part.value(element, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (r *reader) dictionary(members string, depth int) (any, error) {
	entries := map[string]any{}
	for r.at < len(r.b) {
		if err := r.align(8); err != nil {
			return nil, err
		}
		pair, err := r.members(members, depth)
		if err != nil {
			return nil, err
		}
		key, ok := pair[0].(string)
		if !ok || len(pair) != 2 {
			return nil, fmt.Errorf("%w: a dictionary of %q", errMessage, members)
		}
		entries[key] = pair[1]
	}
	return entries, nil
}

func (r *reader) members(signature string, depth int) ([]any, error) {
	var list []any
	for signature != "" {
		one, rest, err := nextType(signature, 0)
		if err != nil {
			return nil, err
		}
		v, err := r.value(one, depth+1)
		if err != nil {
			return nil, err
		}
		list, signature = append(list, v), rest
	}
	return list, nil
}

func alignment(c byte) int {
	switch c {
	case 'y', 'g', 'v':
		return 1
	case 'n', 'q':
		return 2
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 4
}

// nextType cuts the first complete type off a signature.
func nextType(signature string, depth int) (one, rest string, err error) {
	bad := fmt.Errorf("%w: signature %q", errMessage, signature)
	if signature == "" || depth > maxDepth {
		return "", "", bad
	}
	c := signature[0]
	switch {
	case strings.IndexByte("ybnqiuhxtdsogv", c) >= 0:
		return signature[:1], signature[1:], nil
	case c == 'a' && strings.HasPrefix(signature, "a{"):
		n, err := closing(signature[2:], '}', depth)
		if err != nil {
			return "", "", err
		}
		return signature[:2+n], signature[2+n:], nil
	case c == 'a':
		element, rest, err := nextType(signature[1:], depth+1)
		return signature[:1+len(element)], rest, err
	case c == '(':
		n, err := closing(signature[1:], ')', depth)
		if err != nil {
			return "", "", err
		}
		return signature[:1+n], signature[1+n:], nil
	}
	return "", "", bad
}

// closing is how many bytes there are up to and with the mark that closes a struct or an entry.
func closing(members string, mark byte, depth int) (int, error) {
	rest := members
	for rest != "" && rest[0] != mark {
		var err error
		if _, rest, err = nextType(rest, depth+1); err != nil {
			return 0, err
		}
	}
	if rest == "" || rest == members {
		return 0, fmt.Errorf("%w: signature %q", errMessage, members)
	}
	return len(members) - len(rest) + 1, nil
}
