package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// goBenchmark is a benchmark of a package, and the rows that come of its metrics.
type goBenchmark struct {
	pkg, pattern, benchtime string
	rows                    func(figures) ([]row, error)
}

// figures are the metrics of go test -bench: benchmark → unit → a value for each run. Names are
// without "Benchmark" and without the number of processors.
type figures map[string]map[string]spread

// all returns a metric of all benchmarks whose names begin with prefix, by name.
func (f figures) all(prefix, unit string) (map[string]spread, error) {
	found := make(map[string]spread)
	for name, metrics := range f {
		if strings.HasPrefix(name, prefix) && len(metrics[unit]) > 0 {
			found[name] = metrics[unit]
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: there is no benchmark %s… that says %s", errVoid, prefix, unit)
	}
	return found, nil
}

// get returns a metric, which a benchmark that was renamed would lack.
func (f figures) get(name, unit string) (spread, error) {
	if values := f[name][unit]; len(values) > 0 {
		return values, nil
	}
	return nil, fmt.Errorf("%w: there is no benchmark %s that says %s", errVoid, name, unit)
}

// goBench runs benchmarks of other packages and turns their metrics into rows.
func goBench(list ...goBenchmark) func(context.Context, options) ([]row, error) {
	return func(ctx context.Context, o options) (rows []row, err error) {
		for _, b := range list {
			var text strings.Builder
			for rep := range o.reps { // not -count, which would run each benchmark's repetitions in a row
				say("rep %d: go test -bench %s %s", rep+1, b.pattern, b.pkg)
				out, err := goTest(ctx, "-run", "^$", "-bench", b.pattern, "-benchtime", b.benchtime, b.pkg)
				if err != nil {
					return rows, err
				}
				text.WriteString(out)
			}
			more, err := b.rows(parse(text.String()))
			rows = append(rows, more...)
			if err != nil {
				return rows, fmt.Errorf("%s: %w", b.pkg, err)
			}
		}
		return rows, nil
	}
}

// goTest runs go test with its temporary folders below the project: a temporary file system in
// memory would count no bytes written.
func goTest(ctx context.Context, args ...string) (string, error) {
	dir, err := filepath.Abs(".cache")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return output(ctx, "", append([]string{"env", "TMPDIR=" + dir, "go", "test", "-count", "1"}, args...)...)
}

// parse reads what go test -bench prints:
//
//	BenchmarkPoll/115200baud-2   500   4812345 ns/op   1.02 p50/limit   0 B/op   0 allocs/op
func parse(text string) figures {
	all := make(figures)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if i := strings.LastIndex(name, "-"); i >= 0 {
			name = name[:i]
		}
		if all[name] == nil {
			all[name] = make(map[string]spread)
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if value, err := strconv.ParseFloat(fields[i], 64); err == nil {
				all[name][fields[i+1]] = append(all[name][fields[i+1]], value)
			}
		}
	}
	return all
}

// outboxes measures acceptance (e): the outbox beside bbolt.
func outboxes(ctx context.Context, o options) ([]row, error) {
	return goBench(goBenchmark{"./agent/outbox", "^BenchmarkBacklog$", "50000x", backlogRows})(ctx, o)
}

func backlogRows(f figures) (rows []row, err error) {
	more := func(ours, peer float64) bool { return ours > peer }
	less := func(ours, peer float64) bool { return ours > 0 && ours < peer }
	for _, m := range []struct {
		unit, what, format string
		better             func(ours, peer float64) bool
	}{
		{"append/s", "outbox: appended per second, an fsync per 100", "%.0f", more},
		{"drain/s", "outbox: drained per second", "%.0f", more},
		{"disk-B/payload-B", "outbox: bytes to disk per byte of payload", "%.2f", less},
	} {
		ours, err1 := f.get("Backlog", "ferrule-"+m.unit)
		peer, err2 := f.get("Backlog", "bbolt-"+m.unit)
		if err := errors.Join(err1, err2); err != nil {
			return rows, err
		}
		rows = append(rows, row{
			what: m.what, ours: ours.text(m.format, ""), peer: "bbolt " + peer.text(m.format, ""),
			target: "better", met: m.better(ours.median(), peer.median()),
		})
	}
	return rows, nil
}
