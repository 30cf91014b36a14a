package sunspec_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write models.txt anew from $FERRULE_CORPORA/sunspec")

// corpus returns the folder of the SunSpec models, or "" where there is none.
func corpus(t *testing.T) string {
	t.Helper()
	root := os.Getenv("FERRULE_CORPORA")
	if root == "" {
		t.Log("FERRULE_CORPORA is not set: models.txt is NOT compared with the models of the SunSpec Alliance")
		return ""
	}
	return filepath.Join(root, "sunspec", "json")
}

// TestModelsAreTheAlliances keeps models.txt true: it is made from the JSON files here.
func TestModelsAreTheAlliances(t *testing.T) {
	folder := corpus(t)
	if folder == "" {
		return
	}
	models := readJSON(t, folder)
	g := generator{known: make(map[string]int)}
	g.out.WriteString(head)
	for _, m := range models {
		g.model(m)
	}
	t.Logf("models %d, fields %d (with %d pads and %d scale factors; without ID and length), symbols %d, bytes %d",
		len(models), g.fields, g.pads, g.factors, g.symbols, g.out.Len())
	for _, problem := range g.problems {
		t.Error(problem)
	}
	if *update {
		if err := os.WriteFile("models.txt", g.out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile("models.txt")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, g.out.Bytes()) {
		t.Error("models.txt is not what the models say; run: go test ./hw/sunspec -update")
	}
}

const head = `# SunSpec information models, one block for each, in a form of ours.
# Made by: go test ./hw/sunspec -update, from github.com/sunspec/models (json).
# Copyright SunSpec Alliance; licensed under the Apache License, Version 2.0, which is at
# https://www.apache.org/licenses/LICENSE-2.0 and beside this file in LICENSE-models. Changed: names, units of measure and the form.
#
# model ID WORD TITLE      WORD sets its points apart from those of other models of a unit
# = ID                     the fields are those of that model
# NAME CODE TYPE SCALE UOM FLAGS NUMBER=SYMBOL …
#     CODE is SunSpec's name. SCALE: a factor, a scale factor register of the model, or
#     REGISTER*FACTOR. FLAGS: m the unit must have it, s it changes seldom. - stands for nothing.
#     SYMBOL names a number of an enum, a bit of a bitfield. After ID and length, in the order of the
#     registers.
# sf CODE                  a scale factor register
# pad                      a register of no meaning
# group NAME COUNT         fields up to end, COUNT times: 1, * for as often as the length allows, or
#                          the CODE that says how often

`

// jsonGroup and jsonPoint are what is of use in a file.
type jsonGroup struct {
	Name, Label string
	Count       any
	Points      []jsonPoint
	Groups      []jsonGroup
}

type jsonPoint struct {
	Name, Label, Type, Units, Access, Mandatory, Static string
	Size                                                int
	SF                                                  any
	Symbols                                             []struct {
		Name  string
		Value int
	}
}

type jsonModel struct {
	ID    int
	Group jsonGroup
}

func readJSON(t *testing.T, folder string) (models []jsonModel) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "model_*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no models in %s: %v", folder, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var m jsonModel
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		models = append(models, m)
	}
	slices.SortFunc(models, func(a, b jsonModel) int { return cmp.Compare(a.ID, b.ID) })
	return models
}

// generator writes models.txt.
type generator struct {
	out                            bytes.Buffer
	known                          map[string]int // the fields of a model → its number
	problems                       []string
	fields, pads, factors, symbols int
}

func (g *generator) model(m jsonModel) {
	w := writer{generator: g, id: m.ID, measures: measuring[m.ID], names: make(map[string]bool)}
	w.group(m.Group, "", m.Group.Points[2:], nil)
	body := w.text.String()
	word, ok := words[m.ID]
	if !ok {
		word = snake(m.Group.Name)
	}
	title := strings.TrimSpace(m.Group.Label)
	fmt.Fprintf(&g.out, "model %d %s %s\n", m.ID, word, cmp.Or(title, m.Group.Name))
	if same, ok := g.known[body]; ok {
		fmt.Fprintf(&g.out, "= %d\n\n", same)
		return
	}
	g.known[body] = m.ID
	g.out.WriteString(body + "\n")
}

// writer writes the fields of one model.
type writer struct {
	*generator
	id       int
	measures bool
	text     strings.Builder
	names    map[string]bool
}

