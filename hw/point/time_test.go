package point

import (
	"testing"
	"time"
)

func TestTimeForms(t *testing.T) {
	berlin := time.FixedZone("", 3600)
	at := time.Date(2026, 11, 21, 0, 30, 5, 125_000_000, berlin)
	before1970 := time.Date(1969, 12, 31, 23, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		v    Value
		want string
	}{
		{Time(at, UTC), `"2026-11-20T23:30:05.125Z"`},
		{Time(at, Local), `"2026-11-21T00:30:05.125"`},
		{Time(at, Date), `"2026-11-21"`},
		{Time(at, TimeOfDay), `"00:30:05.125"`},
		{Time(before1970, Date), `"1969-12-31"`},
		{Time(before1970, TimeOfDay), `"23:00:00"`},
	} {
		if got := string(c.v.AppendJSON(nil)); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
	if Time(at, Date) != Time(at.Add(time.Hour), Date) || Time(at, UTC) == Time(at, Local) {
		t.Error("equal times must be equal values, and only they")
	}
	if _, _, ok := Int(1).Time(); ok {
		t.Error("an integer is no time")
	}
	var dst [64]byte
	if n := testing.AllocsPerRun(100, func() { Time(at, UTC).AppendJSON(dst[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStringsHoldABoundedNumber(t *testing.T) {
	var s Strings
	word := []byte("GPGGA")
	s.Of(word)
	if n := testing.AllocsPerRun(100, func() { s.Of(word) }); n != 0 {
		t.Errorf("%v allocations for a known word", n)
	}
	for i := range 3 * maxStrings {
		s.Of([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	long := make([]byte, 10*maxString)
	if got := s.Of(long); got != string(long) || len(s.known) > maxStrings || s.known[got] != "" {
		t.Errorf("%d strings are held, long ones too", len(s.known))
	}
}
