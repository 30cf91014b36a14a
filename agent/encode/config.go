package encode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// The formats of Config.Format.
const (
	JSON       = "json"
	CBOR       = "cbor"
	SenMLJSON  = "senml-json"
	SenMLCBOR  = "senml-cbor"
	SparkplugB = "sparkplug-b"
)

var formats = []string{JSON, CBOR, SenMLJSON, SenMLCBOR, SparkplugB}

// Config is the [encode] section of the configuration.
type Config struct {
	// How readings are written: json, cbor (RFC 8949), senml-json or senml-cbor (RFC 8428), or
	// sparkplug-b (3.0). docs/topics.md shows each.
	Format string `toml:"format"`
	// none or zstd (RFC 8878). With zstd a message is compressed where that makes it smaller;
	// zstd's magic number says so. Not with sparkplug-b, which knows no compression.
	Compress string `toml:"compress"`
	// Joining several entries of one topic to one message.
	Batch Batch `toml:"batch"`
	// The names of format sparkplug-b.
	Sparkplug Sparkplug `toml:"sparkplug"`
}

// Batch says how long entries wait to be joined, and how large a message gets.
type Batch struct {
	// How long an entry may wait for others; at most 1h. "0s": none waits, but a backlog is
	// joined all the same. Entries that wait longer than outbox.sync are written to the flash
	// meanwhile; below it a healthy session writes nothing. Entries of an urgent line never wait.
	MaxAge quantity.Duration `toml:"max_age"`
	// How large a message of several entries gets, before it is compressed; 1KiB to 256KiB. A
	// single entry may be larger. Brokers have limits: AWS IoT Core takes 128KiB.
	MaxBytes quantity.Size `toml:"max_bytes"`
}

// Sparkplug names the device in Sparkplug's topics; its edge node is the device's id.
type Sparkplug struct {
	// The group in spBv1.0/{group}/…; without / + # %.
	Group string `toml:"group"`
	// The Sparkplug device that a unit is: {line} and {unit} are replaced, and what may not be in a
	// topic becomes %XX. {unit} must be there; {line} too, unless units are unique over all lines.
	Device string `toml:"device"`
}

// Default returns what an empty [encode] section means.
func Default() Config {
	return Config{
		Format:    JSON,
		Compress:  "none",
		Batch:     Batch{MaxBytes: 16 << 10},
		Sparkplug: Sparkplug{Group: "ferrule", Device: "{line}.{unit}"},
	}
}

const (
	mostAge    = time.Hour
	leastBytes = 1 << 10
	mostBytes  = 256 << 10
)

// Validate names the keys that cannot be used.
func (c Config) Validate() error {
	var problems []error
	problem := func(key, text, repair string) {
		problems = append(problems, hint.With(errors.New("encode."+key+": "+text), repair))
	}
	if !slices.Contains(formats, c.Format) {
		problem("format", fmt.Sprintf("unknown format %q", c.Format), "use one of "+strings.Join(formats, ", "))
	}
	switch {
	case c.Compress != "none" && c.Compress != "zstd":
		problem("compress", fmt.Sprintf("unknown compression %q", c.Compress), "use none or zstd")
	case c.Compress == "zstd" && c.Format == SparkplugB:
		problem("compress", "Sparkplug B has no compressed payloads", `use compress = "none"; its metrics go by aliases already`)
	}
	if c.Batch.MaxAge.Std() > mostAge {
		problem("batch.max_age", fmt.Sprintf("%s is more than %s", c.Batch.MaxAge, mostAge),
			"entries that nobody sees for so long are better polled less often; use every")
	}
	if n := c.Batch.MaxBytes.Bytes(); n < leastBytes || n > mostBytes {
		problem("batch.max_bytes", fmt.Sprintf("%s is not between 1KiB and 256KiB", c.Batch.MaxBytes),
			"16KiB joins about 55 polls of a ten-register meter as JSON")
	}
	if c.Format == SparkplugB {
		if g := c.Sparkplug.Group; checkLevel(g) != nil || len(g) > 64 || !utf8.ValidString(g) {
			problem("sparkplug.group", fmt.Sprintf("%q cannot be a level of a topic", g), `use letters, digits, "-" and "_"`)
		}
		if err := checkDevice(c.Sparkplug.Device); err != nil {
			problem("sparkplug.device", err.Error(), `use "{line}.{unit}"`)
		}
	}
	return errors.Join(problems...)
}

// checkDevice says what is wrong with the template of Sparkplug's devices.
func checkDevice(template string) error {
	if err := checkTemplate("device", template, "line", "unit"); err != nil {
		return fmt.Errorf("%q is no template of {line} and {unit}", template)
	}
	if strings.ContainsAny(template, "/") {
		return fmt.Errorf("%q is more than one level of a topic", template)
	}
	if !strings.Contains(template, "{unit}") {
		return fmt.Errorf("%q does not name the unit", template)
	}
	return nil
}

// sparkplugDevice makes the name of a Sparkplug device. What separates {line} from what follows is
// written as %XX within the line's name, so that "a.b" and "c" are not the device of "a" and "b.c".
func sparkplugDevice(template, line, unit string) string {
	level := func(value string) string {
		var b strings.Builder
		writeLevel(&b, value)
		return b.String()
	}
	line = level(line)
	if _, after, ok := strings.Cut(template, "{line}"); ok && after != "" && after[0] != '{' && after[0] < utf8.RuneSelf {
		line = strings.ReplaceAll(line, after[:1], fmt.Sprintf("%%%02X", after[0]))
	}
	return strings.NewReplacer("{line}", line, "{unit}", level(unit)).Replace(template)
}
