package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/agent"
	"ferrule/agent/command/authorize"
	"ferrule/agent/config/trial"
	"ferrule/agent/identity"
	"ferrule/agent/local"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
	"ferrule/agent/session/cause"
	"ferrule/agent/trust"
	"ferrule/hw"
)

func runStatus(ctx context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	if e.web.on {
		return runWeb(ctx, e, c.Local.Socket)
	}
	ctx, cancel := context.WithTimeout(ctx, valueTimeout)
	defer cancel()
	text, err := local.Dial(c.Local.Socket).Status(ctx)
	if err != nil {
		return withCode(exitSession, err)
	}
	if e.json {
		_, err = e.stdout.Write(text)
		return err
	}
	var s agent.Status
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("reading the agent's status: %w", err)
	}
	return printStatus(e.stdout, s)
}

// printStatus prints the status for people: what is wrong first in each part, figures after.
func printStatus(w io.Writer, s agent.Status) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "device\t%s\n", s.Device)
	fmt.Fprintf(table, "agent\t%s, boot %d, up %s\n", s.Version, s.Boot, since(s.Clock.Now, s.Started))
	if !s.Clock.Trusted {
		fmt.Fprintf(table, "clock\tnot synchronised: readings are marked unsynced\n")
	}
	printIdentity(table, s.Identity)
	printConfig(table, s.Config, s.Clock.Now)
	if s.Update != nil {
		printUpdate(table, *s.Update, s.Clock.Now)
	}
	printAuthority(table, s)
	printSession(table, s.Session, s.Wire, s.Clock.Now)
	printOutbox(table, s.Outbox)
	printLocal(table, s.Local)
	for _, line := range s.Lines {
		printLine(table, line)
	}
	return table.Flush()
}

func printIdentity(w io.Writer, s identity.Status) {
	if s.Weak {
		fmt.Fprintf(w, "identity\tWEAK: the key is a file that can be copied (%s)\n", s.Key)
	} else {
		fmt.Fprintf(w, "identity\tkey %s\n", s.Key)
	}
	if s.TPM != nil {
		fmt.Fprintf(w, "\tTPM %s %s at %s, lockout counter %d, %s\n",
			strings.Join(strings.Fields(s.TPM.Vendor), " "), s.TPM.Firmware, s.TPM.Path, s.TPM.LockoutCounter, listCounts(s.TPM.Commands))
	}
	if s.Alarm != "" {
		fmt.Fprintf(w, "certificate\tALARM: %s\n\t", s.Alarm)
	} else {
		fmt.Fprint(w, "certificate\t")
	}
	fmt.Fprintf(w, "%d days left, until %s, issued by %s", s.DaysLeft, s.NotAfter.Format(time.DateOnly), s.Issuer)
	if !s.RenewalDue.IsZero() {
		fmt.Fprintf(w, "; renewal on %s", s.RenewalDue.Format(time.DateOnly))
	}
	fmt.Fprintln(w)
	if s.Staged {
		fmt.Fprintln(w, "\ta new one waits for the broker to take it")
	}
	if a := s.LastAttempt; a != nil && a.Error != "" {
		fmt.Fprintf(w, "\tlast attempt to %s on %s: %s\n", a.Way, a.At.Format(time.DateTime), a.Error)
	}
	if s.ClockNote != "" {
		fmt.Fprintf(w, "\tclock: %s\n", s.ClockNote)
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "\tPROBLEM: %s\n", s.Problem)
	}
}

// printConfig prints what is on trial, and what was not kept last.
func printConfig(w io.Writer, s agent.ConfigStatus, now time.Time) {
	if t := s.Trial; t != nil {
		fmt.Fprintf(w, "config\ton trial (%s) until %s, %s from now; the old one returns by itself\n",
			t.ID, t.Deadline.Format(time.DateTime), t.Deadline.Sub(now).Round(time.Second))
	}
	if o := s.Last; o != nil && o.Outcome != trial.Kept {
		fmt.Fprintf(w, "config\tthe one of command %s: %s on %s (%s)", o.ID, o.Outcome, o.At.Format(time.DateTime), o.Reason)
		if o.Detail != "" {
			fmt.Fprintf(w, ": %s", o.Detail)
		}
		fmt.Fprintln(w)
	}
}

