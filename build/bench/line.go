package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
)

// Targets of a line that asks.
const (
	mostOfLimit   = 1.05 // times what the line's speed allows, the median poll
	mostPollCPU   = 0.7  // ms for 60 registers at 9600 baud
	mostOfC       = 1.5  // times the CPU of libmodbus in C, where bytes take no time
	leastFaster   = 3.0  // times one request for each point, planned
	mostPlanning  = 1.0  // ms for 1,000 points
	leastWithDead = 95.0 // per cent of the rate that units have without a dead one beside them
)

// polls measures polls at the speed of the wire, and what they cost.
func polls(ctx context.Context, o options) ([]row, error) {
	return goBench(
		goBenchmark{"./hw/modbus", "^BenchmarkPoll$", "4s", pollRows},
		goBenchmark{"./hw/modbus", "^BenchmarkUnpaced$", "2s", unpacedRows},
	)(ctx, o)
}

func pollRows(f figures) (rows []row, err error) {
	for _, name := range []string{
		"Poll/9600baud/10registers", "Poll/9600baud/60registers", "Poll/19200baud/10registers", "Poll/19200baud/60registers",
		"Poll/115200baud/10registers", "Poll/115200baud/60registers",
	} {
		ratio, err1 := f.get(name, "p50/limit")
		violations, err2 := f.get(name, "t3.5_violations")
		allocs, err3 := f.get(name, "allocs/op")
		if err := errors.Join(err1, err2, err3); err != nil {
			return rows, err
		}
		rows = append(rows, row{
			what:   "line: " + name + ", median beside the line's limit",
			ours:   fmt.Sprintf("%.3f ×, %.0f t3.5 violations, %.0f allocations", ratio.median(), violations.most(), allocs.median()),
			target: fmt.Sprintf("≤ %v ×, 0, 0", mostOfLimit), met: ratio.median() <= mostOfLimit && violations.most() == 0 && allocs.median() == 0,
		})
	}
	cpu, err := f.get("Poll/9600baud/60registers", "cpu_us/poll")
	for i := range cpu {
		cpu[i] /= 1000
	}
	return append(rows, row{
		what: "line: CPU ms for a poll of 60 registers at 9600 baud", ours: cpu.text("%.2f", ""),
		target: fmt.Sprintf("≤ %v", mostPollCPU), met: cpu.median() <= mostPollCPU,
	}), err
}

func unpacedRows(f figures) ([]row, error) {
	ours, err1 := f.get("Unpaced", "cpu_us/poll")
	peer, err2 := f.get("Unpaced", "libmodbus_cpu_us/poll")
	ratio, err3 := f.get("Unpaced", "times_libmodbus")
	return []row{
		{what: "line: CPU µs for a poll where bytes take no time", ours: ours.text("%.1f", ""), peer: "libmodbus in C " + peer.text("%.1f", "")},
		{what: "  beside libmodbus", ours: ratio.text("%.2f", " ×"), target: fmt.Sprintf("≤ %v ×", mostOfC), met: ratio.median() <= mostOfC},
	}, errors.Join(err1, err2, err3)
}

// plans measures the planner: what it saves on real meters, and how long it takes.
func plans(ctx context.Context, o options) ([]row, error) {
	rows, err := realMeters(ctx)
	if err != nil {
		return rows, err
	}
	more, err := goBench(goBenchmark{"./hw/modbus", "^BenchmarkPlan$", "300ms", planRows})(ctx, o)
	return append(rows, more...), err
}

func planRows(f figures) ([]row, error) {
	all, err := f.all("Plan/", "ns/op")
	if err != nil {
		return nil, err
	}
	name, took := slowest(all)
	us := took.median() / 1000
	return []row{{
		what: "line: µs to plan 1,000 points, the slowest kind", ours: fmt.Sprintf("%.0f (%s)", us, name),
		target: fmt.Sprintf("< %v", 1000*mostPlanning), met: us < 1000*mostPlanning,
	}}, nil
}

// slowest returns the benchmark whose median is largest.
func slowest(all map[string]spread) (name string, values spread) {
	for n, v := range all {
		if v.median() > values.median() || v.median() == values.median() && cmp.Less(n, name) {
			name, values = n, v
		}
	}
	return name, values
}

// saying runs a test, and returns what a pattern finds in what it says.
func saying(ctx context.Context, pkg, test, pattern string) ([][]string, error) {
	text, err := goTest(ctx, "-v", "-run", "^"+test+"$", pkg)
	if err != nil {
		return nil, err
	}
	found := regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1)
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %s says nothing of %s", errVoid, test, pattern)
	}
	return found, nil
}

// realMeters has the planner's own test say what the maps of real meters cost. Without
// $FERRULE_CORPORA it has only a map of ours, which proves nothing.
func realMeters(ctx context.Context) ([]row, error) {
	found, err := saying(ctx, "./hw/modbus", "TestPlanOfRealMeters",
		`([0-9]+) maps at 9600: point by point ([0-9.]+ s \([0-9]+ requests\)).*planned ([0-9.]+ s \([0-9]+\)): ([0-9.]+) times faster`)
	if err != nil {
		return nil, err
	}
	maps, err1 := strconv.Atoi(found[0][1])
	faster, err2 := strconv.ParseFloat(found[0][4], 64)
	what := fmt.Sprintf("line: all %d register maps of $FERRULE_CORPORA/mbmd at 9600 baud", maps)
	if maps < 2 {
		what = "line: a register map of ours at 9600 baud; FERRULE_CORPORA IS NOT SET"
	}
	return []row{{
		what: what, ours: fmt.Sprintf("%.2f × faster, %s", faster, found[0][3]), peer: "one request for each point " + found[0][2],
		target: fmt.Sprintf("≥ %v ×", leastFaster), met: faster >= leastFaster && maps > 1,
	}}, errors.Join(err1, err2)
}

// lateAnswers runs the tests that answer every fourth poll too late, and adds up what they say.
func lateAnswers(ctx context.Context, _ options) ([]row, error) {
	found, err := saying(ctx, "./hw/modbus", "TestLateAnswersAreNeverValues", `([0-9]+) right, ([0-9]+) wrong, ([0-9]+) missing`)
	if err != nil {
		return nil, err
	}
	var right, wrong, missing int
	for _, counts := range found {
		for i, sum := range []*int{&right, &wrong, &missing} {
			n, err := strconv.Atoi(counts[i+1])
			if err != nil {
				return nil, err
			}
			*sum += n
		}
	}
	polls := right + wrong + missing
	return []row{{
		what: "line: wrong values, every fourth answer late", ours: fmt.Sprintf("%d in %d polls", wrong, polls),
		target: "0 in 10000", met: wrong == 0 && polls >= 10_000,
	}}, nil
}
