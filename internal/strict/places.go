package strict

import (
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// place is a line and a column, from 1 on.
type place struct{ line, column int }

// Places says where the keys of a file are: "title", "unit.every", "point[3].at". Tables are
// there by their headers: "unit", "point[3]".
type Places map[string]place

// Find reads text, which is valid TOML. The decoder knows places only of what it cannot
// decode; an address that does not exist is a good string to it.
func Find(text []byte) Places {
	found := make(Places)
	var parser unstable.Parser
	parser.Reset(text)
	counts := make(map[string]int) // elements of an array of tables
	table := ""
	for parser.NextExpression() {
		e := parser.Expression()
		path, at := pathOf(&parser, e)
		switch e.Kind {
		case unstable.ArrayTable:
			table = path + "[" + strconv.Itoa(counts[path]) + "]"
			counts[path]++
			found[table] = at
		case unstable.Table:
			table = within(path, counts)
			found[table] = at
		case unstable.KeyValue:
			if table != "" {
				path = table + "." + path
			}
			found[path] = at
		}
	}
	return found
}

// within puts the last element of an array of tables into the path of a table that is below it.
func within(path string, counts map[string]int) string {
	array, rest, below := strings.Cut(path, ".")
	if n := counts[array]; below && n > 0 {
		return array + "[" + strconv.Itoa(n-1) + "]." + rest
	}
	return path
}

// pathOf returns the dotted key of an expression, and where it begins.
func pathOf(parser *unstable.Parser, e *unstable.Node) (path string, at place) {
	var parts []string
	for keys := e.Key(); keys.Next(); {
		node := keys.Node()
		if len(parts) == 0 {
			start := parser.Shape(node.Raw).Start
			at = place{start.Line, start.Column}
		}
		parts = append(parts, string(node.Data))
	}
	return strings.Join(parts, "."), at
}

// Of returns the place of the key, or of the nearest thing that is in the file: its table, the
// array that its table is written in, or the beginning.
func (p Places) Of(key string) (line, column int) {
	for {
		if at, ok := p[key]; ok {
			return at.line, at.column
		}
		end := strings.LastIndexAny(key, ".[")
		if end < 0 {
			return 1, 1
		}
		key = key[:end]
	}
}
