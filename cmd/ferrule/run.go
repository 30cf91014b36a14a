package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ferrule/agent"
	"ferrule/agent/config"
	"ferrule/firmware/slot"
)

// loadConfig reads the configuration; every mistake in it ends with exit code 3.
func loadConfig(e *env) (*config.Config, error) {
	c, err := config.Load(e.configPath)
	return c, withCode(exitConfig, err)
}

func runAgent(ctx context.Context, e *env) error {
	handler, err := logHandler(e)
	if err != nil {
		return err
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	err = agent.Run(ctx, agent.Options{
		Load:    func() (*config.Config, error) { return loadConfig(e) },
		File:    e.configPath,
		Reload:  reload,
		Version: version,
		Built:   buildTime(),
		Log:     slog.New(agent.Quiet(handler)),
	})
	if errors.Is(err, agent.ErrRestart) {
		return restart()
	}
	return err
}

// restart replaces the process by a new one of the same program and arguments, so that it
// works under any supervisor, or none. A program that ferrule-launch has chosen ends: its supervisor
// starts the launcher, which chooses again, and that is how an update of the agent begins its trial.
func restart() error {
	if os.Getenv(slot.Variable) != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the program to restart: %w", err)
	}
	return fmt.Errorf("restarting %s: %w", self, syscall.Exec(self, os.Args, os.Environ()))
}

func logFlags(e *env) {
	e.flags.StringVar(&e.log, "log", "text", "form of the log: text or json")
	e.flags.BoolVar(&e.verbose, "verbose", false, "log details too")
}

func logHandler(e *env) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if e.verbose {
		options.Level = slog.LevelDebug
	}
	switch e.log {
	case "text":
		return slog.NewTextHandler(e.stderr, options), nil
	case "json":
		return slog.NewJSONHandler(e.stderr, options), nil
	}
	return nil, withCode(exitUsage, fmt.Errorf("--log %q: it is text or json", e.log))
}

// buildTime is the floor of the clock: no certificate was ever checked before it.
func buildTime() time.Time {
	t, err := time.Parse(time.RFC3339, built)
	if err != nil {
		return time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	}
	return t
}
