// Package hint lets an error carry its repair, so that whoever prints the error can tell
// the user what to do next. The hint never changes what errors.Is and errors.As see.
package hint

import "errors"

// With returns err carrying hint as its repair; a nil err stays nil.
func With(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err: err, hint: hint}
}

// Of returns the outermost hint in the chain of err, or "" where there is none.
func Of(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	return ""
}

type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }
