package registrar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
)

// askedAgain is how long a device that lost the answer may fetch the same certificate by what
// entitles time and again: after that it asks because the certificate did it no good.
const askedAgain = 15 * time.Minute

// issue gives an entitled device with believed evidence its certificate: durable before it
// returns, and the same one to the same request.
func (r *Registrar) issue(ctx context.Context, e entitlement, x *examined) (records.Certificate, *wire.Error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	var issued records.Certificate
	event := "certificate issued"
	err := r.Records.Update(ctx, e.device, func(d *records.Device) (bool, error) {
		now := time.Now().UTC()
		again, refused := r.admit(d, e, x, now)
		if refused != nil {
			return false, refused
		}
		if again != nil {
			issued, event = *again, "certificate given again"
			return false, nil
		}
		fresh, err := r.obtain(ctx, e, x)
		if err != nil {
			return false, &wire.Error{Code: wire.CodeBackend, Text: "the CA behind the registrar did not issue", Hint: "try again later; the registrar's log says why",
				Cause: fmt.Errorf("issuing to %s by %s: %w", e.device, r.Issuer.Name(), err)}
		}
		fresh.Issued = now
		record(d, e, x, now)
		if err := d.Add(fresh, now); err != nil {
			return false, notEntitled(err.Error(), fmt.Errorf("device %s: %w", e.device, err))
		}
		issued = fresh
		return true, nil
	})
	if refused := asRefusal(e.device, err); refused != nil {
		return records.Certificate{}, refused
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, event, slog.String("device", e.device), slog.String("serial", issued.Serial),
		slog.String("basis", issued.Basis.Kind()), slog.Bool("weak", x.ek == ""), slog.Bool("first_use", x.firstUse), slog.String("issuer", issued.Issuer))
	return issued, nil
}

// asRefusal is what the device is told, and the log says of it.
func asRefusal(device string, err error) *wire.Error {
	if err == nil {
		return nil
	}
	if refused, ok := errors.AsType[*wire.Error](err); ok {
		return refused
	}
	if taken, ok := errors.AsType[*records.Taken](err); ok {
		return ekTaken(device, taken)
	}
	return internal(err)
}

func ekTaken(device string, t *records.Taken) *wire.Error {
	return &wire.Error{Code: wire.CodeEKTaken, Text: "this TPM is enrolled as another device",
		Hint: "if that device is no more, free its TPM: ferrule-factory revoke --release", Cause: fmt.Errorf("device %s: %w", device, t)}
}

// record notes what the evidence has shown of the device.
func record(d *records.Device, e entitlement, x *examined, now time.Time) {
	d.ID, d.Weak = e.device, x.ek == ""
	if shown := d.Find(e.shown); e.shown != "" && shown != nil {
		shown.Sealed = false // it could be opened: the device has shown it
	}
	if x.ek == "" {
		return
	}
	// An EK that was vouched for stays so: its certificate is not asked for a second time.
	d.FirstUse = x.firstUse && (d.EK == "" || d.FirstUse)
	d.EK = x.ek
	if x.chip != (records.TPM{}) {
		d.TPM = x.chip
	}
}

// admit says whether the record lets this request have a certificate: the one it has already, or
// nil for a new one.
func (r *Registrar) admit(d *records.Device, e entitlement, x *examined, now time.Time) (*records.Certificate, *wire.Error) {
	if out := d.Out(); !out.IsZero() && !(e.basis.Once() && e.added.After(out)) {
		return nil, notEntitled("the device was revoked", fmt.Errorf("device %s was revoked on %s", d.ID, out.Format(time.RFC3339)))
	}
	if refused := r.admitTPM(d, e, x); refused != nil {
		return nil, refused
	}
	if e.shown != "" {
		if refused := r.admitShown(d, e); refused != nil {
			return nil, refused
		}
	}
	prior := d.Issued(e.basis)
	switch {
	case prior != nil && prior.Factory != r.Factory:
		prior = nil
	case prior != nil && prior.PublicKey != x.key && !e.basis.Once():
		prior = nil
	}
	if e.basis.Once() {
		return admitOnce(e, prior, x, now)
	}
	if prior == nil || prior.State != records.Current || !r.stillGood(prior, now) {
		return nil, nil
	}
	return prior, nil
}

