package agent

import (
	"errors"
	"testing"

	"ferrule/internal/hint"
)

// One process enrolls, one runs, and neither keeps the other out.
func TestLocks(t *testing.T) {
	dir := t.TempDir()
	running, err := lockState(dir)
	if err != nil || running == nil {
		t.Fatal(err)
	}
	defer running.Close()
	enrolling, err := LockEnrollment(dir)
	if err != nil {
		t.Fatalf("beside a running agent: %v", err)
	}
	if _, err := LockEnrollment(dir); !errors.Is(err, ErrEnrolling) || hint.Of(err) == "" {
		t.Errorf("a second enrollment: %v", err)
	}
	if _, err := lockState(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("a second agent: %v", err)
	}
	if err := enrolling.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := LockEnrollment(dir)
	if err != nil {
		t.Fatalf("after it ended: %v", err)
	}
	_ = again.Close()
	if _, err := LockEnrollment(dir + "/absent"); err == nil {
		t.Error("an enrollment without a state directory")
	}
}
