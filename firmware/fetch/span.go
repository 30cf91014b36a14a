package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// span reads some bytes of one file over as many connections as it takes.
type span struct {
	c    *Client
	ctx  context.Context
	url  string
	name string
	off  int64 // of the next byte
	end  int64 // it stops before
	size int64 // of the whole file; 0: not known

	// whole is a file that ends where the server says, at the latest before end: metadata. It is not
	// gone on with after a cut, but begun anew by whoever reads it.
	whole bool

	etag   string             // strong, of the first answer
	body   io.ReadCloser      // of the present connection
	cancel context.CancelFunc // of it
	watch  *time.Timer        // cancels it when nothing comes
	left   int64              // bytes of it that come before off: the server has no ranges
	length int64              // of the whole file as this answer says; -1: it does not

	fails  int   // in a row
	gained int64 // bytes since the last failure
	waited time.Duration
	came   int64 // bytes while waited
	err    error
}

// Read implements io.Reader. Its errors are final: what could be tried again was.
func (s *span) Read(p []byte) (int, error) {
	for s.err == nil && len(p) > 0 {
		if s.off == s.end {
			return 0, io.EOF
		}
		if s.body == nil {
			if err := s.connect(); err != nil {
				s.failed(err)
			}
			continue
		}
		n, err := s.take(p)
		switch {
		case s.off == s.end:
			s.disconnect()
		case err == io.EOF && s.whole && (s.length < 0 || s.off == s.length):
			s.disconnect()
			s.err = io.EOF
		case err != nil:
			s.failed(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// take reads from the present connection. No bytes and no error: they were before off.
func (s *span) take(p []byte) (int, error) {
	room := p[:s.c.share(len(p))]
	skip := s.left > 0
	if skip {
		room = room[:min(int64(len(room)), s.left)]
	} else {
		room = room[:min(int64(len(room)), s.end-s.off)]
	}
	s.watch.Reset(silence)
	start := time.Now()
	n, err := s.body.Read(room)
	s.watch.Stop()
	s.waited += time.Since(start)
	s.came += int64(n)
	s.c.received.Add(int64(n))
	if s.waited >= paceOver {
		if s.came < paceLeast && err == nil {
			err = fmt.Errorf("%w: %d bytes in %v", ErrStalled, s.came, s.waited.Round(time.Second))
		}
		s.waited, s.came = 0, 0
	}
	if paceErr := s.c.pace(s.ctx, n); paceErr != nil && err == nil {
		err = paceErr
	}
	if skip {
		s.left -= int64(n)
		n = 0
	}
	s.off += int64(n)
	s.gained += int64(n)
	return n, err
}

// connect asks for what is missing and holds the answer against the question.
func (s *span) connect() error {
	ctx, cancel := context.WithCancel(s.ctx)
	s.cancel = cancel
	s.watch = time.AfterFunc(silence, cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return &finalError{err}
	}
	request.Header.Set("Accept-Encoding", "identity") // offsets are those of the file
	if s.whole {
		request.Header.Set("Cache-Control", "no-cache")
	} else {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.off, s.end-1))
		if s.etag != "" {
			request.Header.Set("If-Range", s.etag)
		}
	}
	answer, err := s.c.http.Do(request)
	if err != nil {
		return s.stallOr(ctx, err)
	}
	s.watch.Stop()
	s.body = answer.Body
	return s.judge(answer)
}

// stallOr says that it was the watch that ended a request, where it was.
func (s *span) stallOr(ctx context.Context, err error) error {
	if ctx.Err() != nil && s.ctx.Err() == nil {
		return fmt.Errorf("%w: nothing for %v", ErrStalled, silence)
	}
	return err
}

func (s *span) judge(answer *http.Response) error {
	s.left, s.length = 0, -1
	if encoding := answer.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return s.other("the content encoding %.40q", encoding)
	}
	switch answer.StatusCode {
	case http.StatusPartialContent:
		if s.whole {
			return s.other("a part of the file")
		}
		if err := s.judgeRange(answer.Header.Get("Content-Range")); err != nil {
			return err
		}
	case http.StatusOK:
		if s.size > 0 && answer.ContentLength >= 0 && answer.ContentLength != s.size {
			return s.other("a file of %d bytes instead of %d", answer.ContentLength, s.size)
		}
		s.length = answer.ContentLength
		if s.whole && s.length > s.end {
			return &finalError{fmt.Errorf("%w: %d bytes", ErrTooLarge, s.length)}
		}
		s.left = s.off
		if !s.whole && (s.off > 0 || s.end < s.size) {
			s.c.rangeless.Store(true)
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return s.other("that bytes %d to %d are not in the file", s.off, s.end-1)
	default:
		status := &StatusError{Code: answer.StatusCode, RetryAfter: retryAfter(answer.Header.Get("Retry-After"))}
		if !status.passing() || status.RetryAfter > maxAsked {
			return &finalError{status}
		}
		return status
	}
	return s.judgeTag(answer)
}

// judgeRange checks a Content-Range. It may be shorter than what was asked for. RFC 9110, 14.4.
func (s *span) judgeRange(text string) error {
	var first, last int64
	var total string
	if n, _ := fmt.Sscanf(text, "bytes %d-%d/%s", &first, &last, &total); n != 3 || first != s.off || last < first || last >= s.end {
		return s.other("the range %.60q instead of bytes %d to %d", text, s.off, s.end-1)
	}
	if n, err := strconv.ParseInt(total, 10, 64); total != "*" && (err != nil || s.size > 0 && n != s.size) {
		return s.other("a file of %.30q bytes instead of %d", total, s.size)
	}
	return nil
}

// judgeTag sees to it that all bytes are of one file. RFC 9110, 8.8.3: a weak tag promises nothing
// for ranges.
func (s *span) judgeTag(answer *http.Response) error {
	tag := answer.Header.Get("ETag")
	if len(tag) < 2 || tag[0] != '"' || len(tag) > 256 {
		tag = ""
	}
	if s.etag != "" && tag != s.etag {
		return &finalError{fmt.Errorf("%w (its ETag)", ErrChanged)}
	}
	s.etag = tag
	return nil
}

// other is an answer to another question. The next server behind the same name may do better.
func (s *span) other(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrAnswer, fmt.Sprintf(format, args...))
}

// errCut: a file that is read whole was cut off.
var errCut = errors.New("the file was cut off")

// finalError is one that trying again will not mend.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

// failed ends a connection, and waits before the next or gives up.
func (s *span) failed(err error) {
	ctxErr := s.ctx.Err()
	if s.cancel != nil && ctxErr == nil && s.body != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: nothing for %v", ErrStalled, silence)
	}
	s.disconnect()
	var final *finalError
	switch {
	case ctxErr != nil:
		s.err = s.describe(context.Cause(s.ctx))
		return
	case errors.As(err, &final):
		s.err = s.describe(final.error)
		return
	case s.whole && s.off > 0:
		s.err = fmt.Errorf("%w: %w", errCut, short(err))
		return
	}
	if s.gained >= progress {
		s.fails = 0
	}
	s.gained = 0
	s.fails++
	if s.fails > strikes {
		s.err = s.describe(fmt.Errorf("giving up after %d connections without progress: %w", s.fails, short(err)))
		return
	}
	s.c.log.LogAttrs(s.ctx, slog.LevelDebug, "download interrupted", slog.String("file", s.name), slog.Int64("at", s.off),
		slog.Int("in_a_row", s.fails), slog.Any("err", err))
	if waitErr := sleep(s.ctx, s.wait(err)); waitErr != nil {
		s.err = s.describe(waitErr)
	}
}

