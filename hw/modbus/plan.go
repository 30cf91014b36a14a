package modbus

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// Span is one point as the planner sees it. It is never cut: all of it comes in one answer.
type Span struct {
	At    Address
	Count int           // registers or bits from At on; at least 1, and not beyond the table
	Every time.Duration // how often it is wanted; above 0
}

// Cost says what requests to one unit cost, and which of them the unit allows.
type Cost struct {
	Timing   Timing
	Framing  Framing
	Response time.Duration // how long the unit takes to answer, learned; 0: not known
	// The most that one request may ask for; 0 or more than the protocol allows: what the
	// protocol allows, MaxReadRegisters and MaxReadBits.
	MaxRegisters, MaxBits int
	// Holes: a request may read addresses that no span uses, where that is cheaper than a
	// request of its own for each side of them.
	Holes bool
	// Forbidden are single registers or bits that the unit refused (exceptions 2 and 3). No
	// request reads one, but for the spans that lie on it: those are asked without their
	// neighbours, so that a refusal costs nobody else.
	Forbidden []Address
}

// Group is one request and the spans that it reads.
type Group struct {
	At      Address
	Count   int           // registers or bits
	Every   time.Duration // the shortest period of its members; the others are read more often than they need
	Members []int         // indexes of the spans, by address
}

// Of is the time that one request for count registers or bits takes: 8 bytes there, 5 bytes and
// the data back, a gap of t3.5 before each, and the unit's own time. Modbus over Serial Line
// V1.02, 2.5.1. In ASCII the bytes are more and there are no gaps.
func (c Cost) Of(t Table, count int) time.Duration {
	data := 2 * count
	if t.Bits() {
		data = (count + 7) / 8
	}
	chars := c.Framing.onWire(8) + c.Framing.onWire(5+data)
	return c.Timing.Chars(chars) + 2*c.Timing.of(c.Framing).T35 + c.Response
}

// Load is the share of the line's time that the groups take; above 1 they do not fit.
func (c Cost) Load(groups []Group) float64 {
	load := 0.0
	for _, g := range groups {
		load += float64(c.Of(g.At.Table, g.Count)) / float64(max(g.Every, 1))
	}
	return load
}

// Holes returns the addresses that g reads although no member of it lies there: what to forbid
// when the unit refuses g. spans is what Plan was given.
func (g Group) Holes(spans []Span) []Address {
	used := make([]bool, g.Count)
	for _, m := range g.Members {
		for i := range spans[m].Count {
			used[int(spans[m].At.Offset)-int(g.At.Offset)+i] = true
		}
	}
	var holes []Address
	for i, u := range used {
		if !u {
			holes = append(holes, Address{g.At.Table, g.At.Offset + uint16(i)})
		}
	}
	return holes
}

// Plan groups the spans of one unit into requests. Each span is in exactly one group, of a period
// not longer than its own.
//
// For spans of one period no other grouping takes less time on the line; among equals it has the
// fewest requests, then the fewest registers. A span of a longer period joins requests of a
// shorter one where that takes less of the line's time than asking for it separately: for nothing
// where such a request reads its addresses anyway, or by making one longer. This step looks at one
// period after the other, so that it may miss a better mixture, but it never costs more than
// leaving the periods apart. The result depends on nothing but the arguments; groups come by
// period, table and address.
//
// A span longer than the limit, which no unit can answer, gets a group of its own: refuse it
// before. Plan takes O(n log n) steps for n spans of one period, and at most O(n × limit) for
// each pair of periods.
func Plan(spans []Span, c Cost) []Group {
	var groups []Group
	for _, p := range makePools(spans, c) {
		groups = append(groups, p.plan()...)
	}
	slices.SortStableFunc(groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.Every, b.Every), cmp.Compare(a.At.Table, b.At.Table),
			cmp.Compare(a.At.Offset, b.At.Offset), cmp.Compare(a.Count, b.Count))
	})
	return groups
}

// extent is the addresses from start to before end.
type extent struct{ start, end int }

func (e extent) size() int { return e.end - e.start }

func (e extent) union(f extent) extent { return extent{min(e.start, f.start), max(e.end, f.end)} }

// member is a span and its index.
type member struct {
	extent
	every time.Duration
	index int
}

