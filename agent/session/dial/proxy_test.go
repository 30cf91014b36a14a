package dial

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"ferrule/agent/agenttest"
	"ferrule/agent/session/cause"
)

// tinyproxy starts a real proxy; lines go to its configuration. It returns where it listens, and
// its log.
func tinyproxy(t testing.TB, lines ...string) (address string, log *testLog) {
	t.Helper()
	port := freePort(t)
	config := fmt.Sprintf("Port %s\nListen 127.0.0.1\nTimeout 600\nMaxClients 20\nLogLevel Info\nPidFile \"%s\"\n%s\n",
		port, filepath.Join(t.TempDir(), "pid"), strings.Join(lines, "\n"))
	log = start(t, "tinyproxy", "-d", "-c", writeFile(t, filepath.Join(t.TempDir(), "tinyproxy.conf"), []byte(config)))
	address = "127.0.0.1:" + port
	listens(t, address)
	return address, log
}

// Through a real proxy, with a name that it resolves, without and with a login.
func TestTinyproxy(t *testing.T) {
	w := newWorld(t)
	broker := localhost(w.echo())
	open, _ := tinyproxy(t)
	closed, _ := tinyproxy(t, "BasicAuth gateway s3cret")
	_, port, _ := net.SplitHostPort(broker)
	narrow, _ := tinyproxy(t, "ConnectPort 1")
	t.Run("open", func(t *testing.T) {
		each(t, func(t *testing.T, version uint16) {
			w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
			c := w.connected(w.dialer(throughProxy("http://"+open), atMost(version)), broker)
			if p := c.Path; p.Proxy != "http://"+open || p.Address != open || p.Family != "ipv4" {
				t.Errorf("%+v", p)
			}
			if c.TCP() == nil {
				t.Error("no TCP connection")
			}
		})
	})
	t.Run("login", func(t *testing.T) {
		w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
		c := w.connected(w.dialer(throughProxy("http://gateway:s3cret@"+closed)), broker)
		if c.Path.Proxy != "http://"+closed {
			t.Error(c.Path.Proxy)
		}
	})
	fail := func(name, proxy, broker string, what cause.Cause, side cause.Side, text string) {
		t.Run(name, func(t *testing.T) {
			w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
			f := w.failure(w.dialer(throughProxy(proxy)), broker)
			expect(t, f, cause.StageProxy, what, side, text)
			if all := fmt.Sprint(f); strings.Contains(all, "wr0ng") || strings.Contains(all, "gateway:") {
				t.Errorf("it holds the login: %s", all)
			}
		})
	}
	fail("no login", "http://"+closed, broker, cause.ProxyAuth, cause.SideDevice, "407")
	fail("wrong login", "http://gateway:wr0ng@"+closed, broker, cause.ProxyAuth, cause.SideDevice, "401")
	fail("port not allowed", "http://"+narrow, broker, cause.ProxyRefused, cause.SideNetwork, "403")
	fail("broker refuses", "http://"+open, "mqtts://127.0.0.1:"+freePort(t), cause.ProxyNoWay, cause.SideNetwork, "50")
	fail("broker has no name", "http://"+open, "mqtts://no-such-name.invalid:"+port, cause.ProxyNoWay, cause.SideNetwork, "50")
	if strings.Contains(w.log.String(), "s3cret") || strings.Contains(w.log.String(), "wr0ng") {
		t.Error("the log holds the login")
	}
}

// localhost is the URL of a broker at address, by name.
func localhost(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return "mqtts://localhost:" + port
}

// tunnel is a proxy that does as it should, and shows what it was asked.
func tunnel(asked *atomic.Pointer[http.Request]) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		asked.Store(request)
		broker, err := net.Dial("tcp", request.Host)
		if err != nil {
			_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
			return
		}
		defer broker.Close()
		// RFC 9110, 9.3.6: what the header says of a body is to be ignored.
		_, _ = io.WriteString(c, "HTTP/1.1 200 Go ahead\r\nContent-Length: 100\r\nX-Padding: "+strings.Repeat("x", 8000)+"\r\n\r\n")
		relay(c, broker)
	}
}

