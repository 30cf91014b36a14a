package session

import (
	"testing"
	"time"
)

func TestBackoffGrowsUnlessTheBrokerIsThere(t *testing.T) {
	bound := func(failures int) time.Duration { return backoff(max(failures-1, 0), 1) }
	dead, flapping := 0, 0
	for range 20 {
		dead, flapping = failed(dead, time.Second, false), failed(flapping, time.Second, true)
	}
	if bound(dead) != time.Minute || bound(flapping) != 16*time.Second {
		t.Errorf("after 20 short connections: %v without an acknowledgement, %v with one", bound(dead), bound(flapping))
	}
	if n := failed(dead, steady, true); bound(n) != 2*time.Second {
		t.Errorf("after a steady connection: %v", bound(n))
	}
	if backoff(0, 0) != 0 || backoff(63, 0.5) != 30*time.Second {
		t.Errorf("jitter: %v, %v", backoff(0, 0), backoff(63, 0.5))
	}
}
