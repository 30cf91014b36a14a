package attest

// Refusal is the error for evidence that is not believed.
type Refusal struct {
	Reason string // a stable word
	Err    error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap gives the error behind it.
func (r *Refusal) Unwrap() error { return r.Err }
