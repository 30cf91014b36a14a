package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ferrule/hw/modbus"
)

// floodFor is how long each line is flooded with each kind of input.
const floodFor = 5 * time.Second

// heard is a line that listens: its configuration, without name and port, and a good frame of what
// is spoken there.
type heard struct {
	name, text string
	frame      []byte
}

// smlTransmission is a list of two values.
const smlTransmission = "1b1b1b1b0101010176020162006200726301017601010300010b0a014645520000bc614e01016392b50076020262006200" +
	"7263070177010b0a014645520000bc614e01017277070100010800ff0101621e52ff5900000000075bcd1501770701001007" +
	"00ff0101621b520059fffffffffffff8d601010163a218007602036200620072630201710163d535001b1b1b1b1a00d732"

// listeners are lines of all protocols that listen.
func listeners() ([]heard, error) {
	sml, err := hex.DecodeString(smlTransmission)
	if err != nil {
		return nil, err
	}
	dust := append([]byte{0x42, 0x4D, 0, 28}, make([]byte, 26)...)
	dust = append(dust, 0, 0x42+0x4D+28)
	request := modbus.Request{Unit: 3, Function: modbus.ReadHoldingRegisters, Count: 10}
	response := modbus.Response{Unit: 3, Function: modbus.ReadHoldingRegisters, Data: make([]byte, 20)}
	exchange := response.Append(request.Append(nil))
	ascii := modbus.AppendASCII(modbus.AppendASCII(nil, request.Append(nil), 0), response.Append(nil), 0)
	points := "[[line.unit]]\nname = \"unit\"\naddress = 3\n[[line.unit.point]]\nname = \"a\"\nat = \"holding:0\"\n[[line.unit.point]]\nname = \"b\"\nat = \"holding:9\"\n"
	return []heard{
		{"nmea", "protocol = \"nmea\"", []byte(nmea("GPRMC,120000.00,A,4807.038,N,01131.000,E,22.4,084.4,211126,,,A"))},
		{"text", "protocol = \"text\"\n[line.text]\npattern = '^(?P<state>ST|US),GS,(?P<weight>[-+][ 0-9.]+) *(?P<weight_uom>kg|g|t)$'", []byte("ST,GS,+0012.50 kg\r\n")},
		{"dsmr", "protocol = \"dsmr\"", []byte("/FER5\\2FERRULE\r\n\r\n1-3:0.2.8(50)\r\n0-0:1.0.0(261121040000W)\r\n1-0:1.8.1(001581.123*kWh)\r\n" +
			"1-0:2.8.2(000000.000*kWh)\r\n1-0:1.7.0(01.193*kW)\r\n1-0:32.7.0(230.1*V)\r\n0-0:96.14.0(0002)\r\n!7CDA\r\n")},
		{"sml", "protocol = \"sml\"", sml},
		{"vedirect", "protocol = \"vedirect\"", []byte("\r\nPID\t0xA053\r\nFW\t159\r\nSER#\tHQ2132FERRU\r\nV\t12800\r\nI\t-15000\r\n" +
			"VPV\t30570\r\nPPV\t112\r\nCS\t3\r\nERR\t0\r\nLOAD\tON\r\nH19\t456\r\nChecksum\t\x8f")},
		{"frame", "protocol = \"frame\"\n[line.frame]\nkind = \"length\"\nstart = \"42 4D\"\nlength_size = 2\ncheck = \"sum16\"\n" +
			"[[line.unit]]\nname = \"dust\"\n[[line.unit.point]]\nname = \"pm10\"\nat = \"byte:14\"\ntype = \"uint16\"\n", dust},
		{"raw", "protocol = \"raw\"", []byte("hello")},
		{"modbus", "role = \"listen\"\n" + points, exchange},
		{"modbus-ascii", "protocol = \"modbus-ascii\"\nrole = \"listen\"\n" + points, ascii},
		{"unit", "role = \"unit\"\n" + points, request.Append(nil)},
	}, nil
}

// lineOf is the configuration of a line.
func lineOf(l heard, port string) string {
	form := "8N1"
	if l.name == "modbus-ascii" {
		form = "7E1"
	}
	return fmt.Sprintf("[[line]]\nname = %q\nport = %q\nsettings = \"921600 %s\"\n%s\n", l.name, port, form, l.text)
}

// nmea makes a sentence of what stands between $ and *.
func nmea(body string) string {
	var sum byte
	for i := range len(body) {
		sum ^= body[i]
	}
	return fmt.Sprintf("$%s*%02X\r\n", body, sum)
}

