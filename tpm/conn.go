package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

const (
	// headerSize is tag, size and code, of commands and responses alike (Part 1, 18.4).
	headerSize = 10
	// maxResponse is the kernel's TPM_BUFSIZE; no TPM answers with more.
	maxResponse = 4096
)

// A conn carries one command at a time to the TPM and back. After an error it is not used
// again: the answer to the failed command may still be on its way, and would be taken for
// the answer to the next.
type conn interface {
	// exchange sends cmd and returns its whole response, by the deadline or an earlier end
	// of ctx.
	exchange(ctx context.Context, cmd []byte, deadline time.Time) ([]byte, error)
	// close lets go of the descriptor. Where a command hangs in the kernel, that happens
	// later, and the returned channel is closed then; it is nil otherwise.
	close() <-chan struct{}
}

type dialFunc func(ctx context.Context) (conn, error)

func (d *Device) dialer(path string) (dialFunc, error) {
	network, address, ok := strings.Cut(path, ":")
	switch {
	case strings.HasPrefix(path, "/"):
		return func(context.Context) (conn, error) { return openDevice(path) }, nil
	case ok && address != "" && (network == "unix" || network == "tcp"):
		return func(ctx context.Context) (conn, error) {
			ctx, cancel := context.WithTimeout(ctx, d.commandTimeout)
			defer cancel()
			for {
				c, err := new(net.Dialer).DialContext(ctx, network, address)
				if err == nil {
					return &streamConn{c}, nil
				}
				// A simulator takes one connection at a time, and has no queue to speak of.
				if !errors.Is(err, syscall.EAGAIN) || sleep(ctx, firstDelay) != nil {
					return nil, err
				}
			}
		}, nil
	}
	return nil, unsupported("TPM path %q is none of auto, none, /dev/…, unix:PATH, tcp:HOST:PORT", path)
}

// streamConn speaks to a TPM simulator: bare commands and responses, back to back.
type streamConn struct{ net.Conn }

func (c *streamConn) exchange(ctx context.Context, cmd []byte, deadline time.Time) ([]byte, error) {
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	rsp, err := c.roundTrip(cmd)
	if !stop() {
		// The deadline above may be overwritten at any moment from now on.
		return nil, context.Cause(ctx)
	}
	return rsp, err
}

func (c *streamConn) roundTrip(cmd []byte) ([]byte, error) {
	if _, err := c.Write(cmd); err != nil {
		return nil, err
	}
	var header [headerSize]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return nil, err
	}
	size, err := responseSize(header[:])
	if err != nil {
		return nil, err
	}
	rsp := make([]byte, size)
	copy(rsp, header[:])
	if _, err := io.ReadFull(c, rsp[headerSize:]); err != nil {
		return nil, err
	}
	return rsp, nil
}

func (c *streamConn) close() <-chan struct{} {
	_ = c.Close()
	return nil
}

// errFraming marks bytes that cannot be a response.
var errFraming = errors.New("malformed TPM response")

// responseSize reads the size out of a response header.
func responseSize(header []byte) (int, error) {
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > maxResponse {
		return 0, fmt.Errorf("%w: its header announces %d bytes", errFraming, size)
	}
	return int(size), nil
}
