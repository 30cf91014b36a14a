package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// spoken is a line of one protocol: what stands at the other end of its cable, and what the
// subscriber has to see of it.
type spoken struct {
	line string // its name
	far  func(t *testing.T, w *wiring) (port string)
	text string // keys and tables of the line, without name and port
	unit string // in the topic
	want string // readings as JSON
}

// wiring is what the far ends need that are foreign programs.
type wiring struct{ dir string }

// Every protocol through the built binary to an independent subscriber: what was said is what
// arrives, no more, no less, and nothing is bad.
func TestEveryProtocol(t *testing.T) {
	all := append(talkers(), masters()...)
	w := &wiring{dir: shortDir(t)}
	var lines strings.Builder
	for _, s := range all {
		fmt.Fprintf(&lines, "[[line]]\nname = %q\nport = %q\n%s\n", s.line, s.far(t, w), s.text)
	}
	g := newGateway(t, lines.String())
	if out := mustRun(t, "", with(g.ferrule, "check", "--config", g.config)...); !strings.Contains(out, "vedirect") {
		t.Errorf("check says\n%s", out)
	}
	missing := make(map[string]spoken)
	for _, s := range all {
		missing[s.line+"/"+s.unit] = s
	}
	g.run(t)
	g.hear(t, "what was said on every line", func(e told) bool {
		key := e.Line + "/" + e.Unit
		s, known := missing[key]
		if !known {
			return false
		}
		if equalJSON(t, s.want, e.Readings) && len(e.Bad) == 0 {
			delete(missing, key)
		}
		return len(missing) == 0
	}, func() string {
		var text strings.Builder
		for key, s := range missing {
			fmt.Fprintf(&text, "%s: want %s\n", key, s.want)
		}
		return text.String()
	})
	if code := g.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
}

// equalJSON tells whether readings are what text says.
func equalJSON(t *testing.T, text string, readings map[string]any) bool {
	t.Helper()
	var want map[string]any
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	a, err1 := json.Marshal(want)
	b, err2 := json.Marshal(readings)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return bytes.Equal(a, b)
}

// talks is a device that says the same again and again.
func talks(words string) func(t *testing.T, w *wiring) string {
	return func(t *testing.T, _ *wiring) string {
		p := newTerminal(t)
		p.talk(t, 200*time.Millisecond, []byte(words))
		return p.path
	}
}

// answers is a device that speaks when it is asked.
func answers(f func(asked []byte) (int, []byte)) func(t *testing.T, w *wiring) string {
	return func(t *testing.T, _ *wiring) string {
		p := newTerminal(t)
		p.answer(t, f)
		return p.path
	}
}

