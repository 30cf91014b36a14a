package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo terminal: the agent has its path, and what stands at the other end of the
// cable has the file.
type terminal struct {
	*os.File
	path string
	keep *os.File // the path's end, so that the agent may come and go

	draining sync.WaitGroup
}

// newTerminal makes a pseudo terminal that carries bytes as they are. What the agent sends is
// thrown away.
func newTerminal() (*terminal, error) {
	// Non-blocking, so that Close frees a Read and a Write has a deadline.
	file, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	p := &terminal{File: file}
	if err := p.open(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	p.draining.Go(func() { _, _ = io.Copy(io.Discard, file) }) // ends with the file
	return p, nil
}

func (p *terminal) open() error {
	raw, err := p.SyscallConn()
	if err != nil {
		return err
	}
	var number int
	problem := raw.Control(func(fd uintptr) {
		if number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	})
	if err := errors.Join(err, problem); err != nil {
		return fmt.Errorf("unlocking a terminal: %w", err)
	}
	p.path = fmt.Sprintf("/dev/pts/%d", number)
	if p.keep, err = os.OpenFile(p.path, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return err
	}
	mode, err := unix.IoctlGetTermios(int(p.keep.Fd()), unix.TCGETS)
	if err == nil {
		mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
		err = unix.IoctlSetTermios(int(p.keep.Fd()), unix.TCSETS, mode)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("setting a terminal's mode: %w", err), p.keep.Close())
	}
	return nil
}

func (p *terminal) close() {
	_ = p.keep.Close()
	_ = p.Close()
	p.draining.Wait()
}

// feed says what next gives, piece after piece, at rate bytes per second. It returns how many
// bytes it said: less than rate × during where nobody took them.
func (p *terminal) feed(ctx context.Context, rate int, during time.Duration, next func() []byte) (said int, err error) {
	begun := time.Now()
	if err := p.SetWriteDeadline(begun.Add(during + time.Second)); err != nil {
		return 0, err
	}
	tick := time.NewTicker(time.Millisecond) // an adapter gives what it has about as often
	defer tick.Stop()
	var words []byte
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return said, ctx.Err()
		}
		passed := time.Since(begun)
		for due := int(passed.Seconds()*float64(rate)) - said; due > 0 && passed < during; {
			if len(words) == 0 {
				words = next()
			}
			n, err := p.Write(words[:min(len(words), due)])
			said, due, words = said+n, due-n, words[n:]
			if err != nil {
				return said, fmt.Errorf("feeding %s: %w", p.path, err)
			}
		}
		if passed >= during {
			_, err := p.Write(words) // the rest of a frame
			return said + len(words), err
		}
	}
}

// speak says words at the speed of a line, in the pieces that an UART's FIFO gives.
func (p *terminal) speak(ctx context.Context, rate int, words []byte) error {
	const fifo = 32
	tick := time.NewTicker(fifo * time.Second / time.Duration(rate))
	defer tick.Stop()
	for piece := range slices.Chunk(words, fifo) {
		if _, err := p.Write(piece); err != nil {
			return fmt.Errorf("speaking on %s: %w", p.path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
