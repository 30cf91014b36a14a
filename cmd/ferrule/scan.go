package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/agent/config"
	"ferrule/hw"
	"ferrule/hw/port"
	"ferrule/internal/hint"
)

// scanFlags are the arguments of ferrule scan.
type scanFlags struct {
	protocol  string
	settings  string
	addresses string
	timeout   time.Duration
}

func scanLineFlags(e *env) {
	e.jsonFlag()
	e.flags.StringVar(&e.scan.protocol, "protocol", "modbus-rtu", "what the units speak: modbus-rtu, modbus-ascii or mbus")
	e.flags.StringVar(&e.scan.settings, "settings", "", "only these `settings`, such as \"9600 8N1,19200 8E1\"")
	e.flags.StringVar(&e.scan.addresses, "addresses", "", "only these `addresses`, such as 1-32")
	e.flags.DurationVar(&e.scan.timeout, "timeout", 0, "how long a unit may take to begin its answer; 0: 100ms")
}

// runScan asks every address of an unknown line and prints who answers.
func runScan(ctx context.Context, e *env) error {
	c, err := e.scan.config(e.flags.Arg(0), e.configPath)
	if err != nil {
		return withCode(exitUsage, err)
	}
	bar := newProgress(e.stderr)
	found, err := hw.Scan(ctx, c, bar.show, slog.New(slog.DiscardHandler))
	bar.end()
	if errors.Is(err, port.ErrInUse) {
		err = hint.With(err, "stop whoever uses it, for the agent: systemctl stop ferrule")
	}
	if e.json {
		return errors.Join(withCode(exitLine, err), printJSON(e, found))
	}
	return errors.Join(withCode(exitLine, err), printFound(e.stdout, found))
}

// config turns the arguments into what to scan. line is the name of a configured line, or a port.
func (f scanFlags) config(line, path string) (hw.ScanConfig, error) {
	c := hw.ScanConfig{Port: line, Protocol: f.protocol, Timeout: f.timeout}
	if configured, err := config.Load(path); err == nil {
		for _, l := range configured.Lines {
			if l.Name == line {
				c.Port = l.Port
			}
		}
	}
	if err := port.ParseName(c.Port); err != nil {
		return c, fmt.Errorf("%q is neither a line of %s nor a port: %w", line, path, err)
	}
	if f.settings != "" {
		for word := range strings.SplitSeq(f.settings, ",") {
			s, err := port.ParseSettings(strings.TrimSpace(word))
			if err != nil {
				return c, err
			}
			c.Settings = append(c.Settings, s)
		}
	}
	if f.addresses == "" {
		return c, nil
	}
	first, last, span := strings.Cut(f.addresses, "-")
	if !span {
		last = first
	}
	var err1, err2 error
	c.First, err1 = strconv.Atoi(first)
	c.Last, err2 = strconv.Atoi(last)
	if err := errors.Join(err1, err2); err != nil {
		return c, fmt.Errorf("reading addresses %q: write them as 1-32", f.addresses)
	}
	return c, nil
}

func printFound(w io.Writer, found []hw.Found) error {
	if len(found) == 0 {
		fmt.Fprintln(w, "nobody answered: check the wiring (A and B swapped?), the power, and the termination")
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ADDRESS\tSETTINGS\tWHAT IT SAYS")
	for _, f := range found {
		says := f.Identity
		switch {
		case f.Problem != "":
			says = "a damaged answer: " + f.Problem + "; two units may have this address"
		case f.Secondary != "" && f.Address >= 0:
			says = f.Secondary + " " + says
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", whereFound(f), f.Settings, says)
	}
	return table.Flush()
}

// whereFound is the address to write into the configuration.
func whereFound(f hw.Found) string {
	if f.Address < 0 {
		return f.Secondary
	}
	return strconv.Itoa(f.Address)
}

// progress is a bar on a terminal, and a line now and then elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	start    time.Time
	printed  time.Time
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, start: time.Now()}
	if file, ok := w.(*os.File); ok {
		info, err := file.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// Between two lines of progress: on a terminal, and in a log.
const (
	barPause = 100 * time.Millisecond
	logPause = 10 * time.Second
)

func (p *progress) show(s hw.ScanProgress) {
	now := time.Now()
	if s.New != nil {
		p.clear()
		fmt.Fprintf(p.w, "found %s at %s\n", whereFound(*s.New), s.New.Settings)
	}
	pause := logPause
	if p.terminal {
		pause = barPause
	}
	if now.Sub(p.printed) < pause && s.Done < 1 && s.Done > 0 {
		return
	}
	p.printed = now
	left := "?"
	if s.Done > 0 {
		left = time.Duration(float64(now.Sub(p.start)) / s.Done * (1 - s.Done)).Round(time.Second).String()
	}
	const width = 30
	full := int(width * s.Done)
	text := fmt.Sprintf("[%s%s] %3d %%  ", strings.Repeat("=", full), strings.Repeat(" ", width-full), int(100*s.Done))
	if s.Done < 1 {
		text += fmt.Sprintf("%s, address %s, %s left", s.Settings, s.Next, left)
	} else {
		text += fmt.Sprintf("done in %s", now.Sub(p.start).Round(time.Second))
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", text)
		return
	}
	fmt.Fprintln(p.w, text)
}

func (p *progress) clear() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *progress) end() { p.clear() }
