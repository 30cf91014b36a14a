// Package local is the agent's status API on a unix socket and, where configured, a TLS
// listener: status, metrics, live readings and the commands that need the running agent because
// it holds the lines and the TPM. Who may open the socket may operate the gateway: its file mode
// is the authorisation. At the listener a certificate is, and who shows none may do next to nothing.
package local

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/local/listener"
	"ferrule/agent/local/role"
	"ferrule/internal/hint"
)

// Limits of one request: the API serves people and scripts on the same machine and beside it.
const (
	maxBody        = 64 << 10
	maxCommands    = 8 // at once, of clients of the listener
	headerTimeout  = 5 * time.Second
	bodyTimeout    = 10 * time.Second
	commandTimeout = 30 * time.Second
	answerTimeout  = commandTimeout + bodyTimeout + writeTimeout
	idleTimeout    = 10 * time.Second
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

// String is the caller in one word or two: "ou:operators (operator) 192.168.1.7", "socket:uid=0".
func (c Caller) String() string {
	if c.Source == "" {
		return c.Name
	}
	return c.Name + " (" + c.Role.String() + ") " + c.Source
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
	config   Config
	backend  Backend
	log      *slog.Logger
	now      func() time.Time
	feed     feed
	tickets  tickets
	commands chan struct{}  // those that run for clients of the listener
	sockets  sync.WaitGroup // the WebSockets, which http.Server does not wait for
	listener atomic.Pointer[listener.Listener]
	problem  atomic.Pointer[string] // why there is no listener
}

// New returns a server for backend.
func New(c Config, backend Backend, log *slog.Logger) *Server {
	s := &Server{config: c, backend: backend, log: log, now: backend.Now, feed: newFeed(), commands: make(chan struct{}, maxCommands)}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Publish hands one entry's payload to everyone who watches /readings. It never blocks: a
// watcher who cannot keep up misses entries and is told how many.
func (s *Server) Publish(payload []byte) { s.feed.publish(readingEvent, payload) }

// Watched says whether anybody would see what Publish is given.
func (s *Server) Watched() bool { return s.feed.any() }

// Run serves until ctx is done, then ends the open requests and removes the socket. The TLS
// listener mends itself; without it the socket serves on.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var around sync.WaitGroup
	defer around.Wait()
	defer cancel()
	around.Go(func() { s.runStatus(ctx) })
	if s.config.Listen != "" {
		around.Go(func() { s.runListener(ctx) })
	}
	if s.config.Socket == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	socket, err := listen(ctx, s.config.Socket)
	if err != nil {
		return err
	}
	server := s.newHTTP(ctx)
	server.ConnContext = socketPeer
	server.ReadTimeout, server.WriteTimeout = 0, 0 // whoever may open the socket may also be slow
	if err := s.serve(ctx, server, socket); ctx.Err() == nil {
		return fmt.Errorf("serving %s: %w", s.config.Socket, err)
	}
	return ctx.Err()
}

// newHTTP is the HTTP server of both: every wait for a client has an end.
func (s *Server) newHTTP(ctx context.Context) *http.Server {
	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	return &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		Protocols:         http1,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Requests end with ctx, so that a watcher of /readings does not hold the agent.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
}

// serve serves until ctx is done and everything has ended.
func (s *Server) serve(ctx context.Context, server *http.Server, from net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var stopping sync.WaitGroup
	stopping.Go(func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close() // the grace is over: whoever still reads is cut off
		}
	})
	err := server.Serve(from)
	cancel()
	stopping.Wait()
	s.sockets.Wait()
	return err
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
