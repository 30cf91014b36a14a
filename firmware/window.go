package firmware

import (
	"fmt"
	"time"

	"ferrule/internal/hint"
)

// Window is a time of day, local time; the zero Window is always open. It is judged by the clock
// on the wall: in the night that clocks go back an hour in it comes twice, and in the one that
// they go forward a window that lies within the missing hour does not open.
type Window struct {
	from, to int // minutes since midnight; to is not in it
	set      bool
}

// scan is how far Next looks ahead: the day of the change of clocks, and one more.
const scan = 50 * time.Hour

// UnmarshalText implements encoding.TextUnmarshaler: "22:30-04:00".
func (w *Window) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*w = Window{}
		return nil
	}
	fh, fm, th, tm, ok := clocks(string(text))
	if !ok || fh > 23 || fm > 59 || th > 24 || tm > 59 || th == 24 && tm > 0 {
		return hint.With(fmt.Errorf("%q is not a window", text), `write it as "02:00-04:00", in local time`)
	}
	next := Window{from: fh*60 + fm, to: (th*60 + tm) % (24 * 60), set: true}
	if next.from == next.to && th != 24 {
		return hint.With(fmt.Errorf("the window %q is empty", text), `leave it out to have updates at any time`)
	}
	*w = next
	return nil
}

// clocks reads 02:00-04:00.
func clocks(text string) (fh, fm, th, tm int, ok bool) {
	if len(text) != len("02:00-04:00") || text[2] != ':' || text[5] != '-' || text[8] != ':' {
		return 0, 0, 0, 0, false
	}
	var n [4]int
	for i := range n {
		tens, ones := text[3*i]-'0', text[3*i+1]-'0'
		if tens > 9 || ones > 9 {
			return 0, 0, 0, 0, false
		}
		n[i] = int(tens)*10 + int(ones)
	}
	return n[0], n[1], n[2], n[3], true
}

// MarshalText implements encoding.TextMarshaler.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

func (w Window) String() string {
	if !w.set {
		return ""
	}
	return fmt.Sprintf("%02d:%02d-%02d:%02d", w.from/60, w.from%60, w.to/60, w.to%60)
}

// Open reports whether t, in its own location, is in the window.
func (w Window) Open(t time.Time) bool {
	if !w.set || w.from == w.to {
		return true
	}
	at := t.Hour()*60 + t.Minute()
	if w.from < w.to {
		return at >= w.from && at < w.to
	}
	return at >= w.from || at < w.to
}

// Next returns the first minute from t on that is in the window.
func (w Window) Next(t time.Time) time.Time {
	for at := t; at.Before(t.Add(scan)); at = at.Truncate(time.Minute).Add(time.Minute) {
		if w.Open(at) {
			return at
		}
	}
	return t.Add(scan)
}
