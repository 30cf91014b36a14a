package profile_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
)

// meter is one register map of the corpus: facts about a real meter.
type meter struct {
	Source, Device, Func string
	ReadLen              []string
	Transforms           []string
	Registers            []struct {
		Name    string
		Address int
		Note    string
	}
}

// profileOf says which profile is for which map.
var profileOf = map[string]string{
	"abb": "abb-b-series", "carlogavazzi-em24": "carlo-gavazzi-em24", "carlogavazzi-em24_e1": "carlo-gavazzi-em24-e1",
	"carlogavazzi-ex3x0": "carlo-gavazzi-em340", "ddm18sd": "ddm18sd", "dmg610": "lovato-dmg610", "ds100": "bgetech-ds100",
	"dtsu666": "chint-dtsu666", "dzg": "dzg-dvh4013", "eltako": "eltako-dsz15dzmod", "finder7m24": "finder-7m24",
	"finder7m38": "finder-7m38", "iem3000": "schneider-iem3000", "inepro": "inepro-pro380", "janitza": "janitza-b23",
	"mpm3pm": "bernecker-mpm3pm", "orno1p": "orno-we-514", "orno1p504": "orno-we-504", "orno1p525": "orno-we-525",
	"orno3p": "orno-we-516", "pac2200": "siemens-pac2200", "sbc": "saia-ale3", "sdm": "eastron-sdm630", "sdm120": "eastron-sdm120",
	"sdm220": "eastron-sdm220", "sdm230": "eastron-sdm230", "sdm54": "eastron-sdm54", "sdm72": "eastron-sdm72",
	"sdm72v2": "eastron-sdm72-v2", "semtr3y": "solaredge-se-mtr-3y", "wago87930": "wago-879-30xx", "ws100": "bgetech-ws100",
	"x961a": "eastron-smart-x96-1a",
}

// differs lists where the corpus is not believed: map, register → the address in the profile. The
// profiles say why.
var differs = map[string]int{
	"ds100 Export":          0x0118, // 0x118A is a misprint: 0x010E, 0x0118, 0x0122 go together
	"orno3p ReactiveSumT3":  0x014E, // 0x015E belongs to what the fourth tariff exported
	"semtr3y ReactiveSumL2": 1126,   // off by one value: 1138 would be the fourth apparent energy
	"semtr3y ReactiveSumL3": 1128,
}

// oneBased are the maps whose addresses count from 1.
var oneBased = map[string]bool{"sbc": true}

var stems = map[string]string{
	"Voltage": "voltage", "Current": "current", "Power": "power", "ReactivePower": "reactive_power", "ApparentPower": "apparent_power",
	"Cosphi": "power_factor", "Frequency": "frequency", "PhaseAngle": "phase_angle", "THD": "voltage_thd",
	"Import": "energy_import", "Export": "energy_export", "Sum": "energy_total",
	"ReactiveImport": "reactive_energy_import", "ReactiveExport": "reactive_energy_export", "ReactiveSum": "reactive_energy_total",
	"ImportPower": "power_import", "ExportPower": "power_export",
}

// nameOf is the point's name for a name of the corpus: "ImportL1" is energy_import_l1.
func nameOf(register string) string {
	parts := regexp.MustCompile(`^(.*?)(?:L(\d)(\d)|([LT]\d))?$`).FindStringSubmatch(register)
	name := stems[parts[1]]
	switch {
	case parts[2] != "":
		name += "_l" + parts[2] + "_l" + parts[3]
	case parts[4] != "":
		name += "_" + strings.ToLower(parts[4])
	}
	return name
}

// Every register of the corpus is in its profile, at the same address and with a type that fits
// what the corpus says of it.
func TestProfilesHaveTheRegistersOfTheCorpus(t *testing.T) {
	root := os.Getenv("FERRULE_CORPORA")
	if root == "" {
		t.Log("FERRULE_CORPORA is not set: the profiles are NOT compared with the register maps of real meters")
		return
	}
	text, err := os.ReadFile(filepath.Join(root, "mbmd", "mbmd_register_maps.json"))
	if err != nil {
		t.Fatal(err)
	}
	var meters []meter
	if err := json.Unmarshal(text, &meters); err != nil {
		t.Fatal(err)
	}
	library, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	entries, matched, corrected, lengths, covered := 0, 0, 0, 0, 0
	for _, m := range meters {
		short := strings.TrimSuffix(filepath.Base(m.Source), ".go")
		p, err := library.Get(profileOf[short])
		if err != nil {
			t.Errorf("%s: %v", short, err)
			continue
		}
		covered++
		points := make(map[string]profile.Point)
		for _, q := range p.Points {
			points[q.Name] = q
		}
		for _, r := range m.Registers {
			entries++
			if r.Name == "ReadLen" {
				lengths++
				continue
			}
			want, different := differs[short+" "+r.Name]
			switch {
			case different:
				corrected++
			case oneBased[short]:
				want = r.Address - 1
				corrected++
			default:
				want = r.Address
				matched++
			}
			checkPoint(t, m, r.Note, points[nameOf(r.Name)], p.Name+" "+r.Name, want)
		}
	}
	t.Logf("maps seen %d, covered %d; entries seen %d: registers %d, at the same address %d, "+
		"at a corrected one %d (%d of them counted from 1); left out %d, which are lengths (ReadLen), not registers",
		len(meters), covered, entries, entries-lengths, matched, corrected, corrected-len(differs), lengths)
	if covered != len(meters) {
		t.Errorf("%d of %d maps are covered", covered, len(meters))
	}
}

func checkPoint(t *testing.T, m meter, note string, q profile.Point, what string, want int) {
	t.Helper()
	table := map[string]modbus.Table{"ReadHoldingReg": modbus.HoldingRegisters, "ReadInputReg": modbus.InputRegisters}[m.Func]
	at, err := modbus.ParseAddress(q.At)
	if err != nil || at.Table != table || int(at.Offset) != want {
		t.Errorf("%s: at %q (%s); want %s %d", what, q.At, q.Name, table, want)
		return
	}
	typ, err := point.ParseType(q.Type)
	if err != nil || !typ.Numeric() {
		t.Errorf("%s: type %q: %v", what, q.Type, err)
		return
	}
	n := typ.Registers()
	lengths := map[int]string{1: "1", 2: "2", 4: "4"}
	switch {
	case len(m.ReadLen) > 0 && !slices.Contains(m.ReadLen, lengths[n]):
		t.Errorf("%s: %s is not %v registers long", what, typ, m.ReadLen)
	case strings.HasPrefix(note, "16 bit") && n != 1, strings.HasPrefix(strings.ToLower(note), "32 bit") && n != 2:
		t.Errorf("%s: %s, and the note says %q", what, typ, note)
	}
	floats := slices.ContainsFunc(m.Transforms, func(s string) bool { return strings.Contains(s, "Ieee754") })
	others := slices.ContainsFunc(m.Transforms, func(s string) bool { return strings.Contains(s, "Int") || s == "transform" })
	if isFloat := strings.HasPrefix(q.Type, "float"); floats && !others && !isFloat {
		t.Errorf("%s: %s, and all its values are floats", what, typ)
	}
	if q.Scale < 0 || q.Scale > 1000 {
		t.Errorf("%s: a scale of %v", what, q.Scale)
	}
}
