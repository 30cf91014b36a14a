package modbus

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// naive says of a plan what it costs, by the rules as the documentation has them, address by
// address; it shares no code with the planner.
type naive struct {
	spans []Span
	cost  Cost
	used  map[Address]bool
}

func newNaive(spans []Span, c Cost) *naive {
	n := &naive{spans: spans, cost: c, used: make(map[Address]bool)}
	for _, s := range spans {
		for i := range s.Count {
			n.used[Address{s.At.Table, s.At.Offset + uint16(i)}] = true
		}
	}
	return n
}

// hull returns the request that reads the members, false where there must be none.
func (n *naive) hull(members []int) (at Address, count int, ok bool) {
	at = n.spans[members[0]].At
	end := 0
	for _, m := range members {
		s := n.spans[m]
		if s.At.Table != at.Table {
			return at, 0, false
		}
		at.Offset = min(at.Offset, s.At.Offset)
		end = max(end, int(s.At.Offset)+s.Count)
	}
	count = end - int(at.Offset)
	limit := n.cost.MaxRegisters
	if at.Table.Bits() {
		limit = n.cost.MaxBits
	}
	if len(members) > 1 && count > limit {
		return at, count, false
	}
	for i := 0; i < count && !n.cost.Holes; i++ {
		if !n.used[Address{at.Table, at.Offset + uint16(i)}] {
			return at, count, false
		}
	}
	for _, a := range n.cost.Forbidden {
		within := func(s Span) bool { return a.Offset >= s.At.Offset && int(a.Offset) < int(s.At.Offset)+s.Count }
		if a.Table != at.Table || !within(Span{At: at, Count: count}) {
			continue
		}
		for _, m := range members {
			if !within(n.spans[m]) {
				return at, count, false
			}
		}
	}
	return at, count, true
}

// check reports the first rule that the groups break.
func (n *naive) check(groups []Group) error {
	seen := make(map[int]bool)
	for _, g := range groups {
		if len(g.Members) == 0 {
			return fmt.Errorf("%v has no members", g)
		}
		every := time.Duration(math.MaxInt64)
		for _, m := range g.Members {
			if seen[m] {
				return fmt.Errorf("span %d is read twice", m)
			}
			seen[m] = true
			every = min(every, n.spans[m].Every)
		}
		if g.Every != every {
			return fmt.Errorf("%v: its members want %v", g, every)
		}
		if at, count, ok := n.hull(g.Members); !ok || at != g.At || count != g.Count {
			return fmt.Errorf("%v: its members make %v × %d, allowed: %v", g, at, count, ok)
		}
		if !slices.IsSortedFunc(g.Members, func(a, b int) int { return int(n.spans[a].At.Offset) - int(n.spans[b].At.Offset) }) {
			return fmt.Errorf("%v: members out of order", g)
		}
	}
	if len(seen) != len(n.spans) {
		return fmt.Errorf("%d of %d spans are read", len(seen), len(n.spans))
	}
	return nil
}

// cheapest tries all partitions of the spans, whatever their periods.
func (n *naive) cheapest() float64 {
	best := math.Inf(1)
	var parts [][]int
	var try func(next int)
	try = func(next int) {
		load := 0.0
		for _, members := range parts {
			at, count, ok := n.hull(members)
			if !ok {
				return // and it is no better with more members
			}
			every := time.Duration(math.MaxInt64)
			for _, m := range members {
				every = min(every, n.spans[m].Every)
			}
			load += float64(n.cost.Of(at.Table, count)) / float64(every)
		}
		if load >= best {
			return // likewise
		}
		if next == len(n.spans) {
			best = load
			return
		}
		for i := range parts {
			parts[i] = append(parts[i], next)
			try(next + 1)
			parts[i] = parts[i][:len(parts[i])-1]
		}
		parts = append(parts, []int{next})
		try(next + 1)
		parts = parts[:len(parts)-1]
	}
	try(0)
	return best
}

