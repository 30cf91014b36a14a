package nmea

import (
	"strconv"
	"strings"

	"ferrule/hw/point"
)

const (
	keptWords = 256
	longWord  = 32
	blockSize = 1024
)

// words makes strings of fields at a small part of an allocation each: words that come again
// share one string, the others share blocks. A string keeps its block in memory, which bounds
// what keptWords can hold to 256 KiB.
type words struct {
	kept  [keptWords]string
	block strings.Builder
}

// of returns b as a string.
func (w *words) of(b []byte) string {
	if len(b) > longWord {
		return w.copy(b)
	}
	hash := uint32(2166136261) // FNV-1a
	for _, c := range b {
		hash = (hash ^ uint32(c)) * 16777619
	}
	kept := &w.kept[(hash^hash>>15)%keptWords]
	if *kept != string(b) {
		*kept = w.copy(b)
	}
	return *kept
}

// copy writes b behind the strings made before, where no later one can change it.
func (w *words) copy(b []byte) string {
	if len(b) > blockSize/2 {
		return string(b)
	}
	if w.block.Cap()-w.block.Len() < len(b) {
		w.block.Reset()
		w.block.Grow(blockSize)
	}
	start := w.block.Len()
	w.block.Write(b)
	return w.block.String()[start:]
}

func (d *Decoder) text(b []byte) point.Value { return point.String(d.words.of(b)) }

// listed is a point that comes in numbers: f1, f2, …
type listed uint8

const (
	listField listed = iota
	listSatellite
	listUsed
	listElevation
	listAzimuth
	listSNR
	listUse
	listLock
	listResidual
	listEnd
)

// list holds the names made so far.
type list []string

// numbered returns the name of number i of l. Sentences bound i to some hundreds.
func (d *Decoder) numbered(l listed, i int) string {
	before, after := l.affixes()
	for n := len(d.lists[l]); n <= i; n++ {
		d.lists[l] = append(d.lists[l], before+strconv.Itoa(n)+after)
	}
	return d.lists[l][i]
}

func (l listed) affixes() (before, after string) {
	switch l {
	case listUsed:
		return "satellite_used_", ""
	case listSatellite:
		return "satellite_", "_id"
	case listElevation:
		return "satellite_", "_elevation"
	case listAzimuth:
		return "satellite_", "_azimuth"
	case listSNR:
		return "satellite_", "_snr"
	case listUse:
		return "satellite_", "_use"
	case listLock:
		return "satellite_", "_lock"
	case listResidual:
		return "residual_", ""
	}
	return "f", ""
}
