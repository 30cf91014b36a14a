package hw

import (
	"context"
	"time"

	"ferrule/hw/mbus"
	"ferrule/hw/point"
	"ferrule/hw/port"
)

// meters is the driver of M-Bus lines.
type meters struct {
	*mbus.Master
	line     *Line
	port     port.Port
	tuned    port.Settings // what the port is set to
	decoder  mbus.Decoder
	readings []point.Reading
}

func openMBus(l *Line, p port.Port) driver {
	return &meters{Master: mbus.NewMaster(p, mbus.Config{Baud: l.settings.Baud}), line: l, port: p, tuned: l.settings}
}

// ask has u read out.
func (d *meters) ask(ctx context.Context, u *unit, _ *request) (failed int, err error) {
	if err := d.tune(u); err != nil {
		return 0, err
	}
	telegrams, err := d.Read(ctx, u.meter)
	if err != nil {
		return 0, err
	}
	if _, d.readings, err = d.decoder.Decode(d.readings[:0], telegrams...); err != nil {
		return 0, err
	}
	return u.readOut(d.line, d.readings), nil
}

// tune gives the line the settings of u, and the master its timeout: 0 stands for what EN 13757-2
// grants a unit.
func (d *meters) tune(u *unit) error {
	d.SetTimeout(u.timeout)
	settings := d.line.tunedTo(u)
	if settings == d.tuned {
		return nil
	}
	if err := d.port.Configure(settings); err != nil {
		return err
	}
	d.SetBaud(settings.Baud)
	d.tuned = settings
	return nil
}

func (d *meters) response(*unit) time.Duration { return 0 }

func (d *meters) count(w *wire) { w.mbus = d.Stats() }

// mbusCost is what a read-out is taken to need: a short frame there, and 128 bytes back, as most meters
// send. One telegram has 261 at most (EN 13757-2, 5.6.2), and a unit may have several.
func mbusCost(u *unit, _ *request) time.Duration { return (5 + 128) * u.timing.Char }
