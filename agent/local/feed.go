package local

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// watcherQueue is how many readings one slow watcher may lag behind.
	watcherQueue = 256
	// maxWatchers bounds what watching can cost: all together, the share of those who are known by
	// a certificate and all below, and the share of those who are not. So nobody from a network
	// takes the last place from the socket.
	maxWatchers   = 32
	maxGuests     = 24
	maxAnonymous  = 12
	statusEvery   = time.Second
	keepalive     = 15 * time.Second // tells a quiet feed from a dead one
	writeTimeout  = 10 * time.Second // ends a watcher who no longer reads
	readingEvent  = "reading"
	statusEvent   = "status"
	missedEvent   = "missed"
	streamContent = "text/event-stream"
)

// event is one thing that watchers see; its data is JSON on one line.
type event struct {
	name string
	data []byte
}

// feed fans events out to those who watch.
type feed struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
	statuses int           // of them, those who watch the status
	wake     chan struct{} // somebody watches the status
}

type watcher struct {
	readings, status bool
	events           chan event // readings
	latest           chan event // the last status that was not taken yet; it may be large
	missed           int        // guarded by feed.mu
}

func newFeed() feed {
	return feed{watchers: make(map[*watcher]struct{}), wake: make(chan struct{}, 1)}
}

// publish hands an event to those who watch its kind. It never blocks.
func (f *feed) publish(name string, data []byte) {
	if !f.any() {
		return
	}
	e := event{name: name, data: oneLine(data)} // takes its time, which nobody else has to wait for
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		switch {
		case name == statusEvent && w.status:
			select {
			case <-w.latest: // of no use any more
			default:
			}
			w.latest <- e // there is room: nobody else puts one in
		case name == readingEvent && w.readings:
			select {
			case w.events <- e:
			default:
				w.missed++
			}
		}
	}
}

// any says whether somebody watches.
func (f *feed) any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers) > 0
}

// oneLine returns data as JSON on one line of its own memory; what is no JSON goes in base64, so
// that no payload can break out of its event.
func oneLine(data []byte) []byte {
	if !json.Valid(data) {
		return fmt.Appendf(nil, `{"base64":%q}`, base64.StdEncoding.EncodeToString(data))
	}
	if !bytes.ContainsAny(data, "\n\r") {
		return bytes.Clone(data)
	}
	var out bytes.Buffer
	_ = json.Compact(&out, data) // it is valid
	return out.Bytes()
}

// watch adds a watcher, unless most are there.
func (f *feed) watch(w *watcher, most int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.watchers) >= most {
		return false
	}
	w.events, w.latest = make(chan event, watcherQueue), make(chan event, 1)
	f.watchers[w] = struct{}{}
	if w.status {
		f.statuses++
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	return true
}

func (f *feed) leave(w *watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
	if w.status {
		f.statuses--
	}
}

// takeMissed returns how many events w missed since the last call.
func (f *feed) takeMissed(w *watcher) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	missed := w.missed
	w.missed = 0
	return missed
}

func (f *feed) watched() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.statuses > 0
}

// runStatus looks at the status once a second while somebody watches it, and publishes it when
// it has changed.
func (s *Server) runStatus(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.feed.wake:
		}
		s.pollStatus(ctx)
	}
}

func (s *Server) pollStatus(ctx context.Context) {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var last []byte
	for s.feed.watched() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		text := s.statusText()
		if !bytes.Equal(text, last) {
			s.feed.publish(statusEvent, text)
		}
		last = text
	}
}

func (s *Server) statusText() []byte {
	text, err := json.Marshal(s.backend.Status())
	if err != nil {
		text, _ = json.Marshal(Error{Text: err.Error(), Code: "failed"})
	}
	return text
}

// places is how many watchers there may be for one more of caller's kind.
func places(c *peer) int {
	switch {
	case c.socket:
		return maxWatchers
	case c.anonymous:
		return maxAnonymous
	}
	return maxGuests
}

// serveReadings sends every new entry as a server-sent event (WHATWG HTML, 9.2): the data is
// the payload as it is published, an event "missed" tells how many were left out.
func (s *Server) serveReadings(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, &watcher{readings: true})
}

// serveEvents sends the status at the start and whenever it has changed, once a second at most.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, &watcher{status: true})
}

func (s *Server) stream(w http.ResponseWriter, r *http.Request, watcher *watcher) {
	if !s.feed.watch(watcher, places(peerOf(r))) {
		writeJSON(w, http.StatusServiceUnavailable, Error{Text: "too many watchers", Code: "busy"})
		return
	}
	defer s.feed.leave(watcher)
	w.Header().Set("Content-Type", streamContent)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	response := http.NewResponseController(w)
	_ = response.SetReadDeadline(time.Time{}) // that of the request is over
	if watcher.status {
		writeEvent(w, event{statusEvent, s.statusText()})
	}
	quiet := time.NewTicker(keepalive)
	defer quiet.Stop()
	for {
		_ = response.SetWriteDeadline(time.Now().Add(writeTimeout))
		if response.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case e := <-watcher.events:
			if missed := s.feed.takeMissed(watcher); missed > 0 {
				fmt.Fprintf(w, "event: %s\ndata: %d\n\n", missedEvent, missed)
			}
			writeEvent(w, e)
		case e := <-watcher.latest:
			writeEvent(w, e)
		case <-quiet.C:
			fmt.Fprint(w, ": quiet\n\n")
		}
	}
}

// writeEvent writes one event; readings are those without a name.
func writeEvent(w http.ResponseWriter, e event) {
	if e.name != readingEvent {
		fmt.Fprintf(w, "event: %s\n", e.name)
	}
	fmt.Fprintf(w, "data: %s\n\n", e.data)
}
