package nmea

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"ferrule/hw/point"
)

// fix is what sentences of one moment say, each in turn.
type fix struct {
	latitudes, longitudes, speeds []float64 // °, °, m/s
	times                         []time.Time
	void                          bool // a sentence had a position and said it is invalid
}

const knot = 1852.0 / 3600

// add puts the readings of one sentence into the fix.
func (f *fix) add(readings []point.Reading) {
	for _, r := range readings {
		if r.Bad != "" {
			f.void = f.void || r.Point == "latitude"
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

// rollover is the time after which GPS weeks have the same number again. gpsd adds it to dates
// that it thinks too old; Ferrule says what the receiver says.
const rollover = 1024 * 7 * 24 * time.Hour

// tally counts what was compared with gpsd's reports of time, position and velocity (TPV), and
// what was not, and why.
type tally struct {
	Reports                                        int
	Times, TimesRolledOver, TimesNone              int // none: the report has no time, or no sentence the date
	Positions, PositionsNone, PositionsVoid        int // void: gpsd believes a GGA whose quality is 0
	Speeds, SpeedsOfGPSD, SpeedsNone               int // of gpsd: no sentence of the moment had said one yet
	PositionsOfNoTime                              int // among Positions: compared with the sentence before
	WrongTimes, WrongPositions, WrongSpeeds, Lines int
}

// Position, time and speed agree with what gpsd made of the same logs: position to half a unit of
// the last of its nine decimals, speed to half of its last of three, time to its millisecond.
func TestCorpusAgreesWithGPSD(t *testing.T) {
	logs := corpus(t)
	var all tally
	for _, log := range sorted(logs) {
		chk, err := os.ReadFile(filepath.Join(os.Getenv("FERRULE_CORPORA"), "nmea", log+".chk"))
		if err != nil {
			t.Fatal(err)
		}
		frames, _ := cut(Split, logs[log], 0, 0)
		all.walk(t, log, frames, chk)
	}
	if logs == nil {
		return
	}
	t.Logf("compared with gpsd: %+v", all)
	if all.WrongTimes+all.WrongPositions+all.WrongSpeeds > 0 || all.Positions < 2000 || all.Speeds < 1800 || all.Times < 1800 {
		t.Errorf("disagreements, or too little compared: %+v", all)
	}
}

// walk decodes the frames of one log up to each that gpsd echoes, and compares its reports.
func (a *tally) walk(t *testing.T, log string, frames []string, chk []byte) {
	var d Decoder
	epochs := make(map[time.Duration]*fix)
	current := &fix{}
	for line := range bytes.Lines(chk) {
		var r report
		if json.Unmarshal(line, &r) == nil && r.Class != "" {
			if r.Class == "TPV" {
				a.compare(t, log, r, epochs, current)
			}
			continue
		}
		a.Lines++
		n := slices.Index(frames, string(bytes.TrimSpace(line)))
		for _, f := range frames[:n+1] {
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
		frames = frames[n+1:]
	}
}

func near(list []float64, want, tolerance float64) bool {
	return slices.ContainsFunc(list, func(v float64) bool { return math.Abs(v-want) <= tolerance })
}

func (a *tally) compare(t *testing.T, log string, r report, epochs map[time.Duration]*fix, current *fix) {
	a.Reports++
	f := current
	if r.Time != nil {
		if f = epochs[r.Time.Sub(r.Time.Truncate(24*time.Hour))]; f == nil {
			t.Errorf("%s: no sentence of %v", log, r.Time)
			return
		}
	}
	a.compareTime(t, log, r, f)
	switch {
	case r.Lat == nil:
		a.PositionsNone++
	case near(f.latitudes, *r.Lat, 0.5001e-9) && near(f.longitudes, *r.Lon, 0.5001e-9):
		a.Positions++
		if r.Time == nil {
			a.PositionsOfNoTime++
		}
	case len(f.latitudes) == 0 && f.void:
		a.PositionsVoid++
		t.Logf("%s: gpsd takes a position that its sentence calls invalid: %v %v", log, *r.Lat, *r.Lon)
	default:
		a.WrongPositions++
		t.Logf("%s: %v: position %v %v, gpsd %v %v", log, r.Time, f.latitudes, f.longitudes, *r.Lat, *r.Lon)
	}
	switch {
	case r.Speed == nil:
		a.SpeedsNone++
	case len(f.speeds) == 0: // computed from positions, or kept from the moment before
		a.SpeedsOfGPSD++
	case near(f.speeds, *r.Speed, 0.0005001):
		a.Speeds++
	default:
		a.WrongSpeeds++
		t.Logf("%s: %v: speed %v, gpsd %v", log, r.Time, f.speeds, *r.Speed)
	}
}

func (a *tally) compareTime(t *testing.T, log string, r report, f *fix) {
	is := func(shift time.Duration) bool {
		return slices.ContainsFunc(f.times, func(at time.Time) bool { return at.Add(shift).Sub(*r.Time).Abs() < time.Millisecond })
	}
	switch {
	case r.Time == nil || len(f.times) == 0:
		a.TimesNone++
	case is(0):
		a.Times++
	case is(rollover):
		a.TimesRolledOver++
	default:
		a.WrongTimes++
		t.Logf("%s: time %v, gpsd %v", log, f.times, r.Time)
	}
}
