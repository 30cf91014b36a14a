package mbus

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Function says what kind of value a record holds (EN 13757-3, table 3).
type Function uint8

// The functions of a record.
const (
	Instantaneous Function = iota
	Maximum
	Minimum
	DuringError // the value while the unit was in an error state
)

func (f Function) String() string {
	return [...]string{"instantaneous", "maximum", "minimum", "error"}[f]
}

// The primary VIFs that lead elsewhere.
const (
	vifAlternate    = 0xFB
	vifMain         = 0xFD
	vifText         = 0x7C
	vifManufacturer = 0x7F
	vifeExtension   = 0x7C // of a VIFE: the next stands in the second table of combinable codes
	vifeOwn         = 0x7F // of a VIFE: all that follow are the manufacturer's own
)

// meaning is what the head of a record says of its data. It depends on nothing else, and so is
// worked out once per kind of record.
type meaning struct {
	scaled
	function   Function
	storage    uint64
	tariff     uint32
	subunit    uint16
	extended   bool   // there are DIFEs
	name       string // unique within a telegram but for repetitions
	bad        string // the unit reports that there is no value
	thousandth int64  // to be added, in thousandths of uom
	parts      []string
}

// meaningOf works out what b's head says.
func meaningOf(b *block) *meaning {
	m := &meaning{}
	m.readDIB(b.dib)
	if b.field == difSpecial {
		m.scaled = scaled{quantity: "manufacturer_data", mult: 1, coding: opaque, known: true}
		m.name = m.quantity
		return m
	}
	rest := m.readVIF(b)
	m.readVIFEs(rest)
	m.name = m.fullName()
	return m
}

// readDIB reads function, storage number, tariff and subunit (EN 13757-3, 6.3.4, 6.3.5): the DIF has
// the lowest bit of the storage number, each DIFE four more, two of the tariff and one of the subunit.
func (m *meaning) readDIB(dib []byte) {
	m.function = Function(dib[0] >> 4 & 3)
	m.storage = uint64(dib[0] >> 6 & 1)
	for i, d := range dib[1:] {
		m.storage |= uint64(d&0x0F) << (1 + 4*i)
		m.tariff |= uint32(d>>4&3) << (2 * i)
		m.subunit |= uint16(d>>6&1) << i
	}
	m.extended = len(dib) > 1
}

// readVIF reads the unit and returns the VIFEs behind it.
func (m *meaning) readVIF(b *block) (rest []byte) {
	code := b.vif &^ extension
	switch {
	case code == vifText:
		text := latin1(b.text)
		m.scaled = scaled{quantity: slug(text), uom: text, mult: 1, known: true}
		return b.vifes
	case code == vifManufacturer:
		m.scaled = scaled{quantity: "manufacturer_specific", mult: 1, known: true}
		if len(b.vifes) > 0 {
			m.parts = append(m.parts, hex.EncodeToString(b.vifes))
		}
		return nil
	case b.vif == vifMain && len(b.vifes) > 0:
		return m.readMain(b.vifes)
	case b.vif == vifAlternate && len(b.vifes) > 0:
		m.scaled = behindFB(b.vifes[0] &^ extension)
		m.nameUnknown("vif_fb_", b.vifes[0])
		return b.vifes[1:]
	}
	m.scaled = lookup(primaryTable, code)
	m.nameUnknown("vif_", b.vif)
	return b.vifes
}

func (m *meaning) readMain(vifes []byte) (rest []byte) {
	if vifes[0] == vifMain && len(vifes) > 1 {
		m.scaled = lookup(secondTable, vifes[1]&^extension)
		m.nameUnknown("vif_fd_fd_", vifes[1])
		return vifes[2:]
	}
	m.scaled = behindFD(vifes[0] &^ extension)
	m.nameUnknown("vif_fd_", vifes[0])
	return vifes[1:]
}

// nameUnknown keeps the code of a VIF that no table has as the name. Its number stays as it is.
func (m *meaning) nameUnknown(prefix string, code byte) {
	if !m.known {
		m.quantity = prefix + hex.EncodeToString([]byte{code &^ extension})
	}
}

// fullName joins what makes the record unlike the others: energy_max_storage1_tariff2_subunit1.
func (m *meaning) fullName() string {
	parts := append([]string{m.quantity}, m.parts...)
	if m.function != Instantaneous {
		parts = append(parts, [...]string{Maximum: "max", Minimum: "min", DuringError: "error"}[m.function])
	}
	for _, n := range []struct {
		word  string
		value uint64
	}{{"storage", m.storage}, {"tariff", uint64(m.tariff)}, {"subunit", uint64(m.subunit)}} {
		if n.value != 0 {
			parts = append(parts, n.word+strconv.FormatUint(n.value, 10))
		}
	}
	m.parts = nil
	return strings.Join(parts, "_")
}

// latin1 returns the text of a unit, whose last character comes first (ISO 8859-1).
func latin1(b []byte) string {
	runes := make([]rune, 0, len(b))
	for _, c := range slices.Backward(b) {
		runes = append(runes, rune(c))
	}
	return strings.TrimSpace(string(runes))
}

// slug makes a name of a text: lower case, words joined by _.
func slug(text string) string {
	var name []byte
	for _, c := range []byte(strings.ToLower(text)) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		switch {
		case letter:
			name = append(name, c)
		case len(name) > 0 && name[len(name)-1] != '_':
			name = append(name, '_')
		}
	}
	if s := strings.Trim(string(name), "_"); s != "" {
		return s
	}
	return "text"
}

// unknownVIFE names a VIFE that no table has.
func unknownVIFE(table string, code byte) string { return fmt.Sprintf("vife_%s%02x", table, code) }
