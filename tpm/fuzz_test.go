package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// FuzzPublicArea reaches past the ASN.1, into the TPM's own structures.
func FuzzPublicArea(f *testing.F) {
	for _, name := range []string{"openssl-owner.pem", "tpm2-tools.pem"} {
		var g struct {
			Type            asn1.ObjectIdentifier
			EmptyAuth       asn1.RawValue
			Parent          int64
			Public, Private []byte
		}
		if _, err := asn1.Unmarshal(der(f, golden(f, name)), &g); err != nil {
			f.Fatal(err)
		}
		f.Add(g.Public[2:])
	}
	f.Fuzz(func(t *testing.T, public []byte) {
		if len(public) > 4096 {
			return
		}
		sized := append([]byte{byte(len(public) >> 8), byte(len(public))}, public...)
		data := fields(t, asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}, option(t, 0, true), int64(tpm.SRKHandle), sized, []byte{0, 1, 0})
		key, err := tpm.ParseKeyFile(data)
		if err != nil {
			if !errors.Is(err, tpm.ErrKeyCorrupt) && !errors.Is(err, tpm.ErrUnsupported) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		if _, err := key.Public(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(key.MarshalPEM(), data) {
			t.Fatal("written otherwise than read")
		}
	})
}

// FuzzResponse: whatever the chip answers with, no command panics. The seeds are a real
// TPM's answers.
func FuzzResponse(f *testing.F) {
	for _, rsp := range realAnswers(f) {
		f.Add(rsp[1] == 2, binary.BigEndian.Uint32(rsp[6:]), rsp[10:])
	}
	f.Add(false, tpmtest.RCReferenceH0, []byte{})
	file, err := tpm.ParseKeyFile(golden(f, "openssl-srk.pem"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, sessions bool, code uint32, body []byte) {
		if len(body) > tpm.MaxResponse-10 || code == tpmtest.RCRetry {
			return
		}
		rsp := tpmtest.Response(code, body...)
		if sessions {
			rsp[1] = 2
		}
		next := func() (tpm.Descriptor, error) {
			return tpmtest.NewDescriptor(slices.Repeat([]tpmtest.Step{{Answer: rsp}}, 128)...), nil
		}
		d, err := tpm.OpenDescriptors(tpm.Options{Path: "/dev/tpmrm0", RetryBudget: 1}, next)
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		_ = d.Inspect(ctx, tpm.Known{SRK: []byte{1}, EK: []byte{2}})
		_, _ = d.EnsureSRK(ctx, nil)
		_, _ = d.OpenHandle(ctx, 0x81010001)
		_, _ = d.CreateKey(ctx, tpm.KeySpec{Parent: tpm.OwnerHandle})
		if k, err := d.LoadKey(ctx, file); err == nil {
			_, _ = k.Sign(nil, make([]byte, 32), crypto.SHA256)
			_, _ = k.Attest(ctx, make([]byte, 32))
			_, _ = k.Activate(ctx, attest.Challenge{Credential: make([]byte, 68), Secret: make([]byte, 100)})
		}
		_ = d.Close()
	})
}

// recorder keeps what a TPM answers.
type recorder struct {
	transport.TPM
	answers [][]byte
}

func (r *recorder) Send(cmd []byte) ([]byte, error) {
	rsp, err := r.TPM.Send(cmd)
	r.answers = append(r.answers, rsp)
	return rsp, err
}

func realAnswers(f *testing.F) [][]byte {
	f.Helper()
	s := tpmtest.Certified(f)
	d := open(f, s.Address(), tpm.Options{})
	name, err := d.EnsureSRK(background, nil)
	if err != nil {
		f.Fatal(err)
	}
	r := &recorder{TPM: d.TPM(background)}
	auth := func(h tpm2.TPMHandle, name []byte) tpm2.AuthHandle {
		return tpm2.AuthHandle{Handle: h, Name: tpm2.TPM2BName{Buffer: name}, Auth: tpm2.PasswordAuth(nil)}
	}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	_, _ = tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpm.SRKHandle)}.Execute(r)
	_, _ = tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: 0x200, PropertyCount: 16}.Execute(r)
	_, _ = tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x81000000, PropertyCount: 16}.Execute(r)
	_, _ = tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(r)
	_, _ = tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x01C00000, PropertyCount: 64}.Execute(r)
	_, _ = tpm2.GetCapability{Capability: tpm2.TPMCapECCCurves, PropertyCount: 64}.Execute(r)
	if index, err := (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01C00016)}).Execute(r); err == nil {
		at := tpm2.AuthHandle{Handle: 0x01C00016, Name: index.NVName, Auth: tpm2.PasswordAuth(nil)}
		_, _ = tpm2.NVRead{AuthHandle: at, NVIndex: tpm2.NamedHandle{Handle: 0x01C00016, Name: index.NVName}, Size: 512}.Execute(r)
	}
	key := load(f, d, newKey(f, d, tpm.KeySpec{}))
	mustSign(f, key)
	_, _ = tpm2.Sign{
		KeyHandle:  auth(0x80000001, key.Name()),
		Digest:     tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(r)
	_, _ = tpm2.Create{ParentHandle: auth(tpm2.TPMHandle(tpm.SRKHandle), name), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(r)
	_, _ = tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}.Execute(r)
	return r.answers
}
