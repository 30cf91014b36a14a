package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"
)

// notifySocket is where the agent says that it lives, as to systemd (sd_notify(3)).
const notifySocket = runDir + "/notify"

// listen gives every message; the channel is closed when ctx ends.
func listen(ctx context.Context) (<-chan string, error) {
	if err := os.Remove(notifySocket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listening to the agent: %w", err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listening to the agent: %w", err)
	}
	if err := os.Chown(notifySocket, owner, owner); err != nil {
		_ = socket.Close()
		return nil, fmt.Errorf("listening to the agent: %w", err)
	}
	said := make(chan string)
	context.AfterFunc(ctx, func() { _ = socket.Close() })
	go func() { // ends when the socket is closed
		defer close(said)
		buffer := make([]byte, 4096)
		for {
			n, err := socket.Read(buffer)
			if err != nil {
				return
			}
			select {
			case said <- string(buffer[:n]):
			case <-ctx.Done():
				return
			}
		}
	}()
	return said, nil
}

// watch calls hangs once: where READY=1 was not said within start, or nothing for limit after a
// WATCHDOG=1. It returns when said is closed.
func watch(said <-chan string, start, limit time.Duration, log *slog.Logger, hangs func()) {
	late := time.After(start)
	for {
		select {
		case message, open := <-said:
			if !open {
				return
			}
			for line := range strings.SplitSeq(message, "\n") {
				switch {
				case line == "WATCHDOG=1":
					late = time.After(limit)
				case line == "READY=1":
					log.Info("agent ready")
					late = time.After(limit)
				}
			}
		case <-late:
			late = nil
			hangs()
		}
	}
}
