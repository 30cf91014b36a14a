package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"ferrule/agent"
	"ferrule/internal/hint"
)

// program is the real agent's binary. Its runs are children of a group of their own, so that
// Ctrl-C at the terminal is for the demo alone, and they end with the demo however it ends.
type program struct {
	path   string
	config string // file
	log    *os.File
}

// command prepares a child that the kernel ends should we die.
func (p program) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, p.path, append(args, "--config", p.config)...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return c
}

// enroll makes the key and gets the certificate. It returns what the agent said.
func (p program) enroll(ctx context.Context, token string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := p.command(ctx, "enroll", "--token", "-")
	c.Stdin = strings.NewReader(token + "\n")
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("running ferrule enroll: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return string(out), nil
}

// status asks the running agent.
func (p program) status(ctx context.Context) (agent.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var s agent.Status
	out, err := p.command(ctx, "status", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	return s, err
}

// process is one life of the agent.
type process struct {
	*exec.Cmd
	exited chan struct{}
}

// run starts the agent.
func (p program) run() (*process, error) {
	c := p.command(context.Background(), "run")
	c.Stdout, c.Stderr = p.log, p.log
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("starting the agent: %w", err)
	}
	started := &process{Cmd: c, exited: make(chan struct{})}
	go func() { // ends with the process, which kill or stop sees to
		defer close(started.exited)
		_ = c.Wait() // the exit code is in ProcessState
	}()
	return started, nil
}

// kill ends the agent with SIGKILL and returns when that was and it is gone.
func (p *process) kill() time.Time {
	at := time.Now()
	_ = p.Process.Kill() // it may be gone already
	<-p.exited
	return at
}

// stopTime is how long the agent may take to drain; its own limit is 10 s.
const stopTime = 20 * time.Second

// stop ends the agent with SIGTERM, which lets it drain.
func (p *process) stop() error {
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping the agent: %w", err)
	}
	limit := time.NewTimer(stopTime)
	defer limit.Stop()
	select {
	case <-p.exited:
	case <-limit.C:
		p.kill()
		return fmt.Errorf("stopping the agent: it ran on for %v after SIGTERM", stopTime)
	}
	if code := p.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("stopping the agent: %v", p.ProcessState)
	}
	return nil
}

// written is what the process had written to disk when it ended, in bytes: the kernel's count,
// in blocks of 512 (getrusage(2), ru_oublock). A file system in memory counts nothing.
func (p *process) written() int64 {
	usage, ok := p.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	return int64(usage.Oublock) * 512
}

// died is the error of an agent that ended by itself.
func (p program) died(run *process) error {
	return hint.With(errors.New("the agent ended by itself: "+run.ProcessState.String()), "its last words:\n"+p.lastWords())
}

// lastWords is the end of the agent's log.
func (p program) lastWords() string {
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}