// pool holds spans of one table that nothing but the limit keeps out of one request: whatever
// lies between any two of them may be read.
type pool struct {
	cost    Cost
	table   Table
	limit   int
	members []member // by start
}

// poolKey tells pools apart.
type poolKey struct {
	table    Table
	segment  int // without holes: the run of used addresses
	from, to int // which of the forbidden addresses are below the start, and below the end
	long     int // one above the index of a span that is longer than the limit
}

// makePools splits the spans where forbidden addresses, holes and tables keep them apart. It is
// exact because each of these rules, if broken between two spans, is broken in every request that
// has both.
func makePools(spans []Span, c Cost) []*pool {
	order := make([]int, len(spans))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := spans[i], spans[j]
		return cmp.Or(cmp.Compare(a.At.Table, b.At.Table), cmp.Compare(a.At.Offset, b.At.Offset), cmp.Compare(i, j))
	})
	forbidden := c.forbidden()
	pools := []*pool{}
	known := make(map[poolKey]*pool)
	segment, segmentEnd := 0, 0
	for n, i := range order {
		s := spans[i]
		at := extent{int(s.At.Offset), int(s.At.Offset) + s.Count}
		if n == 0 || s.At.Table != spans[order[n-1]].At.Table || !c.Holes && at.start > segmentEnd {
			segment, segmentEnd = segment+1, 0
		}
		segmentEnd = max(segmentEnd, at.end)
		no := forbidden[s.At.Table]
		key := poolKey{table: s.At.Table, segment: segment, from: sort.SearchInts(no, at.start), to: sort.SearchInts(no, at.end)}
		limit := c.limit(s.At.Table)
		if at.size() > limit {
			key.long = i + 1
		}
		p := known[key]
		if p == nil {
			p = &pool{cost: c, table: s.At.Table, limit: limit}
			known[key] = p
			pools = append(pools, p)
		}
		p.members = append(p.members, member{extent: at, every: max(s.Every, 1), index: i})
	}
	return pools
}

// forbidden returns the forbidden addresses of each table, sorted.
func (c Cost) forbidden() map[Table][]int {
	if len(c.Forbidden) == 0 {
		return nil
	}
	of := make(map[Table][]int)
	for _, a := range c.Forbidden {
		of[a.Table] = append(of[a.Table], int(a.Offset))
	}
	for t, all := range of {
		slices.Sort(all)
		of[t] = slices.Compact(all)
	}
	return of
}

// limit is the most registers or bits of one request.
func (c Cost) limit(t Table) int {
	own, protocol := c.MaxRegisters, MaxReadRegisters
	if t.Bits() {
		own, protocol = c.MaxBits, MaxReadBits
	}
	if own <= 0 || own > protocol {
		return protocol
	}
	return own
}

// level is what is asked at one period.
type level struct {
	every    time.Duration
	members  []member // by start
	requests []extent // starts and ends both rise
	planned  int      // how many members the requests were chosen for
}

// plan decides at which period each member is read, the fastest first, and groups each period.
func (p *pool) plan() []Group {
	slices.SortStableFunc(p.members, func(a, b member) int { return cmp.Compare(a.every, b.every) })
	var levels []level
	for rest := p.members; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].every == rest[0].every {
			n++
		}
		faster := levels
		own := level{every: rest[0].every, members: give(faster, rest[:n:n])}
		if len(faster) > 0 && len(own.members) > 0 && p.widen(faster, own) {
			own.members = give(faster, own.members)
		}
		if len(own.members) > 0 {
			own.requests, own.planned = p.cheapest(skyline(own.members)), len(own.members)
			levels = append(levels, own)
		}
		rest = rest[n:]
	}
	var groups []Group
	for _, l := range levels {
		groups = append(groups, p.groups(l)...)
	}
	return groups
}

// give moves those members that requests of a faster level read anyway there, to the slowest that
// does, and returns the others.
func give(faster []level, members []member) (rest []member) {
	for _, m := range members {
		if l := hostOf(faster, m.extent); l != nil {
			l.members = append(l.members, m)
		} else {
			rest = append(rest, m)
		}
	}
	return rest
}

