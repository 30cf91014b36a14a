package trust

import (
	"errors"
	"time"
)

// der is a run of DER elements (X.690). Reading is by hand, since a list of ten thousand
// entries is walked without an allocation; only what RFC 5280 and RFC 6960 need is known: tags
// below 31 and definite, shortest lengths.
type der []byte

// Tags of DER.
const (
	tagInteger    = 0x02
	tagBits       = 0x03
	tagOctets     = 0x04
	tagNull       = 0x05
	tagOID        = 0x06
	tagEnumerated = 0x0a
	tagUTCTime    = 0x17
	tagTime       = 0x18
	tagSequence   = 0x30
	tagContext0   = 0xa0 // constructed; plus n
	tagImplicit0  = 0x80 // primitive; plus n
)

var errDER = errors.New("it is not DER as expected")

// next takes one element. whole is the element with its header.
func (d *der) next() (tag byte, content, whole der, ok bool) {
	b := *d
	if len(b) < 2 || b[0]&0x1f == 0x1f {
		return 0, nil, nil, false
	}
	size, header := int(b[1]), 2
	if size >= 0x80 {
		n := size & 0x7f
		if n == 0 || n > 3 || len(b) < 2+n {
			return 0, nil, nil, false
		}
		size = 0
		for _, octet := range b[2 : 2+n] {
			size = size<<8 | int(octet)
		}
		if b[2] == 0 || size < 0x80 {
			return 0, nil, nil, false // not the shortest form
		}
		header += n
	}
	if len(b)-header < size {
		return 0, nil, nil, false
	}
	*d = b[header+size:]
	return b[0], b[header : header+size], b[:header+size], true
}

// take takes one element of this tag.
func (d *der) take(tag byte) (content der, ok bool) {
	content, _, ok = d.element(tag)
	return content, ok
}

func (d *der) element(tag byte) (content, whole der, ok bool) {
	if len(*d) == 0 || (*d)[0] != tag {
		return nil, nil, false
	}
	_, content, whole, ok = d.next()
	return content, whole, ok
}

// optional takes one element of this tag, if it comes next.
func (d *der) optional(tag byte) (content der, present, ok bool) {
	if len(*d) == 0 || (*d)[0] != tag {
		return nil, false, true
	}
	content, ok = d.take(tag)
	return content, ok, ok
}

// integer takes an INTEGER in its shortest form and returns its octets.
func (d *der) integer() (der, bool) {
	b, ok := d.take(tagInteger)
	if !ok || len(b) == 0 || len(b) > 1 && (b[0] == 0 && b[1] < 0x80 || b[0] == 0xff && b[1] >= 0x80) {
		return nil, false
	}
	return b, true
}

// bits takes a BIT STRING of whole octets.
func (d *der) bits() (der, bool) {
	b, ok := d.take(tagBits)
	if !ok || len(b) == 0 || b[0] != 0 {
		return nil, false
	}
	return b[1:], true
}

// time takes a time as RFC 5280, 4.1.2.5 wants it: Zulu, with seconds and no fraction.
func (d *der) time() (time.Time, bool) {
	tag, b, _, ok := d.next()
	if !ok {
		return time.Time{}, false
	}
	layout := "20060102150405Z"
	if tag == tagUTCTime {
		layout = layout[2:]
	} else if tag != tagTime {
		return time.Time{}, false
	}
	t, err := time.Parse(layout, string(b))
	if err != nil || t.Format(layout) != string(b) {
		return time.Time{}, false
	}
	if tag == tagUTCTime && t.Year() >= 2050 { // RFC 5280, 4.1.2.5.1
		t = t.AddDate(-100, 0, 0)
	}
	return t, true
}

// extensions calls each with every extension of an Extensions. It stops where each answers
// false.
func (d der) extensions(each func(oid string, critical bool, value der) bool) bool {
	all, ok := d.take(tagSequence)
	if !ok || len(d) != 0 {
		return false
	}
	for len(all) > 0 {
		one, ok := all.take(tagSequence)
		if !ok {
			return false
		}
		oid, ok := one.take(tagOID)
		if !ok {
			return false
		}
		flag, present, ok := one.optional(0x01)
		if !ok || present && (len(flag) != 1 || flag[0] != 0xff) {
			return false
		}
		value, ok := one.take(tagOctets)
		if !ok || len(one) != 0 || !each(string(oid), present, value) {
			return false
		}
	}
	return true
}