// printAuthority prints who may act, and what is believed, as far as it is not as usual.
func printAuthority(w io.Writer, s agent.Status) {
	if a := s.Authorize; a.Mode != authorize.Off {
		fmt.Fprintf(w, "commands\t%s: %d authorised, %s\n", a.Mode, a.Accepted, refusals(a.Refused))
		if a.Problem != "" {
			fmt.Fprintf(w, "\tPROBLEM: %s\n", a.Problem)
		}
	}
	if s.Audit.Problem != "" {
		fmt.Fprintf(w, "audit log\tPROBLEM: %s\n", s.Audit.Problem)
	}
	if staged := s.Trust.Broker.Staged; staged != nil {
		fmt.Fprintf(w, "roots\t%d new ones for the broker are staged since %s\n", len(staged.Roots), staged.Since.Format(time.DateTime))
	}
	r := s.Trust.Revocation
	if last := r.Last; last != nil && last.Result != trust.ResultGood && (last.Refused || last.Result != trust.ResultUnknown || len(r.Lists) > 0) {
		fmt.Fprintf(w, "revocation\t%s: %s\n", last.Result, last.Why)
	}
}

func refusals(counts map[string]uint64) string {
	if list := listCounts(counts); list != "" {
		return "refused: " + list
	}
	return "none refused"
}

