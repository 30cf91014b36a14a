// Package hook has a certificate issued by a program of the user's: the request goes to its
// standard input, the chain comes from its standard output, both PEM. The trap is what the program
// starts itself: the whole process group goes when the time is over, and no shell reads the
// arguments, so that the id of a device is never code.
package hook

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"ferrule/agent/enroll/peer"
	"ferrule/internal/hint"
)

// The bounds of one run.
const (
	// DefaultTimeout is how long it may take.
	DefaultTimeout = peer.DefaultTimeout
	maxOutput      = 256 << 10
	maxErrors      = 4 << 10
	lastWords      = 300 // of the errors, that are repeated
	// grace is how long a pipe may stay open when the program is gone.
	grace = time.Second
)

// TryLater is the exit status (EX_TEMPFAIL of sysexits.h) of a program that wants to be asked
// again later. If the last line that it writes to standard error is "retry-after: SECONDS", then
// after that.
const TryLater = 75

// path is what a program is looked up in that the hook starts: nothing of the user's.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Options say what to run, and for what.
type Options struct {
	// Command is the program by its whole path, and its arguments.
	Command []string
	// Device and Purpose (first, renew or return) are FERRULE_DEVICE and FERRULE_PURPOSE in its
	// environment, Token FERRULE_TOKEN where there is one.
	Device, Purpose, Token string
	// Environment are further variables, NAME=VALUE.
	Environment []string
	// Timeout is how long it may take; 0: DefaultTimeout.
	Timeout time.Duration
}

// Run runs the program with csr, PKCS #10 in DER, and returns the chain that it printed. It is
// ErrRefused if the program said no, *peer.Later if it exited with TryLater, ErrUnreachable if it
// was ended by a signal or the time.
func Run(ctx context.Context, o Options, csr []byte) (peer.Issued, error) {
	request, err := peer.KeyOf(csr)
	if err != nil {
		return peer.Issued{}, err
	}
	if len(o.Command) == 0 {
		return peer.Issued{}, errors.New("no program is given")
	}
	output, err := run(ctx, o, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	if err != nil {
		return peer.Issued{}, err
	}
	certificates, err := peer.ParsePEM(output)
	var issued peer.Issued
	if err == nil {
		issued.Chain, err = peer.Chain(request.PublicKey, certificates)
	}
	if err != nil {
		return peer.Issued{}, hint.With(peer.Fault(peer.ErrAnswer, "reading what "+o.Command[0]+" printed", err),
			"it must print the certificate and its issuers in PEM, and nothing else, on standard output")
	}
	for _, c := range certificates {
		if peer.SelfSigned(c) {
			issued.Roots = append(issued.Roots, c)
		}
	}
	return issued, nil
}

func run(ctx context.Context, o Options, input []byte) ([]byte, error) {
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stdout, stderr := &head{limit: maxOutput, over: cancel}, &tail{limit: maxErrors}
	command := exec.CommandContext(ctx, o.Command[0], o.Command[1:]...)
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(input), stdout, stderr
	command.Env = environment(o)
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return killGroup(command.Process) }
	command.WaitDelay = grace
	err := command.Run()
	if command.Process != nil {
		_ = killGroup(command.Process) // whatever it left behind
	}
	if stdout.cut { // and was ended for it
		return nil, hint.With(peer.Fault(peer.ErrAnswer, fmt.Sprintf("%s printed more than %d bytes", o.Command[0], maxOutput), nil),
			"it must print the certificate and its issuers in PEM, and nothing else, on standard output")
	}
	if err != nil {
		return nil, explain(ctx, o, err, stderr.kept)
	}
	return stdout.kept, nil
}

func killGroup(p *os.Process) error {
	err := syscall.Kill(-p.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

func environment(o Options) []string {
	all := []string{"PATH=" + path, "LANG=C", "FERRULE_DEVICE=" + o.Device, "FERRULE_PURPOSE=" + o.Purpose}
	if o.Token != "" {
		all = append(all, "FERRULE_TOKEN="+o.Token)
	}
	return append(all, o.Environment...)
}

// explain sorts the ways in which a program fails.
func explain(ctx context.Context, o Options, err error, stderr []byte) error {
	name, said := o.Command[0], peer.Printable(string(stderr[max(len(stderr)-lastWords, 0):]))
	cause := err
	if said != "" {
		cause = fmt.Errorf("%w: %s", err, said)
	}
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return hint.With(peer.Fault(peer.ErrUnreachable, name+" did not end in time", cause), "raise enroll.timeout, or see what it waits for")
	case !exited && errors.Is(err, exec.ErrWaitDelay):
		return hint.With(peer.Fault(peer.ErrAnswer, name+" left a process behind that holds its output", cause), "let it wait for what it starts")
	case !exited:
		return hint.With(fmt.Errorf("starting %s: %w", name, err), "check enroll.command: the program's whole path, and that it may be run")
	case exit.ExitCode() == TryLater:
		return hint.With(&peer.Later{After: retryAfter(stderr), Text: name + " asks to be run again later", Cause: cause}, "see what it waits for")
	case exit.ExitCode() < 0:
		return hint.With(peer.Fault(peer.ErrUnreachable, name+" was killed", cause), "see who killed it, perhaps for its memory")
	}
	return hint.With(peer.Fault(peer.ErrRefused, name+" refused", cause), "run it by hand with a request on standard input")
}

func retryAfter(stderr []byte) time.Duration {
	lines := strings.Split(strings.TrimSpace(string(stderr)), "\n")
	value, found := strings.CutPrefix(strings.ToLower(strings.TrimSpace(lines[len(lines)-1])), "retry-after:")
	if !found {
		return 0
	}
	return peer.RetryAfter(value, "", time.Time{})
}

// head keeps the beginning of what is written to it, and calls over at the first byte too many.
type head struct {
	kept  []byte
	limit int
	over  func()
	cut   bool
}

func (h *head) Write(p []byte) (int, error) {
	keep := min(len(p), h.limit-len(h.kept))
	h.kept = append(h.kept, p[:keep]...)
	if keep < len(p) {
		h.cut = true
		h.over()
	}
	return len(p), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	kept  []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p[max(len(p)-t.limit, 0):]...)
	t.kept = t.kept[max(len(t.kept)-t.limit, 0):]
	return len(p), nil
}
