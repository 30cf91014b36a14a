package archive

import (
	"encoding"
	"fmt"
	"net/url"
	"reflect"
	"strings"
)

// maxDepth bounds how deep a configuration is looked into.
const maxDepth = 16

// Settings writes a configuration, a struct with toml tags, a line for each key. What may hold a
// secret is left out, and Secrets returns it, so that it is found wherever else it stands: names and
// passwords in URLs, keys that are called after one, and the arguments of programs.
func Settings(config any) (text []byte, secrets []string) {
	w := &writer{}
	w.walk("", reflect.ValueOf(config), 0)
	return []byte(w.text.String()), w.secrets
}

type writer struct {
	text    strings.Builder
	secrets []string
}

func (w *writer) walk(name string, v reflect.Value, depth int) {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	switch {
	case depth > maxDepth || !v.IsValid():
	case v.Kind() == reflect.Struct && !isText(v):
		for i := range v.NumField() {
			f := v.Type().Field(i)
			tag, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			switch {
			case f.Anonymous && tag == "":
				w.walk(name, v.Field(i), depth+1)
			case f.IsExported() && tag != "" && tag != "-":
				w.walk(join(name, tag), v.Field(i), depth+1)
			}
		}
	case v.Kind() == reflect.Slice && isCommand(name):
		w.command(name, v)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Uint8 || v.Kind() == reflect.Array:
		for i := range v.Len() {
			w.walk(fmt.Sprintf("%s[%d]", name, i), v.Index(i), depth+1)
		}
	case v.Kind() == reflect.Map:
		for _, key := range v.MapKeys() {
			w.walk(join(name, fmt.Sprint(key.Interface())), v.MapIndex(key), depth+1)
		}
	default:
		w.value(name, textOf(v))
	}
}

func join(name, key string) string {
	if name == "" {
		return key
	}
	return name + "." + key
}

func isText(v reflect.Value) bool {
	if !v.CanInterface() {
		return false
	}
	_, ok := v.Interface().(encoding.TextMarshaler)
	return ok
}

func textOf(v reflect.Value) string {
	if !v.CanInterface() {
		return ""
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, _ := m.MarshalText() // what cannot be written as text is empty
		return string(text)
	}
	return fmt.Sprint(v.Interface())
}

// isCommand says whether a key holds a program and its arguments.
func isCommand(name string) bool { return name == "command" || strings.HasSuffix(name, ".command") }

// command writes the program, and none of its arguments: any may be a password.
func (w *writer) command(name string, v reflect.Value) {
	for i := range v.Len() {
		text := textOf(v.Index(i))
		if i == 0 {
			fmt.Fprintf(&w.text, "%s[0] = %q\n", name, text)
			continue
		}
		fmt.Fprintf(&w.text, "%s[%d] = %s\n", name, i, Removed)
		if !strings.HasPrefix(text, "-") && !strings.HasPrefix(text, "/") { // options and files stand elsewhere, too
			w.secrets = append(w.secrets, text)
		} else if _, value, ok := strings.Cut(text, "="); ok {
			w.secrets = append(w.secrets, value)
		}
	}
}

// value writes one value.
func (w *writer) value(name, text string) {
	if text != "" && isSecret(name) {
		w.secrets = append(w.secrets, text)
		text = Removed
	}
	if u, err := url.Parse(text); err == nil && u.User != nil {
		password, _ := u.User.Password()
		w.secrets = append(w.secrets, password, u.User.Username()+":"+password) // the name alone is a word like others
		u.User = nil
		text = strings.Replace(u.String(), "://", "://"+Removed+"@", 1)
	} else if at := strings.LastIndexByte(text, '@'); err != nil && at >= 0 && strings.Contains(text[:at], "://") {
		scheme, user, _ := strings.Cut(text[:at], "://") // not a URL, and written like one
		w.secrets = append(w.secrets, user)
		text = scheme + "://" + Removed + text[at:]
	}
	fmt.Fprintf(&w.text, "%s = %q\n", name, text)
}

// isSecret says whether a key is called after a secret.
func isSecret(name string) bool {
	last := strings.ToLower(name[strings.LastIndexByte(name, '.')+1:])
	for _, word := range []string{"password", "passwd", "passphrase", "secret", "token", "pin", "credential"} {
		if last == word || strings.HasSuffix(last, "_"+word) || strings.HasPrefix(last, word+"_") {
			return true
		}
	}
	return false
}

// Outline writes a configuration that cannot be read: its lines without comments, and without what
// stands behind any key, since nobody knows what that is.
func Outline(text []byte) []byte {
	var b strings.Builder
	multi := ""
	for n, line := range strings.Split(string(text), "\n") {
		trimmed := strings.TrimSpace(line)
		if multi != "" { // inside a text of several lines
			if strings.Contains(trimmed, multi) {
				multi = ""
			}
			continue
		}
		switch {
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
			continue
		case strings.HasPrefix(trimmed, "["):
			end := strings.LastIndexByte(trimmed, ']')
			fmt.Fprintf(&b, "%4d  %s\n", n+1, key(trimmed[:end+1]))
			continue
		}
		name, value, assigned := strings.Cut(trimmed, "=")
		if !assigned {
			fmt.Fprintf(&b, "%4d  %s\n", n+1, Removed)
			continue
		}
		fmt.Fprintf(&b, "%4d  %s = %s\n", n+1, key(strings.TrimSpace(name)), Removed)
		for _, quote := range []string{`"""`, `'''`} {
			if strings.Count(value, quote) == 1 {
				multi = quote
			}
		}
	}
	return []byte(b.String())
}

// key keeps what looks like one.
func key(text string) string {
	for _, r := range text {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_-.[]", r) {
			return Removed
		}
	}
	return text
}
