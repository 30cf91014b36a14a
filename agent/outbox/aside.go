package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"
	"unicode/utf8"
)

const (
	asideName = "aside.jsonl"
	asideOld  = "aside.old.jsonl"
)

// aside is a line of the file of entries that were set aside, for people to read.
type aside struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Boot   uint64    `json:"boot"`
	Seq    uint64    `json:"seq"`
	Line   string    `json:"line"`
	Topic  string    `json:"topic"`
	// Text is the payload, or Payload where it is no text (base64).
	Text    string `json:"text,omitempty"`
	Payload []byte `json:"payload,omitempty"`
}

// SetAside takes an entry that cannot be delivered out of the queue: it is kept in a file of bounded
// size, counted, and never sent again. The others keep their order. An id that was never handed out, or
// is acknowledged, is ignored.
func (s *Outbox) SetAside(id uint64, reason string) {
	e, ok := s.takeOut(id)
	if !ok {
		return
	}
	l := s.normal // one file for both lanes
	l.log.LogAttrs(context.Background(), slog.LevelWarn, "entry set aside", slog.String("topic", e.topic),
		slog.Uint64("boot", e.boot), slog.Uint64("seq", e.seq), slog.String("reason", reason))
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	l.report(settingAside, l.writeAside(&e, reason))
}

func (c *common) takeOut(id uint64) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lanes {
		for i := range l.front.n {
			if id == 0 || l.front.at(i).id != id {
				continue
			}
			if i < l.flight {
				l.flight--
			}
			e := l.front.remove(i)
			l.leave(e)
			l.stats.SetAside++
			return e, true
		}
	}
	return entry{}, false
}

func (l *lane) writeAside(e *entry, reason string) error {
	a := aside{At: time.Now().UTC(), Reason: reason, Boot: e.boot, Seq: e.seq, Line: e.line, Topic: e.topic}
	if utf8.Valid(e.payload) {
		a.Text = string(e.payload)
	} else {
		a.Payload = e.payload
	}
	line, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encoding an entry set aside: %w", err)
	}
	line = append(line, '\n')
	f, err := l.fsys.OpenFile(l.path(asideName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("keeping an entry set aside: %w", err)
	}
	defer f.Close()
	n, err := f.Write(line)
	l.count(int64(n))
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("keeping an entry set aside: %w", err)
	}
	// Two files of half a segment each: the newest are kept.
	if info, err := f.Stat(); err == nil && info.Size() >= l.segmentLimit/2 {
		return l.fsys.Rename(l.path(asideName), l.path(asideOld))
	}
	return nil
}
