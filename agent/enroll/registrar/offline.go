package registrar

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"
)

// MaxCollected bounds the file of a Collected, in bytes.
const MaxCollected = wire.MaxBody

// NewOrder makes the order of one device. Like a token it entitles to one certificate for one
// key: whoever can put an order among those of a batch can have a certificate.
func NewOrder(device string) (wire.Order, error) {
	if err := records.CheckDevice(device); err != nil {
		return wire.Order{}, err
	}
	nonce := make([]byte, nonceBytes)
	_, err := rand.Read(nonce)
	return wire.Order{Version: wire.Version, Device: device, Nonce: nonce}, err
}

// ReadOrder reads the order of device as NewOrder made it.
func ReadOrder(device string, text []byte) (wire.Order, error) {
	var o wire.Order
	if err := json.Unmarshal(text, &o); err != nil {
		return o, fmt.Errorf("reading the order: %w", err)
	}
	switch {
	case o.Version != wire.Version:
		return o, fmt.Errorf("the order is of version %d, and %d is known", o.Version, wire.Version)
	case o.Device != device || records.CheckDevice(device) != nil:
		return o, fmt.Errorf("the order is for device %q", o.Device)
	case len(o.Nonce) != nonceBytes:
		return o, fmt.Errorf("the order has a nonce of %d bytes", len(o.Nonce))
	}
	return o, nil
}

// Deliver answers what a device collected for an order of ours, given out at added: its
// certificate, sealed for the TPM that gave the evidence. All rules are those of an enrollment
// over the network but one: that the TPM can open the challenge shows when the device comes to
// read its certificate, which nobody else can. The error is a *wire.Error.
func (r *Registrar) Deliver(ctx context.Context, order wire.Order, added time.Time, text []byte) (wire.Delivery, error) {
	collected, err := parseCollected(order, text)
	if err != nil {
		return wire.Delivery{}, &wire.Error{Code: wire.CodeMalformed, Text: err.Error(), Hint: hint.Of(err)}
	}
	e := entitlement{device: order.Device, basis: records.ByOrder(hash(order.Nonce)), added: added, ends: time.Now().Add(issueTimeout), sealed: true}
	d, err := r.Records.Device(order.Device)
	if err != nil && !errors.Is(err, records.ErrUnknown) {
		return wire.Delivery{}, internal(err)
	}
	x, refused := r.examine(collected.Evidence, order.Nonce, &d, e)
	if refused != nil {
		return wire.Delivery{}, refused
	}
	challenge, secret, err := x.challenge()
	if err != nil {
		return wire.Delivery{}, internal(err)
	}
	c, refused := r.issue(ctx, e, x)
	if refused != nil {
		return wire.Delivery{}, refused
	}
	sealed, err := x.claim.Seal(secret, x.evidence, challenge, []byte(c.Chain))
	if err != nil {
		return wire.Delivery{}, internal(err)
	}
	sum := sha256.Sum256(text)
	return wire.Delivery{Version: wire.Version, Device: order.Device, Serial: c.Serial, Evidence: sum[:],
		Challenge: wire.Item{Kind: wire.KindCredential, Data: challenge}, Sealed: sealed}, nil
}

func parseCollected(order wire.Order, text []byte) (wire.Collected, error) {
	var c wire.Collected
	if len(text) > MaxCollected {
		return c, fmt.Errorf("the evidence has %d bytes", len(text))
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("reading the evidence: %w", err)
	}
	const again = "have the device collect again, for the order that is here"
	switch {
	case c.Version != wire.Version:
		return c, hint.With(fmt.Errorf("the evidence is of version %d, and %d is known", c.Version, wire.Version), "update the older of the two")
	case c.Device != order.Device:
		return c, hint.With(fmt.Errorf("the evidence is of device %q", c.Device), again)
	case len(order.Nonce) == 0 || subtle.ConstantTimeCompare(c.Nonce, order.Nonce) != 1:
		return c, hint.With(errors.New("the evidence is for another order"), again)
	}
	return c, nil
}
