package modbus

import (
	"context"
	"errors"
	"fmt"
)

// barrier makes sure that no late answer is under way that could be taken for the answer to r,
// whose debt is d: it asks the unit for something whose answer looks different. As a unit answers in
// order, after that nothing older can come.
func (c *Client) barrier(ctx context.Context, u *unit, r *Request, d *debt) error {
	b := Request{Unit: r.Unit, Function: ReadHoldingRegisters, Address: r.Address}
	step := uint16(1)
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs, ReadInputRegisters:
		b.Function = r.Function
	case WriteSingleCoil, WriteCoils:
		b.Function = ReadCoils
	}
	if b.Function <= ReadDiscreteInputs {
		step = 8 // as many bits make another byte
	}
	for b.Count = 1; b.Count < 8*step; b.Count += step {
		if own := debtOf(&b); !own.like(d) && (u.debts.last(&own) || !u.debts.blocks(&own)) {
			break
		}
	}
	for b.Count > 1 && int(b.Address)+int(b.Count) > 65_536 {
		b.Address--
	}
	own, err := debtOf(&b), error(nil)
	if u.debts.last(&own) && c.now().Sub(u.debts.newest().sent) < patience {
		err = c.listen(ctx, u, *d)
	} else {
		c.stats.Barriers++
		_, err = c.transact(ctx, u, &b, &own, *d)
	}
	if errors.Is(err, ErrCRC) || errors.Is(err, ErrMismatch) {
		err = ErrTimeout // r itself was never sent, so nothing of its answer was seen
	}
	if err != nil && u.debts.blocks(d) {
		return fmt.Errorf("asking whether an answer is under way: %w", err)
	}
	if err != nil && !errors.Is(err, ErrTimeout) {
		return err
	}
	return c.hush(ctx, u.rest)
}

// listen waits, as transact does, but for the barrier that is already under way: one sent on top of
// it would only make a slow unit slower.
func (c *Client) listen(ctx context.Context, u *unit, awaiting debt) error {
	none := debt{sent: c.now()} // that no frame settles
	c.rd, c.wr = 0, 0
	c.heard, c.fault, c.bad = true, ErrTimeout, nil
	_, err := c.receive(ctx, u, &none, awaiting)
	if u.debts.blocks(&awaiting) {
		c.stats.Timeouts++
	}
	return err
}

// learnEcho finds out whether the adapter returns what is sent, by a read: the answer to a write of
// one register is the same bytes as the request, so that the echo would confirm it in the name of a
// unit that is not there.
func (c *Client) learnEcho(ctx context.Context, u *unit, r *Request) error {
	probe := Request{Unit: r.Unit, Function: ReadHoldingRegisters, Address: r.Address, Count: 1}
	if r.Function == WriteSingleCoil {
		probe.Function = ReadCoils
	}
	own := debtOf(&probe)
	_, err := c.transact(ctx, u, &probe, &own, debt{})
	if err != nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrCRC) && !errors.Is(err, ErrMismatch) {
		return err
	}
	return c.hush(ctx, u.rest)
}
