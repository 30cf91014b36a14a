package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Targets of lines that listen.
const (
	mostSentence = 500.0 // ns
	mostFlood    = 20.0  // per cent of a core, at floodRate
	mostEight    = 10.0  // per cent of a core, eight receivers
	mostRSS      = 24.0  // MiB, eight receivers
)

// floodRate is what 921,600 baud carry, in bytes per second: ten bits for each.
const floodRate = 92_160

// sentences measures what cutting and decoding an NMEA sentence takes, over the logs of real
// receivers. Without $FERRULE_CORPORA there are six sentences of ours.
func sentences(ctx context.Context, o options) ([]row, error) {
	name, what := "Corpus", "the logs of $FERRULE_CORPORA/nmea"
	if os.Getenv("FERRULE_CORPORA") == "" {
		name, what = "Decode", "sentences of ours; FERRULE_CORPORA IS NOT SET"
	}
	return goBench(goBenchmark{"./hw/nmea", "^Benchmark" + name + "$", "1s", func(f figures) ([]row, error) {
		took, err1 := f.get(name, "ns/op")
		allocs, err2 := f.get(name, "allocs/op")
		return []row{{
			what: "talkers: ns for an NMEA sentence, " + what, ours: fmt.Sprintf("%s, %.0f allocations", took.text("%.0f", ""), allocs.most()),
			target: fmt.Sprintf("≤ %v, 0", mostSentence), met: took.median() <= mostSentence && allocs.most() == 0,
		}}, errors.Join(err1, err2)
	}})(ctx, o)
}

// cutters measures what the worst input that the packages know costs them, without a line around.
func cutters(ctx context.Context, o options) ([]row, error) {
	o.reps = 1 // there are many, and they are far from the target
	worst := func(of string, prefixes ...string) func(f figures) ([]row, error) {
		return func(f figures) (rows []row, err error) {
			for _, prefix := range prefixes {
				all, err := f.all(prefix, "MB/s")
				if err != nil {
					return rows, err
				}
				cost := make(map[string]spread)
				for name, speeds := range all {
					for _, s := range speeds {
						cost[name] = append(cost[name], 100*floodRate/1e6/s)
					}
				}
				name, percent := slowest(cost)
				rows = append(rows, row{
					what: "talkers: per cent of a core for the worst input of " + of + " at 921,600 baud", ours: fmt.Sprintf("%.2f (%s)", percent.median(), name),
					target: fmt.Sprintf("< %v", mostFlood), met: percent.median() < mostFlood,
				})
			}
			return rows, nil
		}
	}
	return goBench(
		goBenchmark{"./hw/frame", "^Benchmark(Cutter|Worst)$", "50ms", worst("hw/frame", "Cutter/", "Worst/")},
		goBenchmark{"./hw/text", "^BenchmarkText$", "50ms", worst("hw/text", "Text/")},
		goBenchmark{"./hw/dsmr", "^BenchmarkFlood$", "50ms", worst("hw/dsmr", "Flood/")},
		goBenchmark{"./hw/sml", "^BenchmarkFlood$", "50ms", worst("hw/sml", "Flood/")},
	)(ctx, o)
}
