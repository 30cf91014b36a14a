package mbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"ferrule/hw/point"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// litres is a record: a volume of n litres.
func litres(n byte) []byte { return []byte{0x01, 0x13, n} }

func read(t *testing.T, m *Master, a Address) []point.Reading {
	t.Helper()
	telegrams, err := m.Read(context.Background(), a)
	if err != nil {
		t.Fatalf("unit %s: %v", a, err)
	}
	var d Decoder
	_, readings, err := d.Decode(nil, telegrams...)
	if err != nil {
		t.Fatalf("unit %s: %v", a, err)
	}
	return readings[:len(readings)-1] // without the status
}

func wantLitres(t *testing.T, readings []point.Reading, litres ...float64) {
	t.Helper()
	var got []float64
	for _, r := range readings {
		f, _ := r.Value.Float64()
		got = append(got, f*1000)
	}
	if !slices.Equal(got, litres) {
		t.Errorf("got %v litres, want %v", got, litres)
	}
}

func TestMasterTogglesTheFrameCountBit(t *testing.T) {
	meter := newMeter(5, 0x12345678, litres(1))
	_, m := newMemory(meter, newMeter(6, 1, litres(2)))
	for range 3 {
		wantLitres(t, read(t, m, Primary(5)), 1)
		wantLitres(t, read(t, m, Primary(6)), 2)
	}
	if want := []C{SndNKE, ReqUD2 | fcb, ReqUD2, ReqUD2 | fcb}; !slices.Equal(meter.requests, want) {
		t.Errorf("asked % X, want % X", meter.requests, want)
	}
	if s := m.Stats(); s.Requests != 8 || s.Responses != 8 || s.Timeouts+s.Checksum+s.Garbage+s.Foreign+s.Late+s.Drained != 0 {
		t.Errorf("%+v", s)
	}
}

// What is lost on its way is asked for once more with the same bit, and so not skipped; when that fails
// too, or was long ago, the link is reset.
func TestMasterRepeatsWithTheSameBit(t *testing.T) {
	meter := newMeter(5, 0x12345678, litres(1))
	p, m := newMemory(meter)
	ctx := context.Background()
	read(t, m, Primary(5))
	lose := 0
	p.tamper = func(_, answer []byte) []byte {
		if lose--; lose >= 0 {
			return nil
		}
		return answer
	}
	for _, test := range []struct {
		lose  int
		later time.Duration
		want  []C
	}{
		{1, 0, []C{ReqUD2, ReqUD2}},
		{0, 0, []C{SndNKE, ReqUD2 | fcb}}, // two answers may be under way, one came
		{0, 0, []C{ReqUD2}},
		{2, 0, []C{ReqUD2 | fcb, ReqUD2 | fcb, SndNKE, ReqUD2 | fcb}},
		{1, time.Minute, []C{ReqUD2, SndNKE, ReqUD2 | fcb}},
		{0, time.Minute, []C{ReqUD2}},
	} {
		lose, meter.requests = test.lose, nil
		for range test.lose {
			if _, err := m.Read(ctx, Primary(5)); !errors.Is(err, ErrTimeout) {
				t.Errorf("got %v, want a timeout", err)
			}
			p.clock = p.clock.Add(test.later)
		}
		read(t, m, Primary(5))
		if !slices.Equal(meter.requests, test.want) {
			t.Errorf("%d lost: asked % X, want % X", test.lose, meter.requests, test.want)
		}
	}
}

func TestMasterReadsSeveralTelegrams(t *testing.T) {
	meter := newMeter(5, 0x12345678, litres(1), litres(2), litres(3))
	p, m := newMemory(meter)
	for range 2 {
		readings := read(t, m, Primary(5))
		wantLitres(t, readings, 1, 2, 3)
		if readings[2].Point != "volume_3" {
			t.Errorf("the third is called %q", readings[2].Point)
		}
	}
	// An answer that is lost in the middle: the next read-out begins anew.
	count := 0
	p.tamper = func(_, answer []byte) []byte {
		if count++; count == 3 {
			return nil
		}
		return answer
	}
	if _, err := m.Read(context.Background(), Primary(5)); !errors.Is(err, ErrTimeout) {
		t.Fatal(err)
	}
	wantLitres(t, read(t, m, Primary(5)), 1, 2, 3)
}

