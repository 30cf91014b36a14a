package hw

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// instantBus answers at once, whatever is asked.
type instantBus struct{ answer [250]byte }

func (b *instantBus) Read(_ context.Context, _ byte, at modbus.Address, n uint16, dst []byte) ([]byte, error) {
	b.answer[1]++ // so that no value stays the same
	return append(dst, b.answer[:dataBytes(at.Table, int(n))]...), nil
}
func (b *instantBus) Write(context.Context, byte, modbus.Address, uint16, []uint16) error { return nil }
func (b *instantBus) SetTimeout(time.Duration)                                            {}
func (b *instantBus) SetTiming(modbus.Timing)                                             {}
func (b *instantBus) Response(byte) time.Duration                                         { return time.Millisecond }
func (b *instantBus) Stats() modbus.Stats                                                 { return modbus.Stats{} }

// instantLine is a line of one unit with sixty registers of all kinds, ready to be polled.
func instantLine(t testing.TB, sink Sink) *Line {
	t.Helper()
	line, err := New(lineOf(unitOf("a", 1, time.Second,
		profile.Point{Name: "f", At: "holding:0", Type: "float32", Deadband: 0.001, MaxSilence: quantity.Duration(time.Second)},
		profile.Point{Name: "scaled", At: "holding:2", Type: "int32", Scale: 0.1},
		profile.Point{Name: "u64", At: "holding:4", Type: "uint64", Order: "CDAB"},
		profile.Point{Name: "bcd", At: "holding:8", Type: "bcd32"},
		profile.Point{Name: "bit", At: "holding:10", Type: "bit@3"},
		profile.Point{Name: "far", At: "holding:59", Type: "uint8h", Every: quantity.Duration(2 * time.Second)},
		profile.Point{Name: "coil", At: "coil:4"})), sink, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	line.driver = &registers{master: new(instantBus), line: line}
	line.cameUp(nil)
	return line
}

func TestPollCostsNoAllocation(t *testing.T) {
	readings := 0
	line := instantLine(t, func(_ context.Context, p Poll) error {
		readings += len(p.Readings)
		return nil
	})
	ctx := context.Background()
	u := line.units[0]
	poll := func() {
		now := u.due()
		if line.schedule.pick(now) != u {
			t.Error("it is not the unit's turn")
		}
		if err := line.turn(ctx, u, now); err != nil {
			t.Error(err)
		}
		line.schedule.wake(now)
	}
	poll()
	if n := testing.AllocsPerRun(500, poll); n != 0 {
		t.Errorf("%v allocations per poll", n)
	}
	if readings < 500*5 {
		t.Errorf("%d readings", readings)
	}
}

func BenchmarkPoll(b *testing.B) {
	line := instantLine(b, func(context.Context, Poll) error { return nil })
	ctx := context.Background()
	u := line.units[0]
	b.ReportAllocs()
	for b.Loop() {
		if err := line.turn(ctx, u, u.due()); err != nil {
			b.Fatal(err)
		}
	}
}
