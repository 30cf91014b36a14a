package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/tpm"
)

// golden returns a file written by another program: openssl 3.0 with tpm2-openssl 1.1.1, or
// tpm2-tools 5.4.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGoldenKeyFiles(t *testing.T) {
	for name, c := range map[string]struct {
		parent uint32
		noDA   bool
	}{
		"openssl-owner.pem": {parent: tpm.OwnerHandle},
		"openssl-srk.pem":   {parent: tpm.SRKHandle},
		"tpm2-tools.pem":    {parent: tpm.SRKHandle, noDA: true},
	} {
		t.Run(name, func(t *testing.T) {
			data := golden(t, name)
			f, err := tpm.ParseKeyFile(data)
			if err != nil {
				t.Fatal(err)
			}
			if f.Parent() != c.parent || f.Attributes().NoDA != c.noDA {
				t.Errorf("parent %#x, attributes %+v", f.Parent(), f.Attributes())
			}
			key, err := f.Public()
			if err != nil || key.(*ecdsa.PublicKey).Params().BitSize != 256 {
				t.Errorf("public key %v, %v", key, err)
			}
			// BER's TRUE becomes DER's; nothing else changes.
			want := bytes.Replace(der(t, data), []byte{0xA0, 3, 1, 1, 1}, []byte{0xA0, 3, 1, 1, 0xFF}, 1)
			if got := der(t, f.MarshalPEM()); !bytes.Equal(got, want) {
				t.Errorf("written again:\n%x, want\n%x", got, want)
			}
		})
	}
}

func der(t testing.TB, data []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}

// fields builds a key file from ASN.1 values, in the order given.
func fields(t testing.TB, values ...any) []byte {
	t.Helper()
	var body []byte
	for _, v := range values {
		b, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		body = append(body, b...)
	}
	b, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: b})
}

// option is an explicitly tagged field.
func option(t testing.TB, tag int, v any) asn1.RawValue {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: b}
}

