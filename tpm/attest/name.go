package attest

import (
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// maxText bounds each text about a TPM, in bytes.
const maxText = 64

// chip is what a certificate says of its TPM (TCG EK Credential Profile 2.5, 3.2.9).
type chip struct{ manufacturer, model, version string }

// The generalName of a directoryName, and the arc 2.23.133.2 of a TPM's attributes.
const tagDirectoryName = 4

var arcTPM = asn1.ObjectIdentifier{2, 23, 133, 2}

type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// attributeSET is a RelativeDistinguishedName; encoding/asn1 knows a SET by the end of its name.
type attributeSET []attribute

// parseChip reads the SubjectAltName of an EK certificate. crypto/x509 passes over a
// directoryName, and then calls the extension unhandled. Some makers put the three attributes
// into one RelativeDistinguishedName, some into one each; other attributes are passed over, for
// nothing is decided by them.
func parseChip(san []byte) (chip, error) {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(san, &names); err != nil || len(rest) > 0 {
		return chip{}, errors.New("not a list of names")
	}
	var directory []byte
	for _, n := range names {
		if n.Class != asn1.ClassContextSpecific || n.Tag > 8 {
			return chip{}, errors.New("not a name")
		}
		if n.Tag != tagDirectoryName {
			continue
		}
		if directory != nil {
			return chip{}, errors.New("two directory names")
		}
		directory = n.Bytes
	}
	var sets []attributeSET
	if rest, err := asn1.Unmarshal(directory, &sets); err != nil || len(rest) > 0 {
		return chip{}, errors.New("no directory name")
	}
	return chipOf(sets)
}

func chipOf(sets []attributeSET) (c chip, err error) {
	fields := []*string{&c.manufacturer, &c.model, &c.version}
	for _, set := range sets {
		for _, a := range set {
			last := len(a.Type) - 1
			if last != len(arcTPM) || !a.Type[:last].Equal(arcTPM) || a.Type[last] < 1 || a.Type[last] > len(fields) {
				continue
			}
			field := fields[a.Type[last]-1]
			if *field != "" {
				return chip{}, fmt.Errorf("attribute %v comes twice", a.Type)
			}
			if *field, err = text(a.Value); err != nil {
				return chip{}, fmt.Errorf("attribute %v: %w", a.Type, err)
			}
		}
	}
	for i, f := range fields {
		if *f == "" {
			return chip{}, fmt.Errorf("attribute %v.%d is missing", arcTPM, i+1)
		}
	}
	if c.manufacturer, err = vendor(c.manufacturer); err != nil {
		return chip{}, err
	}
	return c, nil
}

// text takes what is short and can be printed anywhere.
func text(v asn1.RawValue) (string, error) {
	known := v.Tag == asn1.TagUTF8String || v.Tag == asn1.TagPrintableString || v.Tag == asn1.TagIA5String
	if v.Class != asn1.ClassUniversal || v.IsCompound || !known {
		return "", errors.New("not a text")
	}
	if len(v.Bytes) == 0 || len(v.Bytes) > maxText {
		return "", fmt.Errorf("%d bytes are not 1 to %d", len(v.Bytes), maxText)
	}
	for _, b := range v.Bytes {
		if b < ' ' || b > '~' {
			return "", fmt.Errorf("byte %#x in a text", b)
		}
	}
	return string(v.Bytes), nil
}

// vendor turns id:49465800 into IFX (TCG TPM Vendor ID Registry); one that is no text stays.
func vendor(id string) (string, error) {
	number, ok := strings.CutPrefix(id, "id:")
	b, err := hex.DecodeString(number)
	if !ok || err != nil || len(b) != 4 {
		return "", fmt.Errorf("%q is not the number of a manufacturer", id)
	}
	short := strings.TrimRight(string(b), "\x00 ")
	for _, r := range []byte(short) {
		if r <= ' ' || r > '~' {
			return id, nil
		}
	}
	if short == "" {
		return id, nil
	}
	return short, nil
}
