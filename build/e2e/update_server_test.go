package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// updateServer hands out a repository to whoever shows a certificate of the device CA. What it does
// wrong is a test's.
type updateServer struct {
	*countedFiles
	listener *cuttingListener
}

// countedFiles notes which bytes of which file were sent.
type countedFiles struct {
	files http.Handler

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	spans map[string][]bodySpan
}

type bodySpan struct{ from, to int64 }

func newUpdateServer(t *testing.T, w *world, dir string) *updateServer {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(w.ca, "broker.crt"), filepath.Join(w.ca, "broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(w.ca, "root.crt"))))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &updateServer{
		countedFiles: &countedFiles{files: http.FileServer(http.Dir(dir)), spans: make(map[string][]bodySpan)},
		listener:     &cuttingListener{Listener: listener},
	}
	server := &http.Server{Handler: s.countedFiles, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan struct{})
	go func() { // ends with Close
		defer close(served)
		_ = server.Serve(tls.NewListener(s.listener, &tls.Config{
			Certificates: []tls.Certificate{certificate}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
		}))
	}()
	t.Cleanup(func() { _ = server.Close(); <-served })
	return s
}

// URL is what the device has as update.repository.
func (s *updateServer) URL() string { return "https://" + s.listener.Addr().String() }

// wrong has the server do f instead; nil: nothing. f says whether it has answered.
func (s *countedFiles) wrong(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *countedFiles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	counted := &countedBody{ResponseWriter: w}
	s.files.ServeHTTP(counted, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spans[r.URL.Path] = append(s.spans[r.URL.Path], bodySpan{counted.from, counted.from + counted.n})
}

// sent is how many bytes of objects were handed to the network, and how many of them were different.
func (s *countedFiles) sent() (all, once int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, spans := range s.spans {
		if !strings.Contains(path, "/targets/") {
			continue
		}
		spans = slices.Clone(spans)
		slices.SortFunc(spans, func(a, b bodySpan) int { return int(a.from - b.from) })
		var end int64
		for _, span := range spans {
			all += span.to - span.from
			once += max(0, span.to-max(end, span.from))
			end = max(end, span.to)
		}
	}
	return all, once
}

// countedBody notes where in its file the answer begins.
type countedBody struct {
	http.ResponseWriter
	from, n int64
}

func (w *countedBody) WriteHeader(code int) {
	if code == http.StatusPartialContent {
		text := strings.TrimPrefix(w.Header().Get("Content-Range"), "bytes ")
		for _, digit := range text[:max(0, strings.IndexByte(text, '-'))] {
			w.from = 10*w.from + int64(digit-'0')
		}
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *countedBody) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// cuttingListener breaks each connection after so many bytes, on whatever layer they are.
type cuttingListener struct {
	net.Listener
	mu   sync.Mutex
	most int64 // 0: never
}

func (l *cuttingListener) cutAfter(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = n
}

// Accept implements net.Listener.
func (l *cuttingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, listener: l}, nil
}

type cutConn struct {
	net.Conn
	listener *cuttingListener
	sent     int64
}

func (c *cutConn) Write(p []byte) (int, error) {
	c.listener.mu.Lock()
	most := c.listener.most
	c.listener.mu.Unlock()
	if most == 0 || c.sent+int64(len(p)) <= most {
		c.sent += int64(len(p))
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:max(0, most-c.sent)])
	c.sent = most
	_ = c.Close()
	return n, os.ErrDeadlineExceeded
}
