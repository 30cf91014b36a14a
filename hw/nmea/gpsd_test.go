package nmea

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ferrule/hw/point"
)

// fix is what sentences of one moment say, each in turn.
type fix struct {
	latitudes, longitudes, speeds []float64 // °, °, m/s
	times                         []time.Time
}

const knot = 1852.0 / 3600

// add puts the readings of one sentence into the fix.
func (f *fix) add(readings []point.Reading) {
	for _, r := range readings {
		if r.Bad != "" {
			continue
		}
		v, _ := r.Value.Float64()
		switch r.Point {
		case "latitude":
			f.latitudes = append(f.latitudes, v)
		case "longitude":
			f.longitudes = append(f.longitudes, v)
		case "speed":
			f.speeds = append(f.speeds, v*knot)
		case "speed_kmh":
			f.speeds = append(f.speeds, v/3.6)
		case "time":
			if at, form, _ := r.Value.Time(); form == point.UTC {
				f.times = append(f.times, at)
			}
		}
	}
}

// moment returns the time of day of a sentence.
func moment(readings []point.Reading) (time.Duration, bool) {
	for _, r := range readings {
		if at, _, ok := r.Value.Time(); ok && r.Point == "time" {
			return at.Sub(at.Truncate(24 * time.Hour)).Truncate(time.Millisecond), true
		}
	}
	return 0, false
}

// report is the part of gpsd's TPV that is compared.
type report struct {
	Class           string
	Time            *time.Time
	Lat, Lon, Speed *float64
}

// Position, time and speed agree with what gpsd made of the same logs.
func TestCorpusAgreesWithGPSD(t *testing.T) {
	logs := corpus(t)
	var all tally
	for _, log := range sorted(logs) {
		epochs := make(map[time.Duration]*fix)
		frames, _ := cut(Split, logs[log], 0, 0)
		var d Decoder
		current := &fix{}
		for _, f := range frames {
			_, readings, err := d.Decode(nil, []byte(f))
			if err != nil {
				t.Errorf("%s: %q: %v", log, f, err)
			}
			if at, ok := moment(readings); ok {
				if epochs[at] == nil {
					epochs[at] = &fix{}
				}
				current = epochs[at]
			}
			current.add(readings)
		}
		chk, err := os.ReadFile(filepath.Join(os.Getenv("FERRULE_CORPORA"), "nmea", log+".chk"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(chk) {
			var r report
			if json.Unmarshal(line, &r) == nil && r.Class == "TPV" {
				all.compare(t, log, r, epochs)
			}
		}
	}
	if logs != nil {
		t.Logf("%+v", all)
	}
}

type tally struct {
	Reports, Timeless, NoEpoch     int
	Times, Positions, Speeds       int
	BadTime, BadPosition, BadSpeed int
}

func near(list []float64, want, tolerance float64) bool {
	for _, v := range list {
		if math.Abs(v-want) <= tolerance {
			return true
		}
	}
	return false
}

func (a *tally) compare(t *testing.T, log string, r report, epochs map[time.Duration]*fix) {
	a.Reports++
	if r.Time == nil {
		a.Timeless++
		return
	}
	f := epochs[r.Time.Sub(r.Time.Truncate(24*time.Hour))]
	if f == nil {
		a.NoEpoch++
		t.Logf("%s: no sentence of %v", log, r.Time)
		return
	}
	if len(f.times) > 0 {
		a.Times++
		ok := false
		for _, at := range f.times {
			ok = ok || at.Sub(*r.Time).Abs() < time.Millisecond
		}
		if !ok {
			a.BadTime++
			t.Logf("%s: time %v, gpsd %v", log, f.times, r.Time)
		}
	}
	if r.Lat != nil {
		a.Positions++
		if !near(f.latitudes, *r.Lat, 0.51e-9) || !near(f.longitudes, *r.Lon, 0.51e-9) {
			a.BadPosition++
			t.Logf("%s: %v: position %v %v, gpsd %v %v", log, r.Time, f.latitudes, f.longitudes, *r.Lat, *r.Lon)
		}
	}
	if r.Speed != nil {
		a.Speeds++
		if !near(f.speeds, *r.Speed, 0.00051) {
			a.BadSpeed++
			t.Logf("%s: %v: speed %v, gpsd %v", log, r.Time, f.speeds, *r.Speed)
		}
	}
}
