package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// console writes "ferrule-init: [seconds] text key=value" lines, which a person and a test read
// alike. Seconds are those since the kernel started.
type console struct {
	mu  *sync.Mutex
	out io.Writer
}

func newConsole(out io.Writer) slog.Handler { return &console{mu: new(sync.Mutex), out: out} }

func (c *console) Enabled(context.Context, slog.Level) bool { return true }
func (c *console) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *console) WithGroup(string) slog.Handler            { return c }

func (c *console) Handle(_ context.Context, r slog.Record) error {
	var line strings.Builder
	fmt.Fprintf(&line, "ferrule-init: [%.2f] %s", uptime().Seconds(), printable(r.Message))
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&line, " %s=%s", a.Key, printable(a.Value.String()))
		return true
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := io.WriteString(c.out, line.String()+"\r\n")
	return err
}

// printable takes the control characters out of what may come from a disk or a network.
func printable(text string) string {
	const most = 500
	if len(text) > most {
		text = text[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x9b {
			return '?'
		}
		return r
	}, text)
}

func ceilSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
