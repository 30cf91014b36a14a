package hw

import (
	"context"
	"time"

	"ferrule/hw/dsmr"
	"ferrule/hw/point"
	"ferrule/hw/port"
)

// readouts is the driver of lines whose meters are read out by asking (IEC 62056-21, mode C).
type readouts struct {
	*dsmr.Readout
	line     *Line
	readings []point.Reading
}

func openReadout(l *Line, p port.Port) driver {
	d := &readouts{line: l}
	d.Readout = dsmr.NewReadout(p, dsmr.ReadoutConfig{
		Baud: l.settings.Baud,
		Configure: func(baud int) error {
			changed := l.settings
			changed.Baud = baud
			return p.Configure(changed)
		},
	})
	return d
}

// ask has the meter read out.
func (d *readouts) ask(ctx context.Context, u *unit, _ *request) (failed int, err error) {
	if _, d.readings, err = d.Read(ctx, u.device, d.readings[:0]); err != nil {
		return 0, err
	}
	return u.readOut(d.line, d.readings), nil
}

func (d *readouts) response(*unit) time.Duration { return 0 }

// count has nothing to add: the line counts the read-outs and their faults.
func (d *readouts) count(*wire) {}

// readoutCost is what a read-out is taken to need: 512 characters at the speed that the meter is
// addressed at. Most send more, at a higher one.
func readoutCost(u *unit, _ *request) time.Duration { return 512 * u.timing.Char }
