package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// person is a browser with a profile of its own.
type person struct{ ctx context.Context }

// newPerson starts a real Chromium that believes servers with this key pin and, with a
// certificate, shows it to everybody who asks. Chromium on Linux finds certificates in the NSS
// database of the home directory, and chooses without asking where a policy says so; policies lie
// in /etc, which is why it gets one of its own, by a mount that nobody else sees.
func newPerson(t *testing.T, pin string, shown *tls.Certificate) *person {
	t.Helper()
	home := shortDir(t)
	policies := filepath.Join(home, "etc", "policies", "managed")
	database := filepath.Join(home, ".pki", "nssdb")
	for _, folder := range []string{policies, database} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	policy := `{"AutoSelectCertificateForUrls": ["{\"pattern\":\"https://127.0.0.1\",\"filter\":{}}"]}`
	if err := os.WriteFile(filepath.Join(policies, "certificate.json"), []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "", need(t, "certutil"), "-N", "--empty-password", "-d", "sql:"+database)
	if shown != nil {
		certificate, key := save(t, home, "me", *shown)
		bag := filepath.Join(home, "me.p12")
		mustRun(t, "", need(t, "openssl"), "pkcs12", "-export", "-in", certificate, "-inkey", key, "-name", "me", "-passout", "pass:", "-out", bag)
		mustRun(t, "", need(t, "pk12util"), "-i", bag, "-d", "sql:"+database, "-W", "")
	}
	script := filepath.Join(home, "chromium")
	text := fmt.Sprintf("#!/bin/sh\nHOME=%s; export HOME\nmount --bind %s/etc /etc/chromium && exec %s \"$@\"\n", home, home, need(t, "chromium"))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	apart := filepath.Join(home, "apart")
	text = fmt.Sprintf("#!/bin/sh\nexec %s --map-root-user --mount %s \"$@\"\n", need(t, "unshare"), script)
	if err := os.WriteFile(apart, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.ExecPath(apart),
		chromedp.Flag("ignore-certificate-errors-spki-list", pin))
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		grace, done := context.WithTimeout(ctx, 20*time.Second)
		defer done()
		_ = chromedp.Cancel(grace)
		cancel()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting chromium: %v", err)
	}
	return &person{ctx: ctx}
}