// relay passes bytes on until either side ends.
func relay(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(b, a)
		_ = b.Close()
	}()
	_, _ = io.Copy(a, b)
	_ = a.Close()
	<-done
}

// secureProxy starts one that is reached by TLS, and says how it is trusted.
func (w *world) secureProxy(asked *atomic.Pointer[http.Request]) (address string, known func(*Options)) {
	w.t.Helper()
	authority := must[*agenttest.CA](w.t)(agenttest.NewCA("proxies"))
	issued := must[*agenttest.Issued](w.t)(authority.Server())
	handle := tunnel(asked)
	address = serve(w.t, func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{issued.TLS}})
		if s.Handshake() == nil {
			handle(s)
		}
		_ = s.Close()
	})
	roots := w.file("proxies.pem", authority.RootPEM())
	return address, func(o *Options) { o.ProxyRoots = roots }
}

// A proxy that is reached by TLS.
func TestSecureProxy(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Pointer[http.Request]
	address, known := w.secureProxy(&asked)
	broker := localhost(w.echo())
	c := w.connected(w.dialer(throughProxy("https://us%65r:p%40ss@"+address), known), broker)
	if c.Path.Proxy != "https://"+address || c.Path.Address != address {
		t.Errorf("%+v", c.Path)
	}
	if user, password, ok := basic(asked.Load()); !ok || user != "user" || password != "p@ss" {
		t.Errorf("the proxy was told %q %q", user, password)
	}
	if sent, received := c.Wire(); sent < 3000 || received < 10000 {
		t.Errorf("%d and %d bytes on the wire, for two handshakes and a long answer", sent, received)
	}
	if c.TCP() == nil {
		t.Error("no TCP connection")
	}
}

