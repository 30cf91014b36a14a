package cause

import (
	"errors"
	"io"
	"strings"
	"unicode"

	"ferrule/internal/hint"
)

// finding is what Classify knows of a cause.
type finding struct {
	cause Cause
	side  Side
	text  string
	hint  string
}

// Classify names the cause of an error that ended an attempt or a connection at stage, the
// side that it is on, and the repair. It owns the table of causes.
func Classify(stage Stage, err error) Failure {
	if err == nil {
		err = io.EOF
	}
	if staged, ok := errors.AsType[*StageError](err); ok {
		err = staged.Err
	}
	f := classify(stage, err)
	if own := hint.Of(err); own != "" {
		f.hint = own
	}
	return Failure{Stage: stage, Cause: f.cause, Side: f.side, Text: Printable(f.text + " (" + err.Error() + ")"), Hint: f.hint}
}

func classify(stage Stage, err error) finding {
	for _, look := range []func(Stage, error) (finding, bool){
		ofWay, ofPolicy, ofLink, ofAlert, ofVerification, ofKey, ofHandshake, ofConnack, ofNetwork,
	} {
		if f, ok := look(stage, err); ok {
			return f
		}
	}
	return finding{Unknown, SideBroker, "the connection failed", "the broker's log has its side of it"}
}

// Printable makes foreign text fit for a log and a terminal.
func Printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}
