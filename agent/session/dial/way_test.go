package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
)

// offering makes a broker know application protocols.
func (w *world) offering(protocols ...string) string {
	config := w.server.ServerTLS(w.ca)
	config.NextProtos = protocols
	return tlsEcho(w.t, config)
}

// The application protocol, as brokers of Go and of OpenSSL take it.
func TestALPN(t *testing.T) {
	w, o := newWorld(t), newOurs(t)
	port := freePort(t)
	start(t, "openssl", "s_server", "-accept", "127.0.0.1:"+port, "-cert", o.crt, "-key", o.key, "-alpn", "x-amzn-mqtt-ca", "-quiet")
	listens(t, "127.0.0.1:"+port)
	amazon, other := localhost(w.offering("x-amzn-mqtt-ca", "http/1.1")), localhost(w.offering("h2", "http/1.1"))
	each(t, func(t *testing.T, version uint16) {
		w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
		if c := w.connected(w.dialer(atMost(version)), amazon+"?alpn=x-amzn-mqtt-ca"); c.Path.ALPN != "x-amzn-mqtt-ca" {
			t.Errorf("%+v", c.Path)
		}
		if c := w.connected(w.dialer(atMost(version)), amazon); c.Path.ALPN != "" {
			t.Errorf("%+v", c.Path)
		}
		expect(t, w.failure(w.dialer(atMost(version)), other+"?alpn=x-amzn-mqtt-ca"), cause.StageTLS, cause.ALPN, cause.SideBroker, "no application protocol")
		c, err := w.dial(w.dialer(atMost(version), trusting(o.root)), "mqtts://localhost:"+port+"?alpn=x-amzn-mqtt-ca")
		if err != nil || c.Path.ALPN != "x-amzn-mqtt-ca" {
			t.Fatalf("OpenSSL: %v", err)
		}
		_ = c.Close() // s_server serves one after the other
		expect(t, w.failure(w.dialer(atMost(version), trusting(o.root)), "mqtts://localhost:"+port+"?alpn=mqtt"), cause.StageTLS, cause.ALPN, cause.SideBroker, "no application protocol")
	})
}

// A broker that does not answer to ALPN may be right behind what chose it by that, so it is given
// the chance; when it then does not speak MQTT, that is what is said.
func TestALPNWithoutAnswer(t *testing.T) {
	w := newWorld(t)
	c := w.connected(w.dialer(), localhost(w.echo())+"?alpn=mqtt")
	if c.Path.ALPN != "" {
		t.Errorf("%+v", c.Path)
	}
	for _, err := range []error{io.EOF, fmt.Errorf("%w: packet type 4 is out of place", cause.ErrProtocol)} {
		expect(t, cause.Classify(cause.StageConnack, c.Explain(err)), cause.StageConnack, cause.ALPN, cause.SideBroker, `"mqtt" was asked for, and not answered`)
	}
	for _, err := range []error{cause.Refusal(5), cause.ErrStalled} {
		if c.Explain(err) != err {
			t.Errorf("%v is explained by ALPN", err)
		}
	}
	plain := w.connected(w.dialer(), localhost(w.echo()))
	if plain.Explain(io.EOF) != io.EOF {
		t.Error("an end is explained by ALPN that was not asked for")
	}
}

// inspector is a proxy that opens TLS with certificates of its own authority, and asks for the
// client's certificate or not.
func inspector(t *testing.T, authority *minted, ask tls.ClientAuthType, handle func(*tls.Conn)) string {
	leaf := mint(t, "broker", authority, forServer())
	return serve(t, func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{leaf.chain()}, ClientAuth: ask})
		if s.Handshake() == nil {
			handle(s)
		}
		_ = s.Close()
	})
}

