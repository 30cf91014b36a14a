package encode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"ferrule/internal/hint"
)

// Topics are the templates of all topics, with {device}, {line}, {unit}, {name} and {id}.
type Topics struct {
	// Topic of readings; {device}, {line} and {unit} are replaced, and {encoding} by format and
	// compression with - between them: "json-zstd". Not for sparkplug-b, which has topics of its own.
	Readings string `toml:"readings"`
	// Topic of commands to the device; {device} is replaced, {name} is the command's name.
	// Empty: no commands are taken.
	Command string `toml:"command"`
	// Topic of replies to commands; {device} is replaced, {id} is the command's id.
	Reply string `toml:"reply"`
	// Topic of the retained status and of the last will; {device} is replaced. Empty: neither
	// is sent, for clouds that know no retained messages.
	Status string `toml:"status"`
}

// DefaultTopics returns the topics of a configuration that names none.
func DefaultTopics() Topics {
	return Topics{
		Readings: "ferrule/{device}/readings/{line}/{unit}",
		Command:  "ferrule/{device}/command/{name}",
		Reply:    "ferrule/{device}/reply/{id}",
		Status:   "ferrule/{device}/status",
	}
}

// Validate names the template that cannot be used.
func (t Topics) Validate() error {
	err := checkTemplate("readings", t.Readings, "device", "line", "unit", "encoding")
	if t.Command != "" {
		err = errors.Join(err, checkTemplate("command", t.Command, "device", "name"),
			checkTemplate("reply", t.Reply, "device", "id"))
		if !slices.Contains(strings.Split(t.Command, "/"), "{name}") {
			err = errors.Join(err, hint.With(fmt.Errorf("topics.command: %q has no level {name}", t.Command),
				"a command is known by its topic; put {name} into it as a level of its own"))
		}
	}
	if t.Status != "" {
		err = errors.Join(err, checkTemplate("status", t.Status, "device"))
	}
	return err
}

// maxTopic is the longest topic that MQTT can carry, in bytes (MQTT 3.1.1, 4.7.3).
const maxTopic = 65535

// ExpandTopic replaces each {variable} of template. Values become exactly one level: what
// would end a level, or is not allowed in a topic, is written as %XX.
func ExpandTopic(template string, vars map[string]string) (string, error) {
	names := make([]string, 0, len(vars))
	for name := range vars {
		names = append(names, name)
	}
	if err := checkTemplate("template", template, names...); err != nil {
		return "", err
	}
	topic := expand(template, vars)
	if len(topic) > maxTopic {
		return "", fmt.Errorf("the topic of %q is %d bytes long, MQTT carries %d", template, len(topic), maxTopic)
	}
	return topic, nil
}

// Filter makes the filter of a subscription: variables without a value match any level.
func Filter(template string, vars map[string]string) string {
	levels := strings.Split(template, "/")
	for i, level := range levels {
		if name, ok := variable(level); ok {
			if _, known := vars[name]; !known {
				levels[i] = "+"
				continue
			}
		}
		levels[i] = expand(level, vars)
	}
	return strings.Join(levels, "/")
}

// Extract returns what stands in topic where template has the level {name}.
func Extract(template, topic, name string) (string, bool) {
	levels := strings.Split(topic, "/")
	for i, level := range strings.Split(template, "/") {
		if found, ok := variable(level); ok && found == name && i < len(levels) {
			return levels[i], true
		}
	}
	return "", false
}

// Made says whether topic can have been made of template. A template with a variable that is only
// part of a level is never recognised.
func Made(template, topic string) bool {
	_, made := found(template, topic)
	return made
}

// Rename returns the topic that template to makes of what stands in one that was made of template
// from. It is false where topic was not, or says less than to needs.
func Rename(topic, from, to string) (string, bool) {
	values, made := found(from, topic)
	if !made {
		return "", false
	}
	levels := strings.Split(to, "/")
	for i, level := range levels {
		if name, ok := variable(level); ok {
			value, known := values[name] // is escaped already
			if !known {
				return "", false
			}
			levels[i] = value
		} else if strings.Contains(level, "{") {
			return "", false
		}
	}
	return strings.Join(levels, "/"), true
}

