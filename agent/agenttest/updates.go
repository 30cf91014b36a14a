package agenttest

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// UpdateRequest is one request as an update server saw it.
type UpdateRequest struct {
	Device string // common name of the certificate shown
	Path   string
	Range  string // of the request; "": the whole file
	Bytes  int64  // of the body that was sent
}

// Updates is a running update server: any web server would do, for its files vouch for themselves.
// This one lets in devices of one CA alone.
type Updates struct {
	server http.Server
	gate   *gate
	served chan struct{}

	mu       sync.Mutex
	requests []UpdateRequest
}

// StartUpdates serves the repository in the folder dir, on a free port of this machine, to those
// that config lets in. Close ends it.
func StartUpdates(dir string, config *tls.Config) (*Updates, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the update server: %w", err)
	}
	u := &Updates{gate: newGate(listener, config), served: make(chan struct{})}
	files := http.FileServer(http.Dir(dir))
	u.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		counted := &countedWriter{ResponseWriter: w}
		files.ServeHTTP(counted, r)
		seen := UpdateRequest{Path: r.URL.Path, Range: r.Header.Get("Range"), Bytes: counted.n}
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			seen.Device = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.requests = append(u.requests, seen)
	})
	u.server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	go func() { // ends with Close
		defer close(u.served)
		_ = u.server.Serve(u.gate)
	}()
	return u, nil
}

type countedWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// URL is what a device has as update.repository.
func (u *Updates) URL() string { return "https://" + u.gate.Addr().String() }

// Requests are those that were served so far, the oldest first.
func (u *Updates) Requests() []UpdateRequest {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]UpdateRequest(nil), u.requests...)
}

// Cut breaks every connection and refuses new ones until Mend.
func (u *Updates) Cut() { u.gate.shut() }

// Mend lets devices connect again.
func (u *Updates) Mend() error { return u.gate.reopen() }

// Close ends the server and every connection.
func (u *Updates) Close() error {
	err := u.server.Close()
	u.gate.shut()
	_ = u.gate.Close()
	<-u.served
	return err
}
