// Package mbus is the master of a wired M-Bus line (EN 13757-2) and decodes what meters answer
// (EN 13757-3). The trap is that nothing on the line says which request an answer belongs to: an
// acknowledgement is one byte without an address, an answer comes as readily late as in time, and a
// unit repeats its last telegram until the frame count bit changes. So every answer must show the
// unit that was asked, by its address or by its identification, and a repeat is known as one.
package mbus

import (
	"errors"
	"strconv"
)

// What callers branch on. An answer that was heard but is none comes wrapped in a *FrameError.
var (
	// ErrTimeout says that nothing was heard.
	ErrTimeout = errors.New("no answer")
	// ErrChecksum says that a frame was damaged, or two units spoke at once.
	ErrChecksum = errors.New("wrong checksum")
	// ErrGarbage says that something was heard that is no frame: noise, or two units at once.
	ErrGarbage = errors.New("noise or a collision")
	// ErrMismatch says that a sound frame answers something else, or comes from another unit.
	ErrMismatch = errors.New("answer to something else")
	// ErrTooLong says that a unit kept announcing further telegrams.
	ErrTooLong = errors.New("too many telegrams")
	// ErrFormat says that a telegram breaks a rule of EN 13757-3, so that nothing of it is to be
	// trusted.
	ErrFormat = errors.New("malformed telegram")
	// ErrEncrypted says that a unit encrypts what it sends.
	ErrEncrypted = errors.New("telegram is encrypted")
	// ErrUnsupported says that a telegram holds no readings: its CI field says something else.
	ErrUnsupported = errors.New("not a telegram of readings")
)

// FrameError is an answer that is wrong: why, and its bytes, 256 at most.
type FrameError struct {
	Err   error
	Frame []byte
}

func (e *FrameError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *FrameError) Unwrap() error { return e.Err }

// ApplicationError is a unit's report that it cannot answer (EN 13757-3, 9.2, CI 70h).
type ApplicationError byte

func (e ApplicationError) Error() string {
	if int(e) < len(applicationText) && applicationText[e] != "" {
		return "unit reports: " + applicationText[e]
	}
	return "unit reports error " + strconv.Itoa(int(e))
}

var applicationText = [...]string{
	0: "unspecified error", 1: "CI field not implemented", 2: "buffer too long, truncated",
	3: "too many records", 4: "premature end of record", 5: "more than 10 DIFEs", 6: "more than 10 VIFEs",
	8: "application too busy", 9: "too many readouts",
}
