package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// A line is one JSON object in printable ASCII and a line end:
//
//	{"seq":7,"t":"2026-11-21T04:00:00.125Z","event":"command.refused","fields":{…},"prev":"…","sum":"…"}
//
// prev is the hash of the line before: SHA-256 over all its bytes, line end included, 64 hex digits; zeros before the
// first line. sum is the first 8 bytes of the SHA-256 over this line's bytes before `,"sum"`: it tells a line that
// a power cut tore from a whole one, and proves nothing. "unsynced":true stands after t while the clock was not trusted.

// hash is a line's.
type hash [sha256.Size]byte

func hashOf(line []byte) hash { return sha256.Sum256(line) }

func (h hash) String() string { return hex.EncodeToString(h[:]) }

const (
	sumMark = `,"sum":"`
	sumSize = len(sumMark) + 16 + len("\"}\n")
	cut     = "…"
)

// appendEvent encodes the part of a line that its event decides.
func appendEvent(dst []byte, e Event) []byte {
	start := len(dst)
	dst = appendText(append(dst, `,"event":`...), e.Name, maxKey)
	dst = append(dst, `,"fields":{`...)
	n := 0
	for _, attr := range e.Attrs {
		dst = appendAttr(dst, start, "", attr, &n)
	}
	return append(dst, '}')
}

// appendLine encodes one line around an encoded event.
func appendLine(dst []byte, seq uint64, at time.Time, trusted bool, event []byte, prev hash) []byte {
	start := len(dst)
	dst = strconv.AppendUint(append(dst, `{"seq":`...), seq, 10)
	dst = at.UTC().AppendFormat(append(dst, `,"t":"`...), "2006-01-02T15:04:05.000Z")
	dst = append(dst, '"')
	if !trusted {
		dst = append(dst, `,"unsynced":true`...)
	}
	dst = append(append(dst, event...), `,"prev":"`...)
	dst = append(hex.AppendEncode(dst, prev[:]), '"')
	sum := sha256.Sum256(dst[start:])
	return append(hex.AppendEncode(append(dst, sumMark...), sum[:8]), "\"}\n"...)
}

// appendAttr adds a field, or those of a group with the group's name before them.
func appendAttr(dst []byte, start int, group string, attr slog.Attr, n *int) []byte {
	value := attr.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		for _, inner := range value.Group() {
			dst = appendAttr(dst, start, group+attr.Key+".", inner, n)
		}
		return dst
	}
	// A value grows sixfold at most; the rest of a line is short.
	if *n >= maxAttrs || len(dst)-start+6*(maxKey+maxValue) > MaxLine-512 {
		return dst
	}
	if *n++; *n > 1 {
		dst = append(dst, ',')
	}
	dst = appendText(dst, group+attr.Key, maxKey)
	return appendValue(append(dst, ':'), value)
}

func appendValue(dst []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindBool:
		return strconv.AppendBool(dst, v.Bool())
	case slog.KindInt64:
		return strconv.AppendInt(dst, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(dst, v.Uint64(), 10)
	case slog.KindFloat64:
		if f := v.Float64(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return strconv.AppendFloat(dst, f, 'g', -1, 64)
		}
	case slog.KindTime:
		return appendText(dst, v.Time().UTC().Format(time.RFC3339Nano), maxValue)
	}
	return appendText(dst, v.String(), maxValue)
}

// appendText writes a JSON string in printable ASCII: what is foreign can neither end its line nor move a
// terminal's cursor, turn its direction, or look like something else.
func appendText(dst []byte, s string, limit int) []byte {
	if len(s) > limit {
		end := limit
		for end > limit-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end] + cut
	}
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case ' ' <= r && r <= '~':
			dst = append(dst, byte(r))
		case r > math.MaxUint16:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
	}
	return append(dst, '"')
}

// Line is one line that was read.
type Line struct {
	Seq      uint64                     `json:"seq"`
	Time     time.Time                  `json:"t"`
	Unsynced bool                       `json:"unsynced,omitempty"`
	Event    string                     `json:"event"`
	Fields   map[string]json.RawMessage `json:"fields"`
	Prev     string                     `json:"prev"`
	Sum      string                     `json:"sum"`
}

var errLine = errors.New("it is no line of an audit log")

// parseLine reads one line, its line end included, and checks that it is whole and is what appendLine writes.
func parseLine(raw []byte) (l Line, err error) {
	if len(raw) < sumSize || len(raw) > MaxLine || raw[len(raw)-1] != '\n' {
		return l, errLine
	}
	body, tail := raw[:len(raw)-sumSize], raw[len(raw)-sumSize:]
	sum := sha256.Sum256(body)
	if want := sumMark + hex.EncodeToString(sum[:8]) + "\"}\n"; string(tail) != want {
		return l, fmt.Errorf("%w: its sum is wrong", errLine)
	}
	for _, c := range body {
		if c < ' ' || c > '~' {
			return l, errLine
		}
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		return l, fmt.Errorf("%w: %w", errLine, err)
	}
	if l.Seq == 0 || l.Event == "" || len(l.Prev) != 2*sha256.Size {
		return l, errLine
	}
	return l, nil
}

// text is a field's value, where it is a string.
func (l Line) text(name string) string {
	var s string
	if json.Unmarshal(l.Fields[name], &s) != nil {
		return ""
	}
	return s
}

func (l Line) number(name string) int64 {
	var n int64
	if json.Unmarshal(l.Fields[name], &n) != nil {
		return 0
	}
	return n
}