func anyCost(t *rapid.T) Cost {
	c := Cost{
		Timing: rapid.SampledFrom([]Timing{TimingOf(1200, 11), TimingOf(9600, 11), TimingOf(19200, 11),
			TimingOf(115200, 10), {}, {Char: 3, T35: 1}}).Draw(t, "timing"),
		Framing:      rapid.SampledFrom([]Framing{RTU, RTU, RTU, ASCII}).Draw(t, "framing"),
		Response:     time.Duration(rapid.IntRange(0, 30).Draw(t, "response")) * time.Millisecond,
		MaxRegisters: rapid.SampledFrom([]int{1, 4, 10, 30, 125}).Draw(t, "registers"),
		MaxBits:      rapid.SampledFrom([]int{1, 8, 30, 2000}).Draw(t, "bits"),
		Holes:        rapid.Bool().Draw(t, "holes"),
	}
	for range rapid.IntRange(0, 4).Draw(t, "forbidden") {
		c.Forbidden = append(c.Forbidden, Address{anyTable(t), uint16(rapid.IntRange(0, 60).Draw(t, "no"))})
	}
	return c
}

func anyTable(t *rapid.T) Table {
	return rapid.SampledFrom([]Table{HoldingRegisters, HoldingRegisters, HoldingRegisters, Coils}).Draw(t, "table")
}

func anySpans(t *rapid.T, most int, every ...time.Duration) []Span {
	width := rapid.SampledFrom([]int{12, 60, 300}).Draw(t, "width")
	spans := make([]Span, rapid.IntRange(0, most).Draw(t, "n"))
	for i := range spans {
		spans[i] = Span{
			At:    Address{anyTable(t), uint16(rapid.IntRange(0, width).Draw(t, "at"))},
			Count: rapid.SampledFrom([]int{1, 1, 2, 4, 7}).Draw(t, "count"),
			Every: rapid.SampledFrom(every).Draw(t, "every"),
		}
	}
	return spans
}

// For spans of one period, nothing is cheaper among all ways to put them together.
func TestPlanEqualsBruteForce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spans, c := anySpans(t, 10, time.Second), anyCost(t)
		groups, n := Plan(spans, c), newNaive(spans, c)
		if err := n.check(groups); err != nil {
			t.Fatal(err)
		}
		if len(spans) == 0 {
			return
		}
		if got, want := c.Load(groups), n.cheapest(); math.Abs(got-want) > 1e-12*want {
			t.Fatalf("%v costs %v, the best %v", groups, got, want)
		}
	})
}

// The same near the limits and the break-even gaps, where a wrong decision shows: sets of 10.
func TestPlanEqualsBruteForceWhereItIsClose(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		c := Cost{
			Timing: TimingOf([]int{1200, 9600, 19200, 38400, 115200}[r.IntN(5)], 11), Response: time.Duration(r.IntN(20)) * time.Millisecond,
			MaxRegisters: 20 + r.IntN(106), MaxBits: 20 + r.IntN(1981), Holes: r.IntN(8) > 0,
		}
		at, gap := Address{Table: InputRegisters}, 1+c.Of(InputRegisters, 0)/(2*c.Timing.Char)
		if r.IntN(3) == 0 {
			at.Table, gap = Coils, 8+8*c.Of(Coils, 0)/c.Timing.Char
		}
		spans := make([]Span, 10)
		for i := range spans {
			spans[i] = Span{at, 1 + r.IntN(4), time.Second}
			at.Offset += uint16(gap) - uint16(r.IntN(5))
			if r.IntN(3) == 0 {
				at.Offset += uint16(r.IntN(7)) - uint16(gap)/2
			}
		}
		groups, n := Plan(spans, c), newNaive(spans, c)
		if err := n.check(groups); err != nil {
			t.Fatal(err)
		}
		if got, want := c.Load(groups), n.cheapest(); math.Abs(got-want) > 1e-12*want {
			t.Fatalf("%+v of %v: %v costs %v, the best %v", c, spans, groups, got, want)
		}
	}
}

