package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestNotifierFeedsTheWatchdog(t *testing.T) {
	dir, err := os.MkdirTemp("", "sd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "n")
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	heard := func() string {
		buffer := make([]byte, 64)
		n, err := listener.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
	env := map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000", "WATCHDOG_PID": strconv.Itoa(os.Getpid())}
	n := newNotifier(slog.New(slog.DiscardHandler), func(name string) string { return env[name] })
	n.ready()
	n.ready()
	if got := heard(); got != "READY=1" {
		t.Errorf("%q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); n.run(ctx) }()
	for range 3 {
		if got := heard(); got != "WATCHDOG=1" {
			t.Errorf("%q", got)
		}
	}
	cancel()
	<-ended
	for name, env := range map[string]map[string]string{
		"nobody listens":           {"WATCHDOG_USEC": "3000"},
		"the watchdog of another":  {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000", "WATCHDOG_PID": "1"},
		"no watchdog":              {"NOTIFY_SOCKET": path},
		"a watchdog without sense": {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "-1"},
	} {
		if n := newNotifier(slog.New(slog.DiscardHandler), func(name string) string { return env[name] }); n.every != 0 {
			t.Errorf("%s: fed every %v", name, n.every)
		}
	}
	gone := newNotifier(slog.New(slog.DiscardHandler), func(string) string { return filepath.Join(dir, "gone") })
	gone.ready() // harmless
}
