package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/record"
)

// policy is a LineConfig with what became of it. An urgent line is settled once the normal lane holds
// nothing of it; what it takes before follows the older entries there, or it would overtake
// them.
type policy struct {
	urgent  bool
	maxAge  time.Duration
	settled bool
	last    uint64 // seq of its last entry in the normal lane in this boot
	expired uint64
}

// newPolicies makes policies of what is told of the lines.
func newPolicies(lines []LineConfig) (policies map[string]*policy, urgent, aging bool, err error) {
	policies = make(map[string]*policy, len(lines))
	for _, c := range lines {
		if c.MaxAge < 0 {
			return nil, false, false, fmt.Errorf("line %q: max_age %v is negative", c.Name, c.MaxAge)
		}
		policies[c.Name] = &policy{urgent: c.Urgent, maxAge: c.MaxAge}
		urgent = urgent || c.Urgent
		aging = aging || c.MaxAge > 0
	}
	return policies, urgent, aging, nil
}

// route returns the lane for an entry of an urgent line.
func (c *common) route(p *policy) *lane {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !p.settled && c.normal.passed(p.last) {
		p.settled = true
		// Of a log that could not be read nobody knows what is in it: the next start has to look again.
		c.unsettled = c.unsettled || !c.normal.blind
	}
	if p.settled {
		return c.urgent
	}
	return c.normal
}

// stayNormal notes an entry of an urgent line in the normal lane.
func (c *common) stayNormal(p *policy, seq uint64) {
	p.last = seq
	if p.settled { // while the entry waited for its turn
		p.settled, c.unsettled = false, true
	}
}

// passed reports whether the lane owes nothing of former boots, nor of this boot up to seq.
func (l *lane) passed(seq uint64) bool {
	switch {
	case l.front.n > 0:
		e := l.front.at(0)
		return e.boot == l.boot && e.seq > seq
	case l.unread > 0:
		return l.cursor.seg.from > seq
	case l.tail.n > 0:
		return l.tail.at(0).seq > seq
	}
	return true
}

// The file of lines names the urgent lines of which the normal lane holds nothing. It may name too few
// of them: their next entries then wait for what is left there, which need not be theirs. It must never
// name too many. So it is written before the entries that make it wrong, and otherwise only along with
// others: in a healthy session nothing is written.
const (
	linesName  = "lines"
	linesBytes = 1 << 20
	kindLines  = 6
)

var linesSeed = record.NewSeed(kindLines)

// readLines takes over what the file says of lines that are urgent still. Where a program of before there
// were lanes has written to the log meanwhile, it says nothing.
func (c *common) readLines() {
	names, err := c.settledLines()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.LogAttrs(context.Background(), slog.LevelWarn, "which lines were urgent cannot be read", slog.Any("err", err))
		c.unsettled = true
	}
	if len(names) > 0 && slices.ContainsFunc(c.normal.segments, func(s *segment) bool { return !s.stamped }) {
		names, c.unsettled = nil, true
	}
	for _, name := range names {
		if p := c.policies[name]; p != nil && p.urgent {
			p.settled = true
		} else {
			c.unsettled = true
		}
	}
}

func (c *common) settledLines() (names []string, err error) {
	data, err := disk.ReadFile(c.fsys, c.normal.path(linesName), linesBytes)
	if err != nil {
		return nil, err
	}
	rec, err := record.NewReader(bytes.NewReader(data), 0, int64(len(data)), linesSeed, linesBytes).Next()
	if err != nil || rec.Damaged != 0 || rec.Payload[0] != kindLines {
		return nil, errFormat
	}
	d := fields{b: rec.Payload[1:]}
	for len(d.b) > 0 {
		names = append(names, string(d.bytes()))
	}
	if d.err != nil {
		return nil, d.err
	}
	return names, nil
}

// keepLines makes the file of lines say what holds. diskMu of the normal lane is held.
func (c *common) keepLines() error {
	c.mu.Lock()
	write, payload := c.unsettled, []byte{kindLines}
	for _, name := range slices.Sorted(maps.Keys(c.policies)) {
		if write && c.policies[name].settled {
			payload = binary.AppendUvarint(payload, uint64(len(name)))
			payload = append(payload, name...)
		}
	}
	c.unsettled = false
	c.mu.Unlock()
	if !write {
		return nil
	}
	data := linesSeed.Append(nil, payload)
	err := atomicfile.Write(c.fsys, c.normal.path(linesName), data, 0o600)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.unsettled = true
		return fmt.Errorf("noting which lines are urgent: %w", err)
	}
	c.normal.stats.WrittenBytes += int64(len(data))
	c.normal.stats.Fsyncs++
	return nil
}
