package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ferrule/agent/enroll"
	"ferrule/tpm"
	"ferrule/tpm/attest"
)

// attester is the evidence of one enrollment: it keeps what was said, because the answer to
// the challenge is made over every byte of it.
type attester struct {
	key      tpm.Attester
	claim    attest.Claim
	evidence []byte
}

// attesterOf is nil for a key whose holder proves nothing.
func attesterOf(key tpm.DeviceKey) enroll.Attester {
	if a, ok := key.(tpm.Attester); ok {
		return &attester{key: a}
	}
	return nil
}

// Evidence implements enroll.Attester: the JSON of an attest.Evidence.
func (a *attester) Evidence(ctx context.Context, nonce []byte, device string, csr []byte) ([]byte, error) {
	claim := attest.Claim{Nonce: nonce, Device: device, CSR: csr}
	e, err := a.key.Attest(ctx, claim.Qualify())
	if err != nil {
		return nil, fmt.Errorf("attesting the key: %w", err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("attesting the key: %w", err)
	}
	a.claim, a.evidence = claim, text
	return text, nil
}

// Answer implements enroll.Attester.
func (a *attester) Answer(ctx context.Context, challenge []byte) ([]byte, error) {
	secret, err := a.activate(ctx, challenge)
	if err != nil {
		return nil, err
	}
	return a.claim.Answer(secret, a.evidence, challenge), nil
}

func (a *attester) activate(ctx context.Context, challenge []byte) ([]byte, error) {
	if a.evidence == nil {
		return nil, errors.New("answering a challenge before any evidence was given")
	}
	c, err := attest.ParseChallenge(challenge)
	if err != nil {
		return nil, fmt.Errorf("reading the challenge: %w", err)
	}
	secret, err := a.key.Activate(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("opening the challenge: %w", err)
	}
	return secret, nil
}