func TestMasterBoundsTelegrams(t *testing.T) {
	var bodies [][]byte
	for i := range 20 {
		bodies = append(bodies, litres(byte(i)))
	}
	_, m := newMemory(newMeter(5, 0x12345678, bodies...))
	if _, err := m.Read(context.Background(), Primary(5)); !errors.Is(err, ErrTooLong) {
		t.Errorf("got %v", err)
	}
}

// A unit that missed the toggled bit repeats its telegram. It is not taken for the next.
func TestMasterKnowsARepeatedTelegram(t *testing.T) {
	meter := newMeter(5, 0x12345678, litres(1), litres(2))
	p, m := newMemory(meter)
	var first []byte
	p.tamper = func(_, answer []byte) []byte {
		switch {
		case len(answer) > 1 && first == nil:
			first = bytes.Clone(answer)
		case len(answer) > 1:
			return append(bytes.Clone(first), answer...) // a late duplicate, then the answer
		}
		return answer
	}
	wantLitres(t, read(t, m, Primary(5)), 1, 2)
	if m.Stats().Late != 1 {
		t.Errorf("%+v", m.Stats())
	}
}

func TestMasterTellsFaultsApart(t *testing.T) {
	other, _ := AppendLong(nil, RspUD, 9, ciVariable, append(make([]byte, headerSize), litres(9)...))
	for name, test := range map[string]struct {
		tamper func(request, answer []byte) []byte
		want   error
	}{
		"silence":         {func(_, _ []byte) []byte { return nil }, ErrTimeout},
		"a flipped bit":   {func(_, a []byte) []byte { a = bytes.Clone(a); a[12] ^= 4; return a }, ErrChecksum},
		"noise":           {func(_, _ []byte) []byte { return []byte{0x00, 0xFF, 0x3C} }, ErrGarbage},
		"half a frame":    {func(_, a []byte) []byte { return a[:len(a)/2] }, ErrGarbage},
		"another unit":    {func(_, _ []byte) []byte { return other }, ErrMismatch},
		"a stray E5":      {func(_, _ []byte) []byte { return []byte{ack} }, ErrMismatch},
		"the request":     {func(r, _ []byte) []byte { return r }, ErrTimeout},
		"another master":  {func(_, _ []byte) []byte { return AppendShort(nil, ReqUD2, 7) }, ErrTimeout},
		"no RSP_UD":       {func(_, a []byte) []byte { return AppendShort(nil, 0x0B, 5) }, ErrMismatch},
		"a single 0 byte": {func(_, _ []byte) []byte { return []byte{0} }, ErrGarbage},
	} {
		t.Run(name, func(t *testing.T) {
			p, m := newMemory(newMeter(5, 0x12345678, litres(1)))
			read(t, m, Primary(5))
			p.tamper, p.waited = test.tamper, 0
			_, err := m.Read(context.Background(), Primary(5))
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			var wrong *FrameError
			if errors.As(err, &wrong) != (test.want != ErrTimeout) || wrong != nil && (len(wrong.Frame) == 0 || len(wrong.Frame) > 256) {
				t.Errorf("%#v", wrong)
			}
			if longest := m.timeout() + m.gap() + time.Second/2; p.waited > longest {
				t.Errorf("waited for %v, want at most %v", p.waited, longest)
			}
			p.tamper = nil
			wantLitres(t, read(t, m, Primary(5)), 1)
		})
	}
}

// Whatever comes before it, a sound answer of the right unit in time is one.
func TestMasterFindsTheAnswerBehindNoise(t *testing.T) {
	p, m := newMemory(newMeter(5, 0x12345678, litres(1)))
	p.echo = true
	read(t, m, Primary(5))
	for _, noise := range [][]byte{{0}, {startLong}, {startLong, 30, 30, startLong, 8}, {startShort, 1}, {stop, stop}, {startLong, 9, 9}} {
		p.tamper = func(_, answer []byte) []byte { return append(bytes.Clone(noise), answer...) }
		wantLitres(t, read(t, m, Primary(5)), 1)
	}
	if s := m.Stats(); s.Echoes != s.Requests {
		t.Errorf("%+v", s)
	}
}

