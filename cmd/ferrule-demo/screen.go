package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// style is how a line looks on a terminal.
type style string

// The styles; without colour they are all the same.
const (
	normal style = ""
	bold   style = "\x1b[1m"
	dim    style = "\x1b[2m"
	good   style = "\x1b[32m"
	bad    style = "\x1b[1;31m"
	act    style = "\x1b[1;33m"
	reset        = "\x1b[0m"
)

// screen prints lines that stay, and on a terminal below them some that are rewritten. It may
// be used by any goroutine.
type screen struct {
	w       io.Writer
	live    bool // rewriting is possible
	colour  bool
	started time.Time

	mu     sync.Mutex
	footer []string
}

// newScreen looks whether w is a terminal and what NO_COLOR (no-color.org) says.
func newScreen(w io.Writer, plain bool) *screen {
	s := &screen{w: w, started: time.Now()}
	if file, ok := w.(*os.File); ok && !plain && os.Getenv("TERM") != "dumb" {
		info, err := file.Stat()
		s.live = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	s.colour = s.live && os.Getenv("NO_COLOR") == ""
	return s
}

// paint puts text into a style.
func (s *screen) paint(how style, text string) string {
	if !s.colour || how == normal {
		return text
	}
	return string(how) + text + reset
}

// line prints a line.
func (s *screen) line(how style, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintln(s.w, s.paint(how, fmt.Sprintf(format, args...)))
	s.draw()
}

// event prints a line with the time since the beginning before it.
func (s *screen) event(how style, format string, args ...any) {
	clock := s.paint(dim, fmt.Sprintf("%6.1f s ", time.Since(s.started).Seconds()))
	s.line(normal, "%s %s", clock, s.paint(how, fmt.Sprintf(format, args...)))
}

// below replaces the lines that are rewritten; without a terminal it prints nothing.
func (s *screen) below(lines ...string) {
	if !s.live {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.footer = lines
	s.draw()
}

func (s *screen) clear() {
	if n := len(s.footer); n > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\r\x1b[J", n)
	}
}

// draw writes the footer, without wrapping: a narrow terminal shows less of it.
func (s *screen) draw() {
	if len(s.footer) > 0 {
		fmt.Fprintf(s.w, "\x1b[?7l%s\n\x1b[?7h", strings.Join(s.footer, "\n"))
	}
}