// group writes the points of a group and its groups; outer are the scale factors around it.
func (w *writer) group(g jsonGroup, path string, points []jsonPoint, outer []string) {
	inside := slices.Clone(outer)
	for _, p := range points {
		if p.Type == "sunssf" {
			inside = append(inside, p.Name)
		}
	}
	for _, p := range points {
		w.fields++
		switch p.Type {
		case "sunssf":
			w.factors++
			fmt.Fprintf(&w.text, "sf %s\n", p.Name)
		case "pad":
			w.pads++
			w.text.WriteString("pad\n")
		default:
			w.point(p, path, inside)
		}
	}
	for _, inner := range g.Groups {
		name, ok := groupNames[inner.Name]
		if !ok {
			name = snake(inner.Name)
		}
		if special, ok := groupNames[fmt.Sprintf("%d.%s", w.id, inner.Name)]; ok {
			name = special
		}
		count := "1"
		switch c := inner.Count.(type) {
		case float64:
			count = "*"
		case string:
			count = c
		}
		fmt.Fprintf(&w.text, "group %s %s\n", name, count)
		w.group(inner, path+name+".", inner.Points, inside)
		w.text.WriteString("end\n")
	}
}

func (w *writer) point(p jsonPoint, path string, factors []string) {
	typ := p.Type
	if typ == "string" {
		typ += strconv.Itoa(p.Size)
	}
	name, factor, uom := w.name(p, path), 1.0, w.uom(p)
	switch {
	case name == "power_factor" || strings.HasPrefix(name, "power_factor_l"):
		if uom == "%" {
			factor = 0.01
		}
		uom = "-"
	case strings.Contains(name, "energy") && (uom == "Wh" || uom == "VAh" || uom == "varh"):
		factor, uom = 0.001, "k"+uom
	}
	if w.names[path+name] {
		w.problems = append(w.problems, fmt.Sprintf("model %d has two points called %s%s", w.id, path, name))
	}
	w.names[path+name] = true
	fmt.Fprintf(&w.text, "%s %s %s %s %s %s", name, p.Name, typ, w.scale(p, factor, factors), uom, w.flags(p))
	for _, s := range p.Symbols {
		w.symbols++
		fmt.Fprintf(&w.text, " %d=%s", s.Value, plain.Replace(strings.ToLower(strings.TrimSpace(s.Name))))
	}
	w.text.WriteByte('\n')
}

// plain takes out of a symbol's name what would end it in models.txt or in a list of flags.
var plain = strings.NewReplacer(" ", "_", ",", "_", "\n", "_")

func (w *writer) scale(p jsonPoint, factor float64, factors []string) string {
	switch sf := p.SF.(type) {
	case string:
		if !slices.Contains(factors, sf) {
			w.problems = append(w.problems, fmt.Sprintf("model %d, %s: there is no %s", w.id, p.Name, sf))
		}
		if factor != 1 {
			return fmt.Sprintf("%s*%v", sf, factor)
		}
		return sf
	case float64:
		return "1e" + strconv.Itoa(int(sf))
	}
	if factor != 1 {
		return fmt.Sprint(factor)
	}
	return "-"
}

func (w *writer) flags(p jsonPoint) string {
	flags := ""
	if p.Mandatory == "M" {
		flags = "m"
	}
	if !w.measures || p.Static == "S" || p.Access == "RW" || p.Type == "string" {
		flags += "s"
	}
	return cmp.Or(flags, "-")
}

func (w *writer) uom(p jsonPoint) string {
	uom, ok := units[strings.TrimSpace(p.Units)]
	if !ok {
		uom = strings.TrimSpace(p.Units)
	}
	switch {
	case w.id == 306 && p.Name == "V": // the model says W/m2
		uom = "V"
	case w.id == 122 && p.Name == "WAval": // the model says var
		uom = "W"
	}
	return strings.ReplaceAll(cmp.Or(uom, "-"), " ", "_")
}

// name makes the name of a point: that of our vocabulary where a measuring model measures what a
// meter measures, else SunSpec's own in small letters.
func (w *writer) name(p jsonPoint, path string) string {
	code := p.Name
	group := strings.Split(strings.TrimSuffix(path, "."), ".")[0]
	for _, redundant := range redundantIn[group] {
		if len(code) > len(redundant) && isUpper(code[len(redundant)]) {
			code = strings.TrimPrefix(code, redundant)
		}
	}
	if !w.measures && w.id != 1 {
		return snake(code)
	}
	if name, ok := vocabulary[code]; ok {
		return name
	}
	for _, phase := range phases {
		stem, ok := strings.CutSuffix(code, phase.suffix)
		if !ok {
			continue
		}
		if name, ok := vocabulary[stem]; ok {
			return name + phase.name
		}
	}
	return snake(code)
}

