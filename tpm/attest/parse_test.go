package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
)

func sampleEvidence() Evidence {
	return Evidence{
		EKs: []Endorsement{{Public: []byte{1}, Certificate: []byte{2, 3}}, {Public: []byte{4, 5, 6}}},
		AK:  []byte{7}, Key: []byte{8}, Certify: []byte{9}, Signature: []byte{10},
	}
}

func TestEvidenceRoundTrip(t *testing.T) {
	want := sampleEvidence()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseEvidence(text)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("(-sent +read) %s %v", diff, err)
	}
}

func TestChallengeRoundTrip(t *testing.T) {
	want := Challenge{EK: 7, Credential: make([]byte, maxCredential), Secret: make([]byte, maxSecret)}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseChallenge(text)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("(-sent +read) %s %v", diff, err)
	}
}

func TestParseEvidence(t *testing.T) {
	const rest = `"ak":"AQ==","key":"AQ==","certify":"AQ==","signature":"AQ=="`
	const eks = `"eks":[{"public":"AQ=="}],`
	big := base64.StdEncoding.EncodeToString(make([]byte, maxPublic+1))
	for name, test := range map[string]struct{ text, reason string }{
		"least":                       {`{` + eks + rest + `}`, ""},
		"unknown fields":              {`{"x":{"ak":[1,{"ak":null}]},"eks":[{"public":"AQ==","nv":7}],` + rest + `,"AK":1}`, ""},
		"spaces":                      {" {\n" + eks + rest + "}\r\n", ""},
		"nothing":                     {``, reasonEvidence},
		"null":                        {`null`, reasonEvidence},
		"an array":                    {`[]`, reasonEvidence},
		"two values":                  {`{` + eks + rest + `}{}`, reasonEvidence},
		"cut":                         {`{` + eks + rest, reasonEvidence},
		"twice the same":              {`{` + eks + rest + `,"ak":"AQ=="}`, reasonEvidence},
		"twice, once escaped":         {`{` + eks + rest + `,"\u0061k":"AQ=="}`, reasonEvidence},
		"twice the same in an EK":     {`{"eks":[{"public":"AQ==","public":"AQ=="}],` + rest + `}`, reasonEvidence},
		"twice the same unknown":      {`{"x":1,"x":2,` + eks + rest + `}`, reasonEvidence},
		"another case":                {`{` + eks + strings.ToUpper(rest) + `}`, reasonEvidence},
		"null for bytes":              {`{` + eks + strings.Replace(rest, `"AQ=="`, `null`, 1) + `}`, reasonEvidence},
		"numbers for bytes":           {`{` + eks + strings.Replace(rest, `"AQ=="`, `[1]`, 1) + `}`, reasonEvidence},
		"a line break in base64":      {`{` + eks + strings.Replace(rest, `AQ==`, `AQ\n==`, 1) + `}`, reasonEvidence},
		"bits left over in base64":    {`{` + eks + strings.Replace(rest, `AQ==`, `AR==`, 1) + `}`, reasonEvidence},
		"base64 without padding":      {`{` + eks + strings.Replace(rest, `AQ==`, `AQ`, 1) + `}`, reasonEvidence},
		"base64 for URLs":             {`{` + eks + strings.Replace(rest, `AQ==`, `__8=`, 1) + `}`, reasonEvidence},
		"no UTF-8":                    {"{\"\xff\":1," + eks + rest + `}`, reasonEvidence},
		"an empty part":               {`{` + eks + strings.Replace(rest, `AQ==`, ``, 1) + `}`, reasonEvidence},
		"a part missing":              {`{` + eks + `"ak":"AQ=="}`, reasonEvidence},
		"an empty certificate":        {`{"eks":[{"public":"AQ==","certificate":""}],` + rest + `}`, reasonEvidence},
		"an EK without a public area": {`{"eks":[{}],` + rest + `}`, reasonEvidence},
		"no EKs":                      {`{"eks":[],` + rest + `}`, reasonNoEK},
		"EKs missing":                 {`{` + rest + `}`, reasonNoEK},
		"EKs in an object":            {`{"eks":{"public":"AQ=="},` + rest + `}`, reasonEvidence},
		"nine EKs":                    {`{"eks":[` + strings.Repeat(`{"public":"AQ=="},`, 8) + `{"public":"AQ=="}],` + rest + `}`, reasonEvidence},
		"deep":                        {`{"x":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `,` + eks + rest + `}`, reasonEvidence},
		"a part too large":            {`{` + eks + strings.Replace(rest, `AQ==`, big, 1) + `}`, reasonSize},
		"out of all size":             {`{` + eks + rest + `}` + strings.Repeat(" ", MaxEvidence), reasonSize},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := ParseEvidence([]byte(test.text))
			r, _ := errors.AsType[*Refusal](err)
			switch {
			case test.reason == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.reason != "" && (r == nil || r.Reason != test.reason || e.AK != nil):
				t.Errorf("got %+v, %v; want %q", e, err, test.reason)
			}
		})
	}
}

func TestParseChallengeRefuses(t *testing.T) {
	const good = `{"ek":1,"credential":"AQ==","secret":"AQ=="}`
	if _, err := ParseChallenge([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":              ``,
		"no EK":                `{"credential":"AQ==","secret":"AQ=="}`,
		"no credential":        `{"ek":1,"secret":"AQ=="}`,
		"no secret":            `{"ek":1,"credential":"AQ=="}`,
		"EK -1":                strings.Replace(good, `1`, `-1`, 1),
		"EK 8":                 strings.Replace(good, `1`, `8`, 1),
		"EK 1.0":               strings.Replace(good, `1`, `1.0`, 1),
		"EK 1e0":               strings.Replace(good, `1`, `1e0`, 1),
		"EK in quotes":         strings.Replace(good, `1`, `"1"`, 1),
		"twice":                strings.Replace(good, `{`, `{"ek":0,`, 1),
		"something behind":     good + `0`,
		"a credential too big": strings.Replace(good, `AQ==`, base64.StdEncoding.EncodeToString(make([]byte, maxCredential+1)), 1),
		"a secret too big":     strings.Replace(good, `"secret":"AQ==`, `"secret":"`+base64.StdEncoding.EncodeToString(make([]byte, maxSecret+1)), 1),
		"out of all size":      good + strings.Repeat(" ", MaxChallenge),
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := ParseChallenge([]byte(text)); err == nil {
				t.Errorf("read as %+v", c)
			}
		})
	}
}

func TestParseChip(t *testing.T) {
	three := func(m, model, v asn1.RawValue) []attributeSET {
		return []attributeSET{
			{{asn1.ObjectIdentifier{2, 23, 133, 2, 1}, m}}, {{asn1.ObjectIdentifier{2, 23, 133, 2, 2}, model}},
			{{asn1.ObjectIdentifier{2, 23, 133, 2, 3}, v}, {asn1.ObjectIdentifier{2, 5, 4, 5}, utf8String("123")}},
		}
	}
	printable := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagPrintableString, Bytes: []byte(s)} }
	raw := func(der ...any) []byte {
		var all []asn1.RawValue
		for _, d := range der {
			all = append(all, d.(asn1.RawValue))
		}
		b, err := asn1.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	directory := func() asn1.RawValue {
		b, err := asn1.Marshal(oneSet("id:53544D20", "ST33", "id:0101"))
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{Class: 2, Tag: 4, IsCompound: true, Bytes: b}
	}
	dns := asn1.RawValue{Class: 2, Tag: 2, Bytes: []byte("tpm.example")}
	for name, test := range map[string]struct {
		san  []byte
		want chip
	}{
		"swtpm":                  {sanOf(t, oneSet("id:00001014", "swtpm", "id:20191023")), chip{"id:00001014", "swtpm", "id:20191023"}},
		"one set each":           {sanOf(t, three(printable("id:494E5443"), printable("PTT"), utf8String("id:1"))), chip{"INTC", "PTT", "id:1"}},
		"beside another name":    {raw(dns, directory()), chip{"STM", "ST33", "id:0101"}},
		"no maker in letters":    {sanOf(t, oneSet("id:414D4400", "AMD", "2")), chip{"AMD", "AMD", "2"}},
		"a maker of zeros":       {sanOf(t, oneSet("id:00000000", "x", "2")), chip{"id:00000000", "x", "2"}},
		"two directory names":    {raw(directory(), directory()), chip{}},
		"no directory name":      {raw(dns), chip{}},
		"a universal tag":        {raw(asn1.RawValue{Tag: 4, Bytes: []byte{1}}), chip{}},
		"a tag too high":         {raw(asn1.RawValue{Class: 2, Tag: 9, Bytes: []byte{1}}, directory()), chip{}},
		"a BMPString":            {sanOf(t, three(asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte("id:494E5443")}, printable("x"), printable("1"))), chip{}},
		"an integer":             {sanOf(t, three(asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte("1")}, printable("x"), printable("1"))), chip{}},
		"letters above ASCII":    {sanOf(t, oneSet("id:00001014", "müller", "1")), chip{}},
		"an empty model":         {sanOf(t, oneSet("id:00001014", "", "1")), chip{}},
		"a maker in three hex":   {sanOf(t, oneSet("id:001014", "x", "1")), chip{}},
		"a maker without id:":    {sanOf(t, oneSet("00001014", "x", "1")), chip{}},
		"nothing":                {nil, chip{}},
		"a byte behind":          {append(sanOf(t, oneSet("id:00001014", "x", "1")), 0), chip{}},
		"a byte behind the name": {raw(asn1.RawValue{Class: 2, Tag: 4, IsCompound: true, Bytes: append(directory().Bytes, 0)}), chip{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseChip(test.san)
			if got != test.want || (err == nil) != (test.want != chip{}) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// Chips may leave zeros away in front of a coordinate.
func TestShortCoordinates(t *testing.T) {
	m := newMaker(t)
	s := newSoftTPM(t, m, ekP256)
	s.ak = keyWithZero(t)
	e, c := s.evidence(t, nonce, device, ofAK(func(p *tpm2.TPMTPublic) { *p = shorter(*p) }))
	if len(e.AK) > 87 {
		t.Fatalf("an AK of %d bytes has no short coordinate", len(e.AK))
	}
	if _, err := m.verifier().Check(e, c); err != nil {
		t.Error(err)
	}
}

// keyWithZero is the first private number whose point has an x that begins with a zero byte.
func keyWithZero(t *testing.T) *ecdsa.PrivateKey {
	d := make([]byte, 32)
	for i := range 1 << 16 {
		binary.BigEndian.PutUint16(d[30:], uint16(i+1))
		k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
		if err != nil {
			t.Fatal(err)
		}
		if point, err := k.PublicKey.Bytes(); err != nil || point[1] == 0 {
			return k
		}
	}
	t.Fatal("no such key")
	return nil
}

// shorter leaves the zeros away.
func shorter(p tpm2.TPMTPublic) tpm2.TPMTPublic {
	point, err := p.Unique.ECC()
	if err != nil {
		panic(err)
	}
	trim := func(b []byte) tpm2.TPM2BECCParameter {
		return tpm2.TPM2BECCParameter{Buffer: bytes.TrimLeft(b, "\x00")}
	}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: trim(point.X.Buffer), Y: trim(point.Y.Buffer)})
	return p
}
