package hw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/port"
)

// master is what a line needs of the side that asks on a Modbus line. It is used by one
// goroutine. Errors that are none of modbus.ErrTimeout, ErrCRC, ErrMismatch or an Exception mean
// that the port is gone.
type master interface {
	// Read returns the register bytes, or packed bits, of n registers or bits. dst is the
	// buffer to use.
	Read(ctx context.Context, unit byte, at modbus.Address, n uint16, dst []byte) ([]byte, error)
	// Write sets registers, or a coil to whether words[0] is not 0. With a mask other than
	// 0xFFFF only these bits of the one register change, in one transaction.
	Write(ctx context.Context, unit byte, at modbus.Address, mask uint16, words []uint16) error
	// SetTimeout says how long a unit may take from now on.
	SetTimeout(d time.Duration)
	// Stats counts what was seen on the wire since the port was opened.
	Stats() modbus.Stats
}

// rtu is the master on a serial port.
type rtu struct{ *modbus.Client }

// openRTU opens the port of l; the second result closes it.
func openRTU(ctx context.Context, l *Line) (master, io.Closer, error) {
	p, err := port.Open(ctx, l.config.Port, l.settings, l.log)
	if err != nil {
		return nil, nil, err
	}
	return rtu{modbus.NewClient(p, modbus.ClientConfig{Timing: l.timing, Timeout: defaultTimeout})}, p, nil
}

// Write picks the function: 5 for a coil, 6 for one register, 16 for several, 22 for some bits
// of one. A unit that knows no 6 has not executed it, so that 16 may follow.
func (m rtu) Write(ctx context.Context, unit byte, at modbus.Address, mask uint16, words []uint16) error {
	switch {
	case at.Table == modbus.Coils:
		return m.WriteCoil(ctx, unit, at.Offset, words[0] != 0)
	case mask != 0xffff:
		return m.MaskWrite(ctx, unit, at.Offset, ^mask, words[0]&mask)
	case len(words) == 1:
		err := m.WriteRegister(ctx, unit, at.Offset, words[0])
		if !errors.Is(err, illegalFunction) {
			return err
		}
	}
	return m.WriteRegisters(ctx, unit, at.Offset, words)
}

// Modbus Application Protocol V1.1b3, 7: the exceptions that are treated on their own.
const (
	illegalFunction modbus.Exception = 1
	illegalAddress  modbus.Exception = 2
	illegalValue    modbus.Exception = 3
	acknowledge     modbus.Exception = 5
	busy            modbus.Exception = 6
)

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
	switch {
	case errors.Is(err, modbus.ErrTimeout):
		return silence, "timeout", faultTimeout
	case errors.Is(err, modbus.ErrCRC):
		return damaged, "crc", faultCRC
	case errors.Is(err, modbus.ErrMismatch):
		return damaged, "mismatch", faultMismatch
	}
	return broken, "line", faultPort
}

// exceptionName allocates nothing for the exceptions of the specification.
func exceptionName(e modbus.Exception) string {
	names := [...]string{"exception-0", "exception-1", "exception-2", "exception-3", "exception-4", "exception-5",
		"exception-6", "exception-7", "exception-8", "exception-9", "exception-10", "exception-11"}
	if int(e) < len(names) {
		return names[e]
	}
	return fmt.Sprintf("exception-%d", byte(e))
}
