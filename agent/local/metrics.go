package local

import (
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"

	"ferrule/agent/local/listener"
)

// Status is what the local API itself is doing.
type Status struct {
	// Listener is absent where none is configured or it does not listen.
	Listener *listener.Status `json:"listener,omitempty"`
	// Problem is why the listener does not listen.
	Problem string `json:"problem,omitempty"`
	// Watchers counts those who watch readings and status now.
	Watchers int `json:"watchers"`
}

// Status returns a snapshot.
func (s *Server) Status() Status {
	var status Status
	if l := s.listener.Load(); l != nil {
		of := l.Status()
		status.Listener = &of
	}
	if problem := s.problem.Load(); problem != nil {
		status.Problem = *problem
	}
	s.feed.mu.Lock()
	status.Watchers = len(s.feed.watchers)
	s.feed.mu.Unlock()
	return status
}

// writeMetrics writes what this package counts, in the Prometheus text format.
func (s *Server) writeMetrics(w io.Writer) {
	status := s.Status()
	fmt.Fprintf(w, "ferrule_goroutines %d\n", runtime.NumGoroutine())
	fmt.Fprintf(w, "ferrule_local_watchers %d\n", status.Watchers)
	l := status.Listener
	if l == nil {
		return
	}
	for _, kind := range []struct {
		name  string
		count int
	}{{"handshaking", l.Handshaking}, {"stranger", l.Strangers}, {"guest", l.Guests}} {
		fmt.Fprintf(w, "ferrule_local_connections{kind=%q} %d\n", kind.name, kind.count)
	}
	fmt.Fprintf(w, "ferrule_local_accepted_total %d\n", l.Accepted)
	fmt.Fprintf(w, "ferrule_local_accept_errors_total %d\n", l.AcceptErrors)
	for _, cause := range slices.Sorted(maps.Keys(l.Refused)) {
		fmt.Fprintf(w, "ferrule_local_refused_total{cause=%q} %d\n", cause, l.Refused[cause])
	}
	fmt.Fprintf(w, "ferrule_local_certificate_expiry_timestamp_seconds %d\n", l.Certificate.NotAfter.Unix())
}
