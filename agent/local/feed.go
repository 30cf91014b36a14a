package local

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// watcherQueue is how many entries one slow watcher of /readings may lag behind.
	watcherQueue = 256
	// maxWatchers bounds what /readings can cost.
	maxWatchers = 32
	// keepalive tells a quiet feed from a dead one.
	keepalive = 15 * time.Second
	// writeTimeout ends a watcher who no longer reads.
	writeTimeout = 10 * time.Second
)

// feed fans the entries out to those who watch.
type feed struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

type watcher struct {
	entries chan []byte
	missed  int // guarded by feed.mu
}

func (f *feed) publish(payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.watchers) == 0 {
		return
	}
	entry := append([]byte(nil), payload...)
	for w := range f.watchers {
		select {
		case w.entries <- entry:
		default:
			w.missed++
		}
	}
}

func (f *feed) watch() (*watcher, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.watchers) >= maxWatchers {
		return nil, false
	}
	if f.watchers == nil {
		f.watchers = make(map[*watcher]struct{})
	}
	w := &watcher{entries: make(chan []byte, watcherQueue)}
	f.watchers[w] = struct{}{}
	return w, true
}

func (f *feed) leave(w *watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
}

// takeMissed returns how many entries w missed since the last call.
func (f *feed) takeMissed(w *watcher) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	missed := w.missed
	w.missed = 0
	return missed
}

// serveReadings sends every new entry as a server-sent event (WHATWG HTML, 9.2): the data is
// the payload as it is published, an event "missed" tells how many were left out.
func (s *Server) serveReadings(w http.ResponseWriter, r *http.Request) {
	watcher, ok := s.feed.watch()
	if !ok {
		writeJSON(w, http.StatusServiceUnavailable, Error{Text: "too many watchers", Code: "busy"})
		return
	}
	defer s.feed.leave(watcher)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	response := http.NewResponseController(w)
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
		case entry := <-watcher.entries:
			if missed := s.feed.takeMissed(watcher); missed > 0 {
				fmt.Fprintf(w, "event: missed\ndata: %d\n\n", missed)
			}
			fmt.Fprintf(w, "data: %s\n\n", entry)
		case <-quiet.C:
			fmt.Fprint(w, ": quiet\n\n")
		}
	}
}
