package mbus

import (
	"bytes"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"ferrule/hw/point"
)

// corpus returns the folder of captures of real meters, or "".
func corpus(t testing.TB) string {
	t.Helper()
	root := os.Getenv("FERRULE_CORPORA")
	if root == "" {
		t.Log("FERRULE_CORPORA is not set: THE CAPTURES OF REAL METERS ARE NOT READ")
		return ""
	}
	return filepath.Join(root, "libmbus")
}

// capture reads a file of hexadecimal bytes.
func capture(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// normal is what libmbus made of a telegram.
type normal struct {
	Unit struct {
		Id, Manufacturer, Version, AccessNumber, Status, Signature string
	} `xml:"SlaveInformation"`
	Records []normalRecord `xml:"DataRecord"`
}

type normalRecord struct {
	Function, StorageNumber, Unit, Quantity, Value string
	Tariff, Device                                 *string
}

func readNormal(t testing.TB, name string) (n normal) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(bytes.NewReader(text))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // it says Latin-1, and is UTF-8
	if err := d.Decode(&n); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func TestCorpus(t *testing.T) {
	dir := corpus(t)
	if dir == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures in %s: %v", dir, err)
	}
	records, equal := 0, 0
	for _, file := range files {
		telegram := capture(t, file)
		want := readNormal(t, strings.TrimSuffix(file, ".hex")+".norm.xml")
		name := strings.TrimSuffix(filepath.Base(file), ".hex")
		var d Decoder
		_, readings, err := d.Decode(nil, telegram)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		unique(t, name, readings)
		header, _ := ParseHeader(telegram)
		compareHeader(t, name, &header, &want)
		n, same := compareRecords(t, name, d.Records(telegram), want.Records)
		records, equal = records+n, equal+same
	}
	t.Logf("%d frames seen and decoded, %d records compared, %d equal, %d not, for the reasons above",
		len(files), records, equal, records-equal)
}

// compareRecords reports how many records there are, and how many say what libmbus says.
func compareRecords(t *testing.T, name string, records iter.Seq2[Record, error], want []normalRecord) (n, equal int) {
	for r, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		if n == len(want) {
			t.Errorf("%s: more than %d records", name, n)
			break
		}
		differences := compareRecord(&r, &want[n])
		if len(differences) == 0 {
			equal++
		}
		for _, d := range differences {
			reason := libmbusIsWrong(&r, &want[n])
			text := fmt.Sprintf("%s, record %d (%s, % X | % X): %s: %s", name, n, r.Point, r.Head, r.Data, d, reason)
			if reason == "" {
				t.Error(text)
			} else {
				t.Log(text)
			}
		}
		n++
	}
	if n < len(want) {
		t.Errorf("%s: %d records, want %d", name, n, len(want))
	}
	return n, equal
}

func unique(t testing.TB, name string, readings []point.Reading) {
	t.Helper()
	seen := make(map[string]bool)
	for _, r := range readings {
		if seen[r.Point] || r.Point == "" || strings.ToLower(r.Point) != r.Point || strings.ContainsAny(r.Point, " -.:/") {
			t.Errorf("%s: the name %q is no name, or came before", name, r.Point)
		}
		seen[r.Point] = true
	}
}

func compareHeader(t testing.TB, name string, h *Header, want *normal) {
	t.Helper()
	got := fmt.Sprintf("%X %s %d %d %02X %04X", h.ID, strings.Replace(h.Letters(), "0000", "@@@", 1), h.Version, h.Access, byte(h.Status), h.Signature)
	u := want.Unit
	if h.Fixed {
		got, u.Manufacturer, u.Version, u.Signature = fmt.Sprintf("%X %d %02X", h.ID, h.Access, byte(h.Status)), "", "", ""
	}
	expect := strings.Join(strings.Fields(strings.Join([]string{u.Id, u.Manufacturer, u.Version, u.AccessNumber, u.Status, u.Signature}, " ")), " ")
	if got != expect {
		t.Errorf("%s: header %q, want %q", name, got, expect)
	}
}

