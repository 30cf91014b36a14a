package jws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth is how deep objects and arrays may nest; cnf.jkt needs two.
const maxDepth = 8

// object reads one JSON object that cannot be understood in two ways: UTF-8, nothing behind it, and no two
// members of one object that encoding/json would take for the same (it ignores case, and the last one wins).
func object(raw []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("it is not UTF-8")
	}
	if err := unambiguous(raw); err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, err
	}
	if members == nil {
		return nil, errors.New("it is null instead of an object")
	}
	return members, nil
}

// scope is one object or array that is being walked.
type scope struct {
	names map[string]bool // nil for an array
	value bool            // a name was read, its value comes next
}

// unambiguous walks the tokens of one JSON text.
func unambiguous(raw []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var open []*scope
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			if len(open) > 0 {
				return io.ErrUnexpectedEOF
			}
			return nil // what follows the object is refused by the Unmarshal after this
		}
		if err != nil {
			return err
		}
		delim, _ := token.(json.Delim)
		if delim == '}' || delim == ']' {
			open = open[:len(open)-1]
			continue
		}
		if len(open) > 0 {
			if err := open[len(open)-1].next(token); err != nil {
				return err
			}
		}
		switch delim {
		case '{':
			open = append(open, &scope{names: map[string]bool{}})
		case '[':
			open = append(open, &scope{})
		}
		if len(open) > maxDepth {
			return fmt.Errorf("it nests deeper than %d", maxDepth)
		}
	}
}

// next takes a name or a value of an open object.
func (s *scope) next(token json.Token) error {
	if s.names == nil {
		return nil
	}
	if s.value {
		s.value = false
		return nil
	}
	name, _ := token.(string)
	folded := fold(name)
	if s.names[folded] {
		return fmt.Errorf("it has the member %.40q twice", name)
	}
	s.names[folded], s.value = true, true
	return nil
}

// fold maps names that differ only in case to one, by Unicode's simple folding (K, k and the Kelvin sign).
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, name)
}
