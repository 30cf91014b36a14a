package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"ferrule/agent/local"
	"ferrule/agent/local/page"
	"ferrule/internal/hint"
)

// webOptions are the flags of ferrule status --web.
type webOptions struct {
	on   bool
	port int
}

func statusFlags(e *env) {
	e.jsonFlag()
	e.flags.BoolVar(&e.web.on, "web", false, "show the status page in a browser, until Ctrl-C")
	e.flags.IntVar(&e.web.port, "port", 0, "with --web, the `port` on 127.0.0.1; 0: a free one")
}

const (
	webHeaderTimeout = 5 * time.Second
	webIdleTimeout   = 2 * time.Minute
	webWriteTimeout  = 10 * time.Second
	webGrace         = 2 * time.Second
	// webRedial is how soon an agent that went away is asked again; webTell how often the page
	// hears that it is still away.
	webRedial = 500 * time.Millisecond
	webTell   = 5 * time.Second
	// webMaxEvent bounds one server-sent event of the agent: the status of many lines is the largest.
	webMaxEvent = 4 << 20
)

// webServer shows the page and hands on what it asks of the agent, to one browser: the one that
// brought the token first. Everybody on the machine can connect to a port of 127.0.0.1, and every
// page on the web can make a browser do so; so each request must carry the cookie, name this
// machine as its host (DNS rebinding) and come from the page itself. The cookie goes to one path that
// nobody can guess, since cookies do not tell the ports of a host apart.
type webServer struct {
	base   string // path of the page: /…/
	token  string
	cookie string
	agent  *local.Client
	api    *http.Client // for streams
	page   http.Handler

	mu   sync.Mutex
	used bool // the token
}

func newWebServer(socket string) *webServer {
	var dialer net.Dialer
	return &webServer{
		base: "/" + rand.Text()[:12] + "/", token: rand.Text(), cookie: rand.Text(),
		page: page.Handler(), agent: local.Dial(socket),
		api: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives: true, DisableCompression: true,
		}},
	}
}

// runWeb serves until ctx ends, which is no error: Ctrl-C is how it is left.
func runWeb(ctx context.Context, e *env, socket string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(e.web.port)))
	if err != nil {
		return hint.With(fmt.Errorf("opening a port for the status page: %w", err), "leave --port out: a free one is taken")
	}
	s := newWebServer(socket)
	url := "http://" + listener.Addr().String() + s.base + "?token=" + s.token
	fmt.Fprintf(e.stdout, "%s\n", url)
	fmt.Fprintf(e.stderr, "The link works once, in one browser. Ctrl-C ends the page.\n")
	closeBrowser := openBrowser(url)
	defer closeBrowser()
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: webHeaderTimeout, IdleTimeout: webIdleTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }, // streams end with ctx
	}
	var stopping sync.WaitGroup
	stopping.Go(func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), webGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close() // the grace is over: whoever still reads is cut off
		}
	})
	err = server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		stopping.Wait()
		return nil
	}
	return fmt.Errorf("serving the status page: %w", err)
}

func (s *webServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page.Protect(w.Header())
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case !loopbackHost(r.Host):
		refuseWeb(w, http.StatusMisdirectedRequest, "this is not the host that was asked for", "open the link as it was printed")
	case r.Method != http.MethodGet:
		refuseWeb(w, http.StatusMethodNotAllowed, "here the device can only be looked at", "")
	case foreign(r):
		refuseWeb(w, http.StatusForbidden, "another site asked for this", "")
	case r.URL.Path == s.base && r.URL.Query().Has("token"):
		s.admit(w, r)
	case !s.admitted(r):
		refuseWeb(w, http.StatusForbidden, "this page is not open to this browser", "run again: ferrule status --web")
	case r.URL.Path == s.base:
		s.page.ServeHTTP(w, r)
	case r.URL.Path == s.base+"status":
		s.status(w, r)
	case r.URL.Path == s.base+"events":
		s.stream(w, r, "/events")
	case r.URL.Path == s.base+"readings":
		s.stream(w, r, "/readings")
	default:
		refuseWeb(w, http.StatusNotFound, "there is no such page", "")
	}
}

// loopbackHost tells whether a Host header names this machine. The port may be another one: ssh -L
// gives it a new one. A name of somebody else's that resolves to 127.0.0.1 is not among them.
func loopbackHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return name == "127.0.0.1" || name == "localhost" || name == "[::1]" || name == "::1"
}

// foreign tells whether another origin is behind the request (Fetch Metadata, and Origin for
// browsers without it). Coming from elsewhere to the link itself is fine: the token is what counts.
func foreign(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		return true
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none" && r.Header.Get("Sec-Fetch-Mode") != "navigate"
}

// admit trades the token for the cookie, once. The way on is a refresh and not a redirect: behind a
// redirect that began on another site a strict cookie is not sent.
func (s *webServer) admit(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Sec-Purpose") != "" || r.Header.Get("Purpose") != "" {
		refuseWeb(w, http.StatusServiceUnavailable, "the link is not for looking ahead", "")
		return
	}
	if !s.admitted(r) {
		right := subtle.ConstantTimeCompare([]byte(r.URL.Query().Get("token")), []byte(s.token)) == 1
		if !right || !s.take() {
			refuseWeb(w, http.StatusForbidden, "this link has been used", "run again: ferrule status --web")
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "ferrule", Value: s.cookie, Path: s.base, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><meta http-equiv=\"refresh\" content=\"0;url=%s\"><title>Ferrule</title>\n", s.base)
}

