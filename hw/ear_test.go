package hw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ferrule/hw/frame"
	"ferrule/hw/nmea"
	"ferrule/hw/port"
	"ferrule/hw/profile"
	"ferrule/hw/text"
	"ferrule/internal/quantity"
)

// memory is a port in memory, for tests in a synctest bubble.
type memory struct {
	mu       sync.Mutex
	bytes    []byte
	deadline time.Time
	changed  chan struct{} // closed when something of the above changed
	written  []byte
	gone     error
	counters port.Counters
	port.Port
}

func newMemory() *memory { return &memory{changed: make(chan struct{})} }

func (m *memory) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

// say has bytes arrive.
func (m *memory) say(s string) { m.set(func() { m.bytes = append(m.bytes, s...) }) }

func (m *memory) Read(p []byte) (int, error) {
	for {
		m.mu.Lock()
		n, deadline, changed, gone := copy(p, m.bytes), m.deadline, m.changed, m.gone
		m.bytes = m.bytes[n:]
		m.mu.Unlock()
		switch {
		case n > 0:
			return n, nil
		case gone != nil:
			return 0, gone
		case !deadline.After(time.Now()):
			return 0, os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-timer.C:
		case <-changed:
		}
		timer.Stop()
	}
}

func (m *memory) Write(p []byte) (int, error) {
	m.set(func() { m.written = append(m.written, p...) })
	return len(p), nil
}

func (m *memory) SetReadDeadline(t time.Time) error {
	m.set(func() { m.deadline = t })
	return nil
}
func (m *memory) SetWriteDeadline(time.Time) error { return nil }
func (m *memory) Close() error                     { return nil }
func (m *memory) Counters() (port.Counters, error) { return m.counters, nil }

// hearing is a line that listens to a port in memory.
type hearing struct {
	*Line
	port  *memory
	polls *pollLog
	stop  func()
}

func listening(t *testing.T, c LineConfig) *hearing {
	t.Helper()
	h := &hearing{port: newMemory(), polls: new(pollLog)}
	line, err := New(c, h.polls.sink, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	line.open = func(_ context.Context, l *Line) (attached, error) {
		work := l.hear(h.port)
		if l.protocol.registers {
			work = l.overhear(h.port)
		}
		return attached{Closer: io.NopCloser(nil), port: h.port, work: work}, nil
	}
	line.await = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	h.Line = line
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- line.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(h.stop)
	wait(3 * time.Second) // so that what comes next is the beginning of a frame
	return h
}

// said is what was reported since the last call, a unit a poll.
func (h *hearing) said() string {
	wait(20 * time.Millisecond)
	var all []string
	for _, p := range h.polls.take() {
		all = append(all, p.Unit+": "+describe(p))
	}
	return strings.Join(all, "; ")
}

func textLine(units ...UnitConfig) LineConfig {
	return LineConfig{Name: "l", Port: "/dev/null", Protocol: "text", Text: &text.Config{Separator: ",", Names: []string{"a", "b"}}, Units: units}
}

func sentence(s string) string {
	sum := byte(0)
	for _, c := range []byte(s) {
		sum ^= c
	}
	return fmt.Sprintf("$%s*%02X\r\n", s, sum)
}

func TestWhoeverSpeaksIsAUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := listening(t, LineConfig{Name: "l", Port: "/dev/null", Protocol: "nmea"})
		h.port.say(sentence("GPHDT,274.07,T") + sentence("PXYZ,1,2"))
		if got := h.said(); got != `GPHDT: heading_true=274.07; PXYZ: f1=1 f2=2` {
			t.Errorf("got %q", got)
		}
		h.port.say("$GPHDT,274.07,T*00\r\n" + sentence("GPHDT,1.5,T"))
		if got := h.said(); !strings.HasPrefix(got, "GPHDT: ") || !strings.HasSuffix(got, "=1.5") {
			t.Errorf("got %q", got)
		}
		s := h.Status()
		if s.Errors["crc"] != 1 || !strings.HasPrefix(s.LastFrame, "244750484454") || s.LastError == "" || s.Wire.(frame.Stats).Checksum != 1 {
			t.Errorf("status after a wrong checksum: %+v", s)
		}
		if s.UART == nil || len(s.Units) != 2 || s.Units[0].Polls != 2 || s.Units[0].State != UnitOK {
			t.Errorf("status: %+v", s)
		}
		wait(talkerHush)
		if got := h.said(); !strings.Contains(got, "PXYZ: f1=!timeout f2=!timeout") || !strings.Contains(got, "GPHDT: heading_true=!timeout") {
			t.Errorf("after %s of silence: %q", talkerHush, got)
		}
		wait(10 * talkerHush)
		if got := h.said(); got != "" {
			t.Errorf("silence was reported again: %q", got)
		}
		h.port.say(sentence("PXYZ,1,2"))
		if got := h.said(); got != "PXYZ: f1=1 f2=2" {
			t.Errorf("got %q", got)
		}
	})
}

