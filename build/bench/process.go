package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience bounds every wait for something that takes a moment.
const patience = 2 * time.Minute

// process is a child. It dies with this program, and its output is kept for the case that
// something went wrong.
type process struct {
	*exec.Cmd
	name  string
	ended chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// start starts a child; whoever starts it calls stop.
func start(name string, argv ...string) (*process, error) {
	p := &process{Cmd: exec.Command(argv[0], argv[1:]...), name: name, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p, p
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() { // ends with the process, which stop sees to
		defer close(p.ended)
		_ = p.Wait()
	}()
	return p, nil
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// stop ends the child, in good order if it can.
func (p *process) stop() {
	_ = p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		_ = p.Process.Kill()
		<-p.ended
	}
}

// await waits until done says so, and fails when the child ends before.
func (p *process) await(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("waiting for %s: %s ended: %s", what, p.name, last(p.output()))
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s of %s: %w: %s", what, p.name, ctx.Err(), last(p.output()))
		}
	}
	return nil
}

// awaitOutput waits until the child has said text.
func (p *process) awaitOutput(ctx context.Context, text string) error {
	return p.await(ctx, strconv.Quote(text), func() bool { return strings.Contains(p.output(), text) })
}

// last is the end of a long output.
func last(text string) string {
	const most = 2000
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	return strings.TrimSpace(text)
}

// tick is the unit of /proc/PID/stat, USER_HZ, which is 100 on every architecture of ours.
const tick = 10 * time.Millisecond

// cpu is the processor time that a process has used, in user and system mode (proc(5), stat).
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time of %s: %w", p.name, err)
	}
	// The second field is the name in parentheses, and may itself hold spaces.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest) // the first is field 3
	if len(fields) < 13 {
		return 0, fmt.Errorf("reading the CPU time of %s: %d fields", p.name, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// written is how many bytes a process caused to be written to disks (proc(5), io).
func (p *process) written() (int64, error) { return p.field("io", "write_bytes:", 1) }

// pss is the memory of a process in bytes; pages it shares count for its part.
func (p *process) pss() (int64, error) { return p.field("smaps_rollup", "Pss:", 1024) }

// rss is the memory of a process in bytes that is in RAM, the pages that it shares included.
func (p *process) rss() (int64, error) { return p.field("status", "VmRSS:", 1024) }

func (p *process) field(file, name string, unit int64) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Process.Pid, file))
	if err != nil {
		return 0, fmt.Errorf("measuring %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n * unit, err
		}
	}
	return 0, fmt.Errorf("measuring %s: no %s in %s", p.name, name, file)
}

// output runs a command to its end.
func output(ctx context.Context, stdin string, argv ...string) (string, error) {
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.Stdin = strings.NewReader(stdin)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %s: %w: %s", strings.Join(argv, " "), err, last(string(out)))
	}
	return string(out), nil
}