func TestKeyFileOptions(t *testing.T) {
	var g struct {
		Type      asn1.ObjectIdentifier
		EmptyAuth asn1.RawValue
		Parent    int64
		Public    []byte
		Private   []byte
	}
	if _, err := asn1.Unmarshal(der(t, golden(t, "openssl-srk.pem")), &g); err != nil {
		t.Fatal(err)
	}
	yes, srk, owner := option(t, 0, true), int64(tpm.SRKHandle), int64(tpm.OwnerHandle)
	oid := func(last int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 23, 133, 10, 1, last} }
	file := func(v ...any) []byte { return fields(t, v...) }
	long := append([]byte{0, 90}, g.Public[2:]...)
	offCurve := bytes.Clone(g.Public)
	offCurve[len(offCurve)-1] ^= 1
	unknownCurve := bytes.Replace(g.Public, []byte{0, 3, 0, 16, 0, 32}, []byte{0, 9, 0, 16, 0, 32}, 1)
	for name, c := range map[string]struct {
		data []byte
		want error
		says string
	}{
		"plain":               {data: file(oid(3), yes, srk, g.Public, g.Private)},
		"described":           {data: file(oid(3), yes, option(t, 4, "gateway"), srk, g.Public, g.Private)},
		"RSA parent at SRK":   {data: file(oid(3), yes, option(t, 5, true), srk, g.Public, g.Private)},
		"text before":         {data: append([]byte("key of gateway 7\n"), golden(t, "openssl-srk.pem")...)},
		"RSA parent derived":  {data: file(oid(3), yes, option(t, 5, true), owner, g.Public, g.Private), want: tpm.ErrUnsupported, says: "RSA"},
		"policy":              {data: file(oid(3), yes, option(t, 1, []int{1}), srk, g.Public, g.Private), want: tpm.ErrUnsupported, says: "policy"},
		"signed policy":       {data: file(oid(3), yes, option(t, 3, []int{1}), srk, g.Public, g.Private), want: tpm.ErrUnsupported, says: "policy"},
		"secret":              {data: file(oid(3), yes, option(t, 2, []byte{1}), srk, g.Public, g.Private), want: tpm.ErrUnsupported, says: "secret"},
		"importable":          {data: file(oid(4), yes, srk, g.Public, g.Private), want: tpm.ErrUnsupported, says: "importable"},
		"sealed":              {data: file(oid(5), yes, srk, g.Public, g.Private), want: tpm.ErrUnsupported, says: "sealed"},
		"unknown type":        {data: file(oid(9), yes, srk, g.Public, g.Private), want: tpm.ErrUnsupported, says: "unknown"},
		"other parent":        {data: file(oid(3), yes, int64(0x81000002), g.Public, g.Private), want: tpm.ErrUnsupported, says: "0x81000002"},
		"negative parent":     {data: file(oid(3), yes, int64(-1), g.Public, g.Private), want: tpm.ErrUnsupported, says: "parent"},
		"huge parent":         {data: file(oid(3), yes, int64(1)<<40|int64(tpm.SRKHandle), g.Public, g.Private), want: tpm.ErrUnsupported, says: "parent"},
		"unknown curve":       {data: file(oid(3), yes, srk, unknownCurve, g.Private), want: tpm.ErrUnsupported, says: "kind"},
		"software key":        {data: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), want: tpm.ErrUnsupported, says: "software"},
		"certificate":         {data: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}), want: tpm.ErrUnsupported, says: "CERTIFICATE"},
		"empty":               {want: tpm.ErrKeyCorrupt, says: "PEM"},
		"cut PEM":             {data: golden(t, "openssl-srk.pem")[:200], want: tpm.ErrKeyCorrupt, says: "PEM"},
		"no ASN.1":            {data: pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: []byte("junk")}), want: tpm.ErrKeyCorrupt, says: "ASN.1"},
		"no type":             {data: file(srk, g.Public), want: tpm.ErrKeyCorrupt, says: "type"},
		"option twice":        {data: file(oid(3), yes, yes, srk, g.Public, g.Private), want: tpm.ErrKeyCorrupt, says: "[0]"},
		"option out of place": {data: file(oid(3), option(t, 4, "x"), yes, srk, g.Public, g.Private), want: tpm.ErrKeyCorrupt, says: "[0]"},
		"unknown option":      {data: file(oid(3), yes, option(t, 6, 1), srk, g.Public, g.Private), want: tpm.ErrKeyCorrupt, says: "[6]"},
		"option no BOOLEAN":   {data: file(oid(3), option(t, 0, 7), srk, g.Public, g.Private), want: tpm.ErrKeyCorrupt, says: "BOOLEAN"},
		"no private area":     {data: file(oid(3), yes, srk, g.Public), want: tpm.ErrKeyCorrupt, says: "private"},
		"trailing field":      {data: file(oid(3), yes, srk, g.Public, g.Private, 1), want: tpm.ErrKeyCorrupt, says: "follow"},
		"wrong size":          {data: file(oid(3), yes, srk, long, g.Private), want: tpm.ErrKeyCorrupt, says: "size"},
		"empty private area":  {data: file(oid(3), yes, srk, g.Public, []byte{0, 0}), want: tpm.ErrKeyCorrupt, says: "size"},
		"cut public area":     {data: file(oid(3), yes, srk, append([]byte{0, 20}, g.Public[2:22]...), g.Private), want: tpm.ErrKeyCorrupt, says: "malformed"},
		"off the curve":       {data: file(oid(3), yes, srk, offCurve, g.Private), want: tpm.ErrKeyCorrupt, says: "curve"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := tpm.ParseKeyFile(c.data)
			if !errors.Is(err, c.want) || c.want == nil && f == nil {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not speak of %q", err, c.says)
			}
		})
	}
}

// FuzzParseKeyFile: no input panics, and what is accepted survives being written and read.
func FuzzParseKeyFile(f *testing.F) {
	for _, name := range []string{"openssl-owner.pem", "openssl-srk.pem", "tpm2-tools.pem"} {
		f.Add(der(f, golden(f, name)))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		key, err := tpm.ParseKeyFile(pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: body}))
		if err != nil {
			if !errors.Is(err, tpm.ErrKeyCorrupt) && !errors.Is(err, tpm.ErrUnsupported) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		written := key.MarshalPEM()
		again, err := tpm.ParseKeyFile(written)
		if err != nil {
			t.Fatalf("reading what was written: %v", err)
		}
		if !bytes.Equal(again.MarshalPEM(), written) {
			t.Fatal("written twice, two results")
		}
	})
}