// A flood of names, such as noise makes, is bounded.
func TestTalkersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := listening(t, LineConfig{Name: "l", Port: "/dev/null", Protocol: "nmea"})
		for i := range 3 * maxTalkers {
			h.port.say(sentence(fmt.Sprintf("X%04d,1", i)))
			wait(20 * time.Millisecond)
		}
		if n := len(h.Status().Units); n != maxTalkers {
			t.Errorf("%d talkers", n)
		}
		h = listening(t, LineConfig{Name: "l", Port: "/dev/null", Protocol: "text", Text: &text.Config{Separator: ","}})
		h.port.say(strings.Repeat("1,", 3000/2) + "\n")
		wait(time.Second)
		for _, p := range h.polls.take() {
			if len(p.Readings) > maxFound {
				t.Errorf("%d points", len(p.Readings))
			}
		}
	})
}

// With every, the latest of each point is reported in each slot, and nothing twice.
func TestTalkersAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := UnitConfig{Name: "scale", Every: quantity.Duration(time.Second), Points: []profile.Point{
			{Name: "a"}, {Name: "slow", At: "b", Every: quantity.Duration(5 * time.Second)}}}
		h := listening(t, textLine(u))
		var all []string
		for i := range 100 { // ten a second
			h.port.say(fmt.Sprintf("%d,%d\n", i, i))
			wait(100 * time.Millisecond)
			for _, p := range h.polls.take() {
				all = append(all, describe(p))
			}
		}
		if len(all) != 11 && len(all) != 10 {
			t.Errorf("%d reports in 10 s: %q", len(all), all)
		}
		slow := 0
		for i, s := range all[1:] {
			var n int
			if _, err := fmt.Sscanf(s, "a=%d", &n); err != nil || n < 10*i+8 || n > 10*i+10 {
				t.Errorf("report %d is %q", i+1, s)
			}
			if strings.Contains(s, "slow") {
				slow++
			}
		}
		if slow != 1 && slow != 2 {
			t.Errorf("the slow point came %d times in 10 s after the first", slow)
		}
		wait(time.Minute)
		if polls := h.polls.take(); len(polls) > 1 {
			t.Errorf("reports of a silent talker: %v", polls)
		}
		if s := h.Status(); s.MissedSlots != 0 || s.Units[0].Polls != 100 {
			t.Errorf("status: %+v", s)
		}
	})
}

// Whatever mix of talkers and slots: a talker that speaks is reported in each of its slots, not more
// often, and never with a value that it did not say last.
func TestEveryTalkerHasItsSlots(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(r, "talkers")
		every := rapid.SliceOfN(rapid.SampledFrom([]int{0, 50, 200, 1000, 7000}), n, n).Draw(r, "every")
		pace := rapid.SliceOfN(rapid.IntRange(15, 400), n, n).Draw(r, "pace")
		burst := rapid.IntRange(0, 3).Draw(r, "garbage")
		synctest.Test(t, func(t *testing.T) { slots(t, r, every, pace, burst) })
	})
}

func slots(t *testing.T, r *rapid.T, every, pace []int, garbage int) {
	c := textLine()
	c.Text = &text.Config{Pattern: `(?P<unit>\w+)=(?P<v>\d+)`}
	for i, e := range every {
		c.Units = append(c.Units, UnitConfig{Name: fmt.Sprintf("u%d", i), Match: fmt.Sprintf("t%d", i), Every: quantity.Duration(time.Duration(e) * time.Millisecond)})
	}
	h := listening(t, c)
	last, spoken := make([]int, len(every)), make([]int, len(every))
	reports := make([][]time.Time, len(every))
	for ms := 0; ms < 20_000; ms += 5 {
		for i, p := range pace {
			if ms%p < 5 {
				last[i]++
				spoken[i]++
				h.port.say(strings.Repeat("?", garbage) + strings.Repeat("\n", min(garbage, 1)) + fmt.Sprintf("t%d=%d\n", i, last[i]))
			}
		}
		wait(5 * time.Millisecond)
		for _, p := range h.polls.take() {
			i := int(p.Unit[1] - '0')
			if got := p.Readings[0].Value.String(); got != fmt.Sprint(last[i]) && got != fmt.Sprint(last[i]-1) {
				r.Errorf("unit %s is reported as %s, it said %d", p.Unit, got, last[i])
			}
			reports[i] = append(reports[i], p.Time)
		}
	}
	h.stop()
	for i, e := range every {
		// Lines gather for 10 ms; so much a slot may come late.
		period := max(time.Duration(e)*time.Millisecond, time.Duration(pace[i])*time.Millisecond)
		if e == 0 && len(reports[i]) < spoken[i]-1 {
			r.Errorf("u%d spoke %d times and was reported %d times", i, spoken[i], len(reports[i]))
		}
		for k, at := range reports[i] {
			if k == 0 {
				continue
			}
			if gap := at.Sub(reports[i][k-1]); gap > 2*period+50*time.Millisecond {
				r.Errorf("u%d (every %d ms, speaks every %d ms) was not reported for %s", i, e, pace[i], gap)
			}
		}
		if most := 20_000/max(e, 1) + 2; e > 0 && len(reports[i]) > most {
			r.Errorf("u%d was reported %d times, its slots are %d", i, len(reports[i]), most)
		}
	}
}

