package registrar

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
)

// entitlement is why a device may have a certificate, as it was when it asked. admit judges it
// again by the record, at the moment of issuing.
type entitlement struct {
	device string
	basis  records.Basis
	// added and ends are of a token or order: when it was given out, and until when it is good.
	added, ends time.Time
	shown       string // fingerprint of the certificate that was shown, "" none
	hardware    string // the EK that a factory certificate names, "" none
	sealed      bool   // by files: what is issued is for the TPM's eyes only
}

// entitle finds out what a device asks on the strength of: a token, a certificate, its TPM.
func (r *Registrar) entitle(from caller, q wire.Begin) (entitlement, *wire.Error) {
	switch {
	case q.Token != "":
		return r.byToken(q.Token)
	case len(from.chain) > 0:
		return r.byCertificate(from.chain, q.Device, time.Now())
	case q.Device != "" && !r.NoReturn && records.CheckDevice(q.Device) == nil:
		// Whether there is such a device is told to nobody who has not shown its TPM.
		return entitlement{device: q.Device, basis: records.Return}, nil
	}
	return entitlement{}, &wire.Error{Code: wire.CodeNotEntitled, Text: "neither a token nor a certificate was shown",
		Hint: "get a token: ferrule-factory token add"}
}

func (r *Registrar) byToken(token string) (entitlement, *wire.Error) {
	grant, err := r.Records.Token(token)
	switch {
	case errors.Is(err, records.ErrTokenUnknown):
		return entitlement{}, &wire.Error{Code: wire.CodeTokenUnknown, Text: err.Error(), Hint: "get one with: ferrule-factory token add"}
	case err != nil:
		return entitlement{}, internal(err)
	}
	e := entitlement{device: grant.Device, basis: records.ByToken(records.TokenDigest(token)), added: grant.Added, ends: grant.Expires}
	if time.Now().After(grant.End()) {
		return entitlement{}, tokenExpired(grant.Device, grant.End())
	}
	return e, nil
}

func tokenExpired(device string, end time.Time) *wire.Error {
	return &wire.Error{Code: wire.CodeTokenExpired,
		Text: "the token expired on " + end.Format(time.RFC3339), Hint: "get a new one: ferrule-factory token add",
		Cause: fmt.Errorf("the token of %q expired on %s", device, end.Format(time.RFC3339))}
}

// byCertificate judges a certificate whose key the device has, as TLS has shown. One of our own
// must be on record, to the byte; one of the factory must lead to its authority.
func (r *Registrar) byCertificate(chain []*x509.Certificate, claimed string, now time.Time) (entitlement, *wire.Error) {
	leaf, fingerprint := chain[0], fingerprintOf(chain)
	device := leaf.Subject.CommonName
	if err := records.CheckDevice(device); err != nil {
		return entitlement{}, notEntitled("the certificate names no device", fmt.Errorf("a certificate for %q: %w", device, err))
	}
	if claimed != "" && claimed != device {
		return entitlement{}, notEntitled("the certificate is another device's", fmt.Errorf("%s shows the certificate of %s", claimed, device))
	}
	d, err := r.Records.Device(device)
	if err != nil && !errors.Is(err, records.ErrUnknown) {
		return entitlement{}, internal(err)
	}
	e := entitlement{device: device, shown: fingerprint, basis: records.ByFactory(fingerprint)}
	own := d.Find(fingerprint)
	roots := r.FactoryRoots
	switch {
	case own != nil && own.Factory:
		roots = r.known
	case own != nil:
		roots, e.basis = r.known, records.ByCertificate(own.Serial)
	case roots == nil:
		return entitlement{}, notEntitled("the certificate is not on record here", fmt.Errorf("a certificate of %s that is not on record: %.16s…", device, fingerprint))
	}
	if own == nil || own.Factory {
		e.hardware = ca.HardwareSerial(leaf)
	}
	if err := r.leadsTo(chain, roots, now); err != nil {
		return entitlement{}, notEntitled(distrust(leaf, own != nil, now), fmt.Errorf("the certificate of %s: %w", device, err))
	}
	return e, nil
}

// leadsTo checks a client's chain up to the roots.
func (r *Registrar) leadsTo(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	between := x509.NewCertPool()
	between.AddCert(r.CA.DeviceCA())
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if chain[0].IsCA {
		return errors.New("it is an authority's, not a device's")
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// distrust is what a device is told of a certificate that is not believed.
func distrust(leaf *x509.Certificate, known bool, now time.Time) string {
	switch {
	case now.After(leaf.NotAfter):
		return "the certificate expired on " + leaf.NotAfter.Format(time.RFC3339)
	case known:
		return "the certificate is not believed any more"
	}
	return "the certificate is not of a factory that is trusted here"
}

func notEntitled(text string, cause error) *wire.Error {
	return &wire.Error{Code: wire.CodeNotEntitled, Text: text, Hint: "get a token: ferrule-factory token add", Cause: cause}
}

// fingerprintOf is the SHA-256 of a chain's leaf, hex; "" where there is none.
func fingerprintOf(chain []*x509.Certificate) string {
	if len(chain) == 0 {
		return ""
	}
	return hash(chain[0].Raw)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
