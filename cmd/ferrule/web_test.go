package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeAgent serves the API on a unix socket, and can go away and come back.
type fakeAgent struct {
	socket string
	server *http.Server
	served sync.WaitGroup
}

func startFakeAgent(t *testing.T, events func(w http.ResponseWriter, r *http.Request)) *fakeAgent {
	t.Helper()
	dir, err := os.MkdirTemp("", "fw") // a unix socket's path holds 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{socket: filepath.Join(dir, "f.sock")}
	a.start(t, events)
	t.Cleanup(func() { a.stop(); _ = os.RemoveAll(dir) })
	return a
}

func (a *fakeAgent) start(t *testing.T, events func(w http.ResponseWriter, r *http.Request)) {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"device":"gw-1"}`) })
	mux.HandleFunc("GET /events", events)
	mux.HandleFunc("GET /readings", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too many watchers", http.StatusServiceUnavailable)
	})
	a.server = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	a.served.Go(func() { _ = a.server.Serve(listener) })
}

func (a *fakeAgent) stop() {
	_ = a.server.Close()
	a.served.Wait()
}

// browser asks as a browser does that has, or has not, been let in.
type browser struct {
	*http.Client
	server *httptest.Server
	cookie *http.Cookie
}

func (b *browser) get(t *testing.T, method, path string, header map[string]string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, b.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		if name == "Host" {
			request.Host = value
		}
		request.Header.Set(name, value)
	}
	if b.cookie != nil {
		request.AddCookie(b.cookie)
	}
	response, err := b.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func (b *browser) code(t *testing.T, method, path string, header map[string]string) int {
	t.Helper()
	response := b.get(t, method, path, header)
	_ = response.Body.Close()
	return response.StatusCode
}

func newBrowser(t *testing.T, s *webServer) *browser {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return &browser{Client: server.Client(), server: server}
}

func quietEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "event: status\ndata: {}\n\n")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func TestWebLetsOneBrowserIn(t *testing.T) {
	s := newWebServer(startFakeAgent(t, quietEvents).socket)
	b := newBrowser(t, s)
	for _, path := range []string{"/", s.base, s.base + "status", s.base + "events", s.base + "?token=", s.base + "?token=x"} {
		if code := b.code(t, http.MethodGet, path, nil); code != http.StatusForbidden {
			t.Errorf("%s without the token: %d", path, code)
		}
	}
	link := s.base + "?token=" + s.token
	if code := b.code(t, http.MethodGet, link, map[string]string{"Sec-Purpose": "prefetch;prerender"}); code != http.StatusServiceUnavailable {
		t.Errorf("looking ahead: %d; it must not use the link up", code)
	}
	first := b.get(t, http.MethodGet, link, map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
	text, _ := io.ReadAll(first.Body)
	if first.StatusCode != http.StatusOK || !strings.Contains(string(text), `url=`+s.base+`"`) || len(first.Cookies()) != 1 {
		t.Fatalf("the link: %s, %s", first.Status, text)
	}
	cookie := first.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != s.base || strings.Contains(string(text), cookie.Value) {
		t.Errorf("cookie %s", cookie)
	}
	if code := b.code(t, http.MethodGet, link, nil); code != http.StatusForbidden {
		t.Errorf("the link a second time, in another browser: %d", code)
	}
	b.cookie = cookie
	if code := b.code(t, http.MethodGet, link, nil); code != http.StatusOK {
		t.Errorf("the link a second time, in the same browser: %d", code)
	}
	if response := b.get(t, http.MethodGet, s.base, nil); response.StatusCode != http.StatusOK || !strings.Contains(response.Header.Get("Content-Security-Policy"), "script-src 'sha256-") {
		t.Errorf("the page: %s, %s", response.Status, response.Header.Get("Content-Security-Policy"))
	}
	status, _ := io.ReadAll(b.get(t, http.MethodGet, s.base+"status", nil).Body)
	if string(status) != `{"device":"gw-1"}` {
		t.Errorf("status: %s", status)
	}
	if code := b.code(t, http.MethodGet, s.base+"readings", nil); code != http.StatusServiceUnavailable {
		t.Errorf("a refused stream: %d; want the agent's own answer", code)
	}
	for _, path := range []string{"/status", s.base + "metrics", s.base + "command/restart", s.base + "x/status"} {
		if code := b.code(t, http.MethodGet, path, nil); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
}

