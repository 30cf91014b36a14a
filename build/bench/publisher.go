package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"ferrule/agent/encode"
	"ferrule/agent/identity"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
)

// A healthy session is measured: the load keeps the window full, and nothing gets as old as the
// outbox's sync. So many entries may wait before the next portion is appended.
const (
	aheadPlain   = 2_000
	aheadBatched = 8_000 // a window of full batches, and as much again
	portion      = 1_000
)

// carrier is what the child process runs: the agent's outbox and session, and nothing else.
type carrier struct {
	state, broker, roots, cert, key, begin string
	messages                               int
	batch                                  bool
}

// publish is the program of the child: it waits until its parent makes the file begin, appends
// the messages, says when the broker has all of them, and ends on SIGTERM.
func publish(args []string) int {
	var c carrier
	flags := flag.NewFlagSet("publish", flag.ContinueOnError)
	c.flags(flags)
	flags.IntVar(&c.messages, "messages", 0, "how many messages")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	return c.run(c.session, c.load)
}

// flags are those of every child that carries.
func (c *carrier) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.state, "state", "", "state directory")
	flags.StringVar(&c.broker, "broker", "", "URL of the broker")
	flags.StringVar(&c.roots, "roots", "", "file of the broker's CA")
	flags.StringVar(&c.cert, "cert", "", "file of the certificate")
	flags.StringVar(&c.key, "key", "", "file of the key")
	flags.StringVar(&c.begin, "begin", "", "file whose making starts the load")
	flags.BoolVar(&c.batch, "batch", false, "join entries that wait")
}

// run carries what load appends, over the session that open makes, and returns the exit code.
func (c *carrier) run(open func(*identity.Identity, *outbox.Outbox, *slog.Logger) (*session.Session, error), load func(context.Context, *outbox.Outbox) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.carry(ctx, open, load); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

func (c *carrier) carry(ctx context.Context, open func(*identity.Identity, *outbox.Outbox, *slog.Logger) (*session.Session, error), load func(context.Context, *outbox.Outbox) error) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	fsys := disk.OS()
	id, err := identity.Open(ctx, identity.Config{TPM: "none", Key: "file:" + c.key, Certificate: c.cert, AllowSoftwareKey: true},
		identity.Options{StateDir: c.state, FS: fsys, Clock: identity.TrustedClock(time.Now), Log: log})
	if err != nil {
		return err
	}
	defer id.Close()
	out, err := outbox.Open(outbox.Options{FS: fsys, Dir: filepath.Join(c.state, "outbox"), Config: outbox.Default(), Log: log})
	if err != nil {
		return err
	}
	defer out.Close()
	uplink, err := open(id, out, log)
	if err != nil {
		return err
	}
	parts, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = out.Run(parts) })
	running.Go(func() { _ = uplink.Run(parts) })
	defer running.Wait()
	defer cancel()
	if err := until(ctx, func() bool { return uplink.Status().Stage == cause.StageUp }); err != nil {
		return fmt.Errorf("connecting: %w: %+v", err, uplink.Status().LastFailure)
	}
	fmt.Println("session up")
	return load(ctx, out)
}

func (c *carrier) session(id *identity.Identity, out *outbox.Outbox, log *slog.Logger) (*session.Session, error) {
	o := session.Options{
		Config: session.Default(), Identity: id, Source: out, Log: log,
		Handle:        func(context.Context, session.Command) (string, []byte) { return "", nil },
		Online:        func() []byte { return []byte("{}") },
		ShutdownGrace: 5 * time.Second,
	}
	o.Brokers, o.Config.Roots = []string{c.broker}, c.roots
	if c.batch {
		encoder, err := encode.New(encode.Default(), "bench/{device}/{line}/{unit}", "bench", out.Boot())
		if err != nil {
			return nil, err
		}
		o.Format = encoder
	}
	return session.New(o)
}

// load appends what was asked for and waits until the broker has acknowledged all of it.
func (c *carrier) load(ctx context.Context, out *outbox.Outbox) error {
	if err := until(ctx, func() bool { _, err := os.Stat(c.begin); return err == nil }); err != nil {
		return err
	}
	encode := func(dst []byte, seq uint64) (string, []byte) { return "bench/ours", appendEntry(dst, seq) }
	ahead := aheadPlain
	if c.batch {
		ahead = aheadBatched
	}
	for done := 0; done < c.messages; done++ {
		if done%portion == 0 {
			if err := until(ctx, func() bool { return out.Status().Depth <= ahead }); err != nil {
				return fmt.Errorf("waiting for the broker: %w: %+v", err, out.Status())
			}
		}
		if err := out.Append(ctx, "bench", encode); err != nil {
			return fmt.Errorf("appending: %w", err)
		}
	}
	if err := until(ctx, func() bool { return out.Status().Acked >= uint64(c.messages) }); err != nil {
		return fmt.Errorf("waiting for acknowledgements: %w: %+v", err, out.Status())
	}
	fmt.Println("all acknowledged")
	<-ctx.Done()
	return nil
}

// until waits for done.
func until(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
