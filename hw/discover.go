package hw

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/hw/sunspec"
)

// sunSpec is the profile of units that describe themselves.
const sunSpec = "sunspec"

// discover asks a SunSpec unit which points it has and makes them points of the unit. Between two
// transactions reads and writes go on.
func (d *registers) discover(ctx context.Context, u *unit) error {
	most := u.limits.MaxRegisters
	if most == 0 {
		most = modbus.MaxReadRegisters
	}
	device, err := sunspec.Discover(func(at uint16, n int) ([]byte, error) {
		var all []byte
		for len(all) < 2*n {
			if err := d.line.serveJobs(ctx); err != nil {
				return nil, err
			}
			from := modbus.Address{Table: modbus.HoldingRegisters, Offset: at + uint16(len(all)/2)}
			raw, err := d.read(ctx, u, u.address, from, uint16(min(n-len(all)/2, most)))
			if err != nil {
				return nil, err
			}
			all = append(all, raw...)
		}
		return all, nil
	})
	if err != nil {
		return err
	}
	d.line.log.LogAttrs(ctx, slog.LevelInfo, "unit describes itself", slog.String("unit", u.name),
		slog.String("manufacturer", device.Manufacturer), slog.String("model", device.Model),
		slog.String("serial", device.Serial), slog.Int("models", len(device.Models)), slog.Int("points", len(device.Points)))
	return d.line.adopt(u, device.Points)
}

// adopt gives u points that were found, and plans its requests.
func (l *Line) adopt(u *unit, points []profile.Point) error {
	points = slices.DeleteFunc(slices.Clone(points), func(p profile.Point) bool {
		own := slices.ContainsFunc(u.config.Points, func(q profile.Point) bool { return q.Name == p.Name })
		return own || !u.config.selects(p.Name)
	})
	if len(points) == 0 {
		return fmt.Errorf("looking for points: %w", sunspec.ErrNone)
	}
	k := &checker{where: fmt.Sprintf("line %q, unit %q", l.config.Name, u.name)}
	fresh := &unit{every: u.every, limits: u.limits}
	l.compilePoints(k, append(points, u.config.Points...), fresh)
	if len(k.problems) > 0 {
		return fmt.Errorf("looking for points: %w: %w", sunspec.ErrNone, k.problems[0])
	}
	l.count(func() { u.points, u.byKey, u.exponents, u.found = fresh.points, fresh.byKey, fresh.exponents, true })
	u.classes = nil
	u.replan()
	u.dueAt(time.Now())
	return nil
}
