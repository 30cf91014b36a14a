package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

const (
	firstDelay = 2 * time.Millisecond
	maxDelay   = 250 * time.Millisecond
)

// errStale says that the TPM was reopened since the handles at hand were obtained.
var errStale = errors.New("TPM was reopened in between")

// lostError says that the connection ended during the command; the next one opens it anew.
type lostError struct{ err error }

func (e *lostError) Error() string { return "TPM connection lost: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// A session of commands on one descriptor. go-tpm sends through it; the zero generation is
// bound by the first command, and every later one must meet the same, so that no transient
// handle is ever used on a descriptor that it does not belong to.
type call struct {
	d    *Device
	ctx  context.Context
	gen  uint64
	at   *place        // that the command is about; stale once it was flushed to make room
	wait time.Duration // for one answer, where that is longer than the command timeout

	held    bool             // the TPM is ours until release; see hold
	objects []tpm2.TPMHandle // loaded since, which a sweep leaves alone
	broken  bool             // something may have been left in the TPM
}

func (d *Device) call(ctx context.Context) *call { return &call{d: d, ctx: ctx} }

// Send implements go-tpm's transport.TPM.
func (c *call) Send(cmd []byte) ([]byte, error) {
	rsp, err := c.d.send(c, cmd)
	if err != nil {
		c.broken = true
	}
	return rsp, err
}

// send carries one command to the TPM, repeating it while the TPM asks for that and the
// budget lasts. A lost TPM is reopened first, but not within a hold, whose objects would be
// out of reach.
func (d *Device) send(c *call, cmd []byte) ([]byte, error) {
	if !c.held {
		if err := d.acquire(c.ctx); err != nil {
			return nil, err
		}
		defer func() { <-d.busy }()
	} else if d.conn == nil {
		return nil, errStale
	}
	start := time.Now()
	if err := d.reopen(c.ctx); err != nil {
		return nil, err
	}
	if c.gen == 0 {
		c.gen = d.gen
	}
	if c.gen != d.gen || c.at != nil && c.at.gone {
		return nil, errStale
	}
	first := !d.answered
	rsp, err := d.repeat(c, cmd)
	if first && hungUp(err) {
		// A simulator that is being killed still takes connections for a moment. Nothing
		// was loaded on this one yet.
		if err = d.reopen(c.ctx); err == nil {
			c.gen = d.gen
			rsp, err = d.repeat(c, cmd)
		}
	}
	d.counters.add(cmd, rsp, time.Since(start))
	return rsp, err
}

// hungUp reports whether the other side ended the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (d *Device) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("waiting for the TPM: %w", context.Cause(ctx))
	}
	select {
	case d.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the TPM: %w", context.Cause(ctx))
	}
}

// repeat sends cmd until the TPM takes it.
func (d *Device) repeat(c *call, cmd []byte) ([]byte, error) {
	ctx, wait := c.ctx, max(d.commandTimeout, c.wait)
	end := time.Now().Add(d.retryBudget)
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		rsp, err := d.conn.exchange(ctx, cmd, time.Now().Add(wait))
		if err != nil {
			d.drop()
			return nil, lost(commandName(cmd), err)
		}
		d.answered = true
		code := responseCode(rsp)
		if !askedToRepeat(code) {
			return rsp, nil
		}
		if time.Now().Add(delay).After(end) {
			return nil, hint.With(fmt.Errorf("%w: %s was answered %w for %s",
				ErrTimeout, commandName(cmd), code, d.retryBudget), hintTimeout)
		}
		d.counters.retry()
		if err := sleep(ctx, delay); err != nil {
			return nil, fmt.Errorf("repeating %s: %w", commandName(cmd), err)
		}
	}
}

// lost names what went wrong on the way.
func lost(command string, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("sending %s: %w", command, &lostError{err})
	case isTimeout(err):
		return hint.With(fmt.Errorf("%w: %s: %w", ErrTimeout, command, &lostError{err}), hintTimeout)
	}
	return fmt.Errorf("sending %s: %w", command, &lostError{err})
}

// reopen brings back a lost TPM, waiting for it within the retry budget: a simulator that
// is being restarted, or a raw device that a given-up command still holds.
func (d *Device) reopen(ctx context.Context) error {
	if d.closed {
		return fmt.Errorf("using the TPM: %w", os.ErrClosed)
	}
	if d.conn != nil {
		return nil
	}
	end := time.Now().Add(d.retryBudget)
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		c, err := d.dial(ctx)
		if err == nil {
			d.conn = c
			d.gen++
			d.answered = false
			d.live.Store(d.gen)
			d.counters.reopened()
			d.log.LogAttrs(ctx, slog.LevelInfo, "tpm reopened", slog.String("path", d.path))
			return nil
		}
		err = openError(d.path, err)
		if errors.Is(err, ErrPermission) || time.Now().Add(delay).After(end) {
			return err
		}
		if sleep(ctx, delay) != nil {
			return err
		}
	}
}

// drop gives the connection up. The caller holds busy.
func (d *Device) drop() {
	if d.conn == nil {
		return
	}
	if done := d.conn.close(); done != nil {
		d.leftover = append(d.leftover, done)
	}
	d.conn = nil
	d.live.Store(0)
}

// askedToRepeat knows the warnings that mean "the same again, later" (Part 2, 6.6.3). The
// first use of a DA-protected object after every reset is answered RETRY by libtpms.
func askedToRepeat(code tpm2.TPMRC) bool {
	switch code {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate, tpm2.TPMRCNVUnavailable:
		return true
	}
	return false
}

func responseCode(rsp []byte) tpm2.TPMRC { return tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