var phases = []struct{ suffix, name string }{
	{"phAB", "_l1_l2"}, {"phBC", "_l2_l3"}, {"phCA", "_l3_l1"}, {"L1L2", "_l1_l2"}, {"L2L3", "_l2_l3"}, {"L3L1", "_l3_l1"},
	{"phA", "_l1"}, {"phB", "_l2"}, {"phC", "_l3"}, {"PhA", "_l1"}, {"PhB", "_l2"}, {"PhC", "_l3"}, {"L1", "_l1"}, {"L2", "_l2"}, {"L3", "_l3"},
}

// vocabulary is docs/profiles.md's, by SunSpec's names.
var vocabulary = map[string]string{
	"A": "current", "V": "voltage", "PhV": "voltage", "LNV": "voltage", "PPV": "voltage_ll", "LLV": "voltage_ll",
	"PPVphAB": "voltage_l1_l2", "PPVphBC": "voltage_l2_l3", "PPVphCA": "voltage_l3_l1",
	"W": "power", "VA": "apparent_power", "VAr": "reactive_power", "VAR": "reactive_power", "Var": "reactive_power",
	"PF": "power_factor", "Hz": "frequency", "WH": "energy_total",
	"TotWhExp": "energy_export", "TotWhImp": "energy_import", "TotWhInj": "energy_export", "TotWhAbs": "energy_import",
	"TotVAhExp": "apparent_energy_export", "TotVAhImp": "apparent_energy_import",
	"TotVArhImpQ1": "reactive_energy_q1", "TotVArhImpQ2": "reactive_energy_q2",
	"TotVArhExpQ3": "reactive_energy_q3", "TotVArhExpQ4": "reactive_energy_q4",
	"TotVarhInj": "reactive_energy_export", "TotVarhAbs": "reactive_energy_import",
	"ActWh": "energy_total", "ActVAh": "apparent_energy_total", "ActVArhQ1": "reactive_energy_q1", "ActVArhQ2": "reactive_energy_q2",
	"ActVArhQ3": "reactive_energy_q3", "ActVArhQ4": "reactive_energy_q4",
	"DCA": "dc_current", "DCV": "dc_voltage", "DCW": "dc_power", "DCWH": "dc_energy", "DCWh": "dc_energy", "DCWhInj": "dc_energy_export", "DCWhAbs": "dc_energy_import",
	"InA": "input_current", "InV": "input_voltage", "InW": "input_power", "InWh": "input_energy",
	"OutA": "output_current", "OutV": "output_voltage", "OutW": "output_power", "OutPw": "output_power", "OutWh": "output_energy",
	"TmpCab": "temperature_cabinet", "TmpSnk": "temperature_heat_sink", "TmpTrns": "temperature_transformer", "TmpOt": "temperature_other",
	"TmpAmb": "temperature_ambient", "TmpSw": "temperature_switch", "TmpBOM": "temperature_module", "Tmp": "temperature",
	"TmpMax": "temperature_max", "TmpMin": "temperature_min", "TmpAvg": "temperature_average",
	"St": "state", "Stat": "state", "Sta": "state", "InvSt": "inverter_state", "DCSt": "state", "DCSta": "state", "ConnSt": "grid_connection",
	"StVnd": "state_vendor", "StatVend": "state_vendor", "State": "state_bank", "StateVnd": "state_bank_vendor", "ChaSt": "charge_state",
	"Evt": "events", "DCEvt": "events", "Evt1": "events_1", "Evt2": "events_2", "EvtVnd": "events_vendor", "EvtVend": "events_vendor",
	"EvtVnd1": "events_vendor_1", "EvtVnd2": "events_vendor_2", "EvtVnd3": "events_vendor_3", "EvtVnd4": "events_vendor_4",
	"Alrm": "alarms", "DCAlrm": "alarms", "PrtAlrms": "port_alarms",
	"SoC": "state_of_charge", "SoH": "state_of_health", "DoD": "depth_of_discharge", "NCyc": "cycles",
	"CellVMax": "cell_voltage_max", "CellVMin": "cell_voltage_min", "CellVAvg": "cell_voltage_average",
	"CellTmpMax": "cell_temperature_max", "CellTmpMin": "cell_temperature_min", "CellTmpAvg": "cell_temperature_average",
	"ModTmpMax": "module_temperature_max", "ModTmpMin": "module_temperature_min", "ModTmpAvg": "module_temperature_average",
	"Lat": "latitude", "Long": "longitude", "Alt": "altitude", "RH": "humidity", "Pres": "pressure", "WndSpd": "wind_speed", "WndDir": "wind_direction",
	"Rain": "rainfall", "Snw": "snow_depth",
	"Mn": "manufacturer", "Md": "model", "Opt": "options", "Vr": "version", "SN": "serial_number", "DA": "address",
}

