package sunspec

import (
	_ "embed"
	"strconv"
	"strings"
)

// models is the information models; its head says how to read it, and generate_test.go makes it.
//
//go:embed models.txt
var models string

// commonModel is the model that names the unit, the first of every chain.
const commonModel = 1

// layout is one information model.
type layout struct {
	title  string
	prefix string // begins names that another model of the unit has, too
	root   group
}

// group is fields that stand together, once or repeatedly, and then the groups in it.
type group struct {
	name   string
	count  string // "1", "*" or the code of the field that says how often
	fields []field
	groups []group
}

// field is one value, scale factor or pad.
type field struct {
	name, code string
	kind       string // as SunSpec calls it: "acc32"; texts are "string"
	registers  int
	factor     string  // code of the scale factor; "" for none
	scale      float64 // beside the scale factor; 0 for none
	uom        string
	mandatory  bool
	slow       bool
	symbols    map[string]string // names of numbers or bits
}

// size returns how many registers the fields take, without the groups in it.
func (g *group) size() (n int) {
	for i := range g.fields {
		n += g.fields[i].registers
	}
	return n
}

// lookup returns the model of that number; nil where it is not known.
func lookup(id uint16) *layout {
	head, body, ok := block(strconv.Itoa(int(id)))
	if !ok {
		return nil
	}
	if same, ok := strings.CutPrefix(body, "= "); ok {
		if _, body, ok = block(same); !ok {
			return nil
		}
	}
	l := &layout{root: group{count: "1"}}
	l.prefix, l.title, _ = strings.Cut(head, " ")
	r := reader{lines: strings.Split(body, "\n")}
	r.group(&l.root)
	return l
}

// block returns the text of one model: what its first line says after the number, and the rest.
func block(id string) (head, body string, ok bool) {
	_, after, ok := strings.Cut(models, "\nmodel "+id+" ")
	if !ok {
		return "", "", false
	}
	text, _, _ := strings.Cut(after, "\n\n")
	head, body, _ = strings.Cut(text, "\n")
	return head, strings.TrimSpace(body), true
}

// reader reads the lines of a block. The text is ours, and a test reads all of it.
type reader struct{ lines []string }

func (r *reader) group(g *group) {
	for len(r.lines) > 0 {
		words := strings.Fields(r.lines[0])
		r.lines = r.lines[1:]
		switch {
		case len(words) == 0:
		case words[0] == "end":
			return
		case words[0] == "pad":
			g.fields = append(g.fields, field{kind: "pad", registers: 1})
		case words[0] == "sf":
			g.fields = append(g.fields, field{kind: "sunssf", code: words[1], registers: 1})
		case words[0] == "group":
			inner := group{name: words[1], count: words[2]}
			r.group(&inner)
			g.groups = append(g.groups, inner)
		default:
			g.fields = append(g.fields, parseField(words))
		}
	}
}

func parseField(words []string) field {
	f := field{name: words[0], code: words[1], uom: strings.ReplaceAll(words[4], "_", " ")}
	if f.uom == "-" {
		f.uom = ""
	}
	f.kind, f.registers = parseKind(words[2])
	factor, scale, both := strings.Cut(words[3], "*")
	if number, err := strconv.ParseFloat(factor, 64); err == nil {
		f.scale = number
	} else if factor != "-" {
		f.factor = factor
	}
	if both {
		f.scale, _ = strconv.ParseFloat(scale, 64)
	}
	f.mandatory, f.slow = strings.Contains(words[5], "m"), strings.Contains(words[5], "s")
	for _, symbol := range words[6:] {
		if f.symbols == nil {
			f.symbols = make(map[string]string)
		}
		number, name, _ := strings.Cut(symbol, "=")
		f.symbols[number] = name
	}
	return f
}

// parseKind cuts the length off the type of a text, and says how many registers a type takes.
func parseKind(s string) (kind string, registers int) {
	if digits, ok := strings.CutPrefix(s, "string"); ok {
		n, _ := strconv.Atoi(digits)
		return "string", n
	}
	return s, types[s].registers
}