// Who opens TLS is refused, unless it is named; then it shows, and is to blame.
func TestInspection(t *testing.T) {
	w := newWorld(t)
	corp := mint(t, "Corp inspection", nil, authority)
	inspected := func(o *Options) { o.InspectionRoots = w.file("inspection.pem", encodePEM(corp)) }
	echoes := func(c *tls.Conn) { _, _ = io.Copy(c, c) }
	each(t, func(t *testing.T, version uint16) {
		w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
		address := localhost(inspector(t, corp, tls.NoClientCert, echoes))
		f := w.failure(w.dialer(atMost(version)), address)
		expect(t, f, cause.StageTLS, cause.BrokerUnknownCA, cause.SideDevice, `"CN=Corp inspection"`)
		if !strings.Contains(f.Hint, "inspection_roots") {
			t.Error(f.Hint)
		}
		d := w.dialer(atMost(version), inspected)
		for range 2 { // the second TLS session is resumed
			c := w.connected(d, address)
			if c.Path.Inspected != "CN=Corp inspection" {
				t.Errorf("%+v", c.Path)
			}
			for _, err := range []error{io.EOF, cause.Refusal(5)} {
				expect(t, cause.Classify(cause.StageConnack, c.Explain(err)), cause.StageConnack, cause.Inspection, cause.SideNetwork, "does not see the device's certificate")
			}
			if err := cause.Refusal(3); c.Explain(err) != err {
				t.Error("a broker that is unavailable is not")
			}
			if err := d.Recheck(c); err != nil {
				t.Error(err)
			}
		}
		if c := w.connected(d, localhost(w.echo())); c.Path.Inspected != "" {
			t.Errorf("the broker itself: %+v", c.Path)
		}
	})
}