func hostOf(levels []level, e extent) *level {
	for i := range slices.Backward(levels) {
		if r := lastFrom(levels[i].requests, e.start); r >= 0 && levels[i].requests[r].end >= e.end {
			return &levels[i]
		}
	}
	return nil
}

// lastFrom returns the index of the last extent that starts at or before start, or -1.
func lastFrom(all []extent, start int) int {
	return sort.Search(len(all), func(i int) bool { return all[i].start > start }) - 1
}

// skyline returns the extents of the members that lie in no other member. Starts and ends both
// rise. The rest costs nothing: what reads the one reads the other.
func skyline(members []member) []extent {
	all := make([]extent, len(members))
	for i, m := range members {
		all[i] = m.extent
	}
	return prune(all)
}

// prune removes the extents that lie in another one, in place.
func prune(all []extent) []extent {
	slices.SortFunc(all, func(a, b extent) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.end, a.end)) })
	n := 0
	for _, e := range all {
		if n == 0 || e.end > all[n-1].end {
			all[n] = e
			n++
		}
	}
	return all[:n]
}

// cheapest covers the items, a skyline, by the requests that take the least time together. Some
// best solution cuts the sorted items into runs: where the extents of two requests interleave,
// the items of the one in the overlap can go to the other for nothing. So the best for the first
// j items is the best for the first i and one request for the rest, for some i.
func (p *pool) cheapest(items []extent) []extent {
	if len(items) == 1 { // the one that may be longer than the limit
		return items
	}
	runs := p.newRuns(len(items))
	best := run{}
	from := make([]int, len(items)+1)
	for j, item := range items {
		runs.add(best, j, item.start)
		best, from[j+1] = runs.best(item.end)
	}
	var requests []extent
	for j := len(items); j > 0; j = from[j] {
		requests = append(requests, extent{items[from[j]].start, items[j-1].end})
	}
	slices.Reverse(requests)
	return requests
}

// run is what it costs to read the items up to some point.
type run struct {
	time float64 // in nanoseconds; sums of whole ones are exact
	tie  int64   // requests × 2^32 + registers or bits
}

func (r run) less(s run) bool { return r.time < s.time || r.time == s.time && r.tie < s.tie }

// runs finds the best beginning for a request that ends at a given address. Time grows by a
// fixed amount with every full unit of 1 register or 8 bits, so that the order of two beginnings
// which differ by whole units is the same for every end, and of those that differ otherwise there
// are 8 kinds. Of each kind a queue holds, in the order of address, those that no later one beats.
type runs struct {
	limit, unit  int
	fixed, extra float64 // time of a request, and of each unit in it
	queues       [8][]beginning
}

type beginning struct {
	run         // of what is before, less what the addresses before would take
	start, from int
}

func (p *pool) newRuns(items int) *runs {
	unit := 1
	if p.table.Bits() {
		unit = 8
	}
	fixed := p.cost.Of(p.table, 0)
	r := &runs{limit: p.limit, unit: unit, fixed: float64(fixed), extra: float64(p.cost.Of(p.table, 1) - fixed)}
	for kind := range unit {
		r.queues[kind] = make([]beginning, 0, items/unit+1)
	}
	return r
}

// add makes it possible to begin at start, the item with the index from, when the items before
// are read at the cost of before. Starts rise.
func (r *runs) add(before run, from, start int) {
	b := beginning{run{before.time - r.extra*float64(start/r.unit), before.tie - int64(start)}, start, from}
	q := &r.queues[start%r.unit]
	for n := len(*q); n > 0 && !(*q)[n-1].less(b.run); n-- {
		*q = (*q)[:n-1]
	}
	*q = append(*q, b)
}

// best returns the cost of all up to end, and the item that the last request begins with. Ends rise.
func (r *runs) best(end int) (best run, from int) {
	from = -1
	for kind := range r.unit {
		q := r.queues[kind]
		for len(q) > 0 && end-q[0].start > r.limit {
			q = q[1:]
		}
		r.queues[kind] = q
		if len(q) == 0 {
			continue
		}
		units := (end - kind + r.unit - 1) / r.unit
		all := run{q[0].time + r.fixed + r.extra*float64(units), q[0].tie + int64(end) + 1<<32}
		if from < 0 || all.less(best) {
			best, from = all, q[0].from
		}
	}
	return best, from
}