// talkers are lines that listen.
func talkers() []spoken {
	return []spoken{
		{
			line: "gnss", unit: "GPRMC", text: `protocol = "nmea"`,
			far:  talks(sentence("GPRMC,120000.00,A,4807.038,N,01131.000,E,22.4,084.4,211126,,,A")),
			want: `{"time":"2026-11-21T12:00:00Z","status":"valid","latitude":48.1173,"longitude":11.516666666666667,"speed":22.4,"course":84.4,"mode":"autonomous"}`,
		},
		{
			line: "scale", unit: "scale", far: talks("ST,GS,+0012.50 kg\r\n"), want: `{"state":"ST","kind":"GS","weight":12.5}`,
			text: `protocol = "text"
settings = "9600 7E1"
[line.text]
pattern = '^(?P<state>ST|US),(?P<kind>GS|NT),(?P<weight>[-+][ 0-9.]+) *(?P<weight_uom>kg|g|t)$'
types = { weight = "number" }
[[line.unit]]
name = "scale"`,
		},
		{
			line: "asked", unit: "scale", want: `{"line":17.25}`,
			far: answers(func(asked []byte) (int, []byte) { return len(asked) / 6 * 6, []byte("17.25\r\n") }),
			text: `protocol = "text"
role = "master"
[line.text]
request = "READ\r\n"
every = "200ms"
[[line.unit]]
name = "scale"`,
		},
		{
			line: "p1", unit: "FER5_2FERRULE", text: `protocol = "dsmr"`, want: `{"dsmr_version":"50","time":"2026-11-21T04:00:00","active_energy_import_t1":1581.123,"active_energy_export_t2":0,"active_power_import":1.193,"voltage_l1":230.1,"tariff":2}`,
			far: talks(telegram(`FER5\2FERRULE`, "1-3:0.2.8(50)", "0-0:1.0.0(261121040000W)", "1-0:1.8.1(001581.123*kWh)",
				"1-0:2.8.2(000000.000*kWh)", "1-0:1.7.0(01.193*kW)", "1-0:32.7.0(230.1*V)", "0-0:96.14.0(0002)")),
		},
		{
			line: "haus", unit: "1FER0012345678", text: `protocol = "sml"`, want: `{"active_energy_import":12345678.9,"active_power":-1834}`,
			far: talks(string(transmission([]byte{0x0A, 0x01, 'F', 'E', 'R', 0, 0, 0xBC, 0x61, 0x4E},
				smlEntry{"0100010800FF", 30, -1, 123456789}, smlEntry{"0100100700FF", 27, 0, -1834}))),
		},
		{
			line: "solar", unit: "vedirect", text: `protocol = "vedirect"`,
			want: `{"product_id":"0xA053","firmware":"159","serial_number":"HQ2132FERRU","battery_voltage":12.8,"battery_current":-15,"panel_voltage":30.57,"panel_power":112,"state":"bulk","error":"none","load":true,"yield_total":4.56}`,
			far: talks(block("PID", "0xA053", "FW", "159", "SER#", "HQ2132FERRU", "V", "12800", "I", "-15000", "VPV", "30570", "PPV", "112",
				"CS", "3", "ERR", "0", "LOAD", "ON", "H19", "456")),
		},
		{
			line: "air", unit: "dust", want: `{"pm2_5":35,"pm10":42}`, far: talks(string(dust(35, 42))),
			text: `protocol = "frame"
settings = "9600 8N1"
[line.frame]
kind = "length"
start = "42 4D"
length_size = 2
length_counts = "rest"
check = "sum16"
[[line.unit]]
name = "dust"
[[line.unit.point]]
name = "pm2_5"
at = "byte:12"
type = "uint16"
[[line.unit.point]]
name = "pm10"
at = "byte:14"
type = "uint16"`,
		},
		{line: "unknown", unit: "raw", text: `protocol = "raw"`, far: talks("\x00\xFF\x10hello"), want: `{"frame":"00ff1068656c6c6f"}`},
	}
}

// dust is a frame of a PMS5003: 42 4D, the length of the rest, thirteen numbers, their sum.
func dust(pm25, pm10 uint16) []byte {
	b := []byte{0x42, 0x4D, 0, 28}
	numbers := [13]uint16{4: pm25, 5: pm10}
	for _, n := range numbers {
		b = append(b, byte(n>>8), byte(n))
	}
	var sum uint16
	for _, c := range b {
		sum += uint16(c)
	}
	return append(b, byte(sum>>8), byte(sum))
}

