package handshake

import (
	"fmt"
	"io"
	"time"
)

// Explain writes the handshake as it happened, message by message.
func (t Transcript) Explain(w io.Writer) error {
	for _, m := range t.Messages {
		arrow, sealed := "device ──►", ""
		if m.From == Broker {
			arrow = "◄── broker"
		}
		if m.Sealed {
			sealed = ", encrypted"
		}
		if _, err := fmt.Fprintf(w, "%9s  %s  %s, %d bytes%s\n", m.At.Round(100*time.Microsecond), arrow, m.Name, m.Size, sealed); err != nil {
			return err
		}
		for _, d := range m.Details {
			if _, err := fmt.Fprintf(w, "%25s%s\n", "", d); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintln(w, t.outcome())
	return err
}

// outcome is what became of it, in one line.
func (t Transcript) outcome() string {
	switch {
	case len(t.Messages) == 0:
		return "nothing was said" + because(t.Ended)
	case t.Ended != "":
		return "unreadable from here: " + t.Ended
	}
	for _, a := range t.Alerts {
		if a.Fatal && a.Name != "close_notify" {
			return fmt.Sprintf("the %s ended it: %s", a.From, a.Name)
		}
	}
	if t.Finished {
		return fmt.Sprintf("both sides finished: %s, %s, %s", t.Version, t.Suite, orNone(t.Group))
	}
	last := t.Messages[len(t.Messages)-1]
	return fmt.Sprintf("it ends here: nothing came after the %s's %s", last.From, last.Name)
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}