// Every fourth answer comes with the next one, whoever that is from. No reading is of another unit, or
// of another time than now.
func TestMasterDropsLateAnswers(t *testing.T) {
	var meters []*meter
	for i := range 3 {
		meters = append(meters, newMeter(byte(5+i), uint32(0x11111111*(i+1)), nil))
	}
	p, m := newMemory(meters...)
	ctx := context.Background()
	good, random := 0, rand.New(rand.NewPCG(1, 2))
	p.tamper = func(_, answer []byte) []byte {
		if len(answer) > 0 && random.IntN(4) == 0 {
			p.late = bytes.Clone(answer)
			return nil
		}
		return answer
	}
	var d Decoder
	for i := range 10_000 {
		unit := meters[random.IntN(3)]
		unit.bodies[0] = []byte{0x04, 0x13, byte(i), byte(i >> 8), unit.address, 0} // a counter, and whose
		telegrams, err := m.Read(ctx, Primary(unit.address))
		if err != nil && heard(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, readings, err := d.Decode(nil, telegrams...)
		if err != nil || !bytes.Equal(telegrams[0], unit.sent) || len(readings) != 2 {
			t.Fatalf("read-out %d: %v, % X is not the present answer % X", i, err, telegrams[0], unit.sent)
		}
		good++
	}
	if s := m.Stats(); good < 5000 || s.Foreign == 0 || s.Late == 0 {
		t.Errorf("%d good; %+v", good, s)
	}
	t.Logf("10,000 read-outs: %d good, %d without an answer, 0 wrong; %+v", good, 10_000-good, m.Stats())
}

// Whatever the line does to an answer, what is read is what the unit sent, or an error.
func TestMasterNeverReadsWhatWasNotSent(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		meters := []*meter{newMeter(5, 0x11111111, litres(1), litres(11)), newMeter(6, 0x22222222, litres(2))}
		p, m := newMemory(meters...)
		p.lump = rapid.IntRange(1, 64).Draw(r, "lump")
		p.echo = rapid.Bool().Draw(r, "echo")
		var old []byte
		p.tamper = func(request, answer []byte) []byte {
			keep := old
			old = bytes.Clone(answer)
			switch rapid.IntRange(0, 7).Draw(r, "fault") {
			case 0:
				return nil
			case 1:
				p.late = bytes.Clone(answer)
				return nil
			case 2:
				return append(bytes.Clone(keep), answer...)
			case 3:
				return append(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(r, "noise"), answer...)
			case 4:
				if len(answer) > 0 {
					answer = bytes.Clone(answer)
					answer[rapid.IntRange(0, len(answer)-1).Draw(r, "place")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
				}
			case 5:
				return append(bytes.Clone(request), answer...)
			}
			return answer
		}
		for range 20 {
			which := rapid.IntRange(0, 1).Draw(r, "unit")
			telegrams, err := m.Read(context.Background(), Primary(byte(5+which)))
			if err != nil {
				if !heard(err) {
					r.Fatal(err)
				}
				continue
			}
			var d Decoder
			_, readings, err := d.Decode(nil, telegrams...)
			if err != nil {
				r.Fatal(err)
			}
			want := [][]string{{"volume 0.001 m3", "volume_2 0.011 m3"}, {"volume 0.002 m3"}}[which]
			if got := show(readings); !slices.Equal(got, want) {
				r.Fatalf("unit %d: read %q, want %q", 5+which, got, want)
			}
		}
	})
}

