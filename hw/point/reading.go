package point

// Reading is one decoded value of a point, or the reason why there is none.
type Reading struct {
	Point string
	Value Value
	// Bad is "" for a good value, or why there is none: "timeout" (no answer), "crc" (a
	// damaged one), "mismatch" (an answer to something else), "exception-2" (the unit refused,
	// with the Modbus exception code), "nan" (NaN, an infinity, or what the unit says for
	// "not available"), "invalid" (bytes that are no value of the type), "line" (the port is
	// gone or cannot be opened).
	Bad string
	// Uom is the unit of measure of the value: "W", "°C"; "" where there is none or it is not known.
	Uom string
}

// Strings gives out the same string for the same bytes, so that names and words that keep coming
// back cost one allocation in all. It forgets everything when it is full, which bounds what
// hostile bytes can make it hold. The zero Strings is ready; one goroutine may use it.
type Strings struct{ known map[string]string }

// maxStrings is how many strings Strings holds, and maxString how long one may be to be held.
const (
	maxStrings = 1024
	maxString  = 64
)

// Of returns b as a string.
func (s *Strings) Of(b []byte) string {
	if known, ok := s.known[string(b)]; ok {
		return known
	}
	text := string(b)
	if len(b) > maxString {
		return text
	}
	if s.known == nil {
		s.known = make(map[string]string)
	}
	if len(s.known) >= maxStrings {
		clear(s.known)
	}
	s.known[text] = text
	return text
}
