package enroll_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ferrule/agent/enroll"
	"ferrule/internal/hint"
)

// proxy is an HTTP proxy that knows CONNECT alone.
type proxy struct {
	url     string
	tunnels atomic.Int32
	status  atomic.Int32 // of its answers; 0: it does what it is asked
}

func startProxy(t *testing.T) *proxy {
	t.Helper()
	p := &proxy{}
	var open sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status := p.status.Load(); status != 0 || r.Method != http.MethodConnect {
			w.WriteHeader(int(status))
			return
		}
		p.tunnels.Add(1)
		there, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		open.Add(2)
		for _, ends := range [][2]net.Conn{{here, there}, {there, here}} {
			go func() {
				defer open.Done()
				defer ends[0].Close()
				defer ends[1].Close()
				_, _ = io.Copy(ends[0], ends[1])
			}()
		}
	}))
	t.Cleanup(func() {
		server.Close()
		open.Wait()
	})
	p.url = server.URL
	return p
}

// every is a request for each method that goes over the network, to url.
func every(t *testing.T, url, roots string) map[string]func(ctx context.Context) error {
	factory := deviceOf(t, newCA(t, "factory"), "gw-1")
	all := map[string]func(context.Context) error{}
	for _, method := range []string{enroll.MethodRegistrar, enroll.MethodEST, enroll.MethodStep} {
		all[method] = func(ctx context.Context) error {
			r := asking(newKey(t))
			r.Present = &factory.TLS
			_, err := enroll.Enroll(ctx, enroll.Config{Method: method, URL: url, Roots: roots, Provisioner: "x"}, r)
			return err
		}
	}
	return all
}

// Whoever cannot prove to be the service is told nothing, whatever the method.
func TestImpostors(t *testing.T) {
	var heard atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard.Add(1) }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	roots := file(t, "roots.pem", newCA(t, "site").RootPEM(), 0o600)
	for method, ask := range every(t, server.URL, roots) {
		if err := ask(t.Context()); !errors.Is(err, enroll.ErrUntrusted) || !strings.Contains(hint.Of(err), "enroll.roots") || heard.Load() != 0 {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// A port that speaks plain HTTP hears no more than the beginning of a handshake.
func TestPlainHTTP(t *testing.T) {
	var heard atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard.Add(1) }))
	defer server.Close()
	roots := file(t, "roots.pem", newCA(t, "site").RootPEM(), 0o600)
	for method, ask := range every(t, strings.Replace(server.URL, "http", "https", 1), roots) {
		if err := ask(t.Context()); !errors.Is(err, enroll.ErrUntrusted) || !strings.Contains(hint.Of(err), "port") || heard.Load() != 0 {
			t.Errorf("%s: %v", method, err)
		}
	}
	for method := range every(t, server.URL, roots) {
		r := asking(newKey(t))
		r.Token = "a.b.c:d"
		if _, err := enroll.Enroll(t.Context(), enroll.Config{Method: method, URL: server.URL, Roots: roots, Device: "gw-1"}, r); err == nil || heard.Load() != 0 {
			t.Errorf("%s without TLS: %v", method, err)
		}
	}
}

// Answers that are of no use from a service that proved to be the right one.
func TestUselessAnswers(t *testing.T) {
	ca := newCA(t, "site")
	certificate, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	roots := file(t, "roots.pem", ca.RootPEM(), 0o600)
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"nothing":      {func(http.ResponseWriter, *http.Request) {}, enroll.ErrAnswer},
		"a page":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>\x1b[2J") }, enroll.ErrAnswer},
		"a list":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") }, enroll.ErrAnswer},
		"not found":    {http.NotFound, enroll.ErrRefused},
		"an error":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }, enroll.ErrRefused},
		"redirect":     {http.RedirectHandler("http://127.0.0.1:1/", http.StatusPermanentRedirect).ServeHTTP, enroll.ErrRefused},
		"endless page": {endless, enroll.ErrAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(test.answer)
			server.TLS = certificate.ServerTLS(newCA(t, "anybody"))
			server.TLS.ClientAuth = 0
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			server.StartTLS()
			defer server.Close()
			for method, ask := range every(t, server.URL, roots) {
				if err := ask(t.Context()); !errors.Is(err, test.want) || hint.Of(err) == "" || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 1000 {
					t.Errorf("%s: %v", method, err)
				}
			}
		})
	}
}

func endless(w http.ResponseWriter, _ *http.Request) {
	for line := []byte(strings.Repeat(`{"crts":[`, 1000)); ; {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
}

// step-ca's answers with a certificate for another key, or none.
func TestStepAnswersWithAnothersCertificate(t *testing.T) {
	ca := newCA(t, "site")
	certificate, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	answer := ""
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/roots" {
			send(w, map[string]any{"crts": []string{string(ca.RootPEM())}})
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, answer)
	}))
	server.TLS = certificate.ServerTLS(ca)
	server.TLS.ClientAuth = 0
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	other := deviceOf(t, ca, "gw-1")
	for name, body := range map[string]any{
		"another's": map[string]any{"crt": string(other.ChainPEM), "certChain": []string{string(other.ChainPEM)}},
		"a key":     map[string]any{"certChain": []string{string(other.KeyPEM)}},
		"too many":  map[string]any{"certChain": make([]string, 100)},
		"none":      map[string]any{},
		"numbers":   map[string]any{"certChain": []int{1}},
	} {
		answer = encoded(t, body)
		err := every(t, server.URL, file(t, "roots.pem", ca.RootPEM(), 0o600))[enroll.MethodStep](t.Context())
		if !errors.Is(err, enroll.ErrAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token that step-ca took, with an answer that never came, is used up: the second refusal says
// what the first attempt did.
func TestStepTokenIsUsedUp(t *testing.T) {
	ca := newCA(t, "site")
	certificate, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	var signs atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/roots":
			send(w, map[string]any{"crts": []string{string(ca.RootPEM())}})
		case signs.Add(1) == 1:
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(http.StatusUnauthorized)
			send(w, map[string]any{"status": 401, "message": "token already \x1b[31mused"})
		}
	}))
	server.TLS = certificate.ServerTLS(ca)
	server.TLS.ClientAuth = 0
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	r := asking(newKey(t))
	r.Token = "e30.eyJzdWIiOiJndy0xIn0.x" // {"sub":"gw-1"}
	_, err = enroll.Enroll(t.Context(), enroll.Config{Method: enroll.MethodStep, URL: server.URL, Roots: file(t, "roots.pem", ca.RootPEM(), 0o600)}, r)
	if !errors.Is(err, enroll.ErrRefused) || !strings.Contains(hint.Of(err), "takes a token once") || !strings.Contains(err.Error(), "used") ||
		strings.ContainsAny(err.Error(), "\x1b") || signs.Load() != 2 {
		t.Errorf("%v (%s) after %d requests", err, hint.Of(err), signs.Load())
	}
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
