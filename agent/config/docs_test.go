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
	"regexp"
	"strconv"
	"strings"
	"testing"

	"ferrule/agent/config"
	"ferrule/hw/frame"
	"ferrule/hw/text"
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
	if err := w.table("", reflect.ValueOf(config.Default()), false); err != nil {
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

// table writes the keys of one struct, of which there may be a list, then the tables below it.
func (w *docsWriter) table(path string, v reflect.Value, list bool) error {
	rows, below, err := w.rows(path, v)
	if err != nil {
		return err
	}
	if len(rows) > 0 {
		fmt.Fprintf(w.out, "\n## %s\n\n| key | default | meaning |\n|---|---|---|\n%s", heading(path, list), rows)
	}
	for _, table := range below {
		if err := table(); err != nil {
			return err
		}
	}
	return nil
}

// rows gives a line for each key of a struct, those of a struct embedded in it last, and what
// writes the tables below it.
func (w *docsWriter) rows(path string, v reflect.Value) (_ []byte, below []func() error, err error) {
	comments, err := w.commentsOf(v.Type())
	if err != nil {
		return nil, nil, err
	}
	var rows, embedded bytes.Buffer
	for field, value := range v.Fields() {
		key, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		if field.Anonymous && key == "" {
			more, tables, err := w.rows(path, value)
			if err != nil {
				return nil, nil, err
			}
			embedded.Write(more)
			below = append(below, tables...)
		}
		if key == "" || key == "-" {
			continue
		}
		full := strings.TrimPrefix(path+"."+key, ".")
		if element, isTable := tableOf(field.Type); isTable {
			if value.Kind() == reflect.Struct {
				element = value
			}
			below = append(below, func() error { return w.table(full, element, value.Kind() == reflect.Slice) })
			continue
		}
		comment := comments[field.Name]
		if comment == "" {
			return nil, nil, fmt.Errorf("%s.%s has no comment, so the key %s has no documentation", v.Type(), field.Name, full)
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", key, defaultOf(value), comment)
	}
	return append(rows.Bytes(), embedded.Bytes()...), below, nil
}

func heading(path string, list bool) string {
	switch {
	case path == "":
		return "Top level"
	case list:
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
	if standard, ok := defaults[t]; ok {
		return reflect.ValueOf(standard), true
	}
	return reflect.New(t).Elem(), true
}

// defaults are what tables mean that are absent unless somebody writes them.
var defaults = map[reflect.Type]any{
	reflect.TypeFor[text.Config]():  text.Default(),
	reflect.TypeFor[frame.Config](): frame.Default(),
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
		return "`" + strconv.Quote(v.String()) + "`"
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

var tomlBlock = regexp.MustCompile("(?s)```toml\n(.*?)```")

// Every configuration in the documents is one that works. A block that shows a part of a line is
// tried in a whole one.
func TestConfigurationsOfDocuments(t *testing.T) {
	const head = "[session]\nbrokers = [\"mqtts://broker.example:8883\"]\n"
	const line = "[[line]]\nname = \"line\"\nport = \"/dev/ttyS0\"\n"
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	tried := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range tomlBlock.FindAllSubmatch(text, -1) {
			file := string(block[1])
			if !strings.Contains(file, "[[line") && !strings.Contains(file, "[line") {
				continue
			}
			if !strings.Contains(file, "[[line]]") {
				whole := line
				for _, protocol := range []string{"text", "frame"} {
					if strings.Contains(file, "[line."+protocol) {
						whole += "protocol = \"" + protocol + "\"\n"
					}
				}
				file = whole + file
			}
			if !strings.Contains(file, "[session]") {
				file = head + file
			}
			tried++
			if _, err := config.Parse(filepath.Base(page), []byte(file)); err != nil {
				t.Errorf("%s:\n%s\n%v", page, block[1], err)
			}
		}
	}
	if tried < 10 {
		t.Errorf("only %d configurations were found", tried)
	}
}
