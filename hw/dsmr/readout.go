package dsmr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"ferrule/hw/point"
)

// Errors of a read-out, beside ErrChecksum. Whatever else it returns is the port's.
var (
	// ErrTimeout is a meter that does not answer, or stops in the middle of its answer.
	ErrTimeout = errors.New("the meter does not answer")
	// ErrMismatch is an answer that is none to the question.
	ErrMismatch = errors.New("the answer does not fit the question")
	// ErrAddress is an address that no meter can have.
	ErrAddress = errors.New("an address has up to 32 letters, digits and spaces")
	// ErrSpeed is a meter that changes its speed where the port cannot.
	ErrSpeed = errors.New("the meter changes its speed, and the port cannot")
)

// FrameError is a wrong answer, as far as it fits.
type FrameError struct {
	Err   error
	Frame []byte // its first bytes, 256 at most
}

func (e *FrameError) Error() string { return e.Err.Error() }
func (e *FrameError) Unwrap() error { return e.Err }

const maxErrorFrame = 256

func frameError(err error, frame []byte) error {
	return &FrameError{Err: err, Frame: bytes.Clone(frame[:min(len(frame), maxErrorFrame)])}
}

// Port is what a read-out needs of a serial port. A Read returns at least one byte or an error;
// past its deadline Read and Write fail with os.ErrDeadlineExceeded.
type Port interface {
	io.ReadWriter
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// ReadoutConfig says how meters are asked.
type ReadoutConfig struct {
	// Baud is the speed at which a meter is addressed; 0: 300.
	Baud int
	// Configure changes the speed of the port, when all that was written is sent; nil: the port
	// cannot, and meters are asked to stay at the speed they were addressed at.
	Configure func(baud int) error
	// Wake sends what wakes a meter that runs on a battery before it is addressed: 2.2 s of NUL
	// (IEC 62056-21, annex B).
	Wake bool
	// Zone is where the meters stand, as in Decoder.
	Zone *time.Location
}

// Readout reads meters out by asking (IEC 62056-21, modes A, B and C). It is owned by one
// goroutine.
type Readout struct {
	port    Port
	config  ReadoutConfig
	decoder Decoder
	buf     []byte // received and not yet used
	baud    int
	dirty   bool // the last one ended early: the meter may still be speaking
}

// NewReadout returns a Readout on an open port. It sends nothing.
func NewReadout(p Port, c ReadoutConfig) *Readout {
	if c.Baud == 0 {
		c.Baud = 300
	}
	return &Readout{port: p, config: c, decoder: Decoder{Zone: c.Zone}}
}

// The times of IEC 62056-21, 6.3.14, and what is added for ports that deliver late.
const (
	reaction     = 1500 * time.Millisecond // a meter begins to answer, and between two characters
	minReaction  = 200 * time.Millisecond  // before we answer it
	slack        = 500 * time.Millisecond
	breath       = 250 * time.Millisecond // between two looks at the context
	wakeLength   = 2200 * time.Millisecond
	wakePause    = 1600 * time.Millisecond
	maxHush      = 30 * time.Second
	maxReadout   = 32 << 10 // bytes of data; some industrial meters append their load profile
	maxIdent     = 64
	maxBeforeSTX = 256
)

const (
	stx = 0x02
	etx = 0x03
	ack = 0x06
)

// Read addresses the meter with the address, "" for the only one on the line, and appends the
// readings of its data to dst. name is its identification, as Decode gives it.
//
// It takes a second for a meter with a line of data and minutes for one that stays at 300 baud.
// Every wait in it is bounded: 2 s for a character, and for all the time that 32 KiB take.
func (r *Readout) Read(ctx context.Context, address string, dst []point.Reading) (name string, readings []point.Reading, err error) {
	if !validAddress(address) {
		return "", dst, fmt.Errorf("reading out meter %q: %w", address, ErrAddress)
	}
	wasDirty := r.dirty
	r.dirty = true
	ident, data, err := r.exchange(ctx, address, wasDirty)
	if len(ident) > 0 {
		name = r.decoder.name(ident)
	}
	if err != nil {
		return name, dst, fmt.Errorf("reading out meter %q: %w", orAny(address, name), err)
	}
	r.dirty = false
	return name, r.decoder.decode(dst, data), nil
}

func orAny(address, name string) string {
	if address == "" {
		return name
	}
	return address
}

// validAddress tells whether address can be one (IEC 62056-21, 6.3.2: note 22).
func validAddress(address string) bool {
	for _, c := range []byte(address) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != ' ' {
			return false
		}
	}
	return len(address) <= 32
}