func TestWebRefusesOtherSites(t *testing.T) {
	s := newWebServer(startFakeAgent(t, quietEvents).socket)
	b := newBrowser(t, s)
	b.cookie = &http.Cookie{Name: "ferrule", Value: s.cookie}
	host := strings.TrimPrefix(b.server.URL, "http://")
	for name, c := range map[string]struct {
		method string
		header map[string]string
		want   int
	}{
		"the page itself":      {"GET", map[string]string{"Origin": "http://" + host, "Sec-Fetch-Site": "same-origin"}, 200},
		"typed in":             {"GET", map[string]string{"Sec-Fetch-Site": "none"}, 200},
		"through ssh -L":       {"GET", map[string]string{"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200},
		"a rebound name":       {"GET", map[string]string{"Host": "evil.example:80"}, 421},
		"a name like ours":     {"GET", map[string]string{"Host": "127.0.0.1.evil.example"}, 421},
		"localhost of another": {"GET", map[string]string{"Host": "localhost.evil.example"}, 421},
		"another origin":       {"GET", map[string]string{"Origin": "http://evil.example"}, 403},
		"no origin":            {"GET", map[string]string{"Origin": "null"}, 403},
		"another port":         {"GET", map[string]string{"Origin": "http://127.0.0.1:1"}, 403},
		"another site's fetch": {"GET", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403},
		"another port's fetch": {"GET", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403},
		"a command":            {"POST", nil, 405},
		"anything else":        {"DELETE", nil, 405},
	} {
		t.Run(name, func(t *testing.T) {
			if code := b.code(t, c.method, s.base+"status", c.header); code != c.want {
				t.Errorf("answered %d; want %d", code, c.want)
			}
		})
	}
	b.cookie = &http.Cookie{Name: "ferrule", Value: s.cookie + "x"}
	if code := b.code(t, http.MethodGet, s.base+"status", nil); code != http.StatusForbidden {
		t.Errorf("a wrong cookie: %d", code)
	}
}

func TestWebStreamOutlivesTheAgent(t *testing.T) {
	a := startFakeAgent(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		// The agent ends in the middle of its second event.
		fmt.Fprint(w, ": quiet\n\nevent: status\ndata: {\"n\":1}\n\nevent: status\ndata: {\"cut")
	})
	s := newWebServer(a.socket)
	b := newBrowser(t, s)
	b.cookie = &http.Cookie{Name: "ferrule", Value: s.cookie}
	response := b.get(t, http.MethodGet, s.base+"events", nil)
	if response.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("answered %s, %s", response.Status, response.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(response.Body)
	wait := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), "cut") {
				t.Error("half an event was handed on")
			}
			if strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("the stream ended without %q: %v", want, lines.Err())
	}
	wait(`{"n":1}`)
	a.stop()
	wait("event: agent")
	wait(`"code":"not-running","hint":"start it with: ferrule run"`)
	a.start(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "event: status\ndata: {\"n\":2}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	wait(`{"n":2}`)
}

func TestWebStatusWithoutAnAgent(t *testing.T) {
	s := newWebServer(filepath.Join(t.TempDir(), "none.sock"))
	b := newBrowser(t, s)
	b.cookie = &http.Cookie{Name: "ferrule", Value: s.cookie}
	response := b.get(t, http.MethodGet, s.base+"status", nil)
	text, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusBadGateway || !strings.Contains(string(text), `"hint":"start it with: ferrule run"`) {
		t.Errorf("answered %s: %s", response.Status, text)
	}
}

// The command prints the link first, listens on 127.0.0.1 alone, and ends without an error.
func TestWebEndsOnInterrupt(t *testing.T) {
	t.Setenv("DISPLAY", "")
	t.Setenv("WAYLAND_DISPLAY", "")
	ctx, interrupt := context.WithCancel(t.Context())
	printed, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- runWeb(ctx, &env{stdout: out, stderr: io.Discard}, filepath.Join(t.TempDir(), "none.sock"))
	}()
	lines := bufio.NewScanner(printed)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "http://127.0.0.1:") || !strings.Contains(lines.Text(), "?token=") {
		t.Fatalf("printed %q", lines.Text())
	}
	link := lines.Text()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, link, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("the link: %v", err)
	}
	_ = response.Body.Close()
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func FuzzSplitEvents(f *testing.F) {
	f.Add("data: 1\n\ndata: 2\n\nda")
	f.Add("\n\n\n")
	f.Fuzz(func(t *testing.T, stream string) {
		events := bufio.NewScanner(strings.NewReader(stream))
		events.Buffer(nil, 1<<20)
		events.Split(splitEvents)
		whole := ""
		for events.Scan() {
			if !strings.HasSuffix(events.Text(), "\n\n") {
				t.Errorf("half an event: %q", events.Text())
			}
			whole += events.Text()
		}
		if !strings.HasPrefix(stream, whole) {
			t.Errorf("%q became %q", stream, whole)
		}
	})
}

func TestLoopbackHost(t *testing.T) {
	for host, want := range map[string]bool{"127.0.0.1:1": true, "127.0.0.1": true, "localhost:9": true, "[::1]:80": true, "[::1]": true,
		"": false, "127.0.0.2": false, "evil.example": false, "127.0.0.1:80:80": false, "localhost.": false} {
		if got := loopbackHost(host); got != want {
			t.Errorf("%q: %t", host, got)
		}
	}
}
