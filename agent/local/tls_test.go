package local_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"ferrule/agent/local"
	"ferrule/agent/local/role"
)

const patience = 60 * time.Second

// gateway is a server with a TLS listener, the CA of its clients, and who called what.
type gateway struct {
	*local.Server
	address, folder, socket string
	ca                      *x509.Certificate
	key                     *ecdsa.PrivateKey
	status                  local.Status

	mu     sync.Mutex
	called []string
}

func certify(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newGateway(t testing.TB, change func(*local.Config, *local.Backend)) *gateway {
	t.Helper()
	folder, err := os.MkdirTemp("", "fl")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{folder: folder, socket: filepath.Join(folder, "s")}
	if g.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{Subject: pkix.Name{CommonName: "site"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	g.ca = certify(t, root, root, &g.key.PublicKey, g.key)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.ca.Raw})
	if err := os.WriteFile(filepath.Join(folder, "clients.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.address = free.Addr().String()
	_ = free.Close()
	c := local.Config{
		Socket: g.socket, Listen: g.address, ClientAuth: local.AuthRequired, Roots: "clients.pem",
		Roles: []role.Rule{{Role: role.Viewer, OU: "viewers"}, {Role: role.Operator, OU: "operators"}, {Role: role.Admin, OU: "admins"}},
	}
	b := backend()
	b.StateDir, b.Command = folder, g.command
	b.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the page") })
	if change != nil {
		change(&c, &b)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	g.Server = local.New(c, b, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		_ = os.RemoveAll(folder)
	})
	until(t, "the listener", func() bool { g.status = g.Status(); return g.status.Listener != nil })
	return g
}

func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (g *gateway) command(_ context.Context, caller local.Caller, name string, args json.RawMessage) (any, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.called = append(g.called, fmt.Sprintf("%s by %s as %s", name, caller.Name, caller.Role))
	return args, nil
}

// client is a client whose certificate says this OU; "" shows none.
func (g *gateway) client(t testing.TB, ou string) *http.Client {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		return nil
	}}
	if ou != "" {
		config.Certificates = []tls.Certificate{g.issue(t, ou, time.Now().Add(time.Hour))}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (g *gateway) issue(t testing.TB, ou string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := certify(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "anna", OrganizationalUnit: []string{ou}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
	}, g.ca, &key.PublicKey, g.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// ask sends a request with headers in pairs, and returns status and body; 0 where none came.
func (g *gateway) ask(t testing.TB, c *http.Client, method, path, body string, headers ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "https://"+g.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(headers); n += 2 {
		request.Header.Set(headers[n], headers[n+1])
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	if strings.HasPrefix(response.Header.Get("Content-Type"), "text/event-stream") {
		return response.StatusCode, ""
	}
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(text)
}

const csrf = local.CustomHeader

// TestWhoMayWhat is the table of routes and roles.
func TestWhoMayWhat(t *testing.T) {
	g := newGateway(t, nil)
	viewer, operator, admin := g.client(t, "viewers"), g.client(t, "operators"), g.client(t, "admins")
	for _, c := range []struct {
		method, path               string
		viewer, operator, adminHas int
	}{
		{"GET", "/", 200, 200, 200},
		{"GET", "/status", 200, 200, 200},
		{"GET", "/readings", 200, 200, 200},
		{"GET", "/events", 200, 200, 200},
		{"GET", "/metrics", 200, 200, 200},
		{"POST", "/ticket", 200, 200, 200},
		{"POST", "/command/read", 403, 200, 200},
		{"POST", "/command/write", 403, 200, 200},
		{"POST", "/command/doctor", 403, 200, 200},
		{"POST", "/command/tpm", 403, 200, 200},
		{"POST", "/command/restart", 403, 403, 200},
		{"POST", "/command/config", 403, 403, 200},
		{"POST", "/command/unknown", 403, 403, 200},
		{"POST", "/command/read%2f..%2frestart", 403, 403, 200},
		{"POST", "/status", 404, 404, 404},
		{"DELETE", "/", 404, 404, 404},
		{"GET", "/debug/pprof/", 404, 404, 404},
	} {
		for name, who := range map[string]struct {
			client *http.Client
			want   int
		}{"viewer": {viewer, c.viewer}, "operator": {operator, c.operator}, "admin": {admin, c.adminHas}} {
			if got, body := g.ask(t, who.client, c.method, c.path, `{}`, csrf, "1"); got != who.want {
				t.Errorf("%s %s as %s: %d, want %d: %s", c.method, c.path, name, got, who.want, body)
			}
		}
	}
	for ou, cause := range map[string]string{"": "no-certificate", "guests": "no-role"} {
		if status, body := g.ask(t, g.client(t, ou), "GET", "/status", ""); status != 0 {
			t.Errorf("OU %q: %d, %s", ou, status, body)
		}
		until(t, cause, func() bool { return g.Status().Listener.Refused[cause] > 0 })
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.called) != 4*2+4 || !strings.Contains(strings.Join(g.called, "\n"), "restart by ou:admins as admin") {
		t.Errorf("called: %q", g.called)
	}
}

// TestModes is the table of outcomes: three modes, what anonymous may do, and each kind of client.
// A refusal in the handshake is 0.
func TestModes(t *testing.T) {
	for _, c := range []struct {
		auth         local.ClientAuth
		anonymous    role.Role
		askWebSocket bool
		// GET /status without a certificate and with one, the same over HTTP/1.1 alone, and what
		// a WebSocket answers without a certificate, with one, and with a ticket.
		none, with, none11, with11, socket, socketWith, socketTicket int
	}{
		{"required", role.None, false, 0, 200, 403, 403, 403, 403, 101},
		{"required", role.Viewer, false, 0, 200, 403, 403, 403, 403, 101},
		{"required", role.None, true, 0, 200, 0, 200, 0, 101, 0},
		{"optional", role.None, false, 403, 200, 403, 403, 403, 403, 101},
		{"optional", role.Viewer, false, 200, 200, 200, 200, 101, 101, 101},
		{"optional", role.None, true, 403, 200, 403, 200, 403, 101, 101},
		{"none", role.None, false, 403, 403, 403, 403, 403, 403, 403},
		{"none", role.Viewer, false, 200, 200, 200, 200, 101, 101, 101},
	} {
		t.Run(fmt.Sprintf("%s, anonymous %s, ask_websocket %t", c.auth, c.anonymous, c.askWebSocket), func(t *testing.T) {
			g := newGateway(t, func(o *local.Config, _ *local.Backend) {
				o.ClientAuth, o.Anonymous, o.AskWebSocket = c.auth, c.anonymous, c.askWebSocket
			})
			shown := g.issue(t, "viewers", time.Now().Add(time.Hour))
			check := func(what string, got, want int) {
				t.Helper()
				if got != want {
					t.Errorf("%s: %d, want %d", what, got, want)
				}
			}
			only11 := func(certificates ...tls.Certificate) *http.Client {
				transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, Certificates: certificates}}
				t.Cleanup(transport.CloseIdleConnections)
				return &http.Client{Transport: transport}
			}
			status, _ := g.ask(t, g.client(t, ""), "GET", "/status", "")
			check("without a certificate", status, c.none)
			status, _ = g.ask(t, g.client(t, "viewers"), "GET", "/status", "")
			check("with a certificate", status, c.with)
			status, body := g.ask(t, only11(), "GET", "/status", "")
			check("HTTP/1.1 without", status, c.none11)
			status, _ = g.ask(t, only11(shown), "GET", "/status", "")
			check("HTTP/1.1 with", status, c.with11)
			if c.auth == "required" && !c.askWebSocket && !strings.Contains(body, "offers HTTP/1.1 alone") {
				t.Errorf("nobody says why: %s", body)
			}
			check("socket without", g.socketStatus(t, "", nil), c.socket)
			check("socket with", g.socketStatus(t, "", nil, shown), c.socketWith)
			ticket := "none"
			if code, body := g.ask(t, g.client(t, "viewers"), "POST", "/ticket", "", csrf, "1"); code == 200 {
				ticket = ticketOf(t, body)
			}
			check("socket with a ticket", g.socketStatus(t, ticket, nil), c.socketTicket)
		})
	}
}

func ticketOf(t testing.TB, body string) string {
	t.Helper()
	var answer struct {
		Ticket    string
		ExpiresIn int `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.Ticket) < 40 || answer.ExpiresIn != 30 {
		t.Fatalf("%s: %v", body, err)
	}
	return answer.Ticket
}

// socket opens /ws as a browser does.
func (g *gateway) openSocket(t testing.TB, ticket string, header http.Header, shown ...tls.Certificate) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, Certificates: shown}}
	url := "wss://" + g.address + "/ws"
	if ticket != "" {
		url += "?ticket=" + ticket
	}
	return dialer.DialContext(t.Context(), url, header)
}

func (g *gateway) socketStatus(t testing.TB, ticket string, header http.Header, shown ...tls.Certificate) int {
	t.Helper()
	conn, response, err := g.openSocket(t, ticket, header, shown...)
	if err == nil {
		_ = conn.Close()
		return http.StatusSwitchingProtocols
	}
	if response != nil {
		return response.StatusCode
	}
	return 0
}

func TestTicketsAreGoodOnceAndBounded(t *testing.T) {
	g := newGateway(t, nil)
	viewer := g.client(t, "viewers")
	get := func(c *http.Client) (string, int) {
		status, body := g.ask(t, c, "POST", "/ticket", "", csrf, "1")
		if status != 200 {
			return "", status
		}
		return ticketOf(t, body), status
	}
	ticket, _ := get(viewer)
	if got := g.socketStatus(t, ticket+"x", nil); got != 403 {
		t.Errorf("another ticket: %d", got)
	}
	if got := g.socketStatus(t, ticket, http.Header{"Origin": {"https://evil.example"}}); got != 403 {
		t.Errorf("from another origin: %d", got)
	}
	if got := g.socketStatus(t, ticket, http.Header{"Origin": {"https://" + g.address}}); got != 101 {
		t.Errorf("from our own page: %d", got)
	}
	if got := g.socketStatus(t, ticket, nil); got != 403 {
		t.Errorf("a second time: %d", got)
	}
	last := 200
	for range 20 {
		_, last = get(viewer)
	}
	if last != 503 {
		t.Errorf("the twentieth ticket of one name: %d", last)
	}
	if _, status := get(g.client(t, "admins")); status != 200 {
		t.Errorf("a ticket for somebody else: %d", status)
	}
}

// Another site's page can neither command nor listen; a program says what it does.
func TestCrossSite(t *testing.T) {
	g := newGateway(t, nil)
	admin := g.client(t, "admins")
	own := "https://" + g.address
	for _, c := range []struct {
		name, method, path string
		headers            []string
		want               int
	}{
		{"a form", "POST", "/command/read", nil, 403},
		{"a program", "POST", "/command/read", []string{csrf, "1"}, 200},
		{"our page", "POST", "/command/read", []string{"Sec-Fetch-Site", "same-origin", "Origin", own}, 200},
		{"another site", "POST", "/command/read", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"another site with the header", "POST", "/command/read", []string{"Sec-Fetch-Site", "cross-site", csrf, "1"}, 403},
		{"another origin with the header", "POST", "/command/read", []string{"Origin", "https://evil.example", csrf, "1"}, 403},
		{"another port with the header", "POST", "/command/read", []string{"Origin", "https://127.0.0.1:1", csrf, "1"}, 403},
		{"no origin at all", "POST", "/command/read", []string{"Origin", "null", csrf, "1"}, 403},
		{"our origin without TLS", "POST", "/command/read", []string{"Origin", "http://" + g.address, csrf, "1"}, 403},
		{"a sibling", "POST", "/ticket", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"typed in", "GET", "/", []string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
		{"a link", "GET", "/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
		{"a frame", "GET", "/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
		{"an image", "GET", "/status", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"}, 403},
		{"events for another site", "GET", "/events", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors"}, 403},
	} {
		if got, body := g.ask(t, admin, c.method, c.path, "{}", c.headers...); got != c.want {
			t.Errorf("%s: %d, want %d: %s", c.name, got, c.want, body)
		}
	}
	response, err := admin.Get(own + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	for header, want := range map[string]string{
		"Content-Security-Policy": "frame-ancestors 'none'", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
		"Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
	} {
		if got := response.Header.Get(header); !strings.Contains(got, want) {
			t.Errorf("%s: %q", header, got)
		}
	}
	if response.ProtoMajor != 1 || response.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%s, %v", response.Proto, response.Header)
	}
}

// What /readings and /events carry, /ws carries too; what is no JSON cannot break out.
func TestWebSocketCarriesBoth(t *testing.T) {
	g := newGateway(t, func(c *local.Config, _ *local.Backend) { c.ClientAuth, c.Anonymous = local.AuthNone, role.Viewer })
	conn, _, err := g.openSocket(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	want := func(text string) {
		t.Helper()
		for {
			_, got, err := conn.ReadMessage()
			if err != nil {
				t.Fatalf("waiting for %s: %v", text, err)
			}
			if !json.Valid(got) {
				t.Fatalf("%q is no JSON", got)
			}
			if strings.Contains(string(got), text) {
				return
			}
		}
	}
	want(`{"event":"status","data":{"device":"gw-1"}}`)
	g.Publish([]byte("{\"seq\":\n1}"))
	want(`{"event":"reading","data":{"seq":1}}`)
	g.Publish([]byte("\xd9\xd9\xf7\n\n"))
	want(`{"event":"reading","data":{"base64":"2dn3Cgo="}}`)
	for range 400 { // more than a queue holds
		g.Publish([]byte(`{"seq":2,"pad":"` + strings.Repeat("x", 60<<10) + `"}`))
	}
	want(`{"event":"missed","data":`)
	if err := conn.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err = conn.ReadMessage(); err != nil {
			break
		}
	}
	if !websocket.IsCloseError(err, websocket.CloseUnsupportedData, websocket.CloseAbnormalClosure) {
		t.Errorf("who talks to us sees %v", err)
	}
	until(t, "the watcher's end", func() bool { return g.Status().Watchers == 0 })
}
