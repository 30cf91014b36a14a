package tuf

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Why an own reader: encoding/json takes "VERSION" for "version", the last of two equal names
// and any depth, so that what is read can be another document than what was signed. Here both are
// made of one tree.

const (
	// maxDepth bounds the recursion; a manifest needs 8.
	maxDepth = 32
	// maxValues bounds the memory (some 40 bytes each) before any signature is known to be good.
	maxValues = 1 << 17
)

type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	list
	object
)

// value is one value of a JSON document.
type value struct {
	kind kind
	// text is the decoded string, the digits of a number, or the name of a literal.
	text string
	// items are the values of a list, with empty names, or the members of an object, by name.
	items []member
}

type member struct {
	name string
	value
}

type byName []member

func (m byName) Len() int           { return len(m) }
func (m byName) Less(i, j int) bool { return m[i].name < m[j].name }
func (m byName) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }

// get returns the member called name, or a null.
func (v *value) get(name string) *value {
	if v.kind == object {
		i := sort.Search(len(v.items), func(i int) bool { return v.items[i].name >= name })
		if i < len(v.items) && v.items[i].name == name {
			return &v.items[i].value
		}
	}
	return &value{}
}

// integer returns a number that is at least least.
func (v *value) integer(least int64) (int64, bool) {
	if v.kind != number {
		return 0, false
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	return n, err == nil && n >= least
}

// canonical appends the form that signatures and keyids are made of: names sorted, no space,
// only " and \ escaped (OLPC Canonical JSON, wiki.laptop.org/go/Canonical_JSON).
func (v *value) canonical(dst []byte) []byte { return v.encode(dst, false) }

// compact appends the same form with control characters escaped, so that it is JSON: in canonical
// JSON a line break stands bare in its string.
func (v *value) compact(dst []byte) []byte { return v.encode(dst, true) }

func (v *value) encode(dst []byte, escape bool) []byte {
	switch v.kind {
	case text:
		return quote(dst, v.text, escape)
	case list, object:
		open, end := byte('['), byte(']')
		if v.kind == object {
			open, end = '{', '}'
		}
		dst = append(dst, open)
		for i := range v.items {
			if i > 0 {
				dst = append(dst, ',')
			}
			if v.kind == object {
				dst = append(quote(dst, v.items[i].name, escape), ':')
			}
			dst = v.items[i].encode(dst, escape)
		}
		return append(dst, end)
	}
	return append(dst, v.text...)
}

func quote(dst []byte, s string, escape bool) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := range len(s) {
		switch b := s[i]; {
		case b == '"' || b == '\\':
			dst = append(dst, '\\', b)
		case b < ' ' && escape:
			dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
		default:
			dst = append(dst, b)
		}
	}
	return append(dst, '"')
}

// parseJSON reads one document. It refuses what canonical JSON cannot say or two readers could
// understand differently: names that come twice, numbers that are no 64-bit integers, broken
// UTF-8, half a surrogate pair, anything after the document.
func parseJSON(data []byte) (*value, error) {
	s := scanner{text: string(data)}
	if !utf8.ValidString(s.text) {
		return nil, errors.New("not UTF-8")
	}
	v, err := s.value(0)
	if err != nil {
		return nil, fmt.Errorf("%w at byte %d", err, s.at)
	}
	if s.space(); s.at < len(s.text) {
		return nil, fmt.Errorf("more than one document at byte %d", s.at)
	}
	return &v, nil
}

type scanner struct {
	text   string
	at     int
	values int
}

var errSyntax = errors.New("not JSON")

// peek returns the next byte, or 0 at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

func (s *scanner) space() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// eat goes past b, and the space before it, where b is next.
func (s *scanner) eat(b byte) bool {
	s.space()
	if s.peek() != b {
		return false
	}
	s.at++
	return true
}

func (s *scanner) value(depth int) (v value, err error) {
	if s.values++; s.values > maxValues {
		return v, errors.New("more values than allowed")
	}
	if depth > maxDepth {
		return v, errors.New("nested deeper than allowed")
	}
	s.space()
	switch b := s.peek(); {
	case b == '{':
		v.kind = object
		v.items, err = s.list('}', depth)
		return v, err
	case b == '[':
		v.kind = list
		v.items, err = s.list(']', depth)
		return v, err
	case b == '"':
		v.kind = text
		v.text, err = s.string()
		return v, err
	case b == '-' || '0' <= b && b <= '9':
		v.kind = number
		v.text, err = s.number()
		return v, err
	}
	return s.literal()
}

