package encode_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"ferrule/agent/encode"
	"ferrule/hw"
	"ferrule/hw/point"
)

func TestMarks(t *testing.T) {
	for _, c := range []struct {
		format     string
		compressed bool
		encoding   string
		mark       string
	}{
		{encode.JSON, false, "json", `[{"boot":17,`},
		{encode.JSON, true, "json+zstd", "\x28\xb5\x2f\xfd"},
		{encode.CBOR, false, "cbor", "\xd9\xd9\xf7\x82\xa6\x64boot"},
		{encode.CBOR, true, "cbor+zstd", "\x28\xb5\x2f\xfd"},
		{encode.SenMLJSON, false, "senml-json", `[{"bver":26,"bn":"`},
		{encode.SenMLJSON, true, "senml-json+zstd", "\x28\xb5\x2f\xfd"},
		{encode.SenMLCBOR, false, "senml-cbor", "\xd9\xd9\xf7\xda\x63\x74\x01\x71\x98"},
		{encode.SenMLCBOR, true, "senml-cbor+zstd", "\x28\xb5\x2f\xfd"},
		{encode.SparkplugB, false, "sparkplug-b", "\x08"},
	} {
		config := encode.Default()
		config.Format = c.format
		if c.compressed {
			compressed(&config)
		}
		e, err := encode.New(config, "r/{encoding}/{unit}", "gw-1", 17)
		if err != nil {
			t.Fatal(err)
		}
		e.Will()
		e.Births(true)
		var entries [][]byte
		var topic string
		for i, p := range meterPolls(2) {
			var entry []byte
			topic, entry = e.Entry(nil, uint64(i+1), p, false)
			entries = append(entries, entry)
		}
		if e.Encoding() != c.encoding {
			t.Errorf("encoding %q, want %q", e.Encoding(), c.encoding)
		}
		if want := "r/" + strings.ReplaceAll(c.encoding, "+", "-") + "/meter-a"; topic != want && c.format != encode.SparkplugB {
			t.Errorf("topic %q, want %q", topic, want)
		}
		if payload := joined(t, e, topic, entries...); !bytes.HasPrefix(payload, []byte(c.mark)) {
			t.Errorf("%s begins with %q, want %q", c.encoding, payload[:16], c.mark)
		}
	}
}

// What compression would make larger goes without; what is compressed, another zstd reads.
func TestCompression(t *testing.T) {
	e := encoder(t, encode.JSON, compressed)
	topic, entry := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Value: point.Bool(true)}}}, false)
	if got := e.Join([]byte("kept"), topic, [][]byte{entry}); string(got) != "kept"+string(entry) {
		t.Errorf("a short entry: %q", got)
	}
	var entries [][]byte
	for i, p := range meterPolls(60) {
		_, entry := e.Entry(nil, uint64(i+1), p, false)
		entries = append(entries, entry)
	}
	if got := e.Join([]byte("kept"), topic, entries); len(got) != 4 {
		t.Errorf("60 entries of %d bytes are more than 16KiB, and gave %d bytes", len(entries[0]), len(got))
	}
	entries = entries[:50]
	payload := e.Join([]byte("kept"), topic, entries)
	plain := encoder(t, encode.JSON).Join(nil, topic, entries)
	if string(payload[:4]) != "kept" || !bytes.Equal(unpacked(t, payload[4:]), plain) {
		t.Error("compression changed a message")
	}
	program, err := exec.LookPath("zstd")
	if err != nil {
		t.Fatal("zstd is missing; run: make deps")
	}
	cmd := exec.Command(program, "-d", "-c")
	cmd.Stdin = bytes.NewReader(payload[4:])
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, plain) {
		t.Errorf("zstd reads %d bytes of %d: %v", len(out), len(plain), err)
	}
}

// The compressor holds less than 1 MiB, however large the messages are.
func TestCompressorIsSmall(t *testing.T) {
	entry := []byte(`{"boot":17,"seq":1,"readings":{"p":"` + strings.Repeat("x y z", 50000) + `"}}`)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	e := encoder(t, encode.JSON, compressed)
	dst := make([]byte, 0, 512<<10)
	for range 10 {
		e.Join(dst, "t", [][]byte{entry})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc) - int64(cap(dst)); grown > 1<<20 {
		t.Errorf("%d KiB", grown>>10)
	}
	runtime.KeepAlive(e)
	runtime.KeepAlive(dst)
}

// After a change of the format, entries of both wait for the same topic. Each goes as what it is.
func TestFormatsAreNotMixed(t *testing.T) {
	stored := make(map[string][]byte)
	topics := make(map[string]string)
	for _, format := range formats {
		topics[format], stored[format] = encoder(t, format).Entry(nil, 7, meter, false)
	}
	for _, now := range formats {
		e := encoder(t, now)
		for _, one := range formats {
			for _, other := range formats {
				if got := e.Join([]byte("x"), topics[one], [][]byte{stored[one], stored[other]}); one != other && string(got) != "x" {
					t.Errorf("%s joins %s and %s: %q", now, one, other, got)
				}
			}
			if payload := joined(t, e, topics[one], stored[one]); one != encode.SparkplugB {
				want := joined(t, encoder(t, one), topics[one], stored[one])
				if !bytes.Equal(payload, want) {
					t.Errorf("%s sends %s as %q, want %q", now, one, payload, want)
				}
			}
		}
		if got := e.Join(nil, "t", [][]byte{[]byte("\x7funknown")}); string(got) != "\x7funknown" {
			t.Errorf("%s sends what it does not know as %q", now, got)
		}
		if got := e.Join(nil, "t", nil); got != nil {
			t.Errorf("%s makes %q of nothing", now, got)
		}
	}
}