// floods has the released agent listen to each protocol in turn, at the rate of 921,600 baud:
// garbage, good frames with garbage in between, and good frames alone. Each costs what it costs up
// to the broker's acknowledgement.
func floods(ctx context.Context, _ options) ([]row, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	lines, err := listeners()
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	ends := make([]*terminal, len(lines))
	for i, l := range lines {
		if ends[i], err = newTerminal(); err != nil {
			return nil, err
		}
		w.closers = append(w.closers, ends[i].close)
		text.WriteString(lineOf(l, ends[i].path))
	}
	ferrule, config, err := gateway(ctx, w, text.String())
	if err != nil {
		return nil, err
	}
	witness, err := newWitness(w, "ferrule/gw-bench/status")
	if err != nil {
		return nil, err
	}
	p, err := start("ferrule run", ferrule, "run", "--config", config)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if _, err := online(ctx, witness, p); err != nil {
		return nil, err
	}
	var rows []row
	for i, l := range lines {
		f := &flooded{agent: p, ferrule: ferrule, config: config, line: l, end: ends[i]}
		say("flooding %s", l.name)
		r, err := f.row(ctx)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", l.name, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// flooded is one line that is flooded.
type flooded struct {
	agent           *process
	ferrule, config string
	line            heard
	end             *terminal
}

func (f *flooded) row(ctx context.Context) (row, error) {
	r := rand.New(rand.NewPCG(4, 5))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	garbage := noise(64 << 10)
	good := 0
	var most float64
	var text []string
	for _, kind := range []struct {
		name string
		next func() []byte
	}{
		{"garbage", func() []byte { return garbage }},
		{"mixed", func() []byte { good++; return append(noise(r.IntN(2*len(f.line.frame))), f.line.frame...) }},
		{"good", func() []byte { good += 64; return bytes.Repeat(f.line.frame, 64) }},
	} {
		good = 0
		before, err := f.polls(ctx)
		if err != nil {
			return row{}, err
		}
		percent, err := f.flood(ctx, kind.next)
		if errors.Is(err, errBehind) { // no measurement, and no line for this speed
			most = 100
			text = append(text, fmt.Sprintf("%s %.0f and %s", kind.name, percent, errBehind))
			continue
		}
		if err != nil {
			return row{}, err
		}
		after, err := f.polls(ctx)
		if err != nil {
			return row{}, err
		}
		most = max(most, percent)
		said := fmt.Sprintf("%s %.1f", kind.name, percent)
		if good > 0 && f.line.name != "unit" { // which reports what is written, and is only read here
			said += fmt.Sprintf(" (%d of %d frames)", after-before, good)
		}
		text = append(text, said)
	}
	return row{
		what: "talkers: per cent of a core for 921,600 baud of " + f.line.name, ours: strings.Join(text, ", "),
		target: fmt.Sprintf("< %v", mostFlood), met: most < mostFlood,
	}, nil
}

// errBehind says that a line does not take bytes as fast as they come.
var errBehind = errors.New("falls behind")

// flood feeds the line and returns the agent's share of a core meanwhile, in per cent.
func (f *flooded) flood(ctx context.Context, next func() []byte) (percent float64, err error) {
	before, err := f.agent.cpu()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	said, behind := f.end.feed(ctx, floodRate, floodFor, next)
	if behind != nil && !errors.Is(behind, os.ErrDeadlineExceeded) {
		return 0, behind
	}
	if err := sleep(ctx, 500*time.Millisecond); err != nil { // the broker has the last of it
		return 0, err
	}
	after, err := f.agent.cpu()
	percent = 100 * (after - before).Seconds() / time.Since(begun).Seconds()
	if least := floodFor.Seconds() * floodRate * 0.95; err == nil && float64(said) < least {
		return percent, fmt.Errorf("%w: %d bytes in %s, %.0f were to come", errBehind, said, time.Since(begun), least)
	}
	return 100 * (after - before).Seconds() / floodFor.Seconds(), err
}

// polls is how many frames, or exchanges, the agent says that it heard on the line.
func (f *flooded) polls(ctx context.Context) (n int, err error) {
	text, err := output(ctx, "", f.ferrule, "status", "--json", "--config", f.config)
	if err != nil {
		return 0, err
	}
	var status struct {
		Lines []struct {
			Name, State string
			Polls       int
		}
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return 0, fmt.Errorf("reading the status: %w", err)
	}
	for _, l := range status.Lines {
		if l.Name == f.line.name {
			if l.State != "up" {
				return 0, fmt.Errorf("%w: the line is %s", errVoid, l.State)
			}
			return l.Polls, nil
		}
	}
	return 0, fmt.Errorf("%w: %s does not have the line", errVoid, filepath.Base(f.config))
}
