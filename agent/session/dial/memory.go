package dial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// State is a file that is read once, and written when what worked changes. Without a path
// nothing is kept.
type State struct {
	FS   disk.FS
	Path string
}

const (
	maxState      = 32 << 10 // bytes of the file
	maxRemembered = 16       // brokers in it
	// stallsUntilClassic is how many handshakes in a row get no answer to a post-quantum share
	// before it is left out, and classicFor how long it stays so.
	stallsUntilClassic = 2
	classicFor         = 24 * time.Hour
)

// way is what worked with one broker.
type way struct {
	Broker string `json:"broker"`
	Family string `json:"family,omitempty"`
	// Classic is when the post-quantum share was found to be what gets no answer.
	Classic time.Time `json:"classic,omitzero"`
}

// known is what the file holds: the ways, that of the broker which worked last in front.
type known struct {
	Version int   `json:"version"`
	Ways    []way `json:"ways"`
}

// memory knows what worked, so that it is tried first. It is a help and no more: whatever the
// file says, every broker is tried in its turn, and none that is not configured.
type memory struct {
	state State
	now   func() time.Time
	log   *slog.Logger

	mu     sync.Mutex
	known  known
	saved  []byte // what the file holds, as far as we know
	stalls map[string]int
	mute   bool // writing failed, and that was said
}

// remember reads the file. One that is not as it was written counts for nothing.
func remember(s State, now func() time.Time, log *slog.Logger) *memory {
	m := &memory{state: s, now: now, log: log, stalls: make(map[string]int)}
	if s.Path == "" {
		return m
	}
	text, err := disk.ReadFile(s.FS, s.Path, maxState)
	if err == nil {
		m.known, err = parseKnown(text)
	}
	if err == nil {
		m.saved = text
	} else if !errors.Is(err, fs.ErrNotExist) {
		log.LogAttrs(context.Background(), slog.LevelWarn, "what worked before is not known", slog.Any("err", err))
	}
	return m
}

// parseKnown reads what the file holds, and refuses all of it where anything is wrong.
func parseKnown(text []byte) (known, error) {
	var k known
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&k); err != nil {
		return known{}, fmt.Errorf("reading the ways to the brokers: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || k.Version != 1 || len(k.Ways) > maxRemembered {
		return known{}, errors.New("reading the ways to the brokers: not what was written")
	}
	for n, w := range k.Ways {
		_, err := ParseBroker(w.Broker)
		twice := slices.ContainsFunc(k.Ways[:n], func(o way) bool { return o.Broker == w.Broker })
		if err != nil || twice || w.Family != "" && w.Family != "ipv4" && w.Family != "ipv6" {
			return known{}, errors.New("reading the ways to the brokers: not what was written")
		}
	}
	return k, nil
}

// find returns what is known of b, or nil. m.mu is held.
func (m *memory) find(b Broker) *way {
	for n := range m.known.Ways {
		if m.known.Ways[n].Broker == b.text {
			return &m.known.Ways[n]
		}
	}
	return nil
}

// order puts the broker that worked last in front. What is known of others than brokers is
// forgotten.
func (m *memory) order(brokers []Broker) []Broker {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known.Ways = slices.DeleteFunc(m.known.Ways, func(w way) bool {
		return !slices.ContainsFunc(brokers, func(b Broker) bool { return b.text == w.Broker })
	})
	ordered := slices.Clone(brokers)
	for _, w := range m.known.Ways {
		n := slices.IndexFunc(ordered, func(b Broker) bool { return b.text == w.Broker })
		if w.Family == "" {
			continue // it never worked; only its groups are known
		}
		first := ordered[n]
		return slices.Insert(slices.Delete(ordered, n, n+1), 0, first)
	}
	return ordered
}

// family returns the family that worked with b, or "".
func (m *memory) family(b Broker) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.find(b); w != nil {
		return w.Family
	}
	return ""
}

// classicUntil returns when the post-quantum share is offered to b again, the zero time where it
// is anyway. A clock that was set back ends the wait.
func (m *memory) classicUntil(b Broker) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.until(b)
}

func (m *memory) until(b Broker) time.Time {
	w := m.find(b)
	if w == nil || w.Classic.IsZero() {
		return time.Time{}
	}
	if age := m.now().Sub(w.Classic); age < 0 || age >= classicFor {
		return time.Time{}
	}
	return w.Classic.Add(classicFor)
}

// without says whether the post-quantum share is left out of the next handshake with b.
func (m *memory) without(b Broker) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stalls[b.text] >= stallsUntilClassic || !m.until(b).IsZero()
}

// hello is told what came of a ClientHello, with the post-quantum share or without it: whether
// anything was heard in answer, and whether the handshake ended because nothing more came. Only
// silence counts against the share, and only an answer without it says that it was to blame.
func (m *memory) hello(b Broker, without, heard, stalled bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if stalled && !heard && !without {
		m.stalls[b.text]++
		return
	}
	delete(m.stalls, b.text)
	if !heard {
		return
	}
	w := m.find(b)
	switch {
	case without && w == nil:
		m.known.Ways = append(m.known.Ways, way{Broker: b.text, Classic: m.now().UTC().Truncate(time.Second)})
	case without && m.until(b).IsZero():
		w.Classic = m.now().UTC().Truncate(time.Second)
	case !without && w != nil:
		w.Classic = time.Time{}
	}
}

// worked puts b in front, and writes the file when that, or anything else of it, is news.
func (m *memory) worked(b Broker, p Path) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := way{Broker: b.text}
	if old := m.find(b); old != nil {
		w = *old
	}
	w.Family = p.Family
	ways := slices.DeleteFunc(m.known.Ways, func(o way) bool { return o.Broker == b.text })
	ways = slices.Insert(ways, 0, w)
	m.known = known{Version: 1, Ways: ways[:min(len(ways), maxRemembered)]}
	m.save()
}

// save writes the file where it holds something else. m.mu is held.
func (m *memory) save() {
	text, err := json.Marshal(m.known)
	if err != nil || m.state.Path == "" || bytes.Equal(text, m.saved) {
		return
	}
	if err := atomicfile.Write(m.state.FS, m.state.Path, text, 0o600); err != nil {
		if !m.mute {
			m.log.LogAttrs(context.Background(), slog.LevelWarn, "what worked is not kept", slog.Any("err", err))
		}
		m.mute = true
		return
	}
	m.saved, m.mute = text, false
}