// stillGood reports whether a certificate answers the same request once more.
func (r *Registrar) stillGood(c *records.Certificate, now time.Time) bool {
	if c.Basis.Renewal() {
		return c.NotAfter.Sub(now) > c.NotAfter.Sub(c.Issued)/2
	}
	return now.Sub(c.Issued) < askedAgain && now.Before(c.NotAfter)
}

// admitOnce: a token is good for one key, for as long as the certificate is.
func admitOnce(e entitlement, prior *records.Certificate, x *examined, now time.Time) (*records.Certificate, *wire.Error) {
	used := func(text string) *wire.Error {
		return &wire.Error{Code: wire.CodeTokenUsed, Text: text, Hint: "if this device lost its key, get a new token: ferrule-factory token add",
			Cause: fmt.Errorf("%s: %s", e.device, text)}
	}
	switch {
	case prior == nil && now.After(e.ends):
		return nil, tokenExpired(e.device, e.ends)
	case prior == nil:
		return nil, nil
	case prior.PublicKey != x.key:
		return nil, used("the token was used already, with another key")
	case prior.State != records.Current:
		return nil, used("the token was used already, and its certificate has been replaced since")
	case now.After(prior.NotAfter):
		return nil, tokenExpired(e.device, prior.NotAfter)
	}
	return prior, nil
}

// admitTPM: one EK, one device, in both directions.
func (r *Registrar) admitTPM(d *records.Device, e entitlement, x *examined) *wire.Error {
	if e.basis == records.Return && (x.ek == "" || d.EK != x.ek) {
		return notEntitled("this TPM is not known as that device", fmt.Errorf("a TPM with EK %.16s… wants to return as %s, which has EK %.16s…", x.ek, e.device, d.EK))
	}
	if x.ek == "" {
		if d.EK != "" {
			return badEvidence("this device was enrolled with its TPM, whose evidence is missing", "")
		}
		return nil
	}
	if d.EK != "" && d.EK != x.ek {
		return &wire.Error{Code: wire.CodeEKTaken, Text: "this device is enrolled with another TPM",
			Hint:  "if its board was replaced, free the id: ferrule-factory revoke --release, then add a token",
			Cause: fmt.Errorf("device %s has EK %.16s…, and now comes with %.16s…", e.device, d.EK, x.ek)}
	}
	if e.hardware != "" && e.hardware != x.ek {
		return &wire.Error{Code: wire.CodeEKTaken, Text: "the factory certificate names another TPM", Hint: "its board was replaced: get a token: ferrule-factory token add",
			Cause: fmt.Errorf("the factory certificate of %s names EK %.16s…, and it comes with %.16s…", e.device, e.hardware, x.ek)}
	}
	holder, err := r.Records.Holder(x.ek)
	switch {
	case err != nil:
		return internal(err)
	case holder != "" && holder != e.device:
		return ekTaken(e.device, &records.Taken{EK: x.ek, Device: holder})
	}
	return nil
}

// admitShown judges a certificate that was shown by what has become of it.
func (r *Registrar) admitShown(d *records.Device, e entitlement) *wire.Error {
	c := d.Find(e.shown)
	switch {
	case c == nil:
		return nil // a factory's whose records are elsewhere
	case !c.Revoked.IsZero():
		return notEntitled("the certificate was revoked", fmt.Errorf("certificate %s of %s was revoked on %s", c.Serial, d.ID, c.Revoked.Format(time.RFC3339)))
	case c.State == records.Superseded:
		return notEntitled("the certificate was replaced by a newer one", fmt.Errorf("certificate %s of %s was replaced", c.Serial, d.ID))
	case r.Factory && !c.Factory:
		return notEntitled("an operational certificate does not entitle to one of the factory", fmt.Errorf("certificate %s of %s", c.Serial, d.ID))
	}
	return nil
}
