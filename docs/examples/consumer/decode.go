package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
)

// entry is one poll of one unit, whatever it was written in.
type entry struct {
	Boot     uint64            `json:"boot"`
	Seq      uint64            `json:"seq"`
	T        time.Time         `json:"t"`
	Unsynced bool              `json:"unsynced,omitempty"`
	Line     string            `json:"line"`
	Unit     string            `json:"unit"`
	Readings map[string]any    `json:"readings"`
	Bad      map[string]string `json:"bad,omitempty"`
}

// What messages may begin with. JSON is itself.
var (
	markZstd  = []byte{0x28, 0xb5, 0x2f, 0xfd}       // RFC 8878, 3.1.1
	markCBOR  = []byte{0xd9, 0xd9, 0xf7}             // tag 55799: RFC 8949, 3.4.6
	markSenML = []byte{0xda, 0x63, 0x74, 0x01, 0x71} // tag 1668546929: RFC 9277, 4.3, of content format 112
)

// mostPlain bounds what a compressed message may become, in bytes: a message comes from a network.
const mostPlain = 4 << 20

// decoder reads messages of every format but Sparkplug B.
type decoder struct{ zstd *zstd.Decoder }

func newDecoder() (*decoder, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(mostPlain))
	return &decoder{z}, err
}

// decode returns the entries of a message, in their order.
func (d *decoder) decode(payload []byte) ([]entry, error) {
	if bytes.HasPrefix(payload, markZstd) {
		var err error
		if payload, err = d.zstd.DecodeAll(payload, nil); err != nil {
			return nil, fmt.Errorf("decompressing: %w", err)
		}
	}
	item, isCBOR := bytes.CutPrefix(payload, markCBOR)
	switch {
	case isCBOR && bytes.HasPrefix(item, markSenML):
		return senML(item[len(markSenML):], cbor.Unmarshal)
	case isCBOR:
		return plain(item, len(item) > 0 && item[0]>>5 == 4, cbor.Unmarshal)
	case bytes.HasPrefix(payload, []byte(`[{"bn":`)), bytes.HasPrefix(payload, []byte(`[{"bver":`)):
		return senML(payload, json.Unmarshal)
	}
	return plain(payload, bytes.HasPrefix(payload, []byte("[")), json.Unmarshal)
}

// plain reads one entry, or an array of them.
func plain(payload []byte, array bool, unmarshal func([]byte, any) error) (all []entry, err error) {
	if array {
		err = unmarshal(payload, &all)
	} else {
		all = make([]entry, 1)
		err = unmarshal(payload, &all[0])
	}
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Seq == 0 {
			return nil, errors.New("no entry: there is no seq")
		}
		all[i].T = all[i].T.UTC().Round(time.Millisecond) // CBOR has seconds as a floating point number
	}
	return all, nil
}

// record is one SenML record (RFC 8428, 5 and 6).
type record struct {
	BaseName *string  `json:"bn" cbor:"-2,keyasint"`
	BaseTime *float64 `json:"bt" cbor:"-3,keyasint"`
	Name     string   `json:"n" cbor:"0,keyasint"`
	Value    *float64 `json:"v" cbor:"2,keyasint"`
	Text     *string  `json:"vs" cbor:"3,keyasint"`
	Bool     *bool    `json:"vb" cbor:"4,keyasint"`
}

// senML reads a pack. The record ":seq" begins an entry.
func senML(payload []byte, unmarshal func([]byte, any) error) (all []entry, err error) {
	var pack []record
	if err := unmarshal(payload, &pack); err != nil {
		return nil, err
	}
	var base []string
	var at float64
	for _, r := range pack {
		if r.BaseName != nil {
			base = strings.Split(*r.BaseName, "/")
		}
		if r.BaseTime != nil {
			at = *r.BaseTime
		}
		if r.Name == ":seq" && r.Value != nil && len(base) >= 4 {
			t := time.UnixMilli(int64(math.Round(at * 1000))).UTC()
			all = append(all, entry{Seq: uint64(*r.Value), T: t, Line: base[1], Unit: base[2], Readings: map[string]any{}})
			continue
		}
		if len(all) == 0 {
			return nil, errors.New("no entry: the pack does not begin with :seq")
		}
		all[len(all)-1].take(r)
	}
	return all, nil
}

// take adds what a record says of its entry.
func (e *entry) take(r record) {
	point, isBad := strings.CutPrefix(r.Name, ":bad/")
	switch {
	case r.Name == ":boot" && r.Value != nil:
		e.Boot = uint64(*r.Value)
	case r.Name == ":unsynced":
		e.Unsynced = true
	case isBad && r.Text != nil:
		if e.Bad == nil {
			e.Bad = make(map[string]string)
		}
		e.Bad[point] = *r.Text
	case r.Value != nil:
		e.Readings[r.Name] = *r.Value
	case r.Text != nil:
		e.Readings[r.Name] = *r.Text
	case r.Bool != nil:
		e.Readings[r.Name] = *r.Bool
	}
}
