package modbus

import (
	"testing"
	"time"
)

// A thousand points of one unit, in the mixtures that take the planner longest.
func BenchmarkPlan(b *testing.B) {
	c := Cost{Timing: TimingOf(9600, 11), Response: 5 * time.Millisecond, Holes: true}
	periods := []time.Duration{time.Second, 5 * time.Second, time.Minute}
	points := func(table Table, count int, gap func(i int) int, every func(i int) time.Duration) []Span {
		var spans []Span
		at := 0
		for i := range 1000 {
			spans = append(spans, Span{Address{table, uint16(at)}, count, every(i)})
			at += count + gap(i)
		}
		return spans
	}
	none, one := func(int) int { return 0 }, func(int) time.Duration { return time.Second }
	scattered := func(i int) int { return i * 7919 % 31 }
	mixed := func(i int) time.Duration { return periods[i*7919%3] }
	for _, test := range []struct {
		name  string
		spans []Span
	}{
		{"registers", points(HoldingRegisters, 1, none, one)},
		{"floats", points(InputRegisters, 2, scattered, one)},
		{"bits", points(Coils, 1, none, one)},
		{"floats/three-periods", points(InputRegisters, 2, scattered, mixed)},
		{"registers/three-periods", points(HoldingRegisters, 1, none, mixed)},
		{"bits/three-periods", points(Coils, 1, none, mixed)},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Plan(test.spans, c)
			}
		})
	}
}
