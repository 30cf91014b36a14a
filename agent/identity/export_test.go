package identity

import (
	"context"

	"ferrule/agent/enroll"
)

// Stub puts a function in the place of the service, and of the dice.
func (o Options) Stub(f func(context.Context, enroll.Config, enroll.Request) (enroll.Result, error), random func() float64) Options {
	o.enroll, o.random = f, random
	return o
}

// RenewNow is one attempt of Run, without Run.
func (i *Identity) RenewNow(ctx context.Context, e enroll.Config, rekey bool) error {
	i.mu.Lock()
	i.state.terms = e.Due
	i.mu.Unlock()
	r := &runner{Identity: i, enroll: e}
	return r.renew(ctx, rekey)
}

// RotationBegun reports whether a new key waits for its certificate.
func (i *Identity) RotationBegun() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state.rekey
}