// apart plans each period alone.
func apart(spans []Span, c Cost) float64 {
	of := make(map[time.Duration][]Span)
	for _, s := range spans {
		of[s.Every] = append(of[s.Every], s)
	}
	load := 0.0
	for _, some := range of {
		// Without holes, what the other periods use may be read too.
		c := c
		if !c.Holes {
			c.Holes, c.Forbidden = true, slices.Clone(c.Forbidden)
			n := newNaive(spans, c)
			for _, table := range []Table{HoldingRegisters, Coils} {
				for i := range 400 {
					if a := (Address{table, uint16(i)}); !n.used[a] {
						c.Forbidden = append(c.Forbidden, a)
					}
				}
			}
		}
		load += c.Load(Plan(some, c))
	}
	return load
}

func TestMergingPeriodsNeverCosts(t *testing.T) {
	periods := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 7 * time.Second, time.Minute}
	merged, separate := 0.0, 0.0
	rapid.Check(t, func(t *rapid.T) {
		spans, c := anySpans(t, 40, periods[:rapid.IntRange(1, len(periods)).Draw(t, "periods")]...), anyCost(t)
		groups := Plan(spans, c)
		if err := newNaive(spans, c).check(groups); err != nil {
			t.Fatal(err)
		}
		with, without := c.Load(groups), apart(spans, c)
		if with > without*(1+1e-12) {
			t.Fatalf("%v costs %v, the periods apart %v", groups, with, without)
		}
		merged, separate = merged+with, separate+without
		again := Plan(slices.Clone(spans), c)
		if !reflect.DeepEqual(groups, again) {
			t.Fatalf("planned twice: %v and %v", groups, again)
		}
	})
	t.Logf("merged plans take %.1f %% of the time of separate ones", 100*merged/separate)
}

// How far the merging is from the best mixture of periods there is, on small sets.
func TestMergingIsClose(t *testing.T) {
	sets, best, worst := 0, 0, 1.0
	rapid.Check(t, func(t *rapid.T) {
		spans, c := anySpans(t, 7, time.Second, 5*time.Second, time.Minute), anyCost(t)
		got, want := c.Load(Plan(spans, c)), newNaive(spans, c).cheapest()
		if len(spans) == 0 || want == 0 {
			return
		}
		if got < want*(1-1e-12) {
			t.Fatalf("%v is below the best, %v", got, want)
		}
		sets++
		if got <= want*(1+1e-12) {
			best++
		}
		worst = max(worst, got/want)
	})
	t.Logf("%d of %d plans are the best there is; the worst costs %.3f times the best", best, sets, worst)
}

func register(at, count int, every time.Duration) Span {
	return Span{Address{InputRegisters, uint16(at)}, count, every}
}

