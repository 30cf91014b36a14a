package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/agent"
	"ferrule/agent/local"
	"ferrule/firmware"
	"ferrule/internal/hint"
)

// updateOptions are the flags of ferrule update.
type updateOptions struct {
	version string
	now     bool
	wait    bool
	reason  string
}

func updateFlags(e *env) {
	e.jsonFlag()
	e.flags.StringVar(&e.update.version, "version", "", "the `version` to apply; without it what is newest for this device")
	e.flags.BoolVar(&e.update.now, "now", false, "do not wait for the maintenance window")
	e.flags.BoolVar(&e.update.wait, "wait", false, "after apply: show how far it is, until it is committed or was given up")
	e.flags.StringVar(&e.update.reason, "reason", "", "why it is rolled back; for the report")
}

// runUpdate asks the running agent (docs/updates.md).
func runUpdate(ctx context.Context, e *env) error {
	o := e.update
	args := agent.UpdateArgs{Action: e.flags.Arg(0), Version: o.version, Now: o.now, Reason: o.reason}
	if !slices.Contains([]string{"status", "apply", "check", "commit", "rollback"}, args.Action) {
		return withCode(exitUsage, fmt.Errorf("update %s: it is status, apply, check, commit or rollback", args.Action))
	}
	if args.Action != "apply" && (o.version != "" || o.now || o.wait) {
		return withCode(exitUsage, errors.New("--version, --now and --wait are for: ferrule update apply"))
	}
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	client := local.Dial(c.Local.Socket)
	s, text, err := askUpdate(ctx, client, args)
	if err != nil {
		return err
	}
	if o.wait {
		w := &updateWatch{ctx: ctx, client: client, version: o.version, out: e.stderr, bar: isTerminal(e.stderr)}
		if s, text, err = w.wait(s); err != nil {
			return err
		}
	}
	if e.json {
		_, err = e.stdout.Write(text)
	} else {
		err = printUpdateStatus(e.stdout, *s, time.Now())
	}
	if o.wait {
		err = errors.Join(err, outcome(s))
	}
	return err
}

// askUpdate has the agent execute one command about updates.
func askUpdate(ctx context.Context, client *local.Client, args agent.UpdateArgs) (*agent.UpdateStatus, json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	text, err := client.Command(ctx, "update", args)
	if err != nil {
		return nil, nil, withCode(updateCode(err), err)
	}
	var s agent.UpdateStatus
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, nil, fmt.Errorf("reading the agent's answer: %w", err)
	}
	return &s, text, nil
}

// updateTimeout is longer than the agent's own for a command.
const updateTimeout = 40 * time.Second

// updateCode tells what was refused from what failed.
func updateCode(err error) int {
	refusal, ok := errors.AsType[*local.Error](err)
	switch {
	case errors.Is(err, local.ErrNotRunning):
		return exitSession
	case !ok:
		return exitUpdateFailed
	case strings.HasPrefix(refusal.Code, "update-"), refusal.Code == "busy", refusal.Code == "bad-args":
		return exitUpdateRefused
	}
	return exitUpdateFailed
}

// outcome is what became of the update that was waited for.
func outcome(s *agent.UpdateStatus) error {
	if s.Unusable != "" {
		return withCode(exitUpdateFailed, hint.With(errors.New(s.Unusable), s.Hint))
	}
	if s.Target == nil || s.Target.Version == s.Version {
		return nil
	}
	return withCode(exitUpdateFailed, hint.With(fmt.Errorf("version %s was not kept: %s", s.Target.Version, s.Reason), s.Advice))
}

// updateWatch follows an update until it is over. The agent, or the machine, restarts meanwhile.
type updateWatch struct {
	ctx     context.Context
	client  *local.Client
	version string
	out     io.Writer
	bar     bool // draw over the last line

	said  string
	drawn bool // an unfinished line is on the screen
}

const lookAtUpdate = 500 * time.Millisecond

func (w *updateWatch) wait(s *agent.UpdateStatus) (*agent.UpdateStatus, json.RawMessage, error) {
	look := time.NewTicker(lookAtUpdate)
	defer look.Stop()
	defer w.end()
	var text json.RawMessage
	for started := s.State != firmware.Idle; ; {
		select {
		case <-w.ctx.Done():
			return s, text, w.ctx.Err()
		case <-look.C:
		}
		next, raw, err := askUpdate(w.ctx, w.client, agent.UpdateArgs{Action: "status"})
		if err != nil {
			if w.ctx.Err() != nil {
				return s, text, w.ctx.Err()
			}
			w.say("the agent is away")
			continue
		}
		s, text = next, raw
		w.say(line(s))
		started = started || s.State != firmware.Idle
		switch s.State {
		case firmware.Idle, firmware.Reporting, firmware.Committed, firmware.RolledBack, firmware.Failed:
			if started && s.Unusable == "" {
				return s, text, nil
			}
		}
		if s.Unusable != "" {
			return s, text, nil
		}
	}
}

// say shows where the update is: on a terminal over the last words, else one line for each state.
func (w *updateWatch) say(text string) {
	words, percent, _ := strings.Cut(text, "\t")
	if !w.bar {
		if words != w.said {
			fmt.Fprintln(w.out, words)
		}
		w.said = words
		return
	}
	if words != w.said {
		w.end()
	}
	w.said, w.drawn = words, true
	fmt.Fprintf(w.out, "\r\x1b[K%s %s", words, percent)
}

func (w *updateWatch) end() {
	if w.drawn {
		fmt.Fprintln(w.out)
	}
	w.drawn = false
}

