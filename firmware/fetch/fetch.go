// Package fetch gets files of the repository over HTTP, and goes on after any cut where it was.
// The trap: a server may answer another question than the one that was asked (the whole file, another
// range, a newer file), so each answer is held against the question, and the bytes are still
// hostile.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/internal/hint"
)

// Bounds of patience. A file that comes slower than least is one that somebody drips.
const (
	maxRedirects = 5
	strikes      = 8                // connections in a row that bring no progress
	wholeTries   = 5                // of a file that is cut off each time
	progress     = 16 << 10         // bytes that are progress
	silence      = 60 * time.Second // without an answer, or a byte of a body
	paceOver     = 60 * time.Second // of waiting for bodies, in which at least
	paceLeast    = 30 << 10         // bytes must come
	firstWait    = 500 * time.Millisecond
	maxWait      = time.Minute
	maxAsked     = time.Minute // of waiting because the server asked for it; longer waits are the caller's
)

// Errors to branch on, beside fs.ErrNotExist for a file that the server does not have, and *StatusError.
var (
	// ErrTooLarge: a file is longer than it may be.
	ErrTooLarge = errors.New("the file is longer than it may be")
	// ErrChanged: the file is not the one whose first bytes were read.
	ErrChanged = errors.New("the file changed on the server while it was read")
	// ErrAnswer: the server answered another question than it was asked.
	ErrAnswer = errors.New("the server answered another question")
	// ErrStalled: too little came for too long.
	ErrStalled = errors.New("the server sends too little")
)

// StatusError is a status that is not the one of a file.
type StatusError struct {
	Code int
	// RetryAfter is how long the server wants to be left alone; 0 where it does not say.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	if e.RetryAfter > 0 {
		return fmt.Sprintf("the server answered %d %s, and asks to wait %v", e.Code, http.StatusText(e.Code), e.RetryAfter)
	}
	return fmt.Sprintf("the server answered %d %s", e.Code, http.StatusText(e.Code))
}

// Is makes what is not there fs.ErrNotExist.
func (e *StatusError) Is(target error) bool {
	return target == fs.ErrNotExist && (e.Code == http.StatusNotFound || e.Code == http.StatusGone)
}

// passing reports whether the same question may be answered later.
func (e *StatusError) passing() bool {
	return e.Code >= 500 || e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout || e.Code == http.StatusTooEarly
}

// Options is what a Client is made of.
type Options struct {
	HTTP http.RoundTripper // nil: http.DefaultTransport
	Base string            // URL of the repository: metadata/ and targets/ lie below
	Rate func() int64      // most bytes in one second; 0, or nil: no limit
	Log  *slog.Logger
}

// Client gets files of one repository. It is safe for concurrent use.
type Client struct {
	http      *http.Client
	base      *url.URL
	rate      func() int64
	log       *slog.Logger
	received  atomic.Int64
	rangeless atomic.Bool // a server answered with a whole file instead of a range

	mu   sync.Mutex
	free time.Time // when the rate allows the next byte
}

// New checks the options; it asks nobody.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.Base)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, hint.With(fmt.Errorf("the repository %q is not an http or https URL", o.Base), "such as https://updates.example/ferrule")
	}
	c := &Client{base: base, rate: o.Rate, log: o.Log}
	c.http = &http.Client{Transport: o.HTTP, CheckRedirect: c.redirect}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// redirect follows to object stores and mirrors, but never from https to http: the device's
// identity and what it downloads would be seen.
func (c *Client) redirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return &finalError{fmt.Errorf("more than %d redirections", maxRedirects)}
	}
	if c.base.Scheme == "https" && next.URL.Scheme != "https" {
		return &finalError{fmt.Errorf("the server redirects from https to %q", next.URL.Scheme)}
	}
	return nil
}

// Received counts the bytes of bodies that have been read from the network.
func (c *Client) Received() int64 { return c.received.Load() }

// Ranges reports whether the server, as far as is known, sends parts of files.
func (c *Client) Ranges() bool { return !c.rangeless.Load() }

// Metadata gets a file of the repository's metadata whole. The error Is fs.ErrNotExist where there
// is none (or where the server does not say: object stores answer 403 then), and ErrTooLarge beyond
// limit bytes.
func (c *Client) Metadata(ctx context.Context, name string, limit int64) ([]byte, error) {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" || name[0] == '.' {
		return nil, fmt.Errorf("getting metadata: %q is not a name", name)
	}
	var data []byte
	var err error
	for range wholeTries {
		s := c.open(ctx, "metadata/"+name, 0, limit+1)
		s.whole = true
		data, err = io.ReadAll(s)
		s.Close()
		if !errors.Is(err, errCut) {
			break
		}
	}
	if refused := (*StatusError)(nil); errors.As(err, &refused) && refused.Code == http.StatusForbidden {
		return nil, fmt.Errorf("getting %s: %w", name, &absentError{refused})
	}
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", name, advise(err))
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("getting %s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return data, nil
}

// absentError is a refusal that an object store also gives for a file that it does not have.
type absentError struct{ *StatusError }

func (e *absentError) Is(target error) bool { return target == fs.ErrNotExist }

func (e *absentError) Unwrap() error { return e.StatusError }

// Object reads o from byte off to its end. Whoever reads it closes it.
func (c *Client) Object(ctx context.Context, o manifest.Object, off int64) io.ReadCloser {
	return c.Span(ctx, o, off, o.Size)
}

// Span reads o from byte off to before end.
func (c *Client) Span(ctx context.Context, o manifest.Object, off, end int64) io.ReadCloser {
	if off < 0 || off > end || end > o.Size {
		return &span{err: fmt.Errorf("getting %s: bytes %d to %d of %d", o.Path, off, end, o.Size)}
	}
	s := c.open(ctx, "targets/"+o.Path, off, end)
	s.size, s.name = o.Size, o.Path
	return s
}

func (c *Client) open(ctx context.Context, path string, off, end int64) *span {
	return &span{c: c, ctx: ctx, url: c.base.JoinPath(path).String(), name: path, off: off, end: end}
}

// advise says what to do about a refusal.
func advise(err error) error {
	var status *StatusError
	switch {
	case !errors.As(err, &status):
		return err
	case status.Code == http.StatusUnauthorized || status.Code == http.StatusForbidden:
		return hint.With(err, "the repository does not let this device in: check the server's rules for its certificate (ferrule status shows it)")
	case status.Is(fs.ErrNotExist):
		return hint.With(err, "check update.repository, and that the release was uploaded whole (ferrule-release verify)")
	}
	return err
}

// pace waits until the rate allows n more bytes.
func (c *Client) pace(ctx context.Context, n int) error {
	if c.rate == nil {
		return nil
	}
	rate := c.rate()
	if rate <= 0 {
		return nil
	}
	now := time.Now()
	c.mu.Lock()
	if c.free.Before(now) {
		c.free = now
	}
	c.free = c.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	wait := c.free.Sub(now)
	c.mu.Unlock()
	return sleep(ctx, wait)
}

// share is how much is read at once, so that a rate is kept smoothly.
func (c *Client) share(n int) int {
	if c.rate != nil {
		if rate := c.rate(); rate > 0 {
			return min(n, int(max(512, min(rate/8, 64<<10))))
		}
	}
	return n
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
