package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// How the agent is kept running.
const (
	firstPause  = time.Second
	lastPause   = time.Minute
	healthyTime = 5 * time.Minute  // an agent that ran so long did not fail at once
	trialFaults = 3                // failures in a row after which a system on trial reboots
	startTime   = 90 * time.Second // within which it says that it is ready
	silence     = time.Minute      // after which one that is ready and does not say that it lives hangs
	noRestart   = 78               // its exit code for: not to be restarted
)

// runAgent enrolls the device if it is new, and runs the agent, again whenever it ends. It returns when
// ctx ends, or with the reboot that a trial comes to.
func runAgent(ctx context.Context, log *slog.Logger, b boot) ending {
	enroll(ctx, log)
	pause := firstPause
	for faults := 0; ; {
		began := time.Now()
		err := runOnce(ctx, log, b)
		if ctx.Err() != nil {
			return ending{}
		}
		if time.Since(began) > healthyTime {
			faults, pause = 0, firstPause
		}
		faults++
		log.Error("agent ended", "err", err, "faults", faults)
		if b.trial && (faults >= trialFaults || errors.Is(err, errHangs)) {
			return ending{text: "the agent of a system on trial failed " + strconv.Itoa(faults) + " times"}
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == noRestart && !b.trial {
			pause = lastPause // somebody may mend the configuration
		}
		select {
		case <-ctx.Done():
			return ending{}
		case <-time.After(pause):
			pause = min(2*pause, lastPause)
		}
	}
}

var errHangs = errors.New("it hung")

// runOnce is one life of the agent. Cancelling ctx stops it in good order.
func runOnce(ctx context.Context, log *slog.Logger, b boot) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lives, err := listen(ctx)
	if err != nil {
		return err
	}
	child := command(ctx, "run")
	child.Env = append(child.Env, "NOTIFY_SOCKET="+notifySocket, "WATCHDOG_USEC="+strconv.FormatInt(silence.Microseconds(), 10))
	if err := child.Start(); err != nil {
		return err
	}
	log.Info("slot "+b.slot+", agent started", "pid", child.Process.Pid)
	watched := make(chan struct{})
	hung := false
	go func() { // ends with the channel, which listen closes when ctx ends
		defer close(watched)
		watch(lives, startTime, silence, log, func() {
			hung = true
			log.Error("agent hangs; killing it")
			_ = child.Process.Signal(syscall.SIGABRT) // its goroutines' stacks are the last it says
			time.AfterFunc(5*time.Second, func() { _ = child.Process.Kill() })
		})
	}()
	err = child.Wait()
	cancel(err)
	<-watched
	if hung {
		return errHangs
	}
	return err
}

// command is the agent as its own user; cancelling ctx terminates it, and kills it if it stays.
func command(ctx context.Context, arguments ...string) *exec.Cmd {
	child := exec.CommandContext(ctx, agent, arguments...)
	child.Dir = stateDir
	child.Env = []string{"PATH=/usr/bin", "HOME=" + stateDir, "TMPDIR=/tmp"}
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = stopPatience
	child.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: owner, Gid: owner, Groups: []uint32{}},
		Setsid:     true,
	}
	return child
}

// tokenFile is what the factory leaves: the one-time token of the registrar.
const tokenFile = confDir + "/token"

// enroll gets the first certificate by the token, as often as it takes. The token goes when it has
// done its work.
func enroll(ctx context.Context, log *slog.Logger) {
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, lastPause) {
		token, err := os.Open(tokenFile)
		if err != nil {
			return // the usual case
		}
		child := command(ctx, "enroll", "--token", "-")
		child.Stdin = io.LimitReader(bufio.NewReader(token), 4096)
		err = child.Run()
		_ = token.Close()
		if err == nil {
			log.Info("enrolled")
			if err := os.Remove(tokenFile); err != nil {
				log.Error("token still there", "err", err)
			}
			syscall.Sync()
			return
		}
		log.Error("not enrolled", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