// What keeps TLS from a proxy that wants it.
func TestSecureProxyRefused(t *testing.T) {
	w := newWorld(t)
	address, known := w.secureProxy(new(atomic.Pointer[http.Request]))
	broker := "mqtts://broker.test"
	plain := serve(t, func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n") })
	silent := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	_, port, _ := net.SplitHostPort(address)
	for name, test := range map[string]struct {
		proxy  string
		change func(*Options)
		cause  cause.Cause
		text   string
	}{
		"unknown authority": {"https://" + address, func(*Options) {}, cause.ProxyTLS, "proxy's certificate is signed"},
		"wrong name":        {"https://[::ffff:127.0.0.2]:" + port, known, cause.ProxyTLS, "for another name"},
		"no TLS":            {"https://" + plain, known, cause.ProxyTLS, "does not speak TLS"},
		"silence":           {"https://" + silent, short, cause.ProxyUnreachable, "did not answer in time"},
		"http instead":      {"http://" + address, known, cause.Closed, "the proxy closed"},
	} {
		d := w.dialer(throughProxy(test.proxy), test.change)
		if name == "wrong name" {
			d.connect = toward(address)
		}
		expect(t, w.failure(d, broker), cause.StageProxy, test.cause, cause.SideNetwork, test.text)
	}
}

func basic(r *http.Request) (user, password string, ok bool) {
	r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
	return r.BasicAuth()
}

// A proxy that is not there.
func TestProxyOutOfReach(t *testing.T) {
	w := newWorld(t)
	names := dnsServer(t, nil, func(name string, _ bool) []net.IP { return nil })
	hole := "192.0.2.1:3128"
	for name, test := range map[string]struct {
		proxy string
		stage cause.Stage
		side  cause.Side
		text  string
	}{
		"refused": {"http://127.0.0.1:" + freePort(t), cause.StageTCP, cause.SideNetwork, "nothing listens at the proxy's port"},
		"no name": {"http://proxy.test:3128", cause.StageDNS, cause.SideDevice, "the proxy's name has no address"},
		"stalled": {"http://" + hole, cause.StageTCP, cause.SideNetwork, "the proxy did not answer in time"},
	} {
		d := w.dialer(throughProxy(test.proxy), short)
		d.resolver = names
		if name == "stalled" {
			d.connect = new(fakeNetwork).dial
		}
		expect(t, w.failure(d, "mqtts://broker.test"), test.stage, cause.ProxyUnreachable, test.side, test.text)
	}
}

// proxyCase is what a hostile or broken proxy does.
type proxyCase struct {
	proxy func(net.Conn)
	cause cause.Cause
	side  cause.Side
	text  string
}

func hostileProxies() map[string]proxyCase {
	says := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, text)
			_, _ = io.Copy(io.Discard, c)
		}
	}
	endless := func(piece string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
			}
		}
	}
	const network = cause.SideNetwork
	return map[string]proxyCase{
		"endless header":      {endless("X-Y: z\r\n"), cause.NotProxy, network, "longer than 16384 bytes"},
		"endless header line": {endless("xxxxxxxx"), cause.NotProxy, network, "longer than 16384 bytes"},
		"endless 1xx":         {says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), cause.ProxyRefused, network, "100 Continue"},
		"not HTTP":            {says("SSH-2.0-OpenSSH_9.2\r\n"), cause.NotProxy, network, "malformed HTTP"},
		"TLS alert":           {says("\x15\x03\x01\x00\x02\x02\x16\r\n"), cause.NotProxy, network, "in TLS"},
		"escape sequences":    {says("HTTP/1.1 403 \x1b[2J\x07gone\r\n\r\n"), cause.ProxyRefused, network, "403"},
		"long reason":         {says("HTTP/1.1 403 " + strings.Repeat("no ", 4000) + "\r\n\r\n"), cause.ProxyRefused, network, "403"},
		"redirect":            {says("HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n"), cause.ProxyRefused, network, "302"},
		"bad gateway":         {says("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1000000\r\n\r\n"), cause.ProxyNoWay, network, "502"},
		"unavailable":         {says("HTTP/1.0 503 Service Unavailable\r\n\r\n"), cause.ProxyNoWay, network, "503"},
		"too slow":            {says("HTTP/1.1 504 Gateway Timeout\r\n\r\n"), cause.ProxyNoWay, network, "504"},
		"broken":              {says("HTTP/1.1 500 Internal Server Error\r\n\r\n"), cause.ProxyNoWay, network, "500"},
		"other login":         {says("HTTP/1.1 407 Login\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n"), cause.ProxyAuth, network, "NTLM"},
		"basic login":         {says("HTTP/1.1 407 Login\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n"), cause.ProxyAuth, cause.SideDevice, "407"},
		"speaks first":        {says("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), cause.NotProxy, network, "spoke before TLS"},
		"closes":              {func(c net.Conn) { _, _ = http.ReadRequest(bufio.NewReader(c)) }, cause.Closed, network, "the proxy closed the connection"},
		"half an answer": {func(c net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: y\r\n")
		}, cause.Closed, network, "the proxy closed"},
		"silence":             {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, cause.ProxyUnreachable, network, "did not answer CONNECT in time"},
		"stops in the header": {says("HTTP/1.1 200 OK\r\nX:"), cause.ProxyUnreachable, network, "did not answer CONNECT in time"},
	}
}

// What a hostile or broken proxy says ends the attempt, with a name, and costs no memory.
func TestHostileProxies(t *testing.T) {
	w := newWorld(t)
	for name, test := range hostileProxies() {
		t.Run(name, func(t *testing.T) {
			w := &world{t: t, ca: w.ca, device: w.device, log: w.log}
			d := w.dialer(throughProxy("http://user:wr0ng@"+serve(t, test.proxy)), short)
			if test.cause != cause.ProxyUnreachable {
				d.Timeouts = DefaultTimeouts()
			}
			f := w.failure(d, "mqtts://broker.test:8883")
			expect(t, f, cause.StageProxy, test.cause, test.side, test.text)
			if strings.ContainsAny(f.Text, "\x1b\x07\r\n") || len(f.Text) > 520 || strings.Contains(f.Text, "wr0ng") {
				t.Errorf("%q", f.Text)
			}
		})
	}
}

