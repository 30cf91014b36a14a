package mbus

import (
	"fmt"
)

// maxExtensions is how many DIFEs, and how many VIFEs, a record may have (EN 13757-3, 6.3.1, 6.4.1).
const maxExtensions = 10

// The DIFs that are no record (EN 13757-3, 6.3.3, table 5).
const (
	difManufacturer = 0x0F // all that follows is the manufacturer's own
	difMore         = 0x1F // likewise, and the next telegram has more records
	difFiller       = 0x2F
	difReadout      = 0x7F // a request for all; says nothing in an answer
	difSpecial      = 0x0F // the low nibble of all special functions
)

// extension is the bit that announces another byte, in DIF, DIFE, VIF and VIFE.
const extension = 0x80

// block is one record as it stands in the telegram.
type block struct {
	key   []byte // DIF to the last VIFE, which names the record
	dib   []byte // DIF and DIFEs
	vif   byte
	vifes []byte
	text  []byte // the unit in plain text, of VIF 7C and FC: last character first
	field byte   // the low nibble of the DIF: which type of data
	lvar  byte   // how long data of variable length is, and of what type
	data  []byte // as on the wire
}

// walker goes through the records of a telegram.
type walker struct {
	rest []byte
	more bool // DIF 1Fh was met
}

// next returns the next record. At the end there is none, and no error. What the manufacturer
// appended comes as a last block without a vif, whose dib is 0F or 1F.
func (w *walker) next() (b block, ok bool, err error) {
	for len(w.rest) > 0 && (w.rest[0] == difFiller || w.rest[0] == difReadout) {
		w.rest = w.rest[1:]
	}
	if len(w.rest) == 0 {
		return b, false, nil
	}
	start := w.rest
	dif := start[0]
	if dif&^extension&0x0F == difSpecial {
		if dif != difManufacturer && dif != difMore {
			return b, false, fmt.Errorf("%w: DIF %02Xh is reserved", ErrFormat, dif)
		}
		w.more = w.more || dif == difMore
		w.rest = nil
		return block{key: start[:1], dib: start[:1], field: difSpecial, data: start[1:]}, true, nil
	}
	b.field = dif & 0x0F
	if b.dib, err = w.chain("DIFEs"); err != nil {
		return b, false, err
	}
	if err = w.value(&b); err != nil {
		return b, false, err
	}
	b.key = start[:len(start)-len(w.rest)]
	if err = w.payload(&b); err != nil {
		return b, false, err
	}
	return b, true, nil
}

// chain takes a byte and all that its extension bits announce.
func (w *walker) chain(what string) ([]byte, error) {
	for i, c := range w.rest {
		if i > maxExtensions {
			return nil, fmt.Errorf("%w: more than %d %s", ErrFormat, maxExtensions, what)
		}
		if c&extension == 0 {
			taken := w.rest[:i+1]
			w.rest = w.rest[i+1:]
			return taken, nil
		}
	}
	return nil, fmt.Errorf("%w: the telegram ends within %s", ErrFormat, what)
}

// value takes the value information block. The text of VIF FC stands before the VIFEs in the older
// documents (M-Bus 4.8, 8.4.3) and in most meters, behind them in EN 13757-3:2018, annex C.2; only one
// of the two is text of the length it says.
func (w *walker) value(b *block) error {
	if len(w.rest) == 0 {
		return fmt.Errorf("%w: the telegram ends before a VIF", ErrFormat)
	}
	b.vif = w.rest[0]
	if b.vif&^extension != vifText {
		vib, err := w.chain("VIFEs")
		if err == nil {
			b.vifes = vib[1:]
		}
		return err
	}
	w.rest = w.rest[1:]
	first := w.text(b)
	if b.vif&extension == 0 {
		if !first {
			return fmt.Errorf("%w: the text of a VIF is longer than the telegram", ErrFormat)
		}
		return nil
	}
	vifes, err := w.chain("VIFEs")
	if err != nil {
		return err
	}
	if len(vifes) > maxExtensions {
		return fmt.Errorf("%w: more than %d VIFEs", ErrFormat, maxExtensions)
	}
	b.vifes = vifes
	if !first && !w.text(b) {
		return fmt.Errorf("%w: the text of a VIF is longer than the telegram", ErrFormat)
	}
	return nil
}

// text takes a length and as many printable characters, if they are there.
func (w *walker) text(b *block) bool {
	if len(w.rest) == 0 || int(w.rest[0]) >= len(w.rest) {
		return false
	}
	text := w.rest[1 : 1+int(w.rest[0])]
	for _, c := range text {
		if c < ' ' || c >= 0x7F && c < 0xA0 {
			return false
		}
	}
	b.text = text
	w.rest = w.rest[1+len(text):]
	return true
}

// sizes is how many bytes of data there are, by the low nibble of the DIF (EN 13757-3, table 4).
var sizes = [16]int{0, 1, 2, 3, 4, 4, 6, 8, 0, 1, 2, 3, 4, 0, 6, 0}

// The low nibbles of a DIF that are not integers.
const (
	fieldNone    = 0x0
	fieldReal    = 0x5
	fieldReadout = 0x8
	fieldBCD     = 0x9 // to 0xE, but for fieldVar
	fieldVar     = 0xD
)

// payload takes the data.
func (w *walker) payload(b *block) error {
	size := sizes[b.field]
	if b.field == fieldVar {
		if len(w.rest) == 0 {
			return fmt.Errorf("%w: the telegram ends before the data of a record", ErrFormat)
		}
		b.lvar = w.rest[0]
		w.rest = w.rest[1:]
		var ok bool
		if size, ok = variableSize(b.lvar); !ok {
			return fmt.Errorf("%w: LVAR %02Xh is reserved", ErrFormat, b.lvar)
		}
	}
	if size > len(w.rest) {
		return fmt.Errorf("%w: the telegram ends within the data of a record", ErrFormat)
	}
	b.data = w.rest[:size]
	w.rest = w.rest[size:]
	return nil
}

// lvarReal is an IEEE 754 number of eight bytes (M-Bus 4.8, 8.4.1; free for it in EN 13757-3).
const lvarReal = 0xF8

// variableSize returns how many bytes follow an LVAR (EN 13757-3, table 6).
func variableSize(lvar byte) (size int, ok bool) {
	switch {
	case lvar <= 0xBF: // text
		return int(lvar), true
	case lvar <= 0xC9: // positive BCD
		return int(lvar - 0xC0), true
	case lvar >= 0xD0 && lvar <= 0xD9: // negative BCD
		return int(lvar - 0xD0), true
	case lvar >= 0xE0 && lvar <= 0xEF: // binary
		return int(lvar - 0xE0), true
	case lvar >= 0xF0 && lvar <= 0xF4:
		return 4 * int(lvar-0xEC), true
	case lvar == 0xF5:
		return 48, true
	case lvar == 0xF6:
		return 64, true
	case lvar == lvarReal:
		return 8, true
	}
	return 0, false
}
