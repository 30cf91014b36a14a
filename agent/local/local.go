// Package local is the agent's status API on a unix socket: status, metrics, live readings
// and the commands that need the running agent because it holds the lines and the TPM.
// Who may open the socket may operate the gateway: its file mode is the authorisation.
package local

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ferrule/agent/local/role"
	"ferrule/internal/hint"
)

// Limits of one request: the API serves people and scripts on the same machine.
const (
	maxBody        = 64 << 10
	headerTimeout  = 5 * time.Second
	commandTimeout = 30 * time.Second
	shutdownGrace  = 2 * time.Second
)

// Caller is who asks, for the decision and for the audit log.
type Caller struct {
	Role role.Role
	// Name is the name that a rule matched ("uri:…", "dns:…", "ou:…"), "socket" with the user id of
	// who opened the unix socket ("socket:uid=0"), or "anonymous". It holds no control characters.
	Name string
	// Source is the address of a client of the listener, "" on the unix socket.
	Source string
}

// Backend is what the API shows and does; the agent hands it in.
type Backend struct {
	// Status returns the value that /status encodes as JSON.
	Status func() any
	// Metrics writes the Prometheus text exposition format. What the listener counts is added.
	Metrics func(w io.Writer)
	// Command executes one command and returns its result. Errors that implement
	// interface{ Code() string } reach the caller with their code. The caller's role is enough
	// for the command when it is called.
	Command func(ctx context.Context, caller Caller, name string, args json.RawMessage) (any, error)
	// Page serves GET / and what is below /page/; nil: 404.
	Page http.Handler
	// StateDir is where relative paths begin and the self-made certificate is kept.
	StateDir string
	// Now is the time that certificates are judged by; nil: time.Now.
	Now func() time.Time
	// Verify refuses connections beyond what a role says, such as certificates that were taken
	// back; nil: none.
	Verify func(tls.ConnectionState) error
}

// Server serves the API. New starts nothing; Run does.
type Server struct {
	config  Config
	backend Backend
	log     *slog.Logger
	feed    feed
}

// New returns a server for backend.
func New(c Config, backend Backend, log *slog.Logger) *Server {
	return &Server{config: c, backend: backend, log: log}
}

// Publish hands one entry's payload to everyone who watches /readings. It never blocks: a
// watcher who cannot keep up misses entries and is told how many.
func (s *Server) Publish(payload []byte) { s.feed.publish(payload) }

// Run serves until ctx is done, then ends the open requests and removes the socket.
func (s *Server) Run(ctx context.Context) error {
	if s.config.Socket == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	listener, err := listen(ctx, s.config.Socket)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Requests end with ctx, so that a watcher of /readings does not hold the agent.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	var stopping sync.WaitGroup
	stopping.Go(func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close() // the grace is over: whoever still reads is cut off
		}
	})
	err = server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		stopping.Wait()
		return ctx.Err()
	}
	return fmt.Errorf("serving %s: %w", s.config.Socket, err)
}

// listen makes the socket. A socket file that nobody answers on is left from a killed agent
// and is replaced; one that is answered belongs to an agent that runs.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the local socket: %w", err)
	}
	var dialer net.Dialer
	if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return nil, hint.With(fmt.Errorf("local socket %s: another agent is running", path),
			"stop it first, or give this one its own [local] socket and state_dir")
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		_ = os.Remove(path)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the local socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("setting the mode of the local socket: %w", err)
	}
	return listener, nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.serveStatus)
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	mux.HandleFunc("GET /readings", s.serveReadings)
	mux.HandleFunc("POST /command/{name}", s.serveCommand)
	return mux
}

func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.backend.Status())
}

func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	s.backend.Metrics(w)
}

func (s *Server) serveCommand(w http.ResponseWriter, r *http.Request) {
	args, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		writeJSON(w, http.StatusRequestEntityTooLarge, Error{Text: err.Error(), Code: "too-large"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	result, err := s.backend.Command(ctx, Caller{Role: role.Admin, Name: "socket"}, r.PathValue("name"), args)
	if err != nil {
		failure := Error{Text: err.Error(), Code: "failed", Hint: hint.Of(err)}
		if coded, ok := errors.AsType[interface {
			error
			Code() string
		}](err); ok {
			failure.Code = coded.Code()
		}
		writeJSON(w, http.StatusUnprocessableEntity, failure)
		return
	}
	writeJSON(w, http.StatusOK, result)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v) // the client went away: nobody is left to tell
}
