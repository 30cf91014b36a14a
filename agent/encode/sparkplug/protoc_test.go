package sparkplug

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ferrule/hw"
	"ferrule/hw/point"
)

// schemaSum is the SHA-256 of Eclipse Tahu's schema, compiled; build/sparkplugproto.sh says where it
// comes from.
const schemaSum = "ea8f04c7f5e77f15c2ccf964b5f13fb2417769a68e9988aca8f07654250c7f18"

// schema finds the official schema of Sparkplug B payloads.
func schema(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
	}
	file := filepath.Join(dir, ".cache", "sparkplug", "sparkplug_b.desc")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("the schema of Sparkplug B is missing; run: make peers (%v)", err)
	}
	sum := sha256.Sum256(text)
	if !bytes.Contains(text, []byte("org.eclipse.tahu.protobuf")) || hex.EncodeToString(sum[:]) != schemaSum {
		t.Fatalf("%s is not Eclipse Tahu's schema; remove it, and run: make peers", file)
	}
	return file
}

// protoc runs Google's implementation of protobuf over one payload.
func protoc(t *testing.T, schema, what string, in []byte) []byte {
	t.Helper()
	program, err := exec.LookPath("protoc")
	if err != nil {
		t.Fatal("protoc is missing; run: make deps")
	}
	cmd := exec.Command(program, "--descriptor_set_in="+schema, "--"+what+"=org.eclipse.tahu.protobuf.Payload", "sparkplug_b.proto")
	cmd.Stdin = bytes.NewReader(in)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil || problems.Len() > 0 {
		t.Fatalf("protoc --%s: %v: %s: %x", what, err, &problems, in)
	}
	return out
}

var (
	unknownField = regexp.MustCompile(`(?m)^\s*\d+[ :]`)
	times        = regexp.MustCompile(`timestamp: \d+`)
	spaces       = regexp.MustCompile(`\s+`)
)

// What is sent is what another implementation reads by the official schema, and writes: byte for byte.
func TestPayloadsAreOfTheOfficialSchema(t *testing.T) {
	file := schema(t)
	w := newWorld(t)
	w.poll("m", hw.Reading{Point: "past", Value: number(230.1), Uom: "V"})
	w.restart()
	will := w.node.Will()
	w.host.connect(will)
	w.up = true
	births := w.node.Births(true)
	w.seq = 4 // the next is unsynced
	w.poll("m", hw.Reading{Point: "v", Value: number(230.1), Uom: "V"}, hw.Reading{Point: "e", Bad: "timeout"},
		hw.Reading{Point: "i", Value: point.Int(-5)}, hw.Reading{Point: "b", Value: point.Bool(true)},
		hw.Reading{Point: "s", Value: point.String(strings.Repeat("x", 200))},
		hw.Reading{Point: "t", Value: point.Time(time.UnixMilli(1795233600125), point.UTC)})
	births = append(births, w.node.Births(false)...)
	w.poll("m", hw.Reading{Point: "e", Value: point.Uint(7)})
	topic := w.outbox[0].topic
	if got := w.node.Join(nil, topic, [][]byte{w.outbox[0].entry}, 1000); got != nil {
		t.Fatal("data before its birth")
	}
	births = append(births, w.node.Births(false)...)
	past := w.node.Join(nil, topic, [][]byte{w.outbox[0].entry}, 1000)
	now := w.node.Join(nil, topic, [][]byte{w.outbox[1].entry, w.outbox[2].entry}, 1000)
	for _, c := range []struct {
		name    string
		payload []byte
		want    []string
	}{
		{"NDEATH", will.Payload, []string{`metrics { name: "bdSeq" timestamp: 0 datatype: 4 long_value: 210 }`}},
		{"NBIRTH", births[0].Payload, []string{
			`metrics { name: "bdSeq" timestamp: 0 datatype: 4 long_value: 210 }`,
			`metrics { name: "Node Control/Rebirth" timestamp: 0 datatype: 11 boolean_value: false }`,
			`seq: 0`}},
		{"DBIRTH", births[1].Payload, []string{
			`metrics { name: "Ferrule/Seq" alias: 1 timestamp: 0 datatype: 8 long_value: 5 }`,
			`metrics { name: "v" alias: 4 timestamp: 0 datatype: 10 properties { keys: "engUnit" keys: "Quality" values { type: 12 string_value: "V" } values { type: 3 int_value: 192 } } double_value: 230.1 }`,
			`metrics { name: "e" alias: 5 timestamp: 0 datatype: 10 is_null: true properties { keys: "Quality" keys: "bad" values { type: 3 int_value: 0 } values { type: 12 string_value: "timeout" } } }`,
			`metrics { name: "i" alias: 6 timestamp: 0 datatype: 4 properties { keys: "Quality" values { type: 3 int_value: 192 } } long_value: 18446744073709551611 }`,
			`seq: 1`}},
		{"DBIRTH again", births[2].Payload, []string{
			`metrics { name: "past" alias: 10 timestamp: 0 datatype: 10 is_null: true properties { keys: "engUnit" keys: "Quality" values { type: 12 string_value: "V" } values { type: 3 int_value: 500 } } }`,
			`metrics { name: "e" alias: 5 timestamp: 0 datatype: 8 properties { keys: "Quality" values { type: 3 int_value: 192 } } long_value: 7 }`,
			`seq: 2`}},
		{"DDATA of the past", past, []string{
			`metrics { alias: 2 timestamp: 0 is_historical: true long_value: 17 }`,
			`metrics { alias: 1 timestamp: 0 is_historical: true long_value: 1 }`,
			`metrics { alias: 10 timestamp: 0 is_historical: true properties { keys: "Quality" values { type: 3 int_value: 192 } } double_value: 230.1 }`,
			`seq: 3`}},
		{"DDATA", now, []string{
			`metrics { alias: 5 timestamp: 0 is_historical: true is_null: true properties { keys: "Quality" keys: "bad" values { type: 3 int_value: 0 } values { type: 12 string_value: "timeout" } } }`,
			`metrics { alias: 5 timestamp: 0 is_historical: true properties { keys: "Quality" values { type: 3 int_value: 192 } } long_value: 7 }`,
			`seq: 4`}},
		{"orphan", Orphan(nil, [][]byte{w.outbox[1].entry}), []string{
			`metrics { name: "Ferrule/Seq" timestamp: 0 datatype: 8 is_historical: true long_value: 5 }`,
			`metrics { name: "v" timestamp: 0 datatype: 10 is_historical: true properties { keys: "engUnit" values { type: 12 string_value: "V" } } double_value: 230.1 }`}},
	} {
		text := protoc(t, file, "decode", c.payload)
		flat := spaces.ReplaceAllString(times.ReplaceAllString(string(text), "timestamp: 0"), " ")
		if unknownField.Match(text) {
			t.Errorf("%s has fields that the schema does not know: %s", c.name, text)
		}
		for _, want := range c.want {
			if !strings.Contains(flat, want) {
				t.Errorf("%s has no\n%s:\n%s", c.name, want, flat)
			}
		}
		if again := protoc(t, file, "encode", text); !bytes.Equal(again, c.payload) {
			t.Errorf("%s: protoc writes\n%x, we\n%x", c.name, again, c.payload)
		}
	}
}