// exchange returns the identification without "/" and the data lines.
func (r *Readout) exchange(ctx context.Context, address string, dirty bool) (ident, data []byte, err error) {
	if err := r.speed(r.config.Baud); err != nil {
		return nil, nil, err
	}
	if err := r.hush(ctx, dirty); err != nil {
		return nil, nil, err
	}
	if err := r.wake(ctx); err != nil {
		return nil, nil, err
	}
	request := append(append([]byte("/?"), address...), "!\r\n"...)
	if err := r.write(request); err != nil {
		return nil, nil, err
	}
	ident, err = r.identification(ctx, r.transmission(len(request)))
	if err != nil {
		return nil, nil, err
	}
	sent, err := r.selectReadout(ctx, ident[3])
	if err != nil {
		return ident, nil, err
	}
	data, err = r.data(ctx, sent)
	return ident, data, err
}

// speed changes the speed of the port where it has to.
func (r *Readout) speed(baud int) error {
	if r.config.Configure != nil && r.baud != baud {
		if err := r.config.Configure(baud); err != nil {
			r.baud = 0
			return err
		}
	}
	r.baud = baud
	return nil
}

// transmission is how long n characters take.
func (r *Readout) transmission(n int) time.Duration {
	return time.Duration(n) * 10 * time.Second / time.Duration(r.baud)
}

// hush drops what was sent before the question. A meter that was left in the middle of its
// answer is waited for, or the rest of it would be taken for noise before the next.
func (r *Readout) hush(ctx context.Context, dirty bool) error {
	quiet := time.Millisecond
	if dirty {
		quiet = reaction
	}
	for end := time.Now().Add(maxHush); time.Now().Before(end); {
		r.buf = r.buf[:0]
		err := r.more(ctx, time.Now().Add(quiet))
		if errors.Is(err, ErrTimeout) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ErrMismatch
}

func (r *Readout) wake(ctx context.Context) error {
	if !r.config.Wake {
		return nil
	}
	n := int(wakeLength / r.transmission(1))
	if err := r.write(make([]byte, n)); err != nil {
		return err
	}
	return pause(ctx, r.transmission(n)+wakePause)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Readout) write(p []byte) error {
	if err := r.port.SetWriteDeadline(time.Now().Add(r.transmission(len(p)) + reaction + slack)); err != nil {
		return err
	}
	_, err := r.port.Write(p)
	return err
}

// more reads what comes before the deadline; ErrTimeout where nothing does.
func (r *Readout) more(ctx context.Context, deadline time.Time) error {
	var chunk [256]byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := time.Now()
		until := deadline
		if next := now.Add(breath); next.Before(until) {
			until = next
		}
		if err := r.port.SetReadDeadline(until); err != nil {
			return err
		}
		n, err := r.port.Read(chunk[:])
		r.buf = append(r.buf, chunk[:n]...)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !time.Now().Before(deadline):
			return ErrTimeout
		}
	}
}

// identification reads "/XXXZ…" and returns it without the "/". after is how long the question
// is on its way. What an optical head echoes of the question is passed over.
func (r *Readout) identification(ctx context.Context, after time.Duration) ([]byte, error) {
	deadline := time.Now().Add(after + reaction + slack)
	for {
		r.buf = fromByte(r.buf, '/')
		if i := bytes.IndexByte(r.buf, '\n'); i >= 0 {
			line := bytes.TrimRight(r.buf[:i], "\r")
			if len(line) > 1 && line[1] == '?' {
				r.buf = append(r.buf[:0], r.buf[i+1:]...)
				continue
			}
			if len(line) < 5 {
				return nil, frameError(ErrMismatch, line)
			}
			ident := bytes.Clone(line[1:])
			r.buf = append(r.buf[:0], r.buf[i+1:]...)
			return ident, nil
		}
		if len(r.buf) > maxIdent {
			return nil, frameError(ErrMismatch, r.buf)
		}
		if err := r.more(ctx, deadline); err != nil {
			return nil, r.cutOff(err)
		}
		deadline = time.Now().Add(reaction + slack)
	}
}

