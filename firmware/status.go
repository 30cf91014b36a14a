package firmware

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"ferrule/firmware/manifest"
	"ferrule/internal/hint"
)

// Status is how the update stands.
func (e *Engine) Status() Status {
	now, trusted := e.o.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Status{
		State: e.saved.State, Version: e.runs().Version, Slot: string(e.env.Running), Active: string(e.env.Active),
		Reason: e.waits, Refused: e.refused, Unreported: len(e.saved.Reports), Floor: e.floor, LastCheck: e.lastCheck,
		Metadata: Metadata{Versions: maps.Clone(e.meta.Versions), Expires: maps.Clone(e.meta.Expires), Refreshed: e.meta.Refreshed, Alarm: e.meta.Alarm},
	}
	for _, q := range e.saved.Quarantine {
		s.Quarantined = append(s.Quarantined, q.Quarantined)
	}
	if u := e.saved.Update; u != nil {
		t := e.target
		t.Manifest, t.Version, t.Release, t.SecurityVersion, t.From, t.Slot = u.Manifest, u.Version, u.Release, u.Security, u.From, string(u.Target)
		if e.saved.State == Trial && e.judged != nil {
			judged := *e.judged
			t.Trial = &judged
		}
		s.Target = &t
		if s.Reason == "" {
			s.Reason, s.Advice = u.Reason, e.advice
		}
	}
	if !e.nextCheck.IsZero() {
		s.NextCheck = now.Add(time.Until(e.nextCheck)).Round(time.Second)
	}
	if w := e.o.Config.Window; w.set {
		s.Window = WindowStatus{Window: w.String(), Open: trusted && w.Open(now)}
		if trusted && !s.Window.Open {
			s.Window.Opens = w.Next(now)
		}
	}
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(e.problems)) {
		problems = append(problems, e.problems[name])
	}
	s.Problem = strings.Join(problems, "; ")
	return s
}

// setProblem keeps, or forgets, what is wrong with one of the engine's files or neighbours.
func (e *Engine) setProblem(name string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		delete(e.problems, name)
		return
	}
	text := err.Error()
	if advice := hint.Of(err); advice != "" {
		text += " (" + advice + ")"
	}
	e.problems[name] = clean(text)
}

// setRefused keeps why a release was refused until the repository has another one.
func (e *Engine) setRefused(err error) {
	text := ""
	if errors.Is(err, ErrRefused) {
		text = clean(err.Error())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refused = text
}

func (e *Engine) setWaits(text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waits = clean(text)
}

func (e *Engine) beginProgress(m *manifest.Manifest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.target = TargetStatus{}
	for _, part := range m.Parts() {
		e.target.SegmentsAll += len(part.Segments)
	}
}

func (e *Engine) progress(segments int, bytes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.target.Segments += segments
	e.target.Bytes += bytes
}

func (e *Engine) choseObject(part string, w way) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.target.Part, e.target.Delta = part, w.delta
	e.target.BytesAll += w.object.Size
}

// installed is what an installer says of itself.
func (e *Engine) installed(done, total int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.target.Bytes, e.target.BytesAll = done, total
}

func adviceOf(err error) string { return hint.Of(err) }

// clean makes text that may come from anywhere short and printable. What is clean stays as it is.
func clean(text string) string {
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		var b strings.Builder
		for text = cut(text, 4*textMax); len(text) > 0; {
			r, n := utf8.DecodeRuneInString(text)
			if r == utf8.RuneError && n < 2 || !strconv.IsPrint(r) {
				quoted := strconv.Quote(text[:n])
				b.WriteString(quoted[1 : len(quoted)-1])
			} else {
				b.WriteString(text[:n])
			}
			text = text[n:]
		}
		text = b.String()
	}
	return cut(text, textMax)
}

func cleanAll(texts []string) []string {
	if len(texts) > 16 {
		texts = texts[:16]
	}
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = clean(text)
	}
	return out
}

// cut shortens text to about n bytes, at runes. What is left out is in its middle: an error begins with
// what was being done, and ends with why it could not be.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	head, tail := n/3, len(text)-(n-n/3-len("…"))
	for head > 0 && !utf8.RuneStart(text[head]) {
		head--
	}
	for tail < len(text) && !utf8.RuneStart(text[tail]) {
		tail++
	}
	return text[:head] + "…" + text[tail:]
}