// visit opens a page and returns what it says, or the browser's own error.
func (p *person) visit(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		text := err.Error()
		if at := strings.Index(text, "net::"); at >= 0 {
			return strings.Fields(text[at:])[0]
		}
		t.Fatalf("%s: %v", url, err)
	}
	said, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.title||document.body.innerText`))
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// run evaluates an expression that is a promise of text.
func (p *person) run(t *testing.T, expression string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	said, err := chromedp.Run(ctx, chromedp.Evaluate[string](expression, func(o *runtime.EvaluateParams) { o.AwaitPromise = new(true) }))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return said
}

// jsSocket opens /ws and says what became of it: the first event, or "closed".
const jsSocket = `((query)=>new Promise(done=>{
	const s=new WebSocket("wss://"+location.host+"/ws"+query);
	s.onmessage=m=>{done(JSON.parse(m.data).event);s.close()};
	s.onclose=()=>done("closed");
}))`

// jsLive waits until the page has its streams.
const jsLive = `new Promise(done=>{const look=()=>document.querySelector("#link").textContent.includes("Live")?done("live"):setTimeout(look,50);look()})`

const jsWithTicket = `fetch("/ticket",{method:"POST"}).then(r=>r.ok?r.json():{ticket:"none"}).then(a=>` + jsSocket + `("?ticket="+a.ticket))`

// settle makes an agent's certificate and its browsers: one that shows a certificate to whoever
// asks, and one that has none.
func settle(t *testing.T) (p *people, local string, known, stranger *person) {
	t.Helper()
	p = newPeople(t, "people")
	shown, server := p.issue(t, "viewers", time.Now().Add(time.Hour)), p.server(t)
	certificate, key := save(t, shortDir(t), "server", server)
	digest := sha256.Sum256(server.Leaf.RawSubjectPublicKeyInfo)
	pin := base64.StdEncoding.EncodeToString(digest[:])
	return p, fmt.Sprintf("certificate = %q\nkey = %q\n", certificate, key), newPerson(t, pin, &shown), newPerson(t, pin, nil)
}

// TestBrowsersAtTheListener is the browser's part of the table of outcomes (S2a): each mode, with
// a certificate in the browser and without one.
func TestBrowsersAtTheListener(t *testing.T) {
	p, local, known, stranger := settle(t)
	const page, denied, refused, open, closed = "page", "denied", "net::ERR_BAD_SSL_CLIENT_AUTH_CERT", "status", "closed"
	for _, c := range []struct {
		name, local string
		// What a browser with a certificate sees, and one without: the page, a WebSocket, and a
		// WebSocket with a ticket. "": there is no page to open it from.
		known, stranger [3]string
	}{
		{"required", ``, [3]string{page, closed, open}, [3]string{refused, "", ""}},
		// A browser that has chosen for the page's sake, also to show none, uses its choice for the
		// WebSocket. What it does without a choice is the next test.
		{"required, sockets too", `ask_websocket = true`, [3]string{page, open, open}, [3]string{refused, "", ""}},
		{"optional", `client_auth = "optional"`, [3]string{page, closed, open}, [3]string{denied, "", ""}},
		{"optional for viewers", "client_auth = \"optional\"\nanonymous = \"viewer\"", [3]string{page, open, open}, [3]string{page, open, open}},
		{"optional for viewers, sockets too", "client_auth = \"optional\"\nanonymous = \"viewer\"\nask_websocket = true", [3]string{page, open, open}, [3]string{page, open, open}},
		{"none for viewers", "client_auth = \"none\"\nanonymous = \"viewer\"", [3]string{page, open, open}, [3]string{page, open, open}},
		{"none", `client_auth = "none"`, [3]string{denied, "", ""}, [3]string{denied, "", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := p.gateway(t, local+c.local)
			for who, sees := range map[string]struct {
				*person
				want [3]string
			}{"with a certificate": {known, c.known}, "without": {stranger, c.stranger}} {
				got := [3]string{sees.visit(t, "https://"+g.address+"/"), "", ""}
				switch {
				case strings.Contains(got[0], "no certificate") || strings.Contains(got[0], "nobody here is asked"):
					got[0] = denied
				case got[0] == "net::ERR_SOCKET_NOT_CONNECTED": // it was sending when the alert came
					got[0] = refused
				case !strings.HasPrefix(got[0], "net::"):
					got[0] = page // its title says how the gateway is
				}
				if got[0] == page {
					sees.run(t, jsLive)
					got[1], got[2] = sees.run(t, jsSocket+`("")`), sees.run(t, jsWithTicket)
				}
				if got != sees.want {
					t.Errorf("%s: %q, want %q", who, got, sees.want)
				}
			}
			g.kill(t)
		})
	}
}

// TestAWebSocketIsCancelledThatIsAsked shows why ask_websocket is off: a browser that has not chosen
// yet for this address gives up in the handshake when it is asked, though the listener would do
// without a certificate. Not asked, its request arrives (and is refused for its origin, by HTTP).
func TestAWebSocketIsCancelledThatIsAsked(t *testing.T) {
	p, local, _, stranger := settle(t)
	const open = "client_auth = \"optional\"\nanonymous = \"viewer\"\n"
	for _, c := range []struct {
		name, local string
		cancelled   bool
	}{{"asked", open + "ask_websocket = true", true}, {"not asked", open, false}} {
		t.Run(c.name, func(t *testing.T) {
			g := p.gateway(t, local+c.local)
			stranger.visit(t, "about:blank")
			refused := func() float64 {
				n, _ := field(g.status(t), "local", "listener", "refused", "hung-up").(float64)
				return n
			}
			accepted := func() float64 {
				n, _ := field(g.status(t), "local", "listener", "accepted").(float64)
				return n
			}
			hung, came := refused(), accepted()
			if got := stranger.run(t, fmt.Sprintf(`new Promise(done=>{const s=new WebSocket("wss://%s/ws");s.onclose=()=>done("closed");s.onopen=()=>done("open")})`, g.address)); got != "closed" {
				t.Errorf("the WebSocket of another origin is %s", got)
			}
			waitFor(t, "the browser at the listener", func() bool { return accepted() > came })
			if c.cancelled {
				waitFor(t, "the browser's hanging up in the handshake", func() bool { return refused() > hung })
			} else if refused() > hung {
				t.Error("the browser hung up in the handshake without having been asked")
			}
			g.kill(t)
		})
	}
}

func (g *listening) kill(t *testing.T) {
	t.Helper()
	if code := g.agent.stop(t); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}
}

// server makes the certificate of a server on this machine.
func (p *people) server(t *testing.T) tls.Certificate {
	t.Helper()
	key := newP256(t)
	leaf := p.sign(t, &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(300 * 24 * time.Hour),
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		CRLDistributionPoints: []string{"http://crl.example/people.crl"},
	}, p.certificate, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}
