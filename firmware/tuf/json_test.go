package tuf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"pgregory.net/rapid"
)

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                            `{}`,
		" [ ] ":                         `[]`,
		`{"b":1,"a":[true,false,null]}`: `{"a":[true,false,null],"b":1}`,
		`{"a":{"é":-5,"z":9223372036854775807}}`:          `{"a":{"z":9223372036854775807,"é":-5}}`,
		`"\u0041\/\b\f\n\r\t\"\\"`:                        "\"A/\b\f\n\r\t\\\"\\\\\"",
		`"\ud83d\ude00 <&>\u007f\u2028"`:                  "\"😀 <&>\u007f\u2028\"",
		`{"":0,"A":1,"a":2,"B":3}`:                        `{"":0,"A":1,"B":3,"a":2}`,
		`"` + strings.Repeat("x", 1<<10) + `"`:            `"` + strings.Repeat("x", 1<<10) + `"`,
		strings.Repeat("[", 32) + strings.Repeat("]", 32): strings.Repeat("[", 32) + strings.Repeat("]", 32),
	} {
		v, err := parseJSON([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := string(v.canonical(nil)); got != want {
			t.Errorf("%s: canonical %q, want %q", in, got, want)
		}
		if !json.Valid(v.compact(nil)) {
			t.Errorf("%s: compact %q is not JSON", in, v.compact(nil))
		}
	}
}

func TestRefusedJSON(t *testing.T) {
	for in, want := range map[string]string{
		``:                             "not JSON at byte 0",
		`{`:                            "not JSON",
		`{"a"}`:                        "not JSON",
		`{"a":}`:                       "not JSON",
		`{"a":1,}`:                     "not JSON",
		`{a:1}`:                        "not JSON",
		`[1 2]`:                        "not JSON",
		`[1,]`:                         "not JSON",
		`nul`:                          "not JSON",
		`truefalse`:                    "more than one document",
		`{} {}`:                        "more than one document",
		"{}\x00":                       "more than one document",
		`'a'`:                          "not JSON",
		`"abc`:                         "not JSON",
		"\"a\nb\"":                     "control character",
		`"\x41"`:                       "bad escape",
		`"\u00g0"`:                     "bad escape",
		`"\u+041"`:                     "bad escape",
		`"\u00`:                        "bad escape",
		`"\`:                           "bad escape",
		`"\ud800"`:                     "bad escape",
		`"\ud800\u0041"`:               "bad escape",
		`"\udc00\ud800"`:               "bad escape",
		"\"\xff\"":                     "not UTF-8",
		"\"\xed\xa0\x80\"":             "not UTF-8",
		"\ufeff{}":                     "not JSON at byte 0",
		`1.0`:                          "no 64-bit integer",
		`1e3`:                          "no 64-bit integer",
		`-0`:                           "no 64-bit integer",
		`01`:                           "no 64-bit integer",
		`-`:                            "no 64-bit integer",
		`1-2`:                          "no 64-bit integer",
		`9223372036854775808`:          "no 64-bit integer",
		`{"a":1,"a":1}`:                `"a" comes twice`,
		`{"a":1,"b":2,"\u0061":1}`:     `"a" comes twice`,
		`[{"x":{"a":1,"b":{},"a":2}}]`: `"a" comes twice`,
		strings.Repeat("[", 34):        "nested deeper",
		"[" + strings.Repeat("0,", maxValues) + "0]": "more values",
	} {
		if _, err := parseJSON([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: error %v, want %q", in, err, want)
		}
	}
}

// drawValue draws a value as encoding/json knows it, without fractions.
func drawValue(t *rapid.T, depth int) any {
	kinds := 5
	if depth > 0 {
		kinds = 7
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return nil
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return rapid.Int64().Draw(t, "number")
	case 3:
		return rapid.String().Draw(t, "string")
	case 4:
		return rapid.StringMatching("[\"\\\\\x00-\x20<>&\u2028é😀/]*").Draw(t, "special")
	case 5:
		list := make([]any, rapid.IntRange(0, 4).Draw(t, "length"))
		for i := range list {
			list[i] = drawValue(t, depth-1)
		}
		return list
	}
	members := make(map[string]any)
	for range rapid.IntRange(0, 5).Draw(t, "members") {
		members[rapid.String().Draw(t, "name")] = drawValue(t, depth-1)
	}
	return members
}

// Whatever is written, by whichever spelling of JSON, our canonical form is the one that
// securesystemslib makes, which signed it.
func TestCanonicalIsThatOfSecuresystemslib(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawValue(t, 4)
		want, err := cjson.EncodeCanonical(v)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		indented, err := json.MarshalIndent(v, "\t", " \r\n")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{plain, indented} {
			got, err := parseJSON(text)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if !bytes.Equal(got.canonical(nil), want) {
				t.Fatalf("%s: canonical %q, want %q", text, got.canonical(nil), want)
			}
			again, err := parseJSON(got.compact(nil))
			if err != nil || !bytes.Equal(again.canonical(nil), want) {
				t.Fatalf("compact %q is another document: %v", got.compact(nil), err)
			}
		}
	})
}

// FuzzCanonical: what we read, encoding/json reads too, and signs over the same bytes.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-2,true,null,"\u00e9\ud83d\ude00\n"],"b":{"c":""}}`, ` [ ] `, `"\/"`, `{"a":1,"a":2}`, "-0", `"\ud800"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := parseJSON(data)
		if err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatalf("read what is no JSON: %q", data)
		}
		want, err := cjson.EncodeCanonical(json.RawMessage(data))
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		got := v.canonical(nil)
		if !bytes.Equal(got, want) {
			t.Fatalf("%q: canonical %q, want %q", data, got, want)
		}
		compact := v.compact(nil)
		again, err := parseJSON(compact)
		if err != nil || !bytes.Equal(again.canonical(nil), want) || !bytes.Equal(again.compact(nil), compact) {
			t.Fatalf("%q: compact %q is another document: %v", data, compact, err)
		}
	})
}

// seeds are a whole file of each role, by the role's name; the key in them signs nothing.
func seeds() map[string][]byte {
	const head = `"spec_version":"1.0.31","version":3,"expires":"2031-01-01T00:00:00Z"`
	key := `{"keytype":"ed25519","keyval":{"public":"` + strings.Repeat("00", 32) + `"},"scheme":"ed25519"}`
	sum := sha256.Sum256([]byte(key))
	id := hex.EncodeToString(sum[:])
	role := `{"keyids":["` + id + `"],"threshold":1}`
	files := make(map[string][]byte)
	for name, signed := range map[string]string{
		roleRoot:      `"consistent_snapshot":true,"keys":{"` + id + `":` + key + `},"roles":{"root":` + role + `,"timestamp":` + role + `,"snapshot":` + role + `,"targets":` + role + `}`,
		roleTimestamp: `"meta":{"snapshot.json":{"version":2,"length":100,"hashes":{"sha256":"` + id + `"}}}`,
		roleSnapshot:  `"meta":{"targets.json":{"version":2},"a.json":{"version":1}}`,
		roleTargets:   `"targets":{"gw/1":{"length":5,"hashes":{"sha256":"` + id + `"},"custom":{"a":1}}},"delegations":{"keys":{},"roles":[]}`,
	} {
		files[name] = []byte(`{"signed":{"_type":"` + name + `",` + head + `,` + signed + `},"signatures":[{"keyid":"` + id + `","sig":"` + strings.Repeat("00", 64) + `"}]}`)
	}
	return files
}

func TestSeeds(t *testing.T) {
	for role, data := range seeds() {
		if d, err := parse(role, data); err != nil || d.version != 3 || d.delegates {
			t.Errorf("%s: %+v, %v", role, d, err)
		}
	}
}

// FuzzMetadata: no file of any role makes the parser fail in another way than with a refusal.
func FuzzMetadata(f *testing.F) {
	for _, data := range seeds() {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, role := range []string{roleRoot, roleTimestamp, roleSnapshot, roleTargets} {
			d, err := parse(role, data)
			if (d == nil) == (err == nil) {
				t.Fatalf("document %v, error %v", d, err)
			}
			if err != nil {
				continue
			}
			if d.version < 1 || d.expires.IsZero() && !bytes.Contains(data, []byte("0001-01-01")) {
				t.Fatalf("%v expires %v", d, d.expires)
			}
			if role == roleRoot {
				_ = believe(d, d)
				_ = keysTag(d)
			}
			for _, target := range d.targets {
				if target.custom != nil && !json.Valid(target.custom) {
					t.Fatalf("custom %q", target.custom)
				}
			}
		}
	})
}

func TestNamesOfCopies(t *testing.T) {
	for name, ok := range map[string]bool{
		"1.root.json": true, "12.targets-0123456789abcdef.json": true, "9223372036854775807.snapshot-x.json": true,
		"": false, ".json": false, "1.root": false, "01.root.json": false, "+1.root.json": false, "0.root.json": false, "-1.root.json": false,
		"1.root-x.json": false, "1.timestamp.json": false, "1.timestamp-.json": false, "1.mirrors-x.json": false, "9223372036854775808.root.json": false,
	} {
		if n, got := parseName(name); got != ok {
			t.Errorf("%q: %+v, %v", name, n, got)
		}
	}
}