func compareRecord(r *Record, want *normalRecord) (differences []string) {
	differ := func(what string, got, want any) {
		differences = append(differences, fmt.Sprintf("%s %v, libmbus %v", what, got, want))
	}
	function := [...]string{"Instantaneous value", "Maximum value", "Minimum value", "Value during error state"}[r.Function]
	if r.Quantity == "manufacturer_data" {
		function = "Manufacturer specific"
		if r.Head[0] == difMore {
			function = "More records follow"
		}
	}
	if function != want.Function && want.Function != "Actual value" && want.Function != "Stored value" {
		differ("function", function, want.Function)
	}
	if got := strconv.FormatUint(r.Storage, 10); want.StorageNumber != "" && got != want.StorageNumber {
		differ("storage", got, want.StorageNumber)
	}
	if want.Tariff != nil && *want.Tariff != strconv.Itoa(int(r.Tariff)) || want.Tariff == nil && r.Tariff != 0 {
		differ("tariff", r.Tariff, want.Tariff)
	}
	if want.Device != nil && *want.Device != strconv.Itoa(int(r.Subunit)) || want.Device == nil && r.Subunit != 0 {
		differ("subunit", r.Subunit, want.Device)
	}
	if got := strings.Replace(r.Uom, "m3", "m^3", 1); got != unitOf(want) {
		differ("unit", got, want.Unit)
	}
	if got := valueOf(r); !sameValue(got, want.Value, r) {
		differ("value", got, want.Value)
	}
	return differences
}

// unitOf is a unit of libmbus as we write it.
func unitOf(want *normalRecord) string {
	switch want.Unit {
	case "-":
		if want.Quantity == "Time point (date)" || want.Quantity == "Time point (date & time)" {
			return ""
		}
		return want.Quantity // a unit in plain text
	case "Units for H.C.A.":
		return ""
	}
	return want.Unit
}

func valueOf(r *Record) string {
	if r.Bad != "" {
		return "bad: " + r.Bad
	}
	if r.Value.Kind() == point.None {
		return ""
	}
	return r.Value.String()
}

func sameValue(got, want string, r *Record) bool {
	if got == want {
		return true
	}
	if _, form, ok := r.Value.Time(); ok && form == point.Local {
		return got+"Z" == want // libmbus says UTC of a clock that shows local time
	}
	if got == strings.ToLower(strings.ReplaceAll(want, " ", "")) && r.Value.Kind() == point.KindString {
		return true
	}
	g, ok := r.Value.Float64()
	w, err := strconv.ParseFloat(want, 64)
	if !ok || err != nil {
		return false
	}
	precision := 1e-15
	if len(r.Head) > 0 && r.Head[0]&0x0F == fieldReal {
		precision = 1e-7
	}
	return math.Abs(g-w) <= 0.51e-6+precision*math.Abs(w)
}

// libmbusIsWrong says why what libmbus has is wrong by the standard; "" where it is not. The rules are of
// the standard's kinds of data, not of files.
func libmbusIsWrong(r *Record, want *normalRecord) string {
	fixed := len(r.Head) == 0
	switch {
	case r.Bad == badInvalid && strings.HasPrefix(want.Value, "2000-00-00"):
		return "day 0 of month 0 is no date (EN 13757-3, annex A, type G)"
	case r.Bad == badInvalid && strings.HasPrefix(want.Value, "1900-01-00"), r.Bad == badInvalid && strings.HasPrefix(want.Value, "1900-01-01"):
		return "the bit IV says that the time is invalid (annex A, type F)"
	case r.Bad == badInvalid && r.Head[0]&0x0F >= fieldBCD:
		return "digits above 9 are no BCD number (annex A, type A)"
	case strings.HasSuffix(r.Point, "_pulse_0") || strings.HasSuffix(r.Point, "_pulse_1"):
		return "VIFE 28h makes it the increment per input pulse, which libmbus does not read (table 15)"
	case fixed && want.Unit == "reserved but historic":
		return "unit 3Eh is that of the first counter, and the value an older one (M-Bus 4.8, 6.4.4)"
	case fixed && (want.Unit == "kWh" || want.Unit == "l"):
		return "libmbus leaves the fixed structure in the unit it comes in"
	case strings.HasPrefix(r.Point, "vif_") && want.Function == "":
		return "libmbus drops records with a reserved VIF; the number is kept, without a unit"
	}
	return ""
}

func TestCorpusErrorFrames(t *testing.T) {
	dir := corpus(t)
	if dir == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "error-frames", "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures in %s: %v", dir, err)
	}
	for _, file := range files {
		var d Decoder
		_, readings, err := d.Decode(nil, capture(t, file))
		if err == nil || readings != nil {
			t.Errorf("%s: accepted as %v", filepath.Base(file), readings)
			continue
		}
		t.Logf("%s: %v", filepath.Base(file), err)
	}
}