// fromByte returns data from the first c on, at its own beginning.
func fromByte(data []byte, c byte) []byte {
	i := bytes.IndexByte(data, c)
	if i < 0 {
		return data[:0]
	}
	return append(data[:0], data[i:]...)
}

// cutOff adds what came before a timeout.
func (r *Readout) cutOff(err error) error {
	if errors.Is(err, ErrTimeout) && len(r.buf) > 0 {
		return frameError(err, r.buf)
	}
	return err
}

// speeds are those of mode C, by the digit of the identification; those of mode B are the same
// from 600 on, by letters (IEC 62056-21, 6.3.14, table 1).
var speeds = [...]int{300, 600, 1200, 2400, 4800, 9600, 19200}

// selectReadout does what the identification's fifth character z asks for, and returns how long
// our answer is on its way: mode C wants one, and then the speed changes on both sides; in mode
// B the meter changes it at once; in mode A nothing happens.
func (r *Readout) selectReadout(ctx context.Context, z byte) (time.Duration, error) {
	switch {
	case z >= '0' && z <= '9':
		baud := r.config.Baud
		choice := []byte{ack, '0', '0', '0', '\r', '\n'}
		if int(z-'0') < len(speeds) && r.config.Configure != nil {
			choice[2], baud = z, speeds[z-'0']
		}
		if err := pause(ctx, minReaction); err != nil {
			return 0, err
		}
		if err := r.write(choice); err != nil {
			return 0, err
		}
		sent := r.transmission(len(choice))
		return sent, r.speed(baud)
	case z >= 'A' && z <= 'F':
		baud := speeds[z-'A'+1]
		if r.config.Configure == nil && baud != r.config.Baud {
			return 0, ErrSpeed
		}
		return 0, r.speed(baud)
	}
	return 0, nil
}

// data reads STX, lines, "!" CR LF, ETX and BCC, and returns the lines. after is how long our
// last word is on its way.
func (r *Readout) data(ctx context.Context, after time.Duration) ([]byte, error) {
	end := time.Now().Add(after + r.transmission(maxReadout) + reaction)
	deadline := time.Now().Add(after + reaction + slack)
	started := false
	for seen := 0; ; {
		if !started {
			started = bytes.IndexByte(r.buf, stx) >= 0
			if seen += len(r.buf); !started && seen > maxBeforeSTX {
				return nil, frameError(ErrMismatch, r.buf)
			}
			r.buf = fromByte(r.buf, stx)
		}
		if i := bytes.IndexByte(r.buf, etx); i >= 0 && i+1 < len(r.buf) {
			return checkBlock(r.buf[:i+2])
		}
		if len(r.buf) > maxReadout || time.Now().After(end) {
			return nil, frameError(ErrMismatch, r.buf)
		}
		if err := r.more(ctx, deadline); err != nil {
			return nil, r.cutOff(err)
		}
		deadline = time.Now().Add(reaction + slack)
	}
}

// checkBlock checks the BCC, the exclusive or of all between STX and it (IEC 62056-21, 6.2), and
// returns the lines before "!".
func checkBlock(block []byte) ([]byte, error) {
	var sum byte
	for _, c := range block[1 : len(block)-1] {
		sum ^= c
	}
	if sum != block[len(block)-1] {
		return nil, frameError(ErrChecksum, block)
	}
	lines := block[1 : len(block)-2]
	end := bytes.LastIndexByte(lines, '!')
	if end < 0 || len(trim(lines[end+1:])) > 0 {
		return nil, frameError(ErrMismatch, block)
	}
	return lines[:end], nil
}
