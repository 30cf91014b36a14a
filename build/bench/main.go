// Command bench measures Ferrule beside its peers and prints one table. A run in which one
// message is missing at the independent subscriber is void, whatever its speed, and makes the
// program fail. Rates move with what else the machine does, so only what was measured in one
// interleaved run is compared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// errVoid says that a run lost something: its figures mean nothing.
var errVoid = errors.New("void run")

// row is one line of the table.
type row struct {
	what, ours, peer, target string
	met                      bool
}

// options is what a person may turn down to look at one thing quickly.
type options struct {
	reps     int
	messages int
	watch    time.Duration
	starts   int
}

// section is one group of rows and how they are measured.
type section struct {
	name, what string
	run        func(ctx context.Context, o options) ([]row, error)
}

// inTurn measures one thing after the other.
func inTurn(parts ...func(context.Context, options) ([]row, error)) func(context.Context, options) ([]row, error) {
	return func(ctx context.Context, o options) (rows []row, err error) {
		for _, part := range parts {
			more, err := part(ctx, o)
			rows = append(rows, more...)
			if err != nil {
				return rows, err
			}
		}
		return rows, nil
	}
}

func sections() []section {
	return []section{
		{"uplink", "CPU of outbox and session beside a mosquitto bridge", uplink},
		{"wire", "bytes on the wire and CPU of a meter's poll, alone and in batches", wires},
		{"line", "Modbus polls on a simulated wire, plans, a dead unit", inTurn(polls, plans, lateAnswers, deadUnit)},
		{"talkers", "what lines that listen cost, and a flood", inTurn(sentences, cutters, floods, receivers)},
		{"outbox", "appending and draining beside bbolt", outboxes},
		{"agent", "memory and start of ferrule run", running},
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "publish" {
		os.Exit(publish(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "wire" {
		os.Exit(wire(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("only", "", "comma-separated `sections` to run: uplink, wire, line, talkers, outbox, agent")
	flags.IntVar(&o.reps, "reps", 3, "interleaved repetitions of every pair")
	flags.IntVar(&o.messages, "messages", 100_000, "messages a run")
	flags.DurationVar(&o.watch, "watch", time.Minute, "how long the running agent's memory is watched")
	flags.IntVar(&o.starts, "starts", 10, "starts of the agent")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var rows []row
	code := 0
	for _, s := range sections() {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
			continue
		}
		say("%s: %s", s.name, s.what)
		measured, err := s.run(ctx, o)
		rows = append(rows, measured...)
		if err != nil {
			say("%s: error: %v", s.name, err)
			rows = append(rows, row{what: s.name, ours: "void"})
			code = 1
		}
	}
	printTable(rows)
	return code
}

// say tells what is going on; the table alone goes to standard output.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

func printTable(rows []row) {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tFERRULE\tPEER\tTARGET\tMET")
	for _, r := range rows {
		met := "no"
		switch {
		case r.target == "":
			met = ""
		case r.met:
			met = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.peer, r.target, met)
	}
	_ = w.Flush()
}

// spread is several measurements of one thing.
type spread []float64

func (s spread) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// most is the largest, 0 where there is none.
func (s spread) most() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// text shows the median, and between which values the others lie.
func (s spread) text(format, unit string) string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf(format+unit+" ("+format+"–"+format+")", s.median(), slices.Min(s), s.most())
}
