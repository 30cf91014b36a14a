package config_test

import (
	"bytes"
	"encoding"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"ferrule/agent/config"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const docsPath = "../../docs/configuration.md"

// TestConfigurationDocs keeps docs/configuration.md true: it is generated from the structs
// that the file is read into, from their comments and from the defaults.
func TestConfigurationDocs(t *testing.T) {
	example, err := os.ReadFile("testdata/example.toml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.Parse("example.toml", example); err != nil {
		t.Fatalf("the example of the documentation is not valid: %v", err)
	}
	var out bytes.Buffer
	out.WriteString(docsHead)
	fmt.Fprintf(&out, "```toml\n%s```\n", example)
	w := docsWriter{out: &out, comments: make(map[string]map[string]string)}
	if err := w.table("", reflect.ValueOf(config.Default())); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(docsPath, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, out.Bytes()) {
		t.Error("docs/configuration.md is not what the structs say; run: go test ./agent/config -update")
	}
}

const docsHead = `<!-- Generated from the configuration structs by: go test ./agent/config -update -->
# Configuration

One TOML file, ` + "`/etc/ferrule/ferrule.toml`" + ` unless ` + "`--config`" + ` says otherwise. It is read strictly: a key that
does not exist is an error with its line, its column and the nearest key that does. Check a
file without running anything with ` + "`ferrule check`" + `. Durations are written as ` + "`250ms`, `1s`, `1h30m`" + `;
sizes as ` + "`64KiB`, `256MiB`" + `. Every key has a default but ` + "`session.brokers`" + ` and the lines.

A complete file:

`

type docsWriter struct {
	out      *bytes.Buffer
	comments map[string]map[string]string // "package.Type" to field to comment
}

// table writes the keys of one struct, then the tables below it.
func (w *docsWriter) table(path string, v reflect.Value) error {
	comments, err := w.commentsOf(v.Type())
	if err != nil {
		return err
	}
	var rows bytes.Buffer
	var below []func() error
	for field, value := range v.Fields() {
		key, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		if key == "" || key == "-" {
			continue
		}
		full := strings.TrimPrefix(path+"."+key, ".")
		if element, isTable := tableOf(field.Type); isTable {
			if value.Kind() == reflect.Struct {
				element = value
			}
			below = append(below, func() error { return w.table(full, element) })
			continue
		}
		comment := comments[field.Name]
		if comment == "" {
			return fmt.Errorf("%s.%s has no comment, so the key %s has no documentation", v.Type(), field.Name, full)
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", key, defaultOf(value), comment)
	}
	if rows.Len() > 0 {
		fmt.Fprintf(w.out, "\n## %s\n\n| key | default | meaning |\n|---|---|---|\n%s", heading(path, v), rows.String())
	}
	for _, table := range below {
		if err := table(); err != nil {
			return err
		}
	}
	return nil
}

func heading(path string, v reflect.Value) string {
	switch {
	case path == "":
		return "Top level"
	case strings.HasPrefix(path, "line"):
		return "`[[" + path + "]]`"
	}
	return "`[" + path + "]`"
}

// tableOf tells whether a field of type t is a table of its own, and gives its zero value.
func tableOf(t reflect.Type) (reflect.Value, bool) {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return reflect.Value{}, false
	}
	return reflect.New(t).Elem(), true
}

func defaultOf(v reflect.Value) string {
	if text, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := text.MarshalText(); err == nil && string(b) != "" && string(b) != "0s" {
			return "`\"" + string(b) + "\"`"
		}
	}
	if v.IsZero() {
		return ""
	}
	if v.Kind() == reflect.String {
		return "`\"" + v.String() + "\"`"
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

// commentsOf reads the field comments of struct t from its package's source.
func (w *docsWriter) commentsOf(t reflect.Type) (map[string]string, error) {
	dir := filepath.Join("..", "..", strings.TrimPrefix(t.PkgPath(), "ferrule"))
	if known, ok := w.comments[t.String()]; ok {
		return known, nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	comments := make(map[string]string)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != t.Name() {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range s.Fields.List {
					for _, name := range field.Names {
						comments[name.Name] = strings.ReplaceAll(strings.Join(strings.Fields(field.Doc.Text()), " "), "|", "\\|")
					}
				}
			}
			return false
		})
	}
	w.comments[t.String()] = comments
	return comments, nil
}