// describe says what was being read; metadata does so itself.
func (s *span) describe(err error) error {
	if s.whole {
		return err
	}
	return fmt.Errorf("getting %s at byte %d: %w", s.name, s.off, advise(err))
}

// short names a cut by its effect: "unexpected EOF" tells nobody anything.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the connection ended too early: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// wait is full jitter on a doubling bound; after progress the first try comes soon.
func (s *span) wait(err error) time.Duration {
	var status *StatusError
	if errors.As(err, &status) && status.RetryAfter > 0 {
		return status.RetryAfter + rand.N(status.RetryAfter/4+time.Second)
	}
	bound := min(maxWait, firstWait<<(s.fails-1))
	return rand.N(bound)
}

func (s *span) disconnect() {
	if s.watch != nil {
		s.watch.Stop()
	}
	if s.cancel != nil {
		s.cancel()
	}
	if s.body != nil {
		_ = s.body.Close() // what it still held is not wanted
	}
	s.body, s.cancel = nil, nil
}

// Close ends the connection.
func (s *span) Close() error {
	s.disconnect()
	if s.err == nil {
		s.err = fs.ErrClosed
	}
	return nil
}

// retryAfter reads seconds or a date. RFC 9110, 10.2.3.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at).Round(time.Second))
	}
	return 0
}