// Where an inspector asks for a certificate, hides behind a proxy, or answers in the broker's stead.
func TestInspectionElsewhere(t *testing.T) {
	w := newWorld(t)
	corp := mint(t, "Corp inspection", nil, authority)
	inspected := func(o *Options) { o.InspectionRoots = w.file("inspection.pem", encodePEM(corp)) }
	t.Run("asks for a certificate of its own", func(t *testing.T) {
		w := &world{t: t, ca: w.ca, device: w.device, log: w.log}
		leaf := mint(t, "broker", corp, forServer())
		address := tlsEcho(t, &tls.Config{Certificates: []tls.Certificate{leaf.chain()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(corp)})
		expect(t, w.failure(w.dialer(inspected), localhost(address)), cause.StageTLS, cause.Inspection, cause.SideNetwork, "acceptable CA")
	})
	t.Run("through a proxy", func(t *testing.T) {
		w := &world{t: t, ca: w.ca, device: w.device, log: w.log}
		var asked atomic.Pointer[http.Request]
		proxy := serve(t, tunnel(&asked))
		f := w.failure(w.dialer(throughProxy("http://"+proxy)), localhost(inspector(t, corp, tls.NoClientCert, func(*tls.Conn) {})))
		expect(t, f, cause.StageTLS, cause.BrokerUnknownCA, cause.SideDevice, "through the proxy http://"+proxy)
	})
	t.Run("WebSocket", func(t *testing.T) {
		w := &world{t: t, ca: w.ca, device: w.device, log: w.log}
		address := inspector(t, corp, tls.NoClientCert, func(c *tls.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\n\r\n")
		})
		expect(t, w.failure(w.dialer(inspected), wss(address, "")), cause.StageWebSocket, cause.Inspection, cause.SideNetwork, "403")
	})
}

// The inspectors are trusted beside the roots of now, whichever these are.
func TestInspectionKeepsTheRoots(t *testing.T) {
	w := newWorld(t)
	corp := mint(t, "Corp inspection", nil, authority)
	var roots atomic.Pointer[x509.CertPool]
	roots.Store(w.ca.Pool())
	d := w.dialer(func(o *Options) {
		o.InspectionRoots, o.Trust.Roots = w.file("inspection.pem", encodePEM(corp)), roots.Load
	})
	broker := localhost(w.echo())
	c := w.connected(d, broker)
	roots.Store(must[*agenttest.CA](t)(agenttest.NewCA("new")).Pool())
	if err := d.Recheck(c); err == nil {
		t.Error("the roots of before still count")
	}
	expect(t, w.failure(d, broker), cause.StageTLS, cause.BrokerUnknownCA, cause.SideDevice, "")
	roots.Store(nil) // the system's
	expect(t, w.failure(d, broker), cause.StageTLS, cause.BrokerUnknownCA, cause.SideDevice, "")
	roots.Store(w.ca.Pool())
	if c := w.connected(d, broker); c.Path.Inspected != "" {
		t.Errorf("%+v", c.Path)
	}
	for _, file := range []string{"missing.pem", w.file("empty.pem", []byte("nothing"))} {
		for _, c := range []Config{{ProxyRoots: file}, {InspectionRoots: file}} {
			if _, err := Open(Options{Config: c, Trust: Trust{Roots: roots.Load}}); err == nil || !strings.Contains(err.Error(), "_roots") {
				t.Errorf("%+v: %v", c, err)
			}
		}
	}
}

// Stages, addresses and bytes, as doctor sees them.
func TestObserver(t *testing.T) {
	w := newWorld(t)
	address := w.webBroker(t, 0)
	_, port, _ := net.SplitHostPort(address)
	var asked atomic.Pointer[http.Request]
	proxy := serve(t, tunnel(&asked))
	var mu sync.Mutex
	var told []string
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(format, args...))
	}
	recorded := new(recorder)
	d := w.dialer(throughProxy("http://"+proxy), func(o *Options) {
		o.Observe = &Observer{
			Begin:    func(s cause.Stage) { note("begin %s", s) },
			End:      func(s cause.Stage, took time.Duration, err error) { note("end %s %t", s, took >= 0 && err == nil) },
			Resolved: func(host string, a []netip.Addr) { note("resolved %s %v", host, a) },
			Tried:    func(a Attempt) { note("tried %s %q", a.Address, a.Error) },
			Wrap:     func(c net.Conn) net.Conn { recorded.Conn = c; return recorded },
			TLS:      func(c *tls.Config) { note("tls %s", c.ServerName) },
		}
	})
	var stages []cause.Stage
	b := must[Broker](t)(ParseBroker("wss://localhost:" + port))
	c, err := d.Dial(t.Context(), b, w.device, func(s cause.Stage) { stages = append(stages, s) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := []string{"begin dns", "resolved 127.0.0.1 [127.0.0.1]", "end dns true", "begin tcp", `tried ` + proxy + ` ""`, "end tcp true",
		"begin proxy", "end proxy true", "begin tls", "tls localhost", "end tls true", "begin websocket", "end websocket true"}
	if !slices.Equal(told, want) {
		t.Errorf("told\n%s", strings.Join(told, "\n"))
	}
	if !slices.Equal(stages, []cause.Stage{cause.StageDNS, cause.StageTCP, cause.StageProxy, cause.StageTLS, cause.StageWebSocket}) {
		t.Error(stages)
	}
	if first := recorded.first(); len(first) == 0 || first[0] != recordHandshake {
		t.Errorf("the first bytes were % x", first)
	}
	told = nil
	_ = w.failure(d, "mqtts://localhost:"+freePort(t))
	if len(told) == 0 || told[len(told)-1] != "end proxy false" {
		t.Error(told)
	}
}

// recorder keeps what was written first.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	head []byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	if r.head == nil {
		r.head = slices.Clone(p)
	}
	r.mu.Unlock()
	return r.Conn.Write(p)
}

func (r *recorder) first() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head
}

// A black-holed IPv6 costs a quarter of a second once; then IPv4 goes first.
func TestFamilyThatWorkedGoesFirst(t *testing.T) {
	w := newWorld(t)
	address := w.echo()
	_, port, _ := net.SplitHostPort(address)
	state := State{FS: disk.OS(), Path: filepath.Join(t.TempDir(), "ways.json")}
	open := func() *Dialer {
		d := w.dialer(func(o *Options) { o.State = state })
		d.resolver = dnsServer(t, nil, func(string, bool) []net.IP { return []net.IP{net.ParseIP("2001:db8::1"), net.IPv4(127, 0, 0, 1)} })
		d.connect = func(ctx context.Context, to string) (net.Conn, error) {
			if strings.HasPrefix(to, "[") {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, "tcp", to)
		}
		return d
	}
	d, broker := open(), "mqtts://broker.test:"+port
	c := w.connected(d, broker)
	d.Worked(c)
	if p := c.Path; p.Family != "ipv4" || p.Address != address {
		t.Errorf("%+v", p)
	}
	first := c.Path.Raced[0].Address
	c = w.connected(open(), broker)
	if p := c.Path; p.Raced[0].Address != address || len(p.Raced) != 1 {
		t.Errorf("the second time: %+v", p)
	}
	t.Log("first", first)
	if b := brokersOf(t, "mqtts://other.test", broker); open().Order(b)[0] != b[1] {
		t.Error("the broker that worked is not first")
	}
}

