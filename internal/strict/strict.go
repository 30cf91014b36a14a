// Package strict reads TOML so that a mistake cannot hide: a key that nobody knows is an error
// with its line, its column and the key that was probably meant.
package strict

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"ferrule/internal/hint"
)

// Error is one mistake in a file. Line and Column count from 1.
type Error struct {
	Path         string
	Line, Column int
	Err          error
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d:%d: %v", e.Path, e.Line, e.Column, e.Err) }

// Unwrap is Err, so that errors.Is and hints see it.
func (e *Error) Unwrap() error { return e.Err }

// Decode reads text into what v points to, a struct whose fields have toml tags. path only names
// the text in errors, which are *Error, several of them joined.
func Decode(path string, text []byte, v any) error {
	err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(v)
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var problems []error
		for i := range unknown.Errors {
			problems = append(problems, unknownKey(path, &unknown.Errors[i], reflect.TypeOf(v)))
		}
		return errors.Join(problems...)
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

func unknownKey(path string, e *toml.DecodeError, t reflect.Type) error {
	line, column := e.Position()
	key := e.Key()
	name, table := key[len(key)-1], key[:len(key)-1]
	where := "at the top level"
	if len(table) > 0 {
		where = "in [" + strings.Join(table, ".") + "]"
	}
	mistake := &Error{Path: path, Line: line, Column: column, Err: fmt.Errorf("unknown key %q %s", name, where)}
	valid := keysOf(t, table)
	if near := Nearest(name, valid); len(near) > 0 {
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
		name, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		if field.Anonymous && name == "" { // its keys are the struct's own
			keys = append(keys, keysOf(field.Type, nil)...)
		}
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
