package local_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/local"
	"ferrule/internal/hint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type codedError struct{}

func (codedError) Error() string { return "the line is down" }
func (codedError) Code() string  { return "line-down" }

func backend() local.Backend {
	return local.Backend{
		Status:  func() any { return map[string]string{"device": "gw-1"} },
		Metrics: func(w io.Writer) { fmt.Fprintln(w, "ferrule_outbox_depth 3") },
		Command: func(_ context.Context, _ local.Caller, name string, args json.RawMessage) (any, error) {
			switch name {
			case "echo":
				return args, nil
			case "fail":
				return nil, hint.With(codedError{}, "plug it in")
			}
			return nil, errors.New("unknown")
		},
	}
}

// serve runs a server on a socket of its own and returns the socket and a way to stop it.
func serve(t *testing.T) (s *local.Server, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fl") // a unix socket's path holds 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "run", "ferrule.sock")
	s = local.New(local.Config{Socket: socket}, backend(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	waitFor(t, socket)
	return s, socket
}

func waitFor(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := local.Dial(socket).Status(ctx); err == nil {
			return
		}
	}
	t.Fatal("the local API does not answer")
}

func TestClientAndServer(t *testing.T) {
	_, socket := serve(t)
	client := local.Dial(socket)
	if got, err := client.Status(t.Context()); err != nil || !strings.Contains(string(got), `"gw-1"`) {
		t.Errorf("status: %s, %v", got, err)
	}
	if got, err := client.Command(t.Context(), "echo", map[string]int{"n": 7}); err != nil || !strings.Contains(string(got), `"n": 7`) {
		t.Errorf("echo: %s, %v", got, err)
	}
	_, err := client.Command(t.Context(), "fail", nil)
	failure, ok := errors.AsType[*local.Error](err)
	if !ok || failure.Code != "line-down" || failure.Text != "the line is down" || hint.Of(err) != "plug it in" {
		t.Errorf("a refused command: %v, hint %q", err, hint.Of(err))
	}
	if _, err := client.Command(t.Context(), "echo", strings.Repeat("x", 100<<10)); err == nil {
		t.Error("a body over the limit was accepted")
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket mode %v, %v; want 0660", info.Mode(), err)
	}
}

func TestMetricsArePrometheusText(t *testing.T) {
	_, socket := serve(t)
	response, err := dialHTTP(socket).Get("http://agent/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if !strings.HasPrefix(string(body), "ferrule_outbox_depth 3\n") || !strings.Contains(string(body), "\nferrule_goroutines ") || !strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("metrics: %q, %s", body, response.Header.Get("Content-Type"))
	}
}

func TestReadingsAreServerSentEventsAndASlowWatcherIsTold(t *testing.T) {
	s, socket := serve(t)
	response, err := dialHTTP(socket).Get("http://agent/readings")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	s.Publish([]byte(`{"seq":1}`))
	if !lines.Scan() || lines.Text() != `data: {"seq":1}` {
		t.Fatalf("first event: %q", lines.Text())
	}
	// More than the socket's buffers and the queue hold, so that some must be missed; then
	// one at a time until the feed has told so.
	big := []byte(`{"fill":"` + strings.Repeat("x", 64<<10) + `"}`)
	for range 500 {
		s.Publish(big)
	}
	for lines.Scan() {
		if lines.Text() == "event: missed" {
			return
		}
	}
	t.Errorf("the feed ended without telling what was missed: %v", lines.Err())
}

func TestNoAgent(t *testing.T) {
	_, err := local.Dial(filepath.Join(t.TempDir(), "none.sock")).Status(t.Context())
	if !errors.Is(err, local.ErrNotRunning) || hint.Of(err) == "" {
		t.Errorf("no socket: %v, hint %q", err, hint.Of(err))
	}
}

func TestSocketOfAKilledAgentIsReplacedAndOfALiveOneIsNot(t *testing.T) {
	_, socket := serve(t)
	second := local.New(local.Config{Socket: socket}, backend(), slog.New(slog.DiscardHandler))
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent on the socket: %v", err)
	}

	stale := filepath.Join(filepath.Dir(socket), "stale.sock")
	listener, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 leaves it
	_ = listener.Close()
	third := local.New(local.Config{Socket: stale}, backend(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- third.Run(ctx) }()
	waitFor(t, stale)
	cancel()
	<-ended
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there after a clean stop: %v", err)
	}
}

func dialHTTP(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
}