// What is wrong in the configuration is said without the password.
func TestProxyConfig(t *testing.T) {
	for _, text := range []string{"", "env", "http://proxy.test:3128", "https://user:p%40ss@proxy.test", "http://[2001:db8::1]:3128/", "http://bücher.test:1"} {
		if err := (Config{Proxy: text, PostQuantum: PostQuantumAuto}).Validate(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"proxy.test:3128", "socks5://a:s3cret@proxy.test", "http://a:s3cret@", "http://a:s3cret@proxy.test:x", "http://a:s3cret@proxy.test:99999", "http://a:s3cret@proxy.test/x", "http://a:s3cret@pro xy.test",
		"http://a:s3cret@proxy.test?x", "http://a:s3cret%zz@proxy.test", "http://a:s3cret@pro\x00xy", "http://a:s3cret@proxy\r\nX: y", "http://" + strings.Repeat("s3cret", 1000)} {
		err := (Config{Proxy: text, PostQuantum: PostQuantumAuto}).Validate()
		if err == nil {
			t.Errorf("%q is taken", text)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", text, err)
		}
		if _, again := Open(Options{Config: Config{Proxy: text}}); again == nil || strings.Contains(again.Error(), "s3cret") {
			t.Errorf("%q: %v", text, again)
		}
	}
	if err := (Config{PostQuantum: "maybe"}).Validate(); err == nil {
		t.Error("post_quantum = maybe")
	}
}

// The environment names the proxy, and which brokers it is not for.
func TestProxyOfTheEnvironment(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Pointer[http.Request]
	address := serve(t, tunnel(&asked))
	broker := localhost(w.echo())
	d := w.dialer(throughProxy("env"))
	d.environment = func(r *http.Request) (*url.URL, error) {
		if r.URL.Scheme != "https" || !strings.HasPrefix(r.URL.Host, "localhost:") {
			return nil, fmt.Errorf("asked for %v", r.URL)
		}
		return url.Parse("http://env:s3cret@" + address)
	}
	c := w.connected(d, broker)
	if user, _, _ := basic(asked.Load()); user != "env" || c.Path.Proxy != "http://"+address {
		t.Errorf("%q, %+v", user, c.Path)
	}
	d.environment = func(*http.Request) (*url.URL, error) { return nil, nil }
	if c := w.connected(d, broker); c.Path.Proxy != "" {
		t.Errorf("%+v", c.Path)
	}
	d.environment = func(*http.Request) (*url.URL, error) { return url.Parse("socks5://a:s3cret@proxy.test") }
	f := w.failure(d, broker)
	expect(t, f, cause.StageDNS, cause.NotProxy, cause.SideNetwork, "http or https")
	d.environment = func(*http.Request) (*url.URL, error) {
		return nil, errors.New(`invalid proxy address "http://a:s3cret@`)
	}
	g := w.failure(d, broker)
	expect(t, g, cause.StageDNS, cause.NotProxy, cause.SideNetwork, "HTTPS_PROXY cannot be read")
	if strings.Contains(f.Text+g.Text, "s3cret") {
		t.Error(f.Text, g.Text)
	}
}

// No request can be smuggled into CONNECT, and a zone never leaves the device.
func TestConnectRequest(t *testing.T) {
	p := must[proxy](t)(parseProxy("http://u:p%0d%0aX-Evil:%20y@proxy.test:3128"))
	if text := p.request("broker.test:8883"); strings.Count(text, "\r\n") != 5 || strings.Contains(text, "Evil") {
		t.Errorf("%q", text)
	}
	w := newWorld(t)
	d := w.dialer(throughProxy("http://" + serve(t, func(net.Conn) {})))
	expect(t, w.failure(d, "mqtts://[fe80::1%25eth0]"), cause.StageProxy, cause.NotProxy, cause.SideNetwork, "zone")
}

func FuzzProxyAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 99999999 \x1b\r\nContent-Length: -1\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		ours, theirs := net.Pipe()
		go func() { // ends with ours
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				_, _ = theirs.Write(answer)
			}
		}()
		a := attempt{Dialer: new(Dialer), broker: Broker{host: "broker.test", port: "1"}, tunnel: ours, via: proxy{host: "proxy.test", port: "1"}}
		if err := a.ask(); err != nil {
			if f := cause.Classify(cause.StageProxy, err); f.Text == "" || f.Hint == "" || f.Cause == cause.Unknown || len(f.Text) > 520 {
				t.Errorf("%q: %+v", answer, f)
			}
		}
		_ = ours.Close()
	})
}