// measuring are the models whose values change by themselves; all others describe or set the unit.
var measuring = func() map[int]bool {
	set := make(map[int]bool)
	for _, r := range [][2]int{{2, 2}, {101, 113}, {122, 122}, {160, 160}, {201, 220}, {302, 308}, {401, 404}, {501, 502}, {601, 601}, {701, 701}, {713, 714}, {801, 809}, {64020, 64112}} {
		for id := r[0]; id <= r[1]; id++ {
			set[id] = true
		}
	}
	return set
}()

// words begin the names of points that another model of the unit has, too.
var words = func() map[int]string {
	all := map[int]string{
		1: "device", 10: "interface", 11: "ethernet", 12: "ipv4", 13: "ipv6", 14: "proxy", 15: "counters", 16: "network", 17: "serial",
		18: "cellular", 19: "ppp", 122: "status", 124: "storage", 160: "mppt", 501: "panel", 502: "panel", 701: "ac", 702: "capacity",
		703: "enter_service", 704: "controls", 713: "storage", 714: "dc", 715: "control", 802: "battery", 803: "bank", 804: "battery_string",
		805: "battery_module",
	}
	for id := 101; id <= 113; id++ {
		all[id] = "inverter"
	}
	for id := 201; id <= 214; id++ {
		all[id] = "meter"
	}
	return all
}()

// groupNames name the groups that repeat.
var groupNames = map[string]string{
	"160.module": "mppt", "Prt": "port", "Crv": "curve", "Pt": "point", "Ctl": "control", "Prof": "profile", "IV": "point",
	"lithium_ion_string_module": "module", "lithium-ion-module-cell": "cell", "battery_string": "string",
	"302.repeating": "sensor", "303.temp": "sensor", "304.incl": "sensor", "133.repeating": "schedule", "64020.repeating": "string",
}

// redundantIn is what the names of a group's points begin with, which the group's name says.
var redundantIn = map[string][]string{"string": {"In", "Str"}, "module": {"Mod"}, "cell": {"Cell"}}

var units = map[string]string{
	"C": "°C", "Pct": "%", "Secs": "s", "Sec": "s", "S": "s", "mSecs": "ms", "Degrees": "°", "deg": "°", "W/m2": "W/m²", "W/m^2": "W/m²",
	"Var": "var", "Varh": "varh", "AH": "Ah", "kAH": "kAh", "WH": "Wh", "cos()": "", "PF": "", "meters": "m", "HPa": "hPa", "mps": "m/s",
	"kO": "kΩ", "ohms": "Ω", "Vm": "V/m", "SF": "", "text": "", "YYYYMMDD": "", "hhmmss": "", "hhmmss.sssZ": "", "Tms": "s", "Tmh": "h", "Tmd": "d",
	"bps": "bit/s", "Mbps": "Mbit/s", "VNomPct": "% VNom", "WMaxPct": "% WMax", "VarPct": "% Var", "DeptRef": "%", "%WHRtg": "%", "%Max/Sec": "% Max/s",
}

// snake writes a name in small letters, words joined by _.
func snake(name string) string {
	return strings.ToLower(strings.Join(split(name), "_"))
}

// split cuts a name of SunSpec's into words: "WMaxLimPct" is W, Max, Lim, Pct.
func split(name string) (words []string) {
	whole := slices.SortedFunc(maps.Keys(oneWord), func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	for name != "" {
		n := 0
		for _, w := range whole {
			if strings.HasPrefix(name, w) && !(len(name) > len(w) && isLower(name[len(w)])) {
				n = len(w)
				break
			}
		}
		if n == 0 {
			n = wordLength(name)
		}
		for n < len(name) && name[n] >= '0' && name[n] <= '9' {
			n++
		}
		if w := strings.Trim(name[:n], "_- ."); w != "" {
			words = append(words, w)
		}
		name = name[n:]
	}
	return words
}

// oneWord are abbreviations in capitals and small letters.
var oneWord = map[string]bool{"VArh": true, "VAh": true, "VAr": true, "Wh": true, "Ah": true, "SoC": true, "SoH": true, "DoD": true, "DC": true, "ES": true, "LED": true}

// wordLength is the length of the word that name begins with: capitals up to the one that begins
// the next word, or a capital and small letters.
func wordLength(name string) int {
	n := 1
	if !isUpper(name[0]) {
		for n < len(name) && isLower(name[n]) {
			n++
		}
		return n
	}
	for n < len(name) && isUpper(name[n]) {
		n++
	}
	if n < len(name) && isLower(name[n]) {
		if n > 1 {
			return n - 1
		}
		for n < len(name) && isLower(name[n]) {
			n++
		}
	}
	return n
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }
