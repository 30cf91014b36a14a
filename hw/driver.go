package hw

import (
	"context"
	"errors"
	"time"

	"ferrule/hw/dsmr"
	"ferrule/hw/mbus"
	"ferrule/hw/modbus"
	"ferrule/hw/sunspec"
)

// driver asks the units of a polled line, in one protocol, over an open port. It is used by the
// goroutine of Line.Run.
type driver interface {
	// ask does one transaction for r, of which u is the unit, and gives the points that are due
	// their values. failed counts those that got none although the unit answered.
	ask(ctx context.Context, u *unit, r *request) (failed int, err error)
	// response is how long u takes to begin its answers; 0: not known.
	response(u *unit) time.Duration
	// count writes down what was seen on the wire since the port was opened.
	count(w *wire)
}

// outcome is how a transaction ended.
type outcome uint8

const (
	answered outcome = iota
	refused          // by an exception: the unit is alive
	damaged          // an answer came, but not a whole one, or to something else
	silence          // no answer
	broken           // the port is gone
)

// judge sorts the error of a transaction and says what readings carry, and what is counted.
func judge(err error) (outcome, string, fault) {
	if err == nil {
		return answered, "", noFault
	}
	if e, ok := errors.AsType[modbus.Exception](err); ok {
		return refused, exceptionName(e), faultException
	}
	if _, ok := errors.AsType[mbus.ApplicationError](err); ok {
		return refused, "refused", faultException
	}
	for _, c := range [...]struct {
		err  error
		how  outcome
		bad  string
		kind fault
	}{
		{modbus.ErrTimeout, silence, "timeout", faultTimeout},
		{mbus.ErrTimeout, silence, "timeout", faultTimeout},
		{dsmr.ErrTimeout, silence, "timeout", faultTimeout},
		{modbus.ErrCRC, damaged, "crc", faultCRC},
		{mbus.ErrChecksum, damaged, "crc", faultCRC},
		{dsmr.ErrChecksum, damaged, "crc", faultCRC},
		{modbus.ErrMismatch, damaged, "mismatch", faultMismatch},
		{mbus.ErrMismatch, damaged, "mismatch", faultMismatch},
		{mbus.ErrGarbage, damaged, "crc", faultCRC},
		{mbus.ErrTooLong, damaged, "invalid", faultFrame},
		{sunspec.ErrNone, refused, "invalid", faultFrame},
		{mbus.ErrFormat, refused, "invalid", faultFrame},
		{mbus.ErrUnsupported, refused, "invalid", faultFrame},
		{mbus.ErrEncrypted, refused, "encrypted", faultFrame},
		{dsmr.ErrMismatch, damaged, "mismatch", faultMismatch},
		{dsmr.ErrSpeed, refused, "invalid", faultFrame},
		{dsmr.ErrAddress, refused, "invalid", faultFrame},
		{modbus.ErrRequest, refused, "invalid", faultFrame},
	} {
		if errors.Is(err, c.err) {
			return c.how, c.bad, c.kind
		}
	}
	return broken, "line", faultPort
}

// wrongFrame returns the bytes of the answer that err refused; nil where there are none.
func wrongFrame(err error) []byte {
	if e, ok := errors.AsType[*modbus.FrameError](err); ok {
		return e.Frame
	}
	if e, ok := errors.AsType[*mbus.FrameError](err); ok {
		return e.Frame
	}
	if e, ok := errors.AsType[*dsmr.FrameError](err); ok {
		return e.Frame
	}
	return nil
}