// A device that has to be asked is asked in slots, and is bad when it answers no more.
func TestTextMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := textLine()
		c.Role = Master
		c.Text.Request, c.Text.Every = "P\r\n", quantity.Duration(2*time.Second)
		h := listening(t, c)
		wait(17*time.Second + time.Millisecond)
		h.port.set(func() {
			if got := string(h.port.written); got != strings.Repeat("P\r\n", 11) {
				t.Errorf("sent %q in 20 s", got)
			}
		})
		h.port.say("1,2\n")
		if got := h.said(); got != "text: a=1 b=2" {
			t.Errorf("got %q", got)
		}
		wait(9 * time.Second)
		if got := h.said(); got != "text: a=!timeout b=!timeout" {
			t.Errorf("got %q", got)
		}
	})
}

// Two talkers without a name and with one are two, and a name is no pattern.
func TestNamesOfTalkersAreNoPatterns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := textLine()
		c.Text = &text.Config{Patterns: []text.Pattern{{Match: `named (?P<v>\d+)`, Unit: "x"}, {Match: `(?P<unit>\S+) (?P<v>\d+)`}, {Match: `(?P<v>\d+)`}}}
		h := listening(t, c)
		h.port.say("1\nnamed 2\n* 3\n4\n")
		if got := h.said(); got != "text: v=1; x: v=2; *: v=3; text: v=4" {
			t.Errorf("got %q", got)
		}
	})
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "GPGGA", true}, {"", "", true}, {"*", "", true}, {"*", "x", true}, {"GPGGA", "GPGGA", true}, {"GPGGA", "GPGG", false},
		{"*GGA", "GPGGA", true}, {"*GGA", "GGA", true}, {"*GGA", "GPGGAX", false}, {"GP*", "GPGGA", true}, {"GP*", "GNGGA", false},
		{"a*a", "a", false}, {"a*a", "aa", true}, {"a*b*c", "abc", true}, {"a*b*c", "axxbyyc", true}, {"a*b*c", "acb", false}, {"**", "q", true},
	} {
		if got := matches(test.pattern, test.name); got != test.want {
			t.Errorf("%q matches %q: %v", test.pattern, test.name, got)
		}
	}
}

// BenchmarkHear is one sentence of a receiver, from its bytes to the sink.
func BenchmarkHear(b *testing.B) {
	hearOne, _ := hearer(b)
	b.ReportAllocs()
	for b.Loop() {
		hearOne()
	}
}

func TestHearingCostsNoAllocation(t *testing.T) {
	hearOne, readings := hearer(t)
	hearOne()
	if n := testing.AllocsPerRun(500, hearOne); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
	if *readings < 500 {
		t.Errorf("%d readings", *readings)
	}
}

// hearer returns what hears one sentence, whose numbers change.
func hearer(t testing.TB) (hearOne func(), readings *int) {
	readings = new(int)
	line, err := New(LineConfig{Name: "l", Port: "/dev/null", Protocol: "nmea", Units: []UnitConfig{{Name: "other", Match: "*GSV"}, {Name: "gps", Match: "G*RMC"}}},
		func(_ context.Context, p Poll) error { *readings += len(p.Readings); return nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	line.cameUp(nil)
	ear := &talk{line: line, cutter: frame.NewCutter(nmea.Split, nmea.MaxFrame), decoder: new(nmea.Decoder)}
	s := &listener{Line: line, ear: ear}
	both := []string{sentence("GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W"), sentence("GPRMC,123520,A,4807.039,N,01131.001,E,022.5,084.5,230394,003.1,W")}
	n := 0
	ctx := t.Context()
	return func() {
		now := time.Now()
		n++
		ear.feed(ctx, []byte(both[n%2]), now)
		s.noteWire(ctx)
		s.remind(ctx, now)
		s.wake(now)
	}, readings
}
