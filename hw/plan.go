package hw

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/hw/modbus"
	"ferrule/internal/quantity"
)

// replan decides anew which points of a Modbus unit are read together, by what a request costs
// on its line. Registers that the unit refused are asked by themselves.
func (u *unit) replan() {
	points := slices.Concat(u.points, u.exponents)
	spans := make([]modbus.Span, 0, len(points))
	for _, p := range points {
		spans = append(spans, modbus.Span{At: p.at, Count: p.codec.Type().Registers(), Every: p.every})
	}
	cost := u.limits
	cost.Timing, cost.Response = u.timing, u.planned
	before := u.requests()
	for _, c := range u.classes {
		c.requests = nil
	}
	for _, g := range modbus.Plan(spans, cost) {
		r := &request{at: g.At, count: uint16(g.Count), every: g.Every, holes: g.Holes(spans)}
		for _, i := range g.Members {
			r.points = append(r.points, points[i])
		}
		if i := slices.IndexFunc(before, func(b *request) bool { return b.at == r.at && b.count == r.count }); i >= 0 {
			r.inherit(before[i])
		}
		c := u.class(g.Every)
		c.requests = append(c.requests, r)
	}
	u.classes = slices.DeleteFunc(u.classes, func(c *class) bool { return len(c.requests) == 0 })
}

// requests returns all requests of the unit.
func (u *unit) requests() []*request {
	var all []*request
	for _, c := range u.classes {
		all = append(all, c.requests...)
	}
	return all
}

// replan plans the requests of u anew while the line runs: periods that were not there before have
// their slots like all others.
func (l *Line) replan(u *unit, now time.Time) {
	u.replan()
	for _, c := range u.classes {
		if c.due.IsZero() {
			c.due, c.begun = now, true
			c.advance(l.schedule.base, now)
		}
	}
}

// split replaces r in its class by two requests with half of its points each: the unit refused
// an address, and it should cost one point, not its neighbours.
func (u *unit) split(r *request) (a, b *request) {
	points := slices.SortedStableFunc(slices.Values(r.points), func(a, b *pointState) int { return int(a.at.Offset) - int(b.at.Offset) })
	half := len(points) / 2
	for half > 1 && points[half].at == points[half-1].at { // the same registers stay together
		half--
	}
	for half < len(points)-1 && points[half].at == points[half-1].at {
		half++
	}
	a, b = newRequest(points[:half:half], r.every), newRequest(points[half:], r.every)
	for _, c := range u.classes {
		if i := slices.Index(c.requests, r); i >= 0 {
			c.requests = slices.Replace(c.requests, i, i+1, a, b)
		}
	}
	return a, b
}

// newRequest makes the request that reads the points, which are sorted by address.
func newRequest(points []*pointState, every time.Duration) *request {
	at, end := points[0].at, 0
	for _, p := range points {
		end = max(end, int(p.at.Offset)+p.codec.Type().Registers())
	}
	return &request{at: at, count: uint16(end - int(at.Offset)), every: every, points: points}
}

// Plan is what a line will ask of its units, and what that costs.
type Plan struct {
	Line     string    `json:"line"`
	Protocol string    `json:"protocol"`
	Role     Role      `json:"role"`
	Settings string    `json:"settings"`
	Requests []Request `json:"requests"`
	// LoadPercent is the share of the line's time that the requests take, without the time
	// that the units need to think, which is not known beforehand.
	LoadPercent float64 `json:"load_percent"`
	// Found names the units whose points are not configured but found when they speak.
	Found []string `json:"found,omitempty"`
}

// Request is one transaction that is repeated.
type Request struct {
	Unit    string            `json:"unit"`
	Address int               `json:"address"`
	Table   string            `json:"table,omitempty"`
	From    int               `json:"from"`  // address of the first register or bit, from 0 on
	Count   int               `json:"count"` // registers or bits
	Points  []string          `json:"points"`
	Every   quantity.Duration `json:"every"`
	// Milliseconds on the wire: the bytes of request and answer and two gaps of t3.5.
	Milliseconds float64 `json:"milliseconds"`
	// Percent of the line's time.
	Percent float64 `json:"percent"`
}

// Plan returns the plan of the configuration. It may ask more than the line can carry, which
// New does not refuse: see Overload.
func (l *Line) Plan() Plan { return l.plan }

// Overload reports whether the plan needs more than all of the line's time. Such a line works,
// but misses slots, evenly; ferrule check refuses it.
func (p Plan) Overload() bool { return p.LoadPercent > 100 }

// LessLoad is the repair of a plan that asks too much.
const LessLoad = "poll less often, or raise the baud rate"

// Need says in words how much of its line the plan needs.
func (p Plan) Need() string {
	return fmt.Sprintf("line %s: the plan needs %.0f %% of the wire", p.Line, p.LoadPercent)
}

// Tight reports whether the plan leaves less than a tenth of the line's time for thinking,
// repetitions and writes; ferrule check warns of it.
func (p Plan) Tight() bool { return p.LoadPercent > 90 }

func (l *Line) makePlan() Plan {
	plan := Plan{Line: l.config.Name, Protocol: l.protocol.name, Role: l.role, Settings: l.settings.String(), Requests: []Request{}}
	for _, u := range l.units {
		if u.discovers {
			plan.Found = append(plan.Found, u.name)
		}
		for _, r := range u.requests() {
			if r.count > 0 || !l.protocol.registers {
				plan.add(u, r, l.protocol.cost(u, r))
			}
		}
	}
	return plan
}

func (p *Plan) add(u *unit, r *request, cost time.Duration) {
	request := Request{
		Unit: u.name, Address: int(u.address), From: int(r.at.Offset), Count: int(r.count), Points: []string{},
		Every: quantity.Duration(r.every), Milliseconds: milliseconds(cost), Percent: 100 * float64(cost) / float64(r.every),
	}
	if r.count > 0 {
		request.Table = r.at.Table.String()
	}
	for _, point := range r.points {
		if point.name != "" {
			request.Points = append(request.Points, point.name)
		}
	}
	p.Requests = append(p.Requests, request)
	p.LoadPercent += request.Percent
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
	fmt.Fprintf(&text, "line %s: %s, %s, ", p.Line, p.Protocol, p.Settings)
	switch n := len(p.Requests); {
	case p.Role != Master || n == 0:
		fmt.Fprintf(&text, "%s\n", p.Role.describe())
	case n == 1:
		fmt.Fprintf(&text, "1 request, load %.1f %%\n", p.LoadPercent)
	default:
		fmt.Fprintf(&text, "%d requests, load %.1f %%\n", n, p.LoadPercent)
	}
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, r := range p.Requests {
		what := "read-out\t"
		if r.Table != "" {
			what = fmt.Sprintf("%s:%d\t× %d", r.Table, r.From, r.Count)
		}
		fmt.Fprintf(table, "  %s\t%s\tevery %s\t%.2f ms\t%.2f %%\n", r.Unit, what, r.Every, r.Milliseconds, r.Percent)
	}
	_ = table.Flush() // a strings.Builder takes everything
	for _, unit := range p.Found {
		fmt.Fprintf(&text, "  %s: its points are found when it speaks\n", unit)
	}
	return text.String()
}
