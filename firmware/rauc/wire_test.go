package rauc

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// What the library writes we read, in both byte orders.
func TestReadsWhatOthersWrite(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		m, err := unmarshal(foreign(t, order))
		if err != nil {
			t.Fatal(err)
		}
		if m.kind != kindSignal || m.serial != 7 || m.path != "/" || m.iface != installer || m.member != "Completed" || m.sender != ":1.5" {
			t.Errorf("%v: %+v", order, m)
		}
		list := m.body[0].([]any)[0].([]any)
		status := list[1].(map[string]any)
		if list[0] != "rootfs.0" || status["size"] != uint64(1<<40) || status["on"] != true || status["raw"].([]any)[1] != byte(2) || m.body[1] != int32(-3) {
			t.Errorf("%v: body %v", order, m.body)
		}
		if nested := status["n"].([]any); nested[0] != int16(-5) || nested[1] != 1.5 || nested[2].([]any)[0] != "v" {
			t.Errorf("%v: %v", order, nested)
		}
	}
}

func foreign(t testing.TB, order binary.ByteOrder) []byte {
	t.Helper()
	type inner struct {
		A int16
		B float64
		C []dbus.Variant
	}
	type status struct {
		Name string
		Map  map[string]dbus.Variant
	}
	body := []any{[]status{{"rootfs.0", map[string]dbus.Variant{
		"size": dbus.MakeVariant(uint64(1 << 40)), "on": dbus.MakeVariant(true), "raw": dbus.MakeVariant([]byte{1, 2}),
		"n": dbus.MakeVariant(inner{-5, 1.5, []dbus.Variant{dbus.MakeVariant("v")}}),
	}}}, int32(-3)}
	m := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/")), dbus.FieldInterface: dbus.MakeVariant(installer),
		dbus.FieldMember: dbus.MakeVariant("Completed"), dbus.FieldSender: dbus.MakeVariant(":1.5"),
		dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
	}}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	order.PutUint32(raw[8:], 7) // the serial
	return raw
}

// What we write the library reads.
func TestOthersReadWhatIsWritten(t *testing.T) {
	m := call("InstallBundle", "/data/x.raucb", []option{{"ignore-compatible", true}, {"tls-ca", "/ca"}}, []option{})
	m.kind, m.serial = kindCall, 9
	got, err := dbus.DecodeMessage(bytes.NewReader(m.marshal()))
	if err != nil {
		t.Fatal(err)
	}
	args := got.Body[1].(map[string]dbus.Variant)
	if got.Body[0] != "/data/x.raucb" || args["ignore-compatible"].Value() != true || args["tls-ca"].Value() != "/ca" || len(got.Body) != 3 {
		t.Errorf("%v", got.Body)
	}
	if got.Serial() != 9 || got.Headers[dbus.FieldDestination].Value() != raucName {
		t.Errorf("%v", got)
	}
}

func TestHostileMessages(t *testing.T) {
	deep := strings.Repeat("v", 1)
	for name, b := range map[string][]byte{
		"empty":         {},
		"no order":      append([]byte("x\x04\x00\x01"), make([]byte, 12)...),
		"huge body":     {'l', 4, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0},
		"huge header":   {'l', 4, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"other version": {'l', 4, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0},
		"no variant":    {'l', 4, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 1, 'a', 0, 0, 0, 0, 0},
		"deep":          append([]byte{'l', 4, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 200, 0, 0, 0, 9}, bytes.Repeat([]byte{1, deep[0], 0}, 70)[:199]...),
	} {
		if m, err := unmarshal(b); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
	for _, signature := range []string{"", "a", "a{", "a{sv", "()", "(s", "z", strings.Repeat("a", 40) + "s", strings.Repeat("(", 40) + "s" + strings.Repeat(")", 40), "a{}"} {
		if one, _, err := nextType(signature, 0); err == nil {
			t.Errorf("%q is a type: %q", signature, one)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(foreign(f, binary.LittleEndian))
	f.Add(foreign(f, binary.BigEndian))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := unmarshal(b)
		if err == nil && m == nil {
			t.Error("neither message nor error")
		}
	})
}
