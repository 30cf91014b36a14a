package quantity_test

import (
	"testing"
	"time"

	"ferrule/internal/quantity"
)

func TestSizeReadsWhatItWrites(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "512B": 512, "64KiB": 64 << 10, "256 MiB": 256 << 20, "2GiB": 2 << 30,
	} {
		var s, again quantity.Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s.Bytes() != want {
			t.Errorf("%q: %d, %v; want %d", text, s.Bytes(), err, want)
		}
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%q written as %q reads as %d, %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MiB", "64kb", "9999999999999GiB", "1 2"} {
		var s quantity.Size
		if s.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q was accepted as %d", text, s)
		}
	}
}

func TestDurationRefusesWhatMeansNothing(t *testing.T) {
	var d quantity.Duration
	if err := d.UnmarshalText([]byte("1m30s")); err != nil || d.Std() != 90*time.Second {
		t.Errorf("1m30s: %v, %v", d, err)
	}
	for _, text := range []string{"", "5", "-1s", "soon"} {
		if d.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