func TestMasterEndsWithTheContext(t *testing.T) {
	p, m := newMemory()
	ctx, cancel := context.WithCancel(context.Background())
	p.tamper = func(_, _ []byte) []byte { cancel(); return nil }
	if _, err := m.Read(ctx, Primary(5)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Some meters acknowledge no SND_NKE; they are read all the same.
func TestMasterReadsAMeterThatKnowsNoReset(t *testing.T) {
	meter := newMeter(5, 0x12345678, litres(1))
	meter.deaf = true
	_, m := newMemory(meter)
	if _, err := m.Read(context.Background(), Primary(5)); !errors.Is(err, ErrTimeout) {
		t.Fatal(err)
	}
	for range 3 {
		wantLitres(t, read(t, m, Primary(5)), 1)
	}
}

func TestMasterSecondaryAddressing(t *testing.T) {
	one, two := newMeter(0, 0x12345678, litres(1)), newMeter(0, 0x12345679, litres(2), litres(3))
	p, m := newMemory(one, two)
	a, err1 := ParseSecondary("12345678")
	b, err2 := ParseSecondary("12345679-HYD-28-04")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for range 2 {
		wantLitres(t, read(t, m, a), 1)
		wantLitres(t, read(t, m, a), 1)
		wantLitres(t, read(t, m, b), 2, 3)
	}
	if s := m.Stats(); s.Requests != 2*(1+1+1+1+2) {
		t.Errorf("the selection is not kept as long as it holds: %+v", s)
	}
	// The other meter's telegram is no answer, though it comes from the right primary address.
	wrong := newMeter(0, 0x99999999, litres(9))
	p.tamper = func(request, answer []byte) []byte {
		if len(answer) > 1 {
			return wrong.respond(true)
		}
		return answer
	}
	if _, err := m.Read(context.Background(), a); !errors.Is(err, ErrMismatch) {
		t.Errorf("got %v", err)
	}
	p.tamper = nil
	if err := m.Deselect(context.Background()); err != nil || one.selected || two.selected {
		t.Errorf("%v; selected: %v, %v", err, one.selected, two.selected)
	}
	nobody, _ := ParseSecondary("00000000")
	if _, err := m.Read(context.Background(), nobody); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	if err := m.ApplicationReset(context.Background(), a, 0x10); err != nil {
		t.Error(err)
	}
}

func TestScanPrimary(t *testing.T) {
	_, m := newMemory(newMeter(3, 0x12345678, litres(1)), newMeter(7, 0x22222222, litres(2)), newMeter(7, 0x33333333, litres(5)))
	var found []string
	steps, done := 0, 0.0
	err := m.ScanPrimary(context.Background(), 0, 255, Scan{
		Found: func(f Found) { found = append(found, fmt.Sprint(f.Address, " ", f.Header.String(), " ", f.Err)) },
		Progress: func(d float64, _ Address) {
			if d < done {
				t.Errorf("progress went from %v to %v", done, d)
			}
			steps, done = steps+1, d
		},
	})
	want := []string{"3 12345678-HYD-28-04 <nil>", "7 00000000 " + ErrChecksum.Error()}
	if err != nil || len(found) != 2 || found[0] != want[0] || !strings.HasSuffix(found[1], ErrChecksum.Error()) {
		t.Errorf("%v: found %q", err, found)
	}
	if steps != MaxAddress+2 || done != 1 {
		t.Errorf("%d steps to %v", steps, done)
	}
}

func TestScanSecondary(t *testing.T) {
	var meters []*meter
	want := []string{"00000001", "12345677", "12345678", "12999999", "98765432"}
	for _, id := range []uint32{0x12345678, 0x12345677, 0x12999999, 0x98765432, 0x00000001} {
		meters = append(meters, newMeter(0, id, litres(1)))
	}
	p, m := newMemory(meters...)
	var found []string
	done := 0.0
	err := m.ScanSecondary(context.Background(), Everybody(), Scan{
		Found: func(f Found) { found = append(found, f.Address.String()) },
		Progress: func(d float64, _ Address) {
			if d < done {
				t.Errorf("progress went from %v to %v", done, d)
			}
			done = d
		},
	})
	for i := range want {
		want[i] += "-HYD-28-04"
	}
	if err != nil || !slices.Equal(found, want) || done != 1 {
		t.Errorf("%v: found %q, want %q", err, found, want)
	}
	t.Logf("%d requests, %v on the line for five units", m.Stats().Requests, p.clock.Sub(time.Unix(1_800_000_000, 0)).Round(time.Second))
	for _, meter := range meters {
		if meter.selected {
			t.Errorf("%X is still selected", meter.ident)
		}
	}
	// Two units with one identification cannot be told apart by it: that is said.
	m2 := NewMaster(p, Config{Now: p.now})
	p.meters = []*meter{newMeter(1, 0x55555555, litres(1)), newMeter(2, 0x55555555, litres(7))}
	found = nil
	if err := m2.ScanSecondary(context.Background(), Everybody(), Scan{Found: func(f Found) {
		found = append(found, fmt.Sprint(f.Address, " ", f.Err != nil))
	}}); err != nil || !slices.Equal(found, []string{"55555555 true"}) {
		t.Errorf("%v: found %q", err, found)
	}
}

// The same over a pseudo terminal: real reads, real deadlines, a level converter that echoes.
func TestMasterOnAPseudoTerminal(t *testing.T) {
	w := &wire{echo: true, meters: []*meter{
		newMeter(1, 0x11111111, litres(1)), newMeter(2, 0x22222222, litres(2), litres(22)),
		newMeter(3, 0x33333333, litres(3)), newMeter(3, 0x44444444, litres(4)),
	}}
	m := NewMaster(ptyWire(t, w), Config{Baud: 115200, Timeout: 5 * time.Second, Gap: 100 * time.Millisecond})
	for range 5 {
		wantLitres(t, read(t, m, Primary(1)), 1)
		wantLitres(t, read(t, m, Primary(2)), 2, 22)
	}
	for _, id := range []string{"33333333", "44444444"} {
		a, err := ParseSecondary(id)
		if err != nil {
			t.Fatal(err)
		}
		wantLitres(t, read(t, m, a), float64(id[0]-'0'))
	}
	m.SetTimeout(100 * time.Millisecond)
	if _, err := m.Read(context.Background(), Primary(3)); !errors.Is(err, ErrChecksum) && !errors.Is(err, ErrGarbage) {
		t.Errorf("two units at one address: %v", err)
	}
	if _, err := m.Read(context.Background(), Primary(4)); !errors.Is(err, ErrTimeout) {
		t.Errorf("nobody at the address: %v", err)
	}
	m.SetTimeout(5 * time.Second)
	wantLitres(t, read(t, m, Primary(1)), 1)
	if s := m.Stats(); s.Echoes != s.Requests {
		t.Errorf("%+v", s)
	}
}

func TestMasterAllocatesNothing(t *testing.T) {
	p, m := newMemory(newMeter(5, 0x12345678, litres(1)))
	meter := p.meters[0]
	var d Decoder
	var dst []point.Reading
	ctx := context.Background()
	poll := func() {
		telegrams, err := m.Read(ctx, Primary(5))
		if err == nil {
			_, dst, err = d.Decode(dst[:0], telegrams...)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	poll()
	answer := bytes.Clone(meter.sent)
	p.meters = nil // the simulation must not allocate either
	p.lump = 0
	q := &quietPort{answer: answer}
	m = NewMaster(q, Config{Now: q.now})
	for range 3 {
		poll()
	}
	if n := testing.AllocsPerRun(100, poll); n != 0 {
		t.Errorf("%v allocations per poll", n)
	}
}

// quietPort answers everything at once and allocates nothing.
type quietPort struct {
	answer []byte
	rest   []byte
	clock  time.Time
}

func (p *quietPort) now() time.Time                     { p.clock = p.clock.Add(time.Millisecond); return p.clock }
func (p *quietPort) SetReadDeadline(t time.Time) error  { return nil }
func (p *quietPort) SetWriteDeadline(t time.Time) error { return nil }
func (p *quietPort) TryRead(b []byte) (int, error)      { return p.Read(b) }

func (p *quietPort) Write(b []byte) (int, error) {
	p.rest = p.answer
	if C(b[1]) == SndNKE {
		p.rest = ackBytes[:]
	}
	return len(b), nil
}

var ackBytes = [1]byte{ack}

func (p *quietPort) Read(b []byte) (int, error) {
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
