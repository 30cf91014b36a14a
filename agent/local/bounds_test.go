package local_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"ferrule/agent/local"
	"ferrule/agent/local/role"
)

// Strangers do not take the last place of those who watch.
func TestPlacesOfWatchers(t *testing.T) {
	g := newGateway(t, func(c *local.Config, _ *local.Backend) {
		c.ClientAuth, c.Anonymous, c.AskWebSocket = local.AuthOptional, role.Viewer, true
	})
	shown := g.issue(t, "viewers", time.Now().Add(time.Hour))
	fill := func(certificates ...tls.Certificate) (n int) {
		for {
			conn, response, err := g.openSocket(t, "", nil, certificates...)
			if err != nil {
				if response == nil || response.StatusCode != 503 {
					t.Errorf("one too many sees %v", err)
				}
				return n
			}
			t.Cleanup(func() { _ = conn.Close() })
			n++
		}
	}
	strangers := fill()
	guests := fill(shown)
	response, err := dialHTTP(g.socket).Get("http://agent/readings")
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("the socket: %v, %v", response, err)
	}
	_ = response.Body.Close()
	if strangers != 12 || guests != 12 {
		t.Errorf("%d strangers, %d guests", strangers, guests)
	}
}

// A certificate that ends while its holder watches ends the watching, and so does its request.
func TestACertificateEndsWhatItOpened(t *testing.T) {
	g := newGateway(t, func(c *local.Config, _ *local.Backend) { c.AskWebSocket = true })
	shown := g.issue(t, "viewers", time.Now().Add(4*time.Second))
	conn, _, err := g.openSocket(t, "", nil, shown)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for err == nil {
		_, _, err = conn.ReadMessage()
	}
	if !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("%v", err)
	}
}

// Half a header, half a body and a body that drips cost one connection each, and end.
func TestSlowRequests(t *testing.T) {
	g := newGateway(t, nil)
	shown := g.issue(t, "admins", time.Now().Add(time.Hour))
	for name, said := range map[string]string{
		"half a header": "GET /status HTTP/1.1\r\nHost: x\r\nX-Slow",
		"half a body":   "POST /command/read HTTP/1.1\r\nHost: x\r\nX-Ferrule: 1\r\nContent-Length: 100\r\n\r\n{",
		"nothing":       "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := tls.Dial("tcp", g.address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{shown}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, said)
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			answer, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) || bytes.Contains(answer, []byte("200 OK")) {
				t.Errorf("%q, %v", answer, err)
			}
		})
	}
}

// A listener that cannot be opened keeps nobody from the socket, says why, and opens later.
func TestAListenerThatCannotBeOpenedYet(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := local.Default()
	c.Socket, c.Listen, c.ClientAuth = filepath.Join(dir, "s"), taken.Addr().String(), local.AuthNone
	s := local.New(c, backend(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	until(t, "a problem", func() bool { return strings.Contains(s.Status().Problem, "address already in use") })
	waitFor(t, c.Socket)
	_ = taken.Close()
	until(t, "the listener", func() bool { return s.Status().Listener != nil })
	if s.Status().Problem != "" {
		t.Errorf("problem: %s", s.Status().Problem)
	}
	cancel()
	<-ended
}
