package registrar

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
)

const nonceBytes = 32

// begin opens an enrollment for whoever is entitled to it.
func (r *Registrar) begin(_ context.Context, from caller, q wire.Begin) (wire.Begun, *wire.Error) {
	if !slices.Contains(q.Versions, wire.Version) {
		return wire.Begun{}, &wire.Error{Code: wire.CodeVersion, Text: fmt.Sprintf("this registrar speaks version %d", wire.Version), Hint: "update the older of the two"}
	}
	if refused := r.sessions.allow(from.source); refused != nil {
		return wire.Begun{}, refused
	}
	e, refused := r.entitle(from, q)
	if refused != nil {
		return wire.Begun{}, refused
	}
	require, err := r.require(e)
	if err != nil {
		return wire.Begun{}, internal(err)
	}
	nonce := make([]byte, nonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		return wire.Begun{}, internal(err)
	}
	name, err := r.sessions.add(&session{entitlement: e, nonce: nonce, source: from.source, peer: fingerprintOf(from.chain)})
	if err != nil {
		return wire.Begun{}, internal(err)
	}
	return wire.Begun{Version: wire.Version, Session: name, Nonce: nonce, Device: e.device, Require: require}, nil
}

// require lists what a device has to show. One that has shown a TPM once has to do so always.
func (r *Registrar) require(e entitlement) ([]string, error) {
	kinds := []string{wire.KindCSR}
	if !r.AllowSoftwareKeys || e.basis == records.Return || e.hardware != "" {
		return append(kinds, wire.KindTPM), nil
	}
	d, err := r.Records.Device(e.device)
	if err != nil && !errors.Is(err, records.ErrUnknown) {
		return nil, err
	}
	if d.EK != "" {
		kinds = append(kinds, wire.KindTPM)
	}
	return kinds, nil
}

// evidence examines what a device shows, and challenges its TPM where it shows one. What is
// refused in the end is refused here already where that can be told.
func (r *Registrar) evidence(_ context.Context, from caller, q wire.Evidence) (answer wire.Challenged, refused *wire.Error) {
	s, refused := r.sessions.step(q.Session, from, begun, examining)
	if refused != nil {
		return wire.Challenged{}, refused
	}
	defer func() {
		if refused == nil {
			return
		}
		r.sessions.drop(q.Session)
		if refused.Cause == nil {
			refused.Cause = fmt.Errorf("device %s: %s", s.device, refused.Text)
		}
	}()
	d, err := r.Records.Device(s.device)
	if err != nil && !errors.Is(err, records.ErrUnknown) {
		return wire.Challenged{}, internal(err)
	}
	x, refused := r.examine(q.Evidence, s.nonce, &d, s.entitlement)
	if refused != nil {
		return wire.Challenged{}, refused
	}
	if _, refused := r.admit(&d, s.entitlement, x, time.Now()); refused != nil {
		return wire.Challenged{}, refused
	}
	if x.proof == nil {
		r.sessions.challenge(s, x, nil)
		return wire.Challenged{Challenges: []wire.Item{}}, nil
	}
	challenge, secret, err := x.challenge()
	if err != nil {
		return wire.Challenged{}, internal(err)
	}
	expected := x.claim.Answer(secret, x.evidence, challenge)
	x.evidence, x.proof = nil, nil // 64 KiB that a waiting session need not hold
	r.sessions.challenge(s, x, expected)
	return wire.Challenged{Challenges: []wire.Item{{Kind: wire.KindCredential, Data: challenge}}}, nil
}

// finish issues the certificate to the TPM that answers the challenge. Whatever comes of it,
// the session is over: an answer that was lost is asked for by a new enrollment.
func (r *Registrar) finish(ctx context.Context, from caller, q wire.Finish) (wire.Issued, *wire.Error) {
	s, refused := r.sessions.step(q.Session, from, challenged, finished)
	if refused != nil {
		return wire.Issued{}, refused
	}
	r.sessions.drop(q.Session)
	if refused := checkAnswer(s.answer, q.Answers); refused != nil {
		refused.Cause = fmt.Errorf("device %s: %s", s.device, refused.Text)
		return wire.Issued{}, refused
	}
	c, refused := r.issue(ctx, s.entitlement, s.request)
	if refused != nil {
		return wire.Issued{}, refused
	}
	return wire.Issued{Chain: c.Chain, Serial: c.Serial}, nil
}

// checkAnswer compares in constant time. Kinds that were not asked for are ignored.
func checkAnswer(want []byte, answers []wire.Item) *wire.Error {
	if want == nil {
		return nil
	}
	said, several := only(answers, wire.KindActivation)
	switch {
	case several:
		return &wire.Error{Code: wire.CodeAttestation, Text: "there is more than one answer to the challenge", Hint: "begin again"}
	case said == nil:
		return &wire.Error{Code: wire.CodeAttestation, Text: "the answer to the challenge is missing", Hint: "begin again"}
	case !hmac.Equal(said, want):
		return &wire.Error{Code: wire.CodeAttestation, Text: "the TPM did not open the challenge", Hint: "the key and the endorsement key are not in one TPM, or it was cleared meanwhile: begin again"}
	}
	return nil
}

// only returns the data of the one item of a kind, or whether there are several.
func only(items []wire.Item, kind string) (data []byte, several bool) {
	found := false
	for _, item := range items {
		if item.Kind != kind {
			continue
		}
		if found {
			return nil, true
		}
		data, found = item.Data, true
		if data == nil {
			data = []byte{}
		}
	}
	return data, false
}