// listCounts lists what was counted at all, the most frequent first.
func listCounts(counts map[string]uint64) string {
	var names []string
	for name, n := range counts {
		if n > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if counts[a] != counts[b] {
			return int(counts[b]) - int(counts[a])
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%d %s", counts[name], name))
	}
	return strings.Join(parts, ", ")
}

func printSession(w io.Writer, s session.Status, wire agent.WireStatus, now time.Time) {
	switch {
	case s.Stage == cause.StageUp:
		fmt.Fprintf(w, "session\tup for %s to %s (%s)\n", since(now, s.Since), s.Broker, s.Address)
		printWay(w, s)
	case s.HeldOff.After(now):
		fmt.Fprintf(w, "session\tHELD OFF until %s: another client connects with this device's id\n", s.HeldOff.Format(time.TimeOnly))
	case s.Stage == cause.StageWaiting:
		fmt.Fprintf(w, "session\tdown; attempt %d in %s\n", s.Attempts+1, s.NextAttempt.Sub(now).Round(100*time.Millisecond))
	default:
		fmt.Fprintf(w, "session\t%s\n", s.Stage)
	}
	fmt.Fprintf(w, "\t%d published, %d acknowledged, %d sent again, %d connections\n", s.Published, s.Acked, s.Resent, s.Connects)
	fmt.Fprintf(w, "\t%s sent, %s received, %s", size(int64(s.Wire.Sent)), size(int64(s.Wire.Received)), wire.Encoding)
	if wire.BytesPerReading > 0 {
		fmt.Fprintf(w, ", %.1f bytes for each reading", wire.BytesPerReading)
	}
	fmt.Fprintln(w)
	if b := s.Budget; b != nil {
		fmt.Fprintf(w, "\tbudget: %s of %s spent today", size(b.Spent), size(b.Limit))
		if b.UsedUp {
			fmt.Fprintf(w, "; readings wait until %s", b.Continues.Format(time.DateTime))
		}
		fmt.Fprintln(w)
	}
	for _, q := range s.Quarantined {
		fmt.Fprintf(w, "\tQUARANTINED: a message of %s on %s ended three connections and is skipped\n", size(q.Size), q.Topic)
	}
	if f := s.LastFailure; f != nil {
		fmt.Fprintf(w, "\tlast failure %s ago at %s: %s\n", since(now, f.At), f.Stage, f.Text)
		if f.Hint != "" {
			fmt.Fprintf(w, "\thint: %s\n", f.Hint)
		}
	}
}

// printWay prints how the connection went.
func printWay(w io.Writer, s session.Status) {
	words := []string{s.TLSVersion}
	if p := s.Path; p != nil {
		add := func(is bool, format string, args ...any) {
			if is {
				words = append(words, fmt.Sprintf(format, args...))
			}
		}
		add(p.Group != "", "%s", p.Group)
		add(p.ALPN != "", "ALPN %s", p.ALPN)
		add(p.WebSocket, "WebSocket")
		add(p.Proxy != "", "by proxy %s", p.Proxy)
		add(p.Inspected != "", "INSPECTED by %s", p.Inspected)
		add(!p.ClassicUntil.IsZero(), "no post-quantum key exchange until %s: handshakes with it got no answer", p.ClassicUntil.Format(time.DateTime))
	}
	fmt.Fprintf(w, "\t%s\n", strings.Join(words, ", "))
}

// printLocal prints the listener, where there is one.
func printLocal(w io.Writer, s local.Status) {
	if s.Problem != "" {
		fmt.Fprintf(w, "listener\tPROBLEM: %s\n", s.Problem)
	}
	if l := s.Listener; l != nil {
		fmt.Fprintf(w, "listener\t%s, %d connected, %d so far, %s; certificate SHA-256 %s\n",
			l.Address, l.Guests+l.Strangers, l.Accepted, refusals(l.Refused), l.Certificate.SHA256)
	}
}

func printOutbox(w io.Writer, s outbox.Status) {
	if s.Problem != "" {
		fmt.Fprintf(w, "outbox\tPROBLEM: %s\n\t", s.Problem)
	} else {
		fmt.Fprint(w, "outbox\t")
	}
	fmt.Fprintf(w, "%d waiting, oldest %s, %s; %d dropped, %d damaged, %d set aside; %s written to disk\n",
		s.Depth, time.Duration(s.OldestAge*float64(time.Second)).Round(time.Millisecond), size(s.Bytes),
		s.Dropped, s.Damaged, s.SetAside, size(s.WrittenBytes))
	for _, lane := range s.Lanes {
		fmt.Fprintf(w, "\t%s: %d waiting, oldest %s\n", lane.Name, lane.Depth, time.Duration(lane.OldestAge*float64(time.Second)).Round(time.Millisecond))
	}
	if s.Expired > 0 {
		fmt.Fprintf(w, "\t%d let go for their age: %s\n", s.Expired, listCounts(s.ExpiredLines))
	}
}

func printLine(w io.Writer, s hw.Status) {
	what := fmt.Sprintf("%d polls, load %.1f %%", s.Polls, s.LoadPercent)
	if s.Role != hw.Master {
		what = fmt.Sprintf("%d times heard", s.Polls)
	}
	fmt.Fprintf(w, "line %s\t%s, %s, %s %s, %s%s%s\n", s.Name, s.State, s.Protocol, s.Port, s.Settings, what, errorCounts(s.Errors),
		lastError(s.LastError, s.LastFrame))
	if s.Problem != "" {
		fmt.Fprintf(w, "\tPROBLEM: %s\n", s.Problem)
	}
	for _, unit := range s.Units {
		fmt.Fprintf(w, "  %s\t%s, %d polls%s%s\n", unit.Name, unit.State, unit.Polls, errorCounts(unit.Errors),
			lastError(unit.LastError, unit.LastFrame))
	}
}

// lastError is the last error and the bytes that were wrong, as far as a line of text can show them.
func lastError(text, frame string) string {
	const most = 64
	switch {
	case text == "":
		return ""
	case frame == "":
		return ", last error: " + text
	case len(frame) > most:
		frame = frame[:most] + "…"
	}
	return ", last error: " + text + ", last wrong frame: " + frame
}

func errorCounts(counts map[string]uint64) string {
	if list := listCounts(counts); list != "" {
		return ", errors: " + list
	}
	return ", no errors"
}

func since(now, then time.Time) time.Duration { return now.Sub(then).Round(time.Second) }

func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