func TestPlan(t *testing.T) {
	const s, m = time.Second, time.Minute
	slow := Cost{Timing: TimingOf(9600, 11), Holes: true}
	strict, short := slow, slow
	strict.Holes, short.MaxRegisters = false, 10
	dead := slow
	dead.Forbidden = []Address{{InputRegisters, 4}, {HoldingRegisters, 1}}
	for _, test := range []struct {
		name  string
		cost  Cost
		spans []Span
		want  string
	}{
		{"a small gap is read", slow, []Span{register(0, 2, s), register(10, 2, s)}, "0+12/1s[0 1]"},
		{"a large one is not", slow, []Span{register(0, 2, s), register(30, 2, s)}, "0+2/1s[0] 30+2/1s[1]"},
		{"no hole is read", strict, []Span{register(0, 2, s), register(3, 2, s), register(5, 1, s)}, "0+2/1s[0] 3+3/1s[1 2]"},
		{"what another period uses is no hole", strict, []Span{register(0, 2, s), register(3, 2, s), register(2, 1, m)}, "0+5/1s[0 2 1]"},
		{"no point is cut", short, []Span{register(0, 8, s), register(8, 4, s), register(12, 6, s)}, "0+8/1s[0] 8+10/1s[1 2]"},
		{"overlapping points", slow, []Span{register(0, 4, s), register(2, 4, s), register(3, 1, s), register(0, 1, s)}, "0+6/1s[0 3 1 2]"},
		{"longer than the limit", short, []Span{register(0, 12, s), register(2, 1, s), register(3, 1, s)}, "0+12/1s[0] 2+2/1s[1 2]"},
		{"a forbidden hole", dead, []Span{register(0, 2, s), register(5, 2, s)}, "0+2/1s[0] 5+2/1s[1]"},
		{"a forbidden point is alone", dead, []Span{register(0, 4, s), register(4, 2, s), register(6, 2, s)}, "0+4/1s[0] 4+2/1s[1] 6+2/1s[2]"},
		{"but for what shares its register", dead, []Span{register(4, 1, s), register(4, 1, s), register(5, 1, s)}, "4+1/1s[0 1] 5+1/1s[2]"},
		{"the end of the table", slow, []Span{register(65535, 1, s), register(65530, 4, s)}, "65530+6/1s[1 0]"},
		{"a slow point inside", slow, []Span{register(0, 1, s), register(2, 1, s), register(1, 1, m)}, "0+3/1s[0 2 1]"},
		{"a slow point near by", slow, []Span{register(0, 10, s), register(10, 2, 5*s)}, "0+12/1s[0 1]"},
		{"not for every minute", slow, []Span{register(0, 10, s), register(12, 2, m)}, "0+10/1s[0] 12+2/1m0s[1]"},
		{"nothing", slow, nil, ""},
	} {
		var got []string
		for _, g := range Plan(test.spans, test.cost) {
			got = append(got, fmt.Sprintf("%d+%d/%v%v", g.At.Offset, g.Count, g.Every, g.Members))
		}
		if all := strings.Join(got, " "); all != test.want {
			t.Errorf("%s: got %s, want %s", test.name, all, test.want)
		}
	}
}

// The figures of V1.02, 2.5.1 and 2.5.2: 8 bytes there, 5 and the data back.
func TestCostOf(t *testing.T) {
	c := Cost{Timing: Timing{Char: time.Millisecond, T15: 2 * time.Millisecond, T35: 4 * time.Millisecond}, Response: time.Second}
	for _, test := range []struct {
		f     Framing
		table Table
		count int
		want  time.Duration
	}{
		{RTU, HoldingRegisters, 10, 1041 * time.Millisecond},
		{RTU, Coils, 8, 1022 * time.Millisecond},
		{RTU, Coils, 9, 1023 * time.Millisecond},
		{ASCII, HoldingRegisters, 10, 1068 * time.Millisecond}, // :AAFFSSSSNNNNLL and CR LF; :AAFFBB, the data, LL and CR LF
	} {
		c.Framing = test.f
		if got := c.Of(test.table, test.count); got != test.want {
			t.Errorf("%v, %d of %v: got %v, want %v", test.f, test.count, test.table, got, test.want)
		}
	}
}

func TestPlanKeepsTheLimits(t *testing.T) {
	var spans []Span
	for i := range 3000 {
		spans = append(spans, Span{Address{Coils, uint16(i)}, 1, time.Second}, Span{Address{HoldingRegisters, uint16(i)}, 1, time.Second})
	}
	most := map[Table]int{}
	groups := Plan(spans, Cost{Timing: TimingOf(9600, 11), MaxRegisters: 1000, MaxBits: -1})
	for _, g := range groups {
		most[g.At.Table] = max(most[g.At.Table], g.Count)
	}
	if most[Coils] > MaxReadBits || most[HoldingRegisters] != MaxReadRegisters || len(groups) != 2+24 {
		t.Errorf("%d groups, the longest have %v", len(groups), most)
	}
}

