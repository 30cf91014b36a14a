package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"slices"
	"strings"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/internal/hint"

	"rsc.io/qr"
)

// perPage is 3 columns of 8 labels of 70 mm × 37 mm: an A4 sheet.
const perPage = 24

// Bounds of the file of records.
const (
	maxRecordLine = 1 << 20
	maxLabels     = maxDevices
)

//go:embed labels.html
var labelsPage string

// label is what stands on one.
type label struct {
	Device, Serial, EK, Fingerprint string
	Code                            template.HTML
}

// runLabels prints a page of labels for a file of records.
func runLabels(_ context.Context, e *env) error {
	input := io.Reader(os.Stdin)
	if name := e.Flags.Arg(0); name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return hint.With(fmt.Errorf("reading the records: %w", err), "write them first: ferrule-factory records DIR > records.jsonl")
		}
		defer file.Close()
		input = file
	}
	labels, err := readLabels(input)
	if err != nil {
		return hint.With(err, "give the JSON lines of ferrule-factory records, or those of build/provision.sh")
	}
	if e.json {
		return printLines(e, labels)
	}
	page, err := template.New("labels").Parse(labelsPage)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(e.Stdout)
	if err := page.Execute(out, slices.Collect(slices.Chunk(labels, perPage))); err != nil {
		return fmt.Errorf("writing the labels: %w", err)
	}
	return out.Flush()
}

// readLabels reads JSON lines; the last line of a device counts.
func readLabels(r io.Reader) ([]label, error) {
	var labels []label
	at := make(map[string]int)
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxRecordLine)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		l, err := readLabel(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if known, ok := at[l.Device]; ok {
			labels[known] = l
			continue
		}
		if len(labels) >= maxLabels {
			return nil, fmt.Errorf("line %d: more than %d devices", n, maxLabels)
		}
		at[l.Device], labels = len(labels), append(labels, l)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the records: %w", err)
	}
	if len(labels) == 0 {
		return nil, errors.New("there are no records")
	}
	return labels, nil
}

func readLabel(line []byte) (label, error) {
	var record struct {
		Device      string `json:"device"`
		Serial      string `json:"serial"`
		EK          string `json:"ek"`
		Fingerprint string `json:"certificate_sha256"`
	}
	if err := json.Unmarshal(line, &record); err != nil {
		return label{}, err
	}
	if err := records.CheckDevice(record.Device); err != nil {
		return label{}, err
	}
	for name, text := range map[string]string{"serial": record.Serial, "ek": record.EK, "certificate_sha256": record.Fingerprint} {
		if len(text) > 64 || strings.Trim(strings.ToLower(text), "0123456789abcdef") != "" {
			return label{}, fmt.Errorf("%s %q is no hexadecimal number of at most 64 digits", name, text)
		}
	}
	l := label{Device: record.Device, Serial: record.Serial, EK: record.EK, Fingerprint: record.Fingerprint}
	code, err := qr.Encode(l.text(), qr.M)
	if err != nil {
		return l, fmt.Errorf("drawing the code of %s: %w", l.Device, err)
	}
	l.Code = drawCode(code)
	return l, nil
}

// text is what a scanner reads: a URN with the device's id, then what belongs to it.
func (l label) text() string {
	return fmt.Sprintf("urn:ferrule:device:%s?serial=%s&ek=%s&sha256=%s", l.Device, l.Serial, l.ShortEK(), l.Fingerprint)
}

// ShortEK is enough of the hash to tell two TPMs of a line apart.
func (l label) ShortEK() string { return l.EK[:min(16, len(l.EK))] }

// ShortFingerprint is the beginning of the certificate's hash, for a comparison by eye.
func (l label) ShortFingerprint() string { return l.Fingerprint[:min(16, len(l.Fingerprint))] }

// Long says that the id needs smaller letters.
func (l label) Long() bool { return len(l.Device) > 32 }

// MarshalJSON leaves the drawing away.
func (l label) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"device": l.Device, "serial": l.Serial, "ek": l.ShortEK(), "sha256": l.Fingerprint, "code": l.text()})
}

// quiet is the white margin round a code, in modules (ISO/IEC 18004, 9.1).
const quiet = 4

// drawCode makes an SVG of one path: a run of black modules is one stroke of it. There is nothing
// in it but numbers.
func drawCode(code *qr.Code) template.HTML {
	var path bytes.Buffer
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			run := 0
			for code.Black(x+run, y) {
				run++
			}
			if run > 0 {
				fmt.Fprintf(&path, "M%d %dh%dv1h-%dz", x+quiet, y+quiet, run, run)
				x += run
			}
		}
	}
	side := code.Size + 2*quiet
	return template.HTML(fmt.Sprintf(`<svg viewBox="0 0 %d %d" shape-rendering="crispEdges" role="img"><path d="%s"/></svg>`, side, side, path.String()))
}

// Line is a field of a label, or a dash.
func (l label) Line(text string) string { return cmp.Or(text, "–") }