// take uses the token up; it says whether it was still new.
func (s *webServer) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := !s.used
	s.used = true
	return fresh
}

func (s *webServer) admitted(r *http.Request) bool {
	c, err := r.Cookie("ferrule")
	return err == nil && subtle.ConstantTimeCompare([]byte(c.Value), []byte(s.cookie)) == 1
}

func refuseWeb(w http.ResponseWriter, status int, text, repair string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(local.Error{Text: text, Code: "refused", Hint: repair})
}

func (s *webServer) status(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), valueTimeout)
	defer cancel()
	answer, err := s.agent.Status(ctx)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		_ = json.NewEncoder(w).Encode(failure(err))
		return
	}
	_, _ = w.Write(answer) // the browser went away: nobody is left to tell
}

// failure says in the API's words why the agent does not answer.
func failure(err error) local.Error {
	f := local.Error{Text: err.Error(), Code: "failed", Hint: hint.Of(err)}
	if errors.Is(err, local.ErrNotRunning) {
		f.Code = "not-running"
	}
	return f
}

// stream hands on a stream of server-sent events, and outlives the agent: while it is away the page
// gets events "agent" that say why, and when it is back the stream goes on.
func (s *webServer) stream(w http.ResponseWriter, r *http.Request, path string) {
	ctx := r.Context()
	out := &eventWriter{w: w, control: http.NewResponseController(w)}
	var told time.Time
	for {
		answer, err := s.open(ctx, path)
		switch {
		case err != nil && time.Since(told) >= webTell:
			told = time.Now()
			if !s.tell(ctx, out) {
				return
			}
		case err != nil: // told not long ago
		case answer.StatusCode != http.StatusOK && !out.begun:
			handOn(w, answer)
			return
		default:
			told = time.Time{}
			gone := answer.StatusCode == http.StatusOK && out.copy(answer.Body)
			_ = answer.Body.Close()
			if gone {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(webRedial):
		}
	}
}

func (s *webServer) open(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	return s.api.Do(request)
}

// handOn gives the browser an answer that is no stream.
func handOn(w http.ResponseWriter, answer *http.Response) {
	defer answer.Body.Close()
	w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
	w.WriteHeader(answer.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(answer.Body, webMaxEvent)) // as above
}

// tell lets the page know why the agent does not answer; it says whether the page is still there.
func (s *webServer) tell(ctx context.Context, out *eventWriter) bool {
	asking, cancel := context.WithTimeout(ctx, webWriteTimeout)
	defer cancel()
	_, err := s.agent.Status(asking)
	if err == nil {
		return true // it is back already
	}
	text, err := json.Marshal(failure(err))
	if err != nil {
		return false // three strings: they can be encoded
	}
	return out.event(fmt.Appendf(nil, "event: agent\ndata: %s\n\n", text))
}

// eventWriter writes whole events to the browser.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

// copy hands on the whole events of one answer; what is cut off in the middle is left out. It says
// whether the browser went away.
func (e *eventWriter) copy(body io.Reader) (gone bool) {
	if !e.event(nil) {
		return true
	}
	events := bufio.NewScanner(body)
	events.Buffer(make([]byte, 16<<10), webMaxEvent)
	events.Split(splitEvents)
	for events.Scan() {
		if !e.event(events.Bytes()) {
			return true
		}
	}
	return false
}

func (e *eventWriter) event(text []byte) bool {
	if !e.begun {
		e.begun = true
		e.w.Header().Set("Content-Type", "text/event-stream")
		e.w.WriteHeader(http.StatusOK)
	}
	_ = e.control.SetWriteDeadline(time.Now().Add(webWriteTimeout))
	_, err := e.w.Write(text)
	return err == nil && e.control.Flush() == nil
}

// splitEvents cuts a stream behind each empty line (WHATWG HTML, 9.2.6; ours ends lines with LF).
func splitEvents(data []byte, _ bool) (advance int, token []byte, err error) {
	for i := 1; i < len(data); i++ {
		if data[i] == '\n' && data[i-1] == '\n' {
			return i + 1, data[:i+1], nil
		}
	}
	return 0, nil, nil
}

// openBrowser shows the page where there is a desktop. The arguments of a program can be read by
// everybody on the machine, so that the link goes into a file of the operator's own, which sends the
// browser on. It returns what removes the file. Where nothing opens, the printed link is there.
func openBrowser(url string) (remove func()) {
	remove = func() {}
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" || os.Geteuid() == 0 {
		return remove // no desktop; and browsers do not run as root
	}
	program, err := exec.LookPath("xdg-open")
	if err != nil {
		return remove
	}
	dir, err := os.MkdirTemp("", "ferrule-web")
	if err != nil {
		return remove
	}
	remove = func() { _ = os.RemoveAll(dir) }
	file := filepath.Join(dir, "status.html")
	text := fmt.Sprintf("<!doctype html><meta http-equiv=\"refresh\" content=\"0;url=%s\"><title>Ferrule</title>\n", url)
	if os.WriteFile(file, []byte(text), 0o600) != nil {
		return remove
	}
	browser := exec.Command(program, file)
	if browser.Start() != nil {
		return remove
	}
	_ = browser.Process.Release() // a browser may outlive the page
	return remove
}
