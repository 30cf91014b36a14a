package profile

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"ferrule/internal/hint"
)

// Error is one mistake in a profile's file. Line and Column count from 1.
type Error struct {
	Path         string
	Line, Column int
	Err          error
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d:%d: %v", e.Path, e.Line, e.Column, e.Err) }

// Unwrap is Err, so that errors.Is and hints see it.
func (e *Error) Unwrap() error { return e.Err }

// Parse reads one profile from text, strictly: a key that it does not know is an error. path is
// what errors call the file; its last element without .toml is the name that the profile must
// have. All mistakes are found in one go where the text can be read at all; each is an *Error.
func Parse(path string, text []byte) (Profile, error) {
	var p Profile
	if err := decode(path, text, &p); err != nil {
		return Profile{}, err
	}
	if p.Protocol == "" {
		p.Protocol = protocolRTU
	}
	c := checker{path: path, places: findPlaces(text)}
	c.profile(p, strings.TrimSuffix(filepath.Base(path), extension))
	if err := errors.Join(c.problems...); err != nil {
		return Profile{}, err
	}
	return p, nil
}

// decode reads text into p and turns the library's errors into ours.
func decode(path string, text []byte, p *Profile) error {
	err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(p)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var unknown []error
		for i := range strict.Errors {
			unknown = append(unknown, unknownKey(path, &strict.Errors[i]))
		}
		return errors.Join(unknown...)
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := bad.Position()
		what := strings.TrimPrefix(bad.Error(), "toml: ")
		if key := strings.Join(bad.Key(), "."); key != "" {
			what = key + ": " + what
		}
		return &Error{Path: path, Line: line, Column: column, Err: errors.New(what)}
	}
	if err != nil {
		return &Error{Path: path, Line: 1, Column: 1, Err: err}
	}
	return nil
}

func unknownKey(path string, e *toml.DecodeError) error {
	line, column := e.Position()
	key := e.Key()
	name, table := key[len(key)-1], key[:len(key)-1]
	where := "at the top level"
	if len(table) > 0 {
		where = "in [" + strings.Join(table, ".") + "]"
	}
	mistake := &Error{Path: path, Line: line, Column: column, Err: fmt.Errorf("unknown key %q %s", name, where)}
	valid := keysOf(reflect.TypeFor[Profile](), table)
	if near := nearest(name, valid); len(near) > 0 {
		return hint.With(mistake, fmt.Sprintf("did you mean %q?", near[0]))
	}
	if len(valid) > 0 {
		return hint.With(mistake, "valid keys here: "+strings.Join(valid, ", "))
	}
	return mistake
}

// keysOf returns the valid keys of the table that path leads to from the struct t.
func keysOf(t reflect.Type, path []string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for field := range t.Fields() {
		name := field.Tag.Get("toml")
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