// line is a state in words and, behind a tab, how far it is.
func line(s *agent.UpdateStatus) string {
	t := s.Target
	if t == nil {
		return string(s.State)
	}
	words := fmt.Sprintf("%s %s", s.State, t.Version)
	switch {
	case s.State == firmware.Trial && t.Trial != nil && len(t.Trial.Missing) > 0:
		return words + "\tmissing: " + strings.Join(t.Trial.Missing, ", ")
	case (s.State == firmware.Fetching || s.State == firmware.Verifying) && t.SegmentsAll > 0:
		return words + "\t" + bar(t.Segments, t.SegmentsAll)
	case s.Reason != "":
		return words + ": " + s.Reason
	}
	return words
}

// bar draws n of all.
func bar(n, all int) string {
	const width = 30
	full := width * n / all
	return fmt.Sprintf("[%s%s] %3d %%", strings.Repeat("#", full), strings.Repeat(".", width-full), 100*n/all)
}

// printUpdateStatus prints where updates are: what runs, what is under way, what is wrong.
func printUpdateStatus(w io.Writer, s agent.UpdateStatus, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	printUpdate(table, s, now)
	if s.Unusable == "" {
		fmt.Fprintf(table, "repository\t%s\n", s.Repository)
		printFreshness(table, s.Metadata)
		fmt.Fprintf(table, "checked\t%s; next %s\n", moment(s.LastCheck, "never"), moment(s.NextCheck, "when told"))
		if s.Window.Window != "" {
			fmt.Fprintf(table, "window\t%s, %s\n", s.Window.Window, openness(s.Window))
		}
		fmt.Fprintf(table, "floor\tsecurity version %d%s\n", s.Floor.Value, weakness(s.Floor.Weak))
		for _, q := range s.Quarantined {
			fmt.Fprintf(table, "not again\t%s, since %s: %s\n", q.Version, moment(q.Time, ""), q.Reason)
		}
	}
	return table.Flush()
}

// printUpdate prints what runs and what is under way; it is a part of ferrule status, too.
func printUpdate(w io.Writer, s agent.UpdateStatus, _ time.Time) {
	if s.Unusable != "" {
		fmt.Fprintf(w, "updates\tUNUSABLE: %s\n", s.Unusable)
		if s.Hint != "" {
			fmt.Fprintf(w, "\t%s\n", s.Hint)
		}
		return
	}
	words, percent, _ := strings.Cut(line(&s), "\t")
	fmt.Fprintf(w, "updates\t%s\n", strings.TrimSpace(words+" "+percent))
	fmt.Fprintf(w, "\tversion %s runs", s.Version)
	if s.Slot != "" {
		fmt.Fprintf(w, " in slot %s", s.Slot)
	}
	if s.Active != "" && s.Active != s.Slot {
		fmt.Fprintf(w, "; slot %s is the active one", s.Active)
	}
	fmt.Fprintln(w)
	if s.Reason != "" && !strings.Contains(words, s.Reason) {
		fmt.Fprintf(w, "\t%s\n", s.Reason)
	}
	if s.Advice != "" {
		fmt.Fprintf(w, "\t%s\n", s.Advice)
	}
	if s.Refused != "" {
		fmt.Fprintf(w, "\t%s\n", s.Refused)
	}
	if s.Unreported > 0 {
		fmt.Fprintf(w, "\t%d outcomes wait for the broker to acknowledge them\n", s.Unreported)
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "\tPROBLEM: %s\n", s.Problem)
	}
}

func printFreshness(w io.Writer, m firmware.Metadata) {
	if m.Alarm != "" {
		fmt.Fprintf(w, "metadata\tALARM: %s\n", m.Alarm)
		return
	}
	if first := soonest(m.Expires); !first.IsZero() {
		fmt.Fprintf(w, "metadata\trefreshed %s, expires %s\n", moment(m.Refreshed, "never"), moment(first, ""))
	}
}

func soonest(expiries map[string]time.Time) (first time.Time) {
	for _, t := range expiries {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first
}

func moment(t time.Time, never string) string {
	if t.IsZero() {
		return never
	}
	return t.Local().Format(time.DateTime)
}

func openness(w firmware.WindowStatus) string {
	if w.Open {
		return "open"
	}
	return "opens " + moment(w.Opens, "never")
}

func weakness(why string) string {
	if why == "" {
		return ", kept by the TPM"
	}
	return "; WEAK: " + why
}

// updatePlan says what the agent would do about updates.
func updatePlan(c firmware.Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "updates: %s, product %s", c.Repository, c.Product)
	if c.Hardware != "" {
		fmt.Fprintf(&b, ", hardware %s", c.Hardware)
	}
	fmt.Fprintf(&b, ", channel %s\n", c.Channel)
	if c.CheckEvery == 0 {
		b.WriteString("  checked      when told\n")
	} else {
		fmt.Fprintf(&b, "  checked      every %v\n", c.CheckEvery.Std())
	}
	if w := c.Window.String(); w != "" {
		fmt.Fprintf(&b, "  installed    from %s, local time\n", w)
	} else {
		b.WriteString("  installed    at once\n")
	}
	fmt.Fprintf(&b, "  slots        %s, %d tries", c.Boot, c.Tries)
	for _, part := range slices.Sorted(maps.Keys(c.Slots.A)) {
		fmt.Fprintf(&b, "\n    %-10s %s | %s", part, c.Slots.A[part], c.Slots.B[part])
	}
	fmt.Fprintf(&b, "\n  floor        %s\n", map[string]string{
		firmware.FloorAuto: "in the TPM where it can be used, else in a file, which is weak",
		firmware.FloorTPM:  "in the TPM; without it nothing is installed",
		firmware.FloorFile: "in a file: WEAK, whoever writes state_dir can lower it",
	}[c.Floor])
	return b.String()
}