func (s *scanner) literal() (value, error) {
	for _, word := range [...]string{"null", "true", "false"} {
		if rest := s.text[s.at:]; len(rest) >= len(word) && rest[:len(word)] == word {
			s.at += len(word)
			v := value{kind: boolean, text: word}
			if word == "null" {
				v.kind = null
			}
			return v, nil
		}
	}
	return value{}, errSyntax
}

// list reads the items of a list or the members of an object, whose end is a bracket or a brace.
func (s *scanner) list(end byte, depth int) ([]member, error) {
	s.at++ // past the opening
	if s.eat(end) {
		return nil, nil
	}
	var items []member
	for {
		var m member
		var err error
		if end == '}' {
			if m.name, err = s.name(); err != nil {
				return nil, err
			}
		}
		if m.value, err = s.value(depth + 1); err != nil {
			return nil, err
		}
		items = append(items, m)
		if s.eat(end) {
			break
		}
		if !s.eat(',') {
			return nil, errSyntax
		}
	}
	if end == '}' {
		return items, sortMembers(items)
	}
	return items, nil
}

func sortMembers(items []member) error {
	sort.Sort(byName(items))
	for i := range items[1:] {
		if items[i].name == items[i+1].name {
			return fmt.Errorf("the name %q comes twice, in an object that ends", items[i].name)
		}
	}
	return nil
}

func (s *scanner) name() (string, error) {
	if s.space(); s.peek() != '"' {
		return "", errSyntax
	}
	name, err := s.string()
	if err == nil && !s.eat(':') {
		err = errSyntax
	}
	return name, err
}

// number reads an integer; OLPC Canonical JSON has no others, and no two spellings of one.
func (s *scanner) number() (string, error) {
	start := s.at
	for b := s.peek(); b == '-' || b == '+' || b == '.' || b|0x20 == 'e' || '0' <= b && b <= '9'; b = s.peek() {
		s.at++
	}
	digits := s.text[start:s.at]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != digits {
		return "", errors.New("a number that is no 64-bit integer")
	}
	return digits, nil
}

// string reads a string; one without escapes shares the memory of the document.
func (s *scanner) string() (string, error) {
	s.at++ // past the quotation mark
	start := s.at
	var decoded []byte
	for s.at < len(s.text) {
		switch b := s.text[s.at]; {
		case b == '"':
			s.at++
			if decoded != nil {
				return string(decoded), nil
			}
			return s.text[start : s.at-1], nil
		case b < ' ':
			return "", errors.New("a bare control character in a string")
		case b == '\\':
			if decoded == nil {
				decoded = append(make([]byte, 0, s.at-start+16), s.text[start:s.at]...)
			}
			r, err := s.escape()
			if err != nil {
				return "", err
			}
			decoded = utf8.AppendRune(decoded, r)
		default:
			if decoded != nil {
				decoded = append(decoded, b)
			}
			s.at++
		}
	}
	return "", errSyntax
}

// escape reads what follows a backslash, both halves of a surrogate pair at once.
func (s *scanner) escape() (rune, error) {
	s.at++ // past the backslash
	b := s.peek()
	s.at++
	switch b {
	case '"', '\\', '/':
		return rune(b), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		r, ok := s.hex4()
		if ok && utf16.IsSurrogate(r) {
			low := rune(0)
			if ok = s.at+1 < len(s.text) && s.text[s.at] == '\\' && s.text[s.at+1] == 'u'; ok {
				s.at += 2
				low, ok = s.hex4()
			}
			r = utf16.DecodeRune(r, low)
			ok = ok && r != utf8.RuneError
		}
		if ok {
			return r, nil
		}
	}
	return 0, errors.New("a bad escape in a string")
}

func (s *scanner) hex4() (rune, bool) {
	if s.at+4 > len(s.text) {
		return 0, false
	}
	n, err := strconv.ParseUint(s.text[s.at:s.at+4], 16, 16)
	s.at += 4
	return rune(n), err == nil
}