// Nothing leaves to a broker that fails the judgement of Verify, and one refused in a resumed
// session is asked once more.
func TestVerify(t *testing.T) {
	w := newWorld(t)
	broker := localhost(w.echo())
	var judged []bool
	refuse := false
	d := w.dialer(func(o *Options) {
		o.Trust.Verify = func(s tls.ConnectionState) error {
			judged = append(judged, s.DidResume)
			if refuse || s.DidResume {
				return errors.New("no")
			}
			return nil
		}
	})
	w.connected(d, broker)
	w.connected(d, broker)
	if !slices.Equal(judged, []bool{false, true, false}) {
		t.Error(judged)
	}
	refuse = true
	expect(t, w.failure(d, broker), cause.StageTLS, cause.BrokerRevocationUnknown, cause.SideBroker, "no")
}

// A dial that is not wanted any more ends at once, in every stage.
func TestDialEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	silent := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	stuck := w.rawWeb(t, func(p *peer) {})
	for stage, test := range map[cause.Stage]struct{ broker, proxy string }{
		cause.StageTCP:       {"mqtts://192.0.2.1", ""},
		cause.StageProxy:     {"mqtts://localhost", "http://" + silent},
		cause.StageTLS:       {localhost(silent), ""},
		cause.StageWebSocket: {wss(stuck, ""), ""},
	} {
		d := w.dialer(throughProxy(test.proxy))
		if stage == cause.StageTCP {
			d.connect = new(fakeNetwork).dial
		}
		ctx, cancel := context.WithCancel(context.Background())
		d.observe = &Observer{Begin: func(s cause.Stage) {
			if s == stage {
				cancel()
			}
		}}
		_, err := d.Dial(ctx, must[Broker](t)(ParseBroker(test.broker)), w.device, func(cause.Stage) {})
		if e, ok := errors.AsType[*cause.StageError](err); !ok || e.Stage != stage || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", stage, err)
		}
		cancel()
	}
}

// Without a build made for it, no key of TLS is written down, whatever the environment says.
func TestNoKeyLog(t *testing.T) {
	if name := os.Getenv("FERRULE_TEST_KEYLOG"); name == "" {
		name = filepath.Join(t.TempDir(), "keys")
		argv := append(strings.Fields(os.Getenv("FERRULE_EXEC")), must[string](t)(os.Executable()), "-test.run", "^TestNoKeyLog$")
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "SSLKEYLOGFILE="+name, "FERRULE_TEST_KEYLOG="+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	w := newWorld(t)
	d := w.dialer(func(o *Options) {
		o.Observe = &Observer{TLS: func(c *tls.Config) {
			if c.KeyLogWriter != nil {
				t.Error("there is a key log")
			}
		}}
	})
	w.connected(d, localhost(w.echo()))
	if _, err := os.Stat(os.Getenv("SSLKEYLOGFILE")); !errors.Is(err, os.ErrNotExist) {
		t.Error("keys were written:", err)
	}
}

// A dialer without a credential, as doctor's where there is none.
func TestWithoutCredential(t *testing.T) {
	w := newWorld(t)
	var none *identity.Credential
	address := localhost(tlsEcho(t, &tls.Config{Certificates: []tls.Certificate{w.server.TLS}}))
	c, err := w.dialAs(w.dialer(), address, none)
	if err != nil || c.Credential != nil {
		t.Fatal(err)
	}
	echo(t, c, "hello")
}