// found returns what stands in topic where template has a variable for a whole level, if topic was
// made of it.
func found(template, topic string) (values map[string]string, made bool) {
	want, levels := strings.Split(template, "/"), strings.Split(topic, "/")
	if len(want) != len(levels) {
		return nil, false
	}
	values = make(map[string]string)
	for i := range want {
		if name, ok := variable(want[i]); ok {
			values[name] = levels[i]
		} else if want[i] != levels[i] {
			return nil, false
		}
	}
	return values, true
}

// variable returns the name of a variable that is a whole level.
func variable(level string) (name string, ok bool) {
	if strings.HasPrefix(level, "{") && strings.HasSuffix(level, "}") && strings.Count(level, "{") == 1 {
		return level[1 : len(level)-1], true
	}
	return "", false
}

// expand is ExpandTopic for a template that was checked.
func expand(template string, vars map[string]string) string {
	var b strings.Builder
	for {
		open := strings.IndexByte(template, '{')
		if open < 0 {
			b.WriteString(template)
			return b.String()
		}
		end := open + strings.IndexByte(template[open:], '}')
		b.WriteString(template[:open])
		writeLevel(&b, vars[template[open+1:end]])
		template = template[end+1:]
	}
}

// writeLevel writes value so that it cannot be more or less than one level, and no two values
// become the same; an empty value becomes %, since some brokers refuse an empty level.
func writeLevel(b *strings.Builder, value string) {
	if value == "" {
		b.WriteByte('%')
	}
	for i := 0; i < len(value); {
		r, size := utf8.DecodeRuneInString(value[i:])
		switch {
		case r == utf8.RuneError && size == 1, r < 0x20, r == 0x7f, r == '/', r == '+', r == '#', r == '%':
			fmt.Fprintf(b, "%%%02X", value[i])
		case r >= 0x80 && r < 0xa0: // C1 controls (MQTT 3.1.1, 1.5.3)
			fmt.Fprintf(b, "%%%02X%%%02X", value[i], value[i+1])
		default:
			b.WriteString(value[i : i+size])
		}
		i += size
	}
}

// checkLevel says whether name can stand in a topic as it is. A device is known to the broker
// by its name, so the name is not rewritten.
func checkLevel(name string) error {
	var b strings.Builder
	writeLevel(&b, name)
	if b.String() != name {
		return hint.With(errors.New("the name is empty or holds one of / + # % or a control character"),
			"the device is named by the CN of its certificate; enroll it under another name")
	}
	return nil
}

// checkTemplate says what is wrong with the template of a topic.
func checkTemplate(key, template string, allowed ...string) error {
	problem := func(format string, args ...any) error {
		return hint.With(fmt.Errorf("topics.%s: %q: %w", key, template, fmt.Errorf(format, args...)),
			"docs/topics.md shows the templates and what they may hold")
	}
	switch {
	case template == "":
		return problem("empty")
	case len(template) > 1024:
		return problem("longer than 1024 bytes")
	case !utf8.ValidString(template) || strings.ContainsFunc(template, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return problem("control characters")
	case strings.ContainsAny(template, "+#"):
		return problem("wildcards are not part of a topic")
	case strings.HasPrefix(template, "$"):
		return problem("a topic that begins with $ belongs to the broker")
	}
	for rest := template; ; {
		open := strings.IndexAny(rest, "{}")
		if open < 0 {
			return nil
		}
		end := strings.IndexByte(rest[open:], '}')
		if rest[open] == '}' || end < 0 {
			return problem("a brace without its partner")
		}
		name := rest[open+1 : open+end]
		if !slices.Contains(allowed, name) {
			return problem("unknown variable {%s}", name)
		}
		rest = rest[open+end+1:]
	}
}