func TestGroupHoles(t *testing.T) {
	spans := []Span{register(65530, 2, time.Second), register(65535, 1, time.Second), register(65531, 2, time.Second)}
	groups := Plan(spans, Cost{Timing: TimingOf(9600, 11), Holes: true})
	want := []Address{{InputRegisters, 65533}, {InputRegisters, 65534}}
	if len(groups) != 1 || !reflect.DeepEqual(groups[0].Holes(spans), want) {
		t.Errorf("got %v of %v, want %v", groups[0].Holes(spans), groups, want)
	}
}

// corpus returns the folder of captures, or "" and says so.
func planCorpus(t testing.TB) string {
	dir := os.Getenv("FERRULE_CORPORA")
	if dir == "" {
		t.Log("FERRULE_CORPORA IS NOT SET: the maps of real meters are not planned; ours are")
	}
	return dir
}

// registerMap is a meter of corpora/mbmd, as far as the planner cares.
type registerMap struct {
	Device    string
	Func      string
	Readlen   []string
	Registers []struct {
		Address int
		Note    string
	}
}

// spans gives each register the width that the map names, where it names one; else two
// registers, as nearly all of these meters have, if the next address leaves room for them.
func (m registerMap) spans() []Span {
	table := InputRegisters
	if m.Func == "ReadHoldingReg" {
		table = HoldingRegisters
	}
	addresses := []int{}
	notes := map[int]string{}
	for _, r := range m.Registers {
		addresses = append(addresses, r.Address)
		notes[r.Address] = r.Note
	}
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	var spans []Span
	for i, a := range addresses {
		width := 2
		switch {
		case strings.HasPrefix(notes[a], "16 bit"):
			width = 1
		case slices.Contains(m.Readlen, "4") && (i+1 == len(addresses) || addresses[i+1] >= a+4):
			width = 4
		}
		if i+1 < len(addresses) {
			width = min(width, addresses[i+1]-a)
		}
		spans = append(spans, Span{Address{table, uint16(a)}, width, time.Second})
	}
	return spans
}

// All real maps together are read at least three times faster than point by point.
func TestPlanOfRealMeters(t *testing.T) {
	dir := planCorpus(t)
	var maps []registerMap
	if dir == "" {
		maps = []registerMap{{Device: "ours"}}
		for i := range 40 {
			maps[0].Registers = append(maps[0].Registers, struct {
				Address int
				Note    string
			}{Address: i*2 + i/10*30})
		}
	} else {
		text, err := os.ReadFile(filepath.Join(dir, "mbmd", "mbmd_register_maps.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &maps); err != nil {
			t.Fatal(err)
		}
	}
	for _, baud := range []int{9600, 19200, 115200} {
		c := Cost{Timing: TimingOf(baud, 11), Response: 5 * time.Millisecond, Holes: true}
		adjacent := c
		adjacent.Holes = false
		var single, touching, planned time.Duration
		points, runs, requests := 0, 0, 0
		for _, m := range maps {
			spans := m.spans()
			points += len(spans)
			for _, s := range spans {
				single += c.Of(s.At.Table, s.Count)
			}
			for _, g := range Plan(spans, adjacent) {
				touching += c.Of(g.At.Table, g.Count)
				runs++
			}
			groups := Plan(spans, c)
			if err := newNaive(spans, Cost{MaxRegisters: 125, Holes: true}).check(groups); err != nil {
				t.Fatalf("%s: %v", m.Device, err)
			}
			for _, g := range groups {
				planned += c.Of(g.At.Table, g.Count)
				requests++
			}
		}
		t.Logf("%d maps at %d: point by point %.2f s (%d requests), adjacent only %.2f s (%d), planned %.2f s (%d): %.2f times faster",
			len(maps), baud, single.Seconds(), points, touching.Seconds(), runs, planned.Seconds(), requests, float64(single)/float64(planned))
		if single < 3*planned {
			t.Errorf("at %d: point by point %v, planned %v", baud, single, planned)
		}
	}
}
