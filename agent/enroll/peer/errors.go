package peer

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"ferrule/internal/hint"
)

// ErrRefused says that the service answered no: the same question will get the same answer.
var ErrRefused = errors.New("refused")

// ErrUnreachable says that no answer came; another try may bring one.
var ErrUnreachable = errors.New("unreachable")

// ErrUntrusted says that whoever answered could not prove to be the service. It was told
// nothing.
var ErrUntrusted = errors.New("untrusted")

// ErrAnswer says that the answer makes no sense.
var ErrAnswer = errors.New("senseless answer")

// Later says that the service cannot answer yet.
type Later struct {
	// After is how long it wants to be left alone, 1 s to 24 h; 0 where it did not say.
	After time.Duration
	Text  string
	Cause error
}

func (l *Later) Error() string { return join(l.Text, l.Cause) }
func (l *Later) Unwrap() error { return l.Cause }

// fault is an error with one of the kinds above, which its text does not repeat.
type fault struct {
	kind  error
	text  string
	cause error
}

func (f *fault) Error() string { return join(f.text, f.cause) }

func (f *fault) Unwrap() []error {
	if f.cause == nil {
		return []error{f.kind}
	}
	return []error{f.kind, f.cause}
}

func join(text string, cause error) string {
	if cause == nil {
		return text
	}
	return text + ": " + cause.Error()
}

// Fault makes an error of kind whose text is text, and cause behind it where there is one.
func Fault(kind error, text string, cause error) error {
	return &fault{kind: kind, text: text, cause: cause}
}

func (c *Client) fault(kind error, format string, cause error) error {
	return Fault(kind, fmt.Sprintf(format, c.service), cause)
}

// The bounds of Retry-After, whatever the service says: nobody is asked twice a second, and a
// device whose service wants to be left alone for a year asks every day.
const (
	minAfter = time.Second
	maxAfter = 24 * time.Hour
)

// RetryAfter reads the header of that name (RFC 9110, 10.2.3): seconds, or a date, which counts
// from date, the service's own header Date; now where that is not there. It is 0 where value
// says nothing, else 1 s to 24 h.
func RetryAfter(value, date string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if digits(value) {
		seconds, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return maxAfter
		}
		return min(max(time.Duration(seconds)*time.Second, minAfter), maxAfter)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if sent, err := http.ParseTime(date); err == nil {
		now = sent // our clock may be years behind
	}
	return min(max(at.Sub(now), minAfter), maxAfter)
}

func digits(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }) < 0
}

// No turns an answer that is no success into an error. reason is what the service gave as its
// own, "" for none; it is escaped and cut here.
func (c *Client) No(a Answer, reason string) error {
	said := errors.New(strings.TrimSpace(strconv.Itoa(a.Status) + " " + http.StatusText(a.Status)))
	if reason = Printable(reason); reason != "" {
		said = fmt.Errorf("%w: %s", said, reason)
	}
	after := RetryAfter(a.Header.Get("Retry-After"), a.Header.Get("Date"), c.now())
	switch a.Status {
	case http.StatusAccepted:
		return hint.With(&Later{After: after, Text: c.service + " has taken the request and will decide later"},
			"somebody has to approve it there; ask again after that")
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		return hint.With(c.fault(ErrUnreachable, "%s cannot be reached", said), "a gateway in between answered; look at what is behind it")
	case http.StatusServiceUnavailable:
		if after == 0 {
			return hint.With(c.fault(ErrUnreachable, "%s cannot be reached", said), "it is starting or overloaded; ask again")
		}
		fallthrough
	case http.StatusTooManyRequests, http.StatusInternalServerError:
		return hint.With(&Later{After: after, Text: c.service + " cannot answer now", Cause: said}, "look at its log; ask again later")
	case http.StatusUnauthorized, http.StatusForbidden:
		return hint.With(c.fault(ErrRefused, "%s refused", said),
			"it does not take the token, the user or the certificate shown; its log says why")
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return hint.With(c.fault(ErrRefused, "%s refused", said), "check the path in enroll.url")
	}
	if a.Status >= 300 && a.Status < 400 {
		return hint.With(c.fault(ErrRefused, "%s refused", said), "redirects are not followed: write enroll.url as the address that answers itself")
	}
	return hint.With(c.fault(ErrRefused, "%s refused", said), "its log says why")
}

// Senseless says that an answer cannot be read.
func (c *Client) Senseless(cause error) error {
	return hint.With(c.fault(ErrAnswer, "reading what %s answered", cause), "check that enroll.url is "+c.service+" itself and that enroll.method is right")
}

const maxReason = 300

// Printable makes foreign text fit for a log and a terminal: one line, at most 300 bytes.
func Printable(text string) string {
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?")))
}
