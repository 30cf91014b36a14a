package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"ferrule/agent/local/role"
	"ferrule/internal/hint"
)

// CustomHeader marks a request that a program sends on purpose: no page of another site can
// send it without being allowed to, and nobody is.
const CustomHeader = "X-Ferrule"

// operatorCommands are those that an operator may call; all others are for an admin.
var operatorCommands = [...]string{"read", "write", "doctor", "tpm"}

// route is one address of the API with the role that it needs.
type route struct {
	pattern string
	needs   role.Role
	serve   http.HandlerFunc
}

func (s *Server) routes() []route {
	page := s.backend.Page
	if page == nil {
		page = http.HandlerFunc(notFound)
	}
	return []route{
		{"GET /{$}", role.Viewer, uncompressed(page)},
		{"GET /status", role.Viewer, s.serveStatus},
		{"GET /readings", role.Viewer, s.serveReadings},
		{"GET /events", role.Viewer, s.serveEvents},
		{"GET /metrics", role.Viewer, s.serveMetrics},
		{"POST /ticket", role.Viewer, s.serveTicket},
		// Each looks at the role itself: by the ticket, and by the command.
		{"GET /ws", role.None, s.serveWebSocket},
		{"POST /command/{name}", role.Viewer, s.serveCommand},
	}
}

// handler is the API, the same on the socket and on the listener.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.HandleFunc(r.pattern, func(w http.ResponseWriter, q *http.Request) {
			p := peerOf(q)
			if !s.may(w, p, r.needs) {
				return
			}
			if !p.until.IsZero() { // also for what watches for days
				ctx, cancel := context.WithTimeout(q.Context(), p.until.Sub(s.now()))
				defer cancel()
				q = q.WithContext(ctx)
			}
			r.serve(w, q)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		if s.may(w, peerOf(q), role.Viewer) { // strangers do not learn what there is
			notFound(w, q)
		}
	})
	return protect(mux)
}

// uncompressed keeps next from compressing for the network: what is compressed before it is
// encrypted tells of itself by its length (BREACH), and nobody should have to prove that it does not.
func uncompressed(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			r.Header.Del("Accept-Encoding")
		}
		next.ServeHTTP(w, r)
	}
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusNotFound, Error{Text: "there is nothing here", Code: "not-found"})
}

// may answers for a peer whose role is too small.
func (s *Server) may(w http.ResponseWriter, p *peer, needs role.Role) bool {
	has := p.Role
	if p.expired(s.now()) {
		has = role.None
	}
	if has >= needs {
		return true
	}
	writeJSON(w, http.StatusForbidden, s.denial(p, needs))
	return false
}

// denial says why, and what would help.
func (s *Server) denial(p *peer, needs role.Role) Error {
	switch {
	case p.expired(s.now()):
		return Error{Text: "the certificate expired while the connection stood", Code: "expired", Hint: "connect again with a new one"}
	case !p.anonymous:
		return Error{Text: fmt.Sprintf("this is for the role %s, and %s is %s", needs, p.Name, p.Role), Code: "forbidden",
			Hint: "give the name a higher role in [[local.role]]"}
	case p.conn != nil && !p.conn.Asked() && s.config.ClientAuth != AuthNone:
		return Error{Text: "no certificate was asked for, because this client offers HTTP/1.1 alone, as a browser does for a WebSocket", Code: "not-asked",
			Hint: "offer h2 too, or no ALPN at all (curl: leave out --http1.1), set local.ask_websocket = true, or open /ws with a ticket of POST /ticket"}
	case s.config.ClientAuth == AuthNone:
		return Error{Text: fmt.Sprintf("this is for the role %s, and nobody here is asked who they are", needs), Code: "anonymous",
			Hint: "set local.client_auth = \"required\" and give roles to certificates"}
	}
	return Error{Text: fmt.Sprintf("this is for the role %s, and no certificate was shown", needs), Code: "anonymous",
		Hint: "show a certificate to which a [[local.role]] gives a role"}
}

// protect sets the headers that keep an answer from being framed, sniffed, kept or read by another
// site, and refuses requests that another site had a browser make.
func protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if why := crossSite(r); why != "" {
			writeJSON(w, http.StatusForbidden, Error{Text: why, Code: "cross-site",
				Hint: "programs send the header " + CustomHeader + ": 1 with POST; pages call their own origin only"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// crossSite says what is wrong with where a request comes from: "" is good. Browsers tell by
// Sec-Fetch-Site (W3C Fetch Metadata) and Origin; a link that somebody follows may come from anywhere.
// No browser reaches the unix socket, and what stands between them looks itself.
func crossSite(r *http.Request) string {
	if peerOf(r).socket {
		return ""
	}
	site := r.Header.Get("Sec-Fetch-Site")
	safe := r.Method == http.MethodGet || r.Method == http.MethodHead
	if origins := r.Header.Values("Origin"); len(origins) > 0 && !sameOrigin(origins, r) {
		return "the request comes from a page of another origin"
	}
	switch {
	case site == "" || site == "same-origin" || site == "none":
	case safe && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document":
	default:
		return "the request comes from a page of another site"
	}
	if safe || site == "same-origin" || r.Header.Get(CustomHeader) != "" {
		return ""
	}
	return "a " + printable(r.Method) + " over the network needs the header " + CustomHeader
}

// sameOrigin compares the Origin header with where the request went.
func sameOrigin(origins []string, r *http.Request) bool {
	if len(origins) != 1 {
		return false
	}
	origin, err := url.Parse(origins[0])
	scheme := "https"
	if r.TLS == nil {
		scheme = "http"
	}
	return err == nil && origin.Scheme == scheme && origin.Host != "" && strings.EqualFold(origin.Host, r.Host)
}

func printable(method string) string {
	if len(method) > 16 {
		method = method[:16]
	}
	return strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return '?'
		}
		return r
	}, method)
}

func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.backend.Status())
}

func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	s.backend.Metrics(w)
	s.writeMetrics(w)
}

func (s *Server) serveCommand(w http.ResponseWriter, r *http.Request) {
	p, name := peerOf(r), r.PathValue("name")
	if !s.may(w, p, commandNeeds(name)) {
		return
	}
	if !p.socket {
		select {
		case s.commands <- struct{}{}:
			defer func() { <-s.commands }()
		default:
			writeJSON(w, http.StatusServiceUnavailable, Error{Text: "too many commands at once", Code: "busy"})
			return
		}
	}
	args, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		writeJSON(w, bodyStatus(err), Error{Text: "reading the arguments: " + err.Error(), Code: "too-large"})
		return
	}
	// What follows is our own time, not the client's.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	result, err := s.backend.Command(ctx, p.Caller, name, args)
	if err != nil {
		writeJSON(w, http.StatusUnprocessableEntity, failureOf(err))
		return
	}
	writeJSON(w, http.StatusOK, result)
}

func commandNeeds(name string) role.Role {
	for _, known := range operatorCommands {
		if name == known {
			return role.Operator
		}
	}
	return role.Admin
}

func bodyStatus(err error) int {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return http.StatusRequestEntityTooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return http.StatusRequestTimeout
	}
	return http.StatusBadRequest
}

func failureOf(err error) Error {
	failure := Error{Text: err.Error(), Code: "failed", Hint: hint.Of(err)}
	if coded, ok := errors.AsType[interface {
		error
		Code() string
	}](err); ok {
		failure.Code = coded.Code()
	}
	return failure
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v) // the client went away: nobody is left to tell
}