func TestMessagesHaveALimit(t *testing.T) {
	for _, format := range formats {
		e := encoder(t, format, largest(1<<10))
		var entries [][]byte
		var topic string
		for i, p := range meterPolls(20) {
			var entry []byte
			topic, entry = e.Entry(nil, uint64(i+1), p, false)
			entries = append(entries, entry)
		}
		e.Births(false)
		n := len(entries)
		payload := e.Join(nil, topic, entries)
		for len(payload) == 0 {
			n /= 2
			payload = e.Join(nil, topic, entries[:n])
		}
		if len(payload) > 1<<10 || n < 2 {
			t.Errorf("%s: %d entries in %d bytes", format, n, len(payload))
		}
	}
	e := encoder(t, encode.CBOR, largest(1<<10))
	topic, entry := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Value: point.String(strings.Repeat("x", 5000))}}}, false)
	if payload := joined(t, e, topic, entry); len(payload) < 5000 {
		t.Errorf("an entry that is large by itself: %d bytes", len(payload))
	}
}

func TestEntryAllocatesNothing(t *testing.T) {
	for _, format := range formats {
		e, dst := encoder(t, format), make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() { _, _ = e.Entry(dst, 1, meter, true) }); n != 0 {
			t.Errorf("%s: %v allocations", format, n)
		}
		topic, one := e.Entry(nil, 1, meter, false)
		_, two := e.Entry(nil, 2, meter, false)
		e.Births(false)
		entries := [][]byte{one, two}
		if n := testing.AllocsPerRun(100, func() { _ = e.Join(dst, topic, entries) }); n != 0 {
			t.Errorf("%s: Join: %v allocations", format, n)
		}
	}
	e, dst := encoder(t, encode.JSON, compressed), make([]byte, 0, 64<<10)
	_, one := e.Entry(nil, 1, meterPolls(1)[0], false)
	entries := slices.Repeat([][]byte{one}, 50)
	if n := testing.AllocsPerRun(100, func() { _ = e.Join(dst, "t", entries) }); n != 0 {
		t.Errorf("zstd: Join: %v allocations", n)
	}
}

// The local API has JSON whatever the cloud gets.
func TestJSONWhateverTheFormat(t *testing.T) {
	_, want := encoder(t, encode.JSON).Entry(nil, 48213, meter, true)
	for _, format := range formats {
		if got := encoder(t, format).JSON(nil, 48213, meter, true); !bytes.Equal(got, want) || !json.Valid(got) {
			t.Errorf("%s: %s, want %s", format, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		problem string
		change  func(*encode.Config)
	}{
		{"", func(c *encode.Config) {}},
		{"", func(c *encode.Config) { c.Format, c.Sparkplug.Group = encode.SparkplugB, "Werk 1" }},
		{"", func(c *encode.Config) { c.Format, c.Sparkplug.Device = encode.SparkplugB, "{unit}" }},
		{"encode.format", func(c *encode.Config) { c.Format = "xml" }},
		{"encode.compress", func(c *encode.Config) { c.Compress = "gzip" }},
		{"encode.compress", func(c *encode.Config) { c.Format, c.Compress = encode.SparkplugB, "zstd" }},
		{"encode.batch.max_age", func(c *encode.Config) { c.Batch.MaxAge = 2 * 3600e9 }},
		{"encode.batch.max_bytes", func(c *encode.Config) { c.Batch.MaxBytes = 1023 }},
		{"encode.batch.max_bytes", func(c *encode.Config) { c.Batch.MaxBytes = 256<<10 + 1 }},
		{"encode.sparkplug.group", func(c *encode.Config) { c.Format, c.Sparkplug.Group = encode.SparkplugB, "a/b" }},
		{"encode.sparkplug.group", func(c *encode.Config) { c.Format, c.Sparkplug.Group = encode.SparkplugB, "" }},
		{"encode.sparkplug.device", func(c *encode.Config) { c.Format, c.Sparkplug.Device = encode.SparkplugB, "{line}" }},
		{"encode.sparkplug.device", func(c *encode.Config) { c.Format, c.Sparkplug.Device = encode.SparkplugB, "{line}/{unit}" }},
		{"encode.sparkplug.device", func(c *encode.Config) { c.Format, c.Sparkplug.Device = encode.SparkplugB, "{unit}{x}" }},
		{"encode.sparkplug.device", func(c *encode.Config) { c.Format, c.Sparkplug.Device = encode.SparkplugB, "" }},
	} {
		config := encode.Default()
		c.change(&config)
		err := config.Validate()
		if (err == nil) != (c.problem == "") || err != nil && !strings.HasPrefix(err.Error(), c.problem+": ") {
			t.Errorf("want a problem with %q: %v", c.problem, err)
		}
	}
}

func TestSparkplugDevices(t *testing.T) {
	for _, c := range []struct{ template, line, unit, want string }{
		{"{line}.{unit}", "rs485-1", "meter-a", "rs485-1.meter-a"},
		{"{line}.{unit}", "a.b", "c", "a%2Eb.c"},
		{"{line}.{unit}", "a", "b.c", "a.b.c"},
		{"{line}.{unit}", "a", "b/+#", "a.b%2F%2B%23"},
		{"{unit}", "a", "b", "b"},
		{"{unit}@{line}", "a@b", "c", "c@a@b"},
		{"{line}{unit}", "a", "", "a%"},
	} {
		e := encoder(t, encode.SparkplugB, func(config *encode.Config) { config.Sparkplug.Device = c.template })
		topic, _ := e.Entry(nil, 1, hw.Poll{Line: c.line, Unit: c.unit, Time: at}, false)
		if want := "spBv1.0/ferrule/DDATA/gw-1/" + c.want; topic != want {
			t.Errorf("%q: %q, want %q", c.template, topic, want)
		}
	}
}
