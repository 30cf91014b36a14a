package doctor

import (
	"fmt"
	"io"
	"strings"
	"time"

	"ferrule/agent/session/cause"
)

// Style says how a report is printed.
type Style struct {
	// Color marks states by colour, on a terminal.
	Color bool
}

// The columns of a printed report.
const (
	layerColumn  = 20
	answerIndent = "        "
)

// Print writes the report for people: what was seen of every layer, and for what is wrong cause,
// side and repair, a line each.
func (r Report) Print(w io.Writer, s Style) error {
	var b strings.Builder
	by := map[string]string{ByAgent: "the running agent looked", ByCommand: "no agent runs here"}[r.By]
	fmt.Fprintf(&b, "ferrule %s, device %s, %s; %s\n\n", r.Version, or(cause.Printable(r.Device), "without a name"), r.At.Format(time.RFC3339), by)
	broker := ""
	for _, c := range r.Checks {
		if c.Broker != broker && c.Broker != "" {
			fmt.Fprintf(&b, "%sbroker %s\n", answerIndent, cause.Printable(c.Broker))
		}
		broker = c.Broker
		c.print(&b, s)
	}
	b.WriteString("\n" + r.verdict() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (c Result) print(b *strings.Builder, s Style) {
	label := s.mark(c.State) + strings.Repeat(" ", max(1, 8-len(word(c.State)))) + fmt.Sprintf("%-*s", layerColumn, c.Layer)
	saw := c.Saw
	switch {
	case c.State == NotReached:
		saw = []string{"not reached"}
	case len(saw) == 0 && c.State == NotNeeded:
		saw = []string{"not needed"}
	case len(saw) == 0:
		saw = []string{""}
	}
	for i, line := range saw {
		if i > 0 {
			label = strings.Repeat(" ", len(answerIndent)+layerColumn)
		}
		b.WriteString(strings.TrimRight(label+cause.Printable(line), " ") + "\n")
	}
	answer := func(name, text string) {
		if text != "" {
			fmt.Fprintf(b, "%s%-8s%s\n", strings.Repeat(" ", len(answerIndent)), name, cause.Printable(text))
		}
	}
	if c.State == Failed {
		answer("cause", c.Text+" ["+c.Cause+"]")
		answer("side", c.Side)
		answer("repair", c.Repair)
	}
	for _, warning := range c.Warnings {
		answer("warning", warning.Text)
		answer("repair", warning.Repair)
	}
}

// word is the state as it stands at the beginning of a line.
func word(s State) string {
	switch s {
	case OK:
		return "ok"
	case Warned:
		return "WARN"
	case Failed:
		return "FAIL"
	}
	return "-"
}

// mark is word, in colour where that is wanted.
func (s Style) mark(state State) string {
	color := map[State]string{OK: "32", Warned: "33", Failed: "31;1"}[state]
	if !s.Color || color == "" {
		return word(state)
	}
	return "\x1b[" + color + "m" + word(state) + "\x1b[0m"
}

// verdict is the report in one line.
func (r Report) verdict() string {
	failed, ok := r.First()
	switch {
	case ok:
		return fmt.Sprintf("%s fails, on the %s's side: %s", failed.Layer, failed.Side, failed.Text)
	case r.State == Warned:
		return "everything works; see the warnings"
	}
	return "everything works"
}

// Explain writes what was said in the handshake with each broker, message by message.
func (r Report) Explain(w io.Writer) error {
	for _, p := range r.Facts.Brokers {
		if _, err := fmt.Fprintf(w, "handshake with %s\n", cause.Printable(p.Broker)); err != nil {
			return err
		}
		if err := p.Handshake.Explain(w); err != nil {
			return err
		}
	}
	return nil
}
