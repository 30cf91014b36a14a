package hw

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/hw/modbus"
	"ferrule/internal/quantity"
)

// merge plans the requests for those points that have the period every: neighbours and
// overlapping points of one table share a request. This is the one place that decides what is
// asked together; a hole between two points is never read. What one request may ask for:
// Modbus Application Protocol V1.1b3, 6.1 to 6.4.
func merge(points []*pointState, every time.Duration) []*request {
	var of []*pointState
	for _, p := range points {
		if p.every == every {
			of = append(of, p)
		}
	}
	slices.SortStableFunc(of, func(a, b *pointState) int {
		return cmp.Or(cmp.Compare(a.at.Table, b.at.Table), cmp.Compare(a.at.Offset, b.at.Offset))
	})
	var requests []*request
	for len(of) > 0 {
		n := 1
		for n < len(of) && adjoins(of[:n], of[n]) {
			n++
		}
		requests = append(requests, newRequest(of[:n:n]))
		of = of[n:]
	}
	return requests
}

// adjoins reports whether next can be read together with the points before it.
func adjoins(points []*pointState, next *pointState) bool {
	first, end := points[0].at, endOf(points)
	limit := modbus.MaxReadRegisters
	if first.Table.Bits() {
		limit = modbus.MaxReadBits
	}
	return next.at.Table == first.Table && int(next.at.Offset) <= end &&
		max(end, endOf([]*pointState{next}))-int(first.Offset) <= limit
}

// endOf returns the address behind the last register or bit of the points.
func endOf(points []*pointState) int {
	end := 0
	for _, p := range points {
		end = max(end, int(p.at.Offset)+p.codec.Type().Registers())
	}
	return end
}

// newRequest makes the request that reads the points, which are sorted by address.
func newRequest(points []*pointState) *request {
	at := points[0].at
	return &request{at: at, count: uint16(endOf(points) - int(at.Offset)), points: points}
}

// split replaces r in its class by two requests with half of its points each: the unit refused
// an address, and it should cost one point, not its neighbours.
func (u *unit) split(r *request) (a, b *request) {
	half := len(r.points) / 2
	a, b = newRequest(r.points[:half:half]), newRequest(r.points[half:])
	for _, c := range u.classes {
		if i := slices.Index(c.requests, r); i >= 0 {
			c.requests = slices.Replace(c.requests, i, i+1, a, b)
		}
	}
	return a, b
}

// Plan is what a line will ask of its units, and what that costs.
type Plan struct {
	Line     string    `json:"line"`
	Settings string    `json:"settings"`
	Requests []Request `json:"requests"`
	// LoadPercent is the share of the line's time that the requests take, without the time
	// that the units need to think, which is not known beforehand.
	LoadPercent float64 `json:"load_percent"`
}

// Request is one transaction that is repeated.
type Request struct {
	Unit    string            `json:"unit"`
	Address int               `json:"address"`
	Table   string            `json:"table"`
	From    int               `json:"from"`  // address of the first register or bit, from 0 on
	Count   int               `json:"count"` // registers or bits
	Points  []string          `json:"points"`
	Every   quantity.Duration `json:"every"`
	// Milliseconds on the wire: the bytes of request and answer and two gaps of t3.5.
	Milliseconds float64 `json:"milliseconds"`
}

// Plan returns the plan of the configuration. It may ask more than the line can carry, which
// New does not refuse: see Overload.
func (l *Line) Plan() Plan { return l.plan }

// Overload reports whether the plan needs more than all of the line's time. Such a line works,
// but misses slots, evenly; ferrule check refuses it.
func (p Plan) Overload() bool { return p.LoadPercent > 100 }

func makePlan(line, settings string, units []*unit, t modbus.Timing) Plan {
	plan := Plan{Line: line, Settings: settings, Requests: []Request{}}
	for _, u := range units {
		for _, c := range u.classes {
			for _, r := range c.requests {
				cost := wireTime(t, r.at.Table, int(r.count))
				names := make([]string, len(r.points))
				for i, p := range r.points {
					names[i] = p.name
				}
				plan.Requests = append(plan.Requests, Request{
					Unit: u.name, Address: int(u.address), Table: r.at.Table.String(), From: int(r.at.Offset),
					Count: int(r.count), Points: names, Every: quantity.Duration(c.every), Milliseconds: milliseconds(cost),
				})
				plan.LoadPercent += 100 * float64(cost) / float64(c.every)
			}
		}
	}
	return plan
}

// wireTime is the time that reading count registers or bits takes at least: 8 bytes there, 5
// bytes and the data back, and two gaps. Modbus over Serial Line V1.02, 2.5.1.
func wireTime(t modbus.Timing, table modbus.Table, count int) time.Duration {
	return time.Duration(8+5+dataBytes(table, count))*t.Char + 2*t.T35
}

func dataBytes(table modbus.Table, count int) int {
	if table.Bits() {
		return (count + 7) / 8
	}
	return 2 * count
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// String is the plan as people read it, one request a line.
func (p Plan) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "line %s: %s, %d requests, load %.1f %%\n", p.Line, p.Settings, len(p.Requests), p.LoadPercent)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, r := range p.Requests {
		fmt.Fprintf(table, "  %s\t%s:%d\t× %d\tevery %s\t%.2f ms\n", r.Unit, r.Table, r.From, r.Count, r.Every, r.Milliseconds)
	}
	_ = table.Flush() // a strings.Builder takes everything
	return text.String()
}
