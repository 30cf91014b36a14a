package hw

import (
	"context"
	"errors"
	"fmt"
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
	// 0xFFFF only these bits of the one register change, in one transaction. Unit 0 is every
	// unit at once, which nobody confirms.
	Write(ctx context.Context, unit byte, at modbus.Address, mask uint16, words []uint16) error
	// SetTimeout says how long a unit may take from now on.
	SetTimeout(d time.Duration)
	// SetTiming says how long characters and silences last from now on.
	SetTiming(t modbus.Timing)
	// Response is how long the unit takes to begin its answers; 0: not known.
	Response(unit byte) time.Duration
	// Stats counts what was seen on the wire since the port was opened.
	Stats() modbus.Stats
}

// registers is the driver of Modbus lines.
type registers struct {
	master
	client *modbus.Client // behind master; nil in tests
	line   *Line
	port   port.Port     // nil in tests
	tuned  port.Settings // what the port is set to
	answer [2 * modbus.MaxReadRegisters]byte
}

// openModbus makes the client of an open port, or goes on with the one before: what units still
// owe may come over the new port.
func openModbus(l *Line, p port.Port) driver {
	d, again := l.driver.(*registers)
	if again {
		d.client.Resume(p)
		d.SetTiming(l.timing(l.settings))
		d.port, d.tuned = p, l.settings
		return d
	}
	client := modbus.NewClient(p, modbus.ClientConfig{Framing: l.framing(), Timing: l.timing(l.settings), Timeout: defaultTimeout})
	for _, u := range l.units {
		client.SetTurnaround(u.address, u.turnaround)
	}
	return &registers{master: rtu{client}, client: client, line: l, port: p, tuned: l.settings}
}

func (d *registers) ask(ctx context.Context, u *unit, r *request) (failed int, err error) {
	if u.discovers && !u.found {
		return 0, d.discover(ctx, u)
	}
	raw, err := d.read(ctx, u, u.address, r.at, r.count)
	if err != nil {
		return 0, err
	}
	return r.decode(u.round, raw), nil
}

// read is one read of a unit, or of an address without one. An answer of the wrong length is
// the client's mistake, and yet no reason to read past its end.
func (d *registers) read(ctx context.Context, u *unit, address byte, at modbus.Address, n uint16) ([]byte, error) {
	if err := d.address(u); err != nil {
		return nil, err
	}
	raw, err := d.Read(ctx, address, at, n, d.answer[:0])
	if err == nil && len(raw) < dataBytes(at.Table, int(n)) {
		return nil, modbus.ErrMismatch
	}
	return raw, err
}

// address prepares the line for u, nil for an address without a unit: its timeout and its
// settings.
func (d *registers) address(u *unit) error {
	settings, timeout := d.line.tunedTo(u), defaultTimeout
	if u != nil {
		timeout = u.patience()
	}
	d.SetTimeout(timeout)
	if settings == d.tuned || d.port == nil {
		return nil
	}
	// The silence that ends the frame before is that of the old speed.
	time.Sleep(d.line.timing(d.tuned).T35)
	if err := d.port.Configure(settings); err != nil {
		return err
	}
	d.SetTiming(d.line.timing(settings))
	d.tuned = settings
	return nil
}

func (d *registers) response(u *unit) time.Duration { return d.Response(u.address) }

func (d *registers) count(w *wire) { w.modbus = d.Stats() }

// rtu is the master on a port, in either framing.
type rtu struct{ *modbus.Client }

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

// exceptionName allocates nothing for the exceptions of the specification.
func exceptionName(e modbus.Exception) string {
	names := [...]string{"exception-0", "exception-1", "exception-2", "exception-3", "exception-4", "exception-5",
		"exception-6", "exception-7", "exception-8", "exception-9", "exception-10", "exception-11"}
	if int(e) < len(names) {
		return names[e]
	}
	return fmt.Sprintf("exception-%d", byte(e))
}
