package tpmtest

import (
	"encoding/binary"
	"sync"
	"syscall"
	"time"
)

// Response codes of TPM 2.0 Part 2, 6.6.3, for scripts.
const (
	RCSuccess       uint32 = 0x000
	RCInitialize    uint32 = 0x100
	RCFailure       uint32 = 0x101
	RCYielded       uint32 = 0x908
	RCTesting       uint32 = 0x90A
	RCReferenceH0   uint32 = 0x910
	RCObjectMemory  uint32 = 0x902
	RCNVRate        uint32 = 0x920
	RCLockout       uint32 = 0x921
	RCRetry         uint32 = 0x922
	RCNVUnavailable uint32 = 0x923
)

// Response builds a bare TPM response without sessions.
func Response(code uint32, body ...byte) []byte {
	const noSessions, header = 0x8001, 10
	b := binary.BigEndian.AppendUint16(nil, noSessions)
	b = binary.BigEndian.AppendUint32(b, uint32(header+len(body)))
	b = binary.BigEndian.AppendUint32(b, code)
	return append(b, body...)
}

// A Step is what a Descriptor does with one command. Its zero value swallows the command
// and never answers.
type Step struct {
	WriteErrs []error // write fails with each of these in turn before it takes the command
	PollErrs  []error // so does poll
	ReadErrs  []error // so does read
	Empty     int     // read answers 0 bytes this often, as some kernels do for a moment
	Short     bool    // write takes only half of the command
	Answer    []byte  // nil: never
	Chunk     int     // bytes per read at most; 0: all
}

// A Descriptor is a TPM character device that follows a script, one Step for each command;
// it has the kernel's rules: a write while an answer lies unread is EBUSY. Where the script
// is at its end, commands are swallowed. It fits package tpm's own interface for one.
type Descriptor struct {
	mu       sync.Mutex
	steps    []Step
	step     Step
	unread   []byte
	commands [][]byte
	closed   bool
	readable chan struct{} // has a token when unread is not empty
}

// NewDescriptor returns a device that follows steps.
func NewDescriptor(steps ...Step) *Descriptor {
	d := &Descriptor{steps: steps, readable: make(chan struct{}, 1)}
	d.next()
	return d
}

// Leave puts an unread answer into the device, as an interrupted process does.
func (d *Descriptor) Leave(answer []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer(answer)
}

// Commands are those taken so far.
func (d *Descriptor) Commands() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([][]byte(nil), d.commands...)
}

// Closed reports whether Close was called.
func (d *Descriptor) Closed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func (d *Descriptor) next() {
	d.step = Step{}
	if len(d.steps) > 0 {
		d.step, d.steps = d.steps[0], d.steps[1:]
	}
}

func (d *Descriptor) answer(b []byte) {
	d.unread = b
	select {
	case d.readable <- struct{}{}:
	default:
	}
}

// pop takes the next error off a list.
func pop(errs *[]error) error {
	if len(*errs) == 0 {
		return nil
	}
	err := (*errs)[0]
	*errs = (*errs)[1:]
	return err
}

func (d *Descriptor) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.unread) > 0 {
		return 0, syscall.EBUSY
	}
	if err := pop(&d.step.WriteErrs); err != nil {
		return 0, err
	}
	d.commands = append(d.commands, append([]byte(nil), p...))
	if d.step.Short {
		return len(p) / 2, nil
	}
	if d.step.Answer != nil {
		d.answer(d.step.Answer)
	}
	return len(p), nil
}

// Poll waits for an answer.
func (d *Descriptor) Poll(limit time.Duration) (bool, error) {
	d.mu.Lock()
	err, ready := pop(&d.step.PollErrs), len(d.unread) > 0
	d.mu.Unlock()
	if err != nil || ready {
		return ready && err == nil, err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-d.readable:
		return true, nil
	case <-timer.C:
		return false, nil
	}
}

func (d *Descriptor) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := pop(&d.step.ReadErrs); err != nil {
		return 0, err
	}
	if d.step.Empty > 0 {
		d.step.Empty--
		return 0, nil
	}
	if len(d.unread) == 0 {
		return 0, nil
	}
	if d.step.Chunk > 0 && len(p) > d.step.Chunk {
		p = p[:d.step.Chunk]
	}
	n := copy(p, d.unread)
	if d.unread = d.unread[n:]; len(d.unread) == 0 && len(d.commands) > 0 {
		d.next()
	}
	return n, nil
}

// Close implements io.Closer.
func (d *Descriptor) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return syscall.EBADF
	}
	d.closed = true
	return nil
}