// groups is the best plan of a level with all members that it got.
func (p *pool) groups(l level) []Group {
	requests := l.requests
	if len(l.members) > l.planned {
		requests = p.cheapest(skyline(l.members))
	}
	groups := make([]Group, len(requests))
	for i, r := range requests {
		groups[i] = Group{At: Address{p.table, uint16(r.start)}, Count: r.size()}
	}
	slices.SortFunc(l.members, func(a, b member) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.index, b.index)) })
	for _, m := range l.members {
		// The last request that starts at or before m is the one that reaches furthest.
		g := &groups[lastFrom(requests, m.start)]
		g.Members = append(g.Members, m.index)
		if g.Every == 0 || m.every < g.Every {
			g.Every = m.every
		}
	}
	return groups
}

// host is a request of a faster level that may become longer.
type host struct {
	extent
	level int
}

// step is the best known way to read the first items of a level.
type step struct {
	run    // time per period of the level, on top of what the hosts take already
	known  bool
	from   int    // where the last run of items begins
	attach bool   // the run is read by host, not by a request of its own
	host   int    // the last host that was made longer, -1 for none
	as     extent // and what it is then
}

// widen makes requests of the faster levels longer where that takes less time than requests of
// the slow level's own, and reports whether it did. Each run of the slow level's items is read
// by a request of its own or by a host; hosts are taken in the order of their addresses, which
// is what keeps the number of steps small. Leaving all hosts alone is among the ways looked at.
func (p *pool) widen(faster []level, slow level) bool {
	items := skyline(slow.members)
	var hosts []host
	for l := range faster {
		for _, r := range faster[l].requests {
			hosts = append(hosts, host{r, l})
		}
	}
	slices.SortFunc(hosts, func(a, b host) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.level, a.level)) })
	way := make([]step, len(items)+1)
	way[0] = step{host: -1, known: true}
	own := p.newRuns(len(items))
	for i, item := range items {
		near := sort.Search(len(hosts), func(h int) bool { return hosts[h].start >= item.end-p.limit })
		for h := max(near, way[i].host); h < len(hosts) && hosts[h].start < item.start+p.limit; h++ {
			p.attach(way, items, i, hosts[h].extent, h, float64(slow.every)/float64(faster[hosts[h].level].every))
		}
		own.add(way[i].run, i, item.start)
		if best, from := own.best(item.end); !way[i+1].known || best.less(way[i+1].run) {
			way[i+1] = step{run: best, known: true, from: from, host: way[from].host, as: way[from].as}
		}
	}
	return apply(way, hosts, faster)
}

// attach looks at the runs from item i on that host h could read too, as often as it is asked in
// one period of the slow level.
func (p *pool) attach(way []step, items []extent, i int, was extent, h int, times float64) {
	if way[i].host == h {
		was = way[i].as
	}
	for j := i; j < len(items); j++ {
		reads := extent{items[i].start, items[j].end}
		as := was.union(reads)
		if as.size() > p.limit {
			return
		}
		more := float64(float64(p.cost.Of(p.table, as.size())-p.cost.Of(p.table, was.size())) * times)
		if reads.end > was.end && more > float64(p.cost.Of(p.table, reads.size())) {
			return // each further address costs the host more than it costs a request of its own
		}
		all := run{way[i].time + more, way[i].tie + int64(as.size()-was.size())}
		if to := &way[j+1]; !to.known || all.less(to.run) {
			*to = step{run: all, known: true, from: i, attach: true, host: h, as: as}
		}
	}
}

// apply makes the hosts as long as the best way has them.
func apply(way []step, hosts []host, faster []level) (changed bool) {
	for j := len(way) - 1; j > 0; j = way[j].from {
		if s := way[j]; s.attach {
			hosts[s.host].extent = hosts[s.host].union(s.as)
			changed = true
		}
	}
	if !changed {
		return false
	}
	for l := range faster {
		faster[l].requests = faster[l].requests[:0]
	}
	for _, h := range hosts {
		faster[h.level].requests = append(faster[h.level].requests, h.extent)
	}
	for l := range faster {
		faster[l].requests = prune(faster[l].requests)
	}
	return true
}
