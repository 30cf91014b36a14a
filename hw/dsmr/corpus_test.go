package dsmr_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ferrule/hw/dsmr"
	"ferrule/hw/frame"
	"ferrule/hw/point"
)

// corpus returns the files of captured telegrams, nil where the captures are not here.
func corpus(t *testing.T) []string {
	root := os.Getenv("FERRULE_CORPORA")
	if root == "" {
		t.Log("FERRULE_CORPORA is not set: THE TELEGRAMS OF REAL METERS ARE NOT READ")
		return nil
	}
	files, err := filepath.Glob(filepath.Join(root, "dsmr", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no telegrams in %s: %v", root, err)
	}
	return files
}

// Every captured telegram decodes; every flipped bit of one that has a CRC is caught.
func TestCorpus(t *testing.T) {
	var seen, withCRC, frames, decoded, readings, bad, bits int
	var refused []string
	for _, file := range corpus(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		seen += bytes.Count(data, []byte("\n!"))
		var d dsmr.Decoder
		c := frame.NewCutter(dsmr.Split, dsmr.MaxFrame)
		c.Feed(data, func(telegram []byte) {
			frames++
			name, got, err := d.Decode(nil, telegram)
			if err != nil {
				refused = append(refused, err.Error())
				return
			}
			decoded++
			readings += len(got)
			bad += len(slices.DeleteFunc(slices.Clone(got), func(r point.Reading) bool { return r.Bad == "" }))
			t.Logf("%s: %s, %d readings", filepath.Base(file), name, len(got))
			checkLines(t, telegram, got)
			if !bytes.HasSuffix(telegram, []byte("!\r\n")) {
				withCRC++
				bits += 8 * len(telegram)
				flipAll(t, filepath.Base(file), telegram)
			}
		})
		if s := c.Stats(); s.Checksum+s.Malformed+s.Oversize > 0 {
			refused = append(refused, fmt.Sprintf("%s: %+v", filepath.Base(file), s))
		}
	}
	t.Logf("%d telegrams seen, %d with a right CRC, %d without one, %d decoded, %d readings, %d of them bad; %d bits flipped; refused: %q",
		seen, withCRC, frames-withCRC, decoded, readings, bad, bits, refused)
	if decoded != seen || len(refused) > 0 {
		t.Errorf("%d of %d telegrams are decoded; refused: %q", decoded, seen, refused)
	}
}

// checkLines compares readings with what a regular look at the lines finds: every line with one
// number and a unit must be there, with the same digits.
func checkLines(t *testing.T, telegram []byte, readings []point.Reading) {
	t.Helper()
	for line := range strings.Lines(string(telegram)) {
		_, value, ok := strings.Cut(strings.TrimSpace(line), "(")
		number, unit, _ := strings.Cut(strings.TrimSuffix(value, ")"), "*")
		if !ok || unit == "" || strings.ContainsAny(value[:len(value)-1], "()") {
			continue
		}
		found := slices.ContainsFunc(readings, func(r point.Reading) bool {
			f, ok := r.Value.Float64()
			return ok && r.Uom == unit && fmt.Sprintf("%.*f", decimals(number), f) == trimZeros(number)
		})
		if !found {
			t.Errorf("there is no reading for %q", line)
		}
	}
}

func decimals(number string) int {
	_, fraction, _ := strings.Cut(number, ".")
	return len(fraction)
}

func trimZeros(number string) string {
	trimmed := strings.TrimLeft(number, "0")
	if trimmed == "" || trimmed[0] == '.' {
		return "0" + trimmed
	}
	return trimmed
}
