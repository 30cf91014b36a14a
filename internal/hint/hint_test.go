package hint_test

import (
	"errors"
	"fmt"
	"testing"

	"ferrule/internal/hint"
)

func TestOfFindsTheOutermostHint(t *testing.T) {
	cause := errors.New("permission denied")
	err := hint.With(cause, "add the user to group tss")
	if hint.With(nil, "nothing") != nil {
		t.Error("a nil error grew a hint")
	}
	if got := hint.Of(fmt.Errorf("opening TPM: %w", err)); got != "add the user to group tss" {
		t.Errorf("hint behind a wrap: %q", got)
	}
	if got := hint.Of(hint.With(err, "restart the service")); got != "restart the service" {
		t.Errorf("outermost hint: %q", got)
	}
	if got := hint.Of(cause); got != "" {
		t.Errorf("hint of an error without one: %q", got)
	}
	if !errors.Is(err, cause) || err.Error() != cause.Error() {
		t.Error("a hint changed the error it sits on")
	}
}
