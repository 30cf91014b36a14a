package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"ferrule/internal/hint"
)

const defaultGrace = 10 * time.Second

// Error is one mistake in the file. Line and Column count from 1.
type Error struct {
	Path         string
	Line, Column int
	Err          error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %v", e.Path, e.Line, e.Column, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// decode reads text into c and turns the library's errors into ours.
func decode(path string, text []byte, c *Config) error {
	decoder := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields()
	err := decoder.Decode(c)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var unknown []error
		for i := range strict.Errors {
			unknown = append(unknown, unknownKey(path, &strict.Errors[i]))
		}
		return errors.Join(unknown...)
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := bad.Position()
		text := strings.TrimPrefix(bad.Error(), "toml: ")
		if key := strings.Join(bad.Key(), "."); key != "" {
			text = key + ": " + text
		}
		return &Error{Path: path, Line: line, Column: column, Err: errors.New(text)}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func unknownKey(path string, e *toml.DecodeError) error {
	line, column := e.Position()
	key := e.Key()
	name := key[len(key)-1]
	where := "at the top level"
	if len(key) > 1 {
		where = "in [" + strings.Join(key[:len(key)-1], ".") + "]"
	}
	mistake := &Error{Path: path, Line: line, Column: column, Err: fmt.Errorf("unknown key %q %s", name, where)}
	valid := keysOf(reflect.TypeFor[Config](), key[:len(key)-1])
	if best := nearest(name, valid); best != "" {
		return hint.With(mistake, fmt.Sprintf("did you mean %q?", best))
	}
	if len(valid) > 0 {
		return hint.With(mistake, "valid keys here: "+strings.Join(valid, ", "))
	}
	return mistake
}

// keysOf returns the valid keys of the table that path leads to, starting at the struct t.
func keysOf(t reflect.Type, path []string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		if name == "" || name == "-" {
			continue
		}
		if len(path) > 0 && name == path[0] {
			return keysOf(field.Type, path[1:])
		}
		keys = append(keys, name)
	}
	if len(path) > 0 {
		return nil // the table itself is unknown; its own error says so
	}
	return keys
}

// nearest returns the candidate that needs the fewest edits to become name, unless so many
// are needed that the likeness is chance.
func nearest(name string, candidates []string) string {
	best, least := "", len(name)/2+1
	for _, candidate := range candidates {
		if d := edits(strings.ToLower(name), candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// edits is the Levenshtein distance of a and b in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j]+1, row[j+1]+1, substitution)
		}
	}
	return row[len(b)]
}
