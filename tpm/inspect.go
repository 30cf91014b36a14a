package tpm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/go-tpm/tpm2"
)

const (
	hintCleared  = "enroll again: it stays the same device, as its endorsement key is the same"
	hintOtherTPM = "put the board or the disk back where it was, or run ferrule reset and enroll as a new device"
	hintCounter  = "find what uses the TPM with a wrong password, or keys without noDA through power cuts; it falls by itself"
	hintSRK      = "free the handle (tpm2_evictcontrol -c 0x81000001), if nobody needs what lies there; ferrule makes its own"
	hintSRKNoDA  = "free the handle before enrolling (tpm2_evictcontrol -c 0x81000001), if nobody needs what lies there"
	hintEKCert   = "ask the TPM's maker for the certificate, or let the registrar trust this endorsement key on first use"
)

func (r *Report) askState(ctx context.Context, d *Device, _ Known) error {
	h, p, err := d.health(ctx)
	r.Health = h
	if err != nil {
		return err
	}
	r.SessionsFree = p[tpm2.TPMPTHRLoadedAvail]
	r.LockoutInterval = time.Duration(p[tpm2.TPMPTLockoutInterval]) * time.Second
	r.LockoutRecovery = time.Duration(p[tpm2.TPMPTLockoutRecovery]) * time.Second
	permanent := p[tpm2.TPMPTPermanent]
	r.OwnerAuth = permanent&ownerAuthSet != 0
	r.EndorsementAuth = permanent&endorsementAuthSet != 0
	r.LockoutAuth = permanent&lockoutAuthSet != 0
	switch {
	case h.InLockout:
		r.find(FaultLockout, false, textLockout, fmt.Sprintf("wait %s without touching it, or run: tpm2_dictionarylockout --clear-lockout", r.LockoutInterval))
	case h.LockoutCounter > 0:
		r.find(FaultCounter, false, fmt.Sprintf("The TPM counts %d of %d failures; at %d it locks up.",
			h.LockoutCounter, h.MaxAuthFail, h.MaxAuthFail), hintCounter)
	}
	return nil
}

func (r *Report) askCurves(ctx context.Context, d *Device, _ Known) error {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapECCCurves, Property: 0, PropertyCount: 64}.Execute(d.call(ctx))
	if err != nil {
		return commandError("asking for the TPM's curves", err)
	}
	list, err := rsp.CapabilityData.Data.ECCCurves()
	if err != nil {
		return commandError("asking for the TPM's curves", err)
	}
	r.P256 = slices.Contains(list.ECCCurves, tpm2.TPMECCNistP256)
	r.P384 = slices.Contains(list.ECCCurves, tpm2.TPMECCNistP384)
	if !r.P256 {
		r.find(FaultP256, true, "The TPM has no elliptic curve P-256, which device and attestation keys need.", "update its firmware, or use another TPM")
	}
	return nil
}

// askSRK tells an SRK that was only removed, and comes back the same from the seed, from one
// that a Clear took with its seed.
func (r *Report) askSRK(ctx context.Context, d *Device, known Known) error {
	c, release, err := d.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	var pub *tpm2.TPMTPublic
	var name []byte
	err = d.fit(c, 1, nil, func() (err error) { pub, name, err = readPublic(c, tpm2.TPMHandle(SRKHandle)); return err })
	if errors.Is(err, tpm2.TPMRCHandle) {
		r.SRK.State = "absent"
		return r.askAbsentSRK(c, known)
	}
	if err != nil {
		return commandError("reading the SRK", err)
	}
	r.SRK.Name, r.SRK.NoDA = hex.EncodeToString(name), pub.ObjectAttributes.NoDA
	switch {
	case !isStorage(pub):
		r.SRK.State = "unsuitable"
		r.find(FaultSRK, true, fmt.Sprintf("What lies at the SRK's handle %#x is no storage key of this TPM.", SRKHandle), hintSRK)
		return nil
	case bytes.Equal(blanked(*pub), blanked(tpm2.ECCSRKTemplate)):
		r.SRK.State = "ours"
	default:
		r.SRK.State = "foreign"
	}
	if !r.SRK.NoDA {
		r.find(FaultSRK, false, "The SRK lacks noDA: some power cuts while a key is being loaded lock the TPM.", hintSRKNoDA)
	}
	if known.SRK != nil && !bytes.Equal(known.SRK, name) {
		r.cleared()
	}
	return nil
}

func (r *Report) askAbsentSRK(c *call, known Known) error {
	srk, err := c.d.createPrimary(c, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, nil)
	if err != nil {
		return ownerError("deriving the SRK", err)
	}
	c.d.flush(c, srk.ObjectHandle)
	if known.SRK != nil && !bytes.Equal(known.SRK, srk.Name.Buffer) {
		r.cleared()
	}
	return nil
}

func (r *Report) cleared() {
	r.find(FaultCleared, true, "The TPM was cleared since the device key was made, which is lost with that.", hintCleared)
}

func (r *Report) askEK(ctx context.Context, d *Device, known Known) error {
	name, err := d.EndorsementName(ctx)
	if err != nil {
		return r.endorsementClosed(err)
	}
	r.EKName = hex.EncodeToString(name)
	if known.EK == nil || bytes.Equal(known.EK, name) {
		return nil
	}
	r.Findings = slices.DeleteFunc(r.Findings, func(f Finding) bool { return f.Fault == FaultCleared })
	r.find(FaultCleared, true, "This is another TPM than the one that the device was enrolled with.", hintOtherTPM)
	return nil
}

func (r *Report) endorsementClosed(err error) error {
	if !endorsementClosed(err) {
		return err
	}
	if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Fault == FaultEndorsement }) {
		r.find(FaultEndorsement, false, "The TPM's endorsement hierarchy has a password, or is disabled, so that it cannot prove whose key it holds.", hintEndorsement)
	}
	return nil
}

func (r *Report) askEndorsement(ctx context.Context, d *Device, _ Known) error {
	if err := d.deriveAK(ctx); err != nil {
		return r.endorsementClosed(err)
	}
	r.Attests = true
	eks, err := d.endorsements(ctx)
	if err != nil {
		return err
	}
	certified := false
	for _, e := range eks {
		ek := EKReport{Kind: e.kind.name, Warning: printable(e.warning)}
		if e.parsed != nil {
			certified = true
			ek.Certificate, ek.Index = true, fmt.Sprintf("0x%08x", uint32(e.kind.certificate))
			ek.Issuer, ek.NotAfter = printable(e.parsed.Issuer.String()), e.parsed.NotAfter.UTC()
		}
		if e.warning != "" {
			r.find(FaultEndorsement, false, fmt.Sprintf("The %s endorsement key is not as its maker meant it: %s.", e.kind.name, ek.Warning), hintEKCert)
		}
		r.EKs = append(r.EKs, ek)
	}
	if !certified {
		r.find(FaultEndorsement, false, "The TPM holds no certificate of its maker, so that nothing tells it from one in software.", hintEKCert)
	}
	return nil
}

func (d *Device) deriveAK(ctx context.Context) error {
	c, release, err := d.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	ak, err := d.createPrimary(c, tpm2.TPMRHEndorsement, akTemplate(), nil)
	if err != nil {
		return endorsementError("deriving the attestation key", err)
	}
	d.flush(c, ak.ObjectHandle)
	return nil
}

// printable makes foreign text fit for a terminal.
func printable(s string) string {
	const most = 256
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