// masters are lines that ask.
func masters() []spoken {
	return []spoken{
		{
			line: "heat", unit: "boiler", far: answers(meterBus(5, 0x04, 0x06, 0x40, 0xE2, 0x01, 0x00, 0x02, 0x5A, 0x9B, 0x02)), want: `{"energy":123456000,"flow_temperature":66.7,"status":0}`,
			text: "protocol = \"mbus\"\n[[line.unit]]\nname = \"boiler\"\naddress = 5\nevery = \"3s\"\ntimeout = \"2s\"",
		},
		{
			line: "ascii", unit: "drive", want: `{"speed":1500,"limit":12.5,"pump":true}`,
			far: func(t *testing.T, _ *wiring) string {
				u := hwtest.NewUnit(9)
				u.Set(modbus.HoldingRegisters, 100, 1500, 125)
				u.Set(modbus.Coils, 3, 1)
				return onWire(t, hwtest.WireConfig{Framing: modbus.ASCII}, u)
			},
			text: `protocol = "modbus-ascii"
[[line.unit]]
name = "drive"
address = 9
every = "500ms"
timeout = "2s"
` + points("speed", "holding:100", "uint16", "limit", "holding:101", "int16\"\nscale = 0.1 #", "pump", "coil:3", "bit"),
		},
		{
			// A serial device server: socat, and behind it a unit of libmodbus.
			line: "tcp", unit: "meter", want: `{"voltage":3.8,"energy":3866690}`,
			far: func(t *testing.T, w *wiring) string {
				address := net.JoinHostPort("127.0.0.1", freePort(t))
				start(t, "socat", need(t, "socat"), "TCP-LISTEN:"+address[strings.LastIndex(address, ":")+1:]+",bind=127.0.0.1,reuseaddr",
					(&world{dir: w.dir}).startUnit(t)+",raw,echo=0")
				return "tcp://" + address
			},
			text: "settings = \"9600 8N1\"\n[[line.unit]]\nname = \"meter\"\naddress = 3\ntimeout = \"2s\"\nprofile = \"workshop-meter\"", // of testdata/profiles
		},
		{
			line: "library", unit: "main", want: `{"power_l1":1834.5,"power_l2":-20,"power_l3":0.5,"voltage_l1":230.25}`,
			far: func(t *testing.T, _ *wiring) string {
				u := hwtest.NewUnit(1)
				for at, v := range map[uint16]float32{0x0C: 1834.5, 0x0E: -20, 0x10: 0.5, 0x00: 230.25} {
					bits := math.Float32bits(v)
					u.Set(modbus.InputRegisters, at, uint16(bits>>16), uint16(bits))
				}
				return onWire(t, hwtest.WireConfig{Baud: 115200}, u)
			},
			text: "settings = \"115200 8N1\"\n[[line.unit]]\nname = \"main\"\naddress = 1\nevery = \"500ms\"\ntimeout = \"2s\"\nprofile = \"eastron-sdm630\"\nselect = [\"power_l*\", \"voltage_l1\"]",
		},
		{
			line: "roof", unit: "inverter", far: sunSpec, want: `{"voltage_l1":230.1,"power":18340,"energy_total":1234.567,"state":"mppt","events_1":"over_temp"}`,
			text: "settings = \"115200 8N1\"\n[[line.unit]]\nname = \"inverter\"\naddress = 1\nevery = \"500ms\"\ntimeout = \"2s\"\nprofile = \"sunspec\"\nselect = [\"power\", \"voltage_l1\", \"energy_total\", \"state\", \"events_1\"]",
		},
	}
}

// points writes [[line.unit.point]] of names, places and types.
func points(words ...string) string {
	var b strings.Builder
	for p := range slices.Chunk(words, 3) {
		fmt.Fprintf(&b, "[[line.unit.point]]\nname = \"%s\"\nat = \"%s\"\ntype = \"%s\"\n", p[0], p[1], p[2])
	}
	return b.String()
}

// onWire puts a unit on a simulated wire and returns the gateway's port.
func onWire(t *testing.T, c hwtest.WireConfig, units ...*hwtest.Unit) string {
	t.Helper()
	wire, err := hwtest.NewWire(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	for _, u := range units {
		wire.Attach(u)
	}
	return wire.Path()
}

// sunSpec is an inverter that describes itself: the marker, model 1, model 103, the end.
func sunSpec(t *testing.T, _ *wiring) string {
	text := func(s string, registers int) (words []uint16) {
		b := make([]byte, 2*registers)
		copy(b, s)
		for i := 0; i < len(b); i += 2 {
			words = append(words, uint16(b[i])<<8|uint16(b[i+1]))
		}
		return words
	}
	tenths, none, noneSigned := uint16(0xFFFF), uint16(0xFFFF), uint16(0x8000) // -1; "not implemented"
	u := hwtest.NewUnit(1)
	registers := slices.Concat(text("SunS", 2),
		[]uint16{1, 66}, text("Ferrule", 16), text("Tester", 16), text("", 8), text("1.0", 8), text("0815", 16), []uint16{1, noneSigned},
		[]uint16{103, 50, 30, 10, 10, 10, tenths},            // A, AphA … AphC, A_SF
		[]uint16{none, none, none, 2301, 2302, 2303, tenths}, // PPV…, PhV…, V_SF
		[]uint16{1834, 1, 50, 0},                             // W = 18340 by W_SF = 1, Hz
		[]uint16{noneSigned, noneSigned, noneSigned, noneSigned, noneSigned, noneSigned},
		[]uint16{0x0012, 0xD687, 0}, // WH = 1234567
		[]uint16{none, noneSigned, none, noneSigned, noneSigned, noneSigned},
		[]uint16{35, noneSigned, noneSigned, noneSigned, 0}, // TmpCab, …, Tmp_SF
		[]uint16{4, none, 0, 1 << 7, 0, 0},                  // MPPT, Evt1: over-temperature
		make([]uint16, 8), []uint16{0xFFFF, 0})
	u.Set(modbus.HoldingRegisters, 40000, registers...)
	return onWire(t, hwtest.WireConfig{Baud: 115200}, u)
}
