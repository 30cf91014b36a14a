package mbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"ferrule/hw/frame"
)

// maxHeard is how many bytes a FrameError shows.
const maxHeard = 256

// exchange sends tx and returns the sound frame that answers it, which is good until the next
// exchange, or why there is none.
func (m *Master) exchange(ctx context.Context, w *wanted) ([]byte, error) {
	if err := m.hush(ctx); err != nil {
		return nil, err
	}
	m.rd, m.wr, m.heard, m.fault = 0, 0, m.heard[:0], ErrTimeout
	m.failed = true
	if err := m.send(); err != nil {
		return nil, err
	}
	raw, err := m.receive(ctx, w)
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, m.failure()
	}
	m.failed = false
	m.stats.Responses++
	return raw, nil
}

// failure is why there was no answer, with what was heard instead.
func (m *Master) failure() error {
	if m.fault == ErrTimeout {
		m.stats.Timeouts++
		return m.fault
	}
	heard := m.heard
	if len(heard) > len(m.tx) {
		heard = bytes.TrimPrefix(heard, m.tx)
	}
	return &FrameError{Err: m.fault, Frame: bytes.Clone(heard)}
}

// hush waits until the line is silent: 11 bit times, or 33 after a failure (EN 13757-2, 5.5.5). What is
// heard meanwhile answers nothing.
func (m *Master) hush(ctx context.Context) error {
	idle := 11 * m.bit
	if m.failed {
		idle = 33 * m.bit
	}
	limit := m.now().Add(m.chars(2*MaxFrame) + m.gap())
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := m.poll(m.last.Add(idle))
		switch {
		case err != nil:
			return err
		case n == 0 && !m.now().Before(m.last.Add(idle)):
			return nil
		case m.now().After(limit):
			return fmt.Errorf("waiting for silence: %w", ErrGarbage)
		}
		m.stats.Drained += uint64(n)
		m.rd, m.wr = 0, 0
	}
}

// poll reads what has arrived, or arrives until then: no bytes and no error where nothing does.
func (m *Master) poll(until time.Time) (int, error) {
	if m.try != nil {
		if n, err := m.try.TryRead(m.rx[m.wr:]); n > 0 || err != nil {
			return m.took(n, err)
		}
	}
	now := m.now()
	if !until.After(now) {
		if m.try != nil {
			return 0, nil
		}
		until = now.Add(time.Millisecond) // a deadline in the past would hide what is there
	}
	if err := m.port.SetReadDeadline(until); err != nil {
		return 0, err
	}
	return m.took(m.port.Read(m.rx[m.wr:]))
}

func (m *Master) took(n int, err error) (int, error) {
	if n > 0 {
		m.last = m.now()
		m.wr += n
		return n, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return 0, err
}

// send writes tx. The line is busy with it until last, which lies ahead.
func (m *Master) send() error {
	m.stats.Requests++
	now := m.now()
	if err := m.port.SetWriteDeadline(now.Add(m.chars(len(m.tx)) + time.Second)); err != nil {
		return err
	}
	if _, err := m.port.Write(m.tx); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	m.last = now.Add(m.chars(len(m.tx)))
	return nil
}

// receive returns the answer, or nothing when it is too late for one; m.fault then says what was heard.
func (m *Master) receive(ctx context.Context, w *wanted) ([]byte, error) {
	first := m.last.Add(m.timeout())
	limit := first.Add(m.chars(2*MaxFrame) + m.gap()) // for a line that is never silent
	for {
		if raw := m.scan(w); raw != nil {
			return raw, nil
		}
		deadline := first
		if more := m.last.Add(m.gap()); m.rd < m.wr && more.After(deadline) {
			deadline = more
		}
		if deadline.After(limit) {
			deadline = limit
		}
		now := m.now()
		if !now.Before(deadline) {
			return m.giveUp(w), nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if now.Add(slice).Before(deadline) {
			deadline = now.Add(slice)
		}
		m.compact()
		n, err := m.poll(deadline)
		if err != nil {
			return nil, err
		}
		fresh := m.rx[m.wr-n : m.wr]
		m.heard = append(m.heard, fresh[:min(n, maxHeard-len(m.heard))]...)
	}
}

// compact makes room in rx for as much as a frame still lacks.
func (m *Master) compact() {
	if m.rd > 0 {
		m.wr = copy(m.rx[:], m.rx[m.rd:m.wr])
		m.rd = 0
	}
}

// scan looks through what is there for the answer.
func (m *Master) scan(w *wanted) []byte {
	for m.rd < m.wr {
		cut := Split(m.rx[m.rd:m.wr], false)
		if cut.Skip == 0 && cut.Size == 0 {
			return nil
		}
		m.stats.Garbage += uint64(cut.Skip)
		if cut.Fault == frame.Checksum {
			m.stats.Checksum++
			m.blame(ErrChecksum)
		} else if cut.Skip > 0 {
			m.blame(ErrGarbage)
		}
		raw := m.rx[m.rd+cut.Skip : m.rd+cut.Skip+cut.Size]
		m.rd += cut.Skip + cut.Size
		if cut.Size == 0 {
			continue
		}
		fault, accepted := m.judge(w, raw)
		if accepted {
			return raw
		}
		m.blame(fault)
	}
	return nil
}

// giveUp looks for an answer behind the beginning of a frame that led nowhere.
func (m *Master) giveUp(w *wanted) []byte {
	for m.rd < m.wr {
		m.blame(ErrGarbage)
		m.stats.Garbage++
		m.rd++
		if raw := m.scan(w); raw != nil {
			return raw
		}
	}
	return nil
}

// blame notes why there is no answer. A damaged frame says most, silence least.
func (m *Master) blame(fault error) {
	rank := func(err error) int {
		switch err {
		case ErrChecksum:
			return 3
		case ErrMismatch:
			return 2
		case ErrGarbage:
			return 1
		}
		return 0
	}
	if rank(fault) > rank(m.fault) {
		m.fault = fault
	}
}
