package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/agent/session/dial"
)

// through is what becomes of a report that was stored.
func through(t *testing.T, r Report) Report {
	t.Helper()
	text := must[[]byte](t)(json.Marshal(r))
	var back Report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if again := must[[]byte](t)(json.Marshal(back)); string(again) != string(text) {
		t.Errorf("a report reads back as another one:\n%s\n%s", text, again)
	}
	return back
}

// Each difference that is planted between two real runs is found, as the first one that explains it.
func TestComparePlanted(t *testing.T) {
	w := newWorld(t)
	server := func(change func(*tls.Config)) string {
		config := w.server.ServerTLS(w.ca)
		change(config)
		return secure(t, config, speaks(good))
	}
	plain := server(func(*tls.Config) {})
	theirs := through(t, w.run(plain))
	if theirs.State != OK {
		show(t, theirs)
		t.Fatal("the run that works does not")
	}
	other := must[*agenttest.CA](t)(agenttest.NewCA("other"))
	day := 24 * time.Hour
	certificate := func(l agenttest.Leaf) func(*tls.Config) {
		issued := must[*agenttest.Issued](t)(w.ca.Issue(l))
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{issued.TLS} }
	}
	localhost := []string{"localhost", "127.0.0.1", "::1"}
	for name, test := range map[string]struct {
		server func(*tls.Config)
		device func(*Options)
		layer  Layer
		what   string
		ours   string
	}{
		"version":        {server: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, layer: TLS, what: "TLS version", ours: "TLS 1.2"},
		"group":          {server: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, layer: TLS, what: "group", ours: "X25519"},
		"group asked":    {server: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} }, layer: TLS, what: "group", ours: "P-521"},
		"groups offered": {device: func(o *Options) { o.Dial.PostQuantum = dial.PostQuantumNever }, layer: TLS, what: "groups offered", ours: "X25519 P-256"},
		"ALPN":           {device: alpn("mqtt"), server: func(c *tls.Config) { c.NextProtos = []string{"mqtt"} }, layer: TLS, what: "ALPN offered", ours: "mqtt"},
		"authorities":    {server: func(c *tls.Config) { c.ClientCAs = other.Pool() }, layer: Client, what: "acceptable authorities", ours: "CN=other root"},
		"no certificate asked": {server: func(c *tls.Config) { c.ClientAuth = tls.NoClientCert }, layer: Client, what: "acceptable authorities",
			ours: "no certificate is asked for"},
		"chain": {server: func(c *tls.Config) { c.Certificates[0].Certificate = c.Certificates[0].Certificate[:1] }, layer: TLS, what: "length of the broker's chain", ours: "1"},
		"issuer": {server: func(c *tls.Config) {
			c.Certificates = []tls.Certificate{must[*agenttest.Issued](t)(other.Server()).TLS}
		}, layer: TLS, what: "issuer of the broker's certificate", ours: "CN=other issuing"},
		"names": {server: certificate(agenttest.Leaf{Names: []string{"other.example"}}), layer: TLS, what: "names of the broker's certificate", ours: "other.example"},
		"expired": {server: certificate(agenttest.Leaf{Names: localhost, NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(-day)}),
			layer: TLS, what: "the broker's certificate by our clock", ours: "certificate 0 has expired"},
		"our clock": {device: func(o *Options) {
			past := &world{t: t, ca: w.ca, device: w.device, clock: identity.TrustedClock(func() time.Time { return time.Now().Add(-100 * day) })}
			c := past.credential()
			o.Credential = func() *identity.Credential { return c }
		}, layer: TLS, what: "the broker's certificate by our clock", ours: "is not valid before"},
		"staple": {server: func(c *tls.Config) { c.Certificates[0].OCSPStaple = []byte("a proof, or none") }, layer: TLS, what: "OCSP response", ours: "stapled"},
		"our issuer": {device: func(o *Options) {
			foreign := &world{t: t, ca: w.ca, device: must[*agenttest.Issued](t)(other.Device("device-1")), clock: w.clock}
			c := foreign.credential()
			o.Credential = func() *identity.Credential { return c }
		}, layer: Identity, what: "issuer of the device's certificate", ours: "CN=other issuing"},
		"not enrolled": {device: func(o *Options) {
			o.Credential = nil
		}, layer: Client, what: "certificates that the device showed", ours: "0"},
		"another certificate": {server: certificate(agenttest.Leaf{CommonName: "broker", Names: localhost}), layer: TLS, what: "the broker's certificate", ours: ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := plain
			if test.server != nil {
				url = server(test.server)
			}
			ours := w.run(url, func(o *Options) {
				if test.device != nil {
					test.device(o)
				}
			})
			sameName(&ours, theirs)
			c := Compare(through(t, ours), theirs)
			if c.First == nil || c.First.Layer != test.layer || c.First.What != test.what || !strings.Contains(c.First.Ours, test.ours) {
				show(t, ours)
				t.Errorf("first: %v; all: %v", c.First, c.All)
			}
		})
	}
}

// alpn asks the broker for a protocol.
func alpn(protocol string) func(*Options) {
	return func(o *Options) {
		b, err := dial.ParseBroker(o.Brokers[0].String() + "?alpn=" + protocol)
		if err == nil {
			o.Brokers = []dial.Broker{b}
		}
	}
}

// sameName gives ours the broker's URL and addresses of theirs: test servers have ports of their own.
func sameName(ours *Report, theirs Report) {
	from, to := ours.Facts.Brokers[0], theirs.Facts.Brokers[0]
	for i := range ours.Checks {
		if ours.Checks[i].Broker == from.Broker {
			ours.Checks[i].Broker = to.Broker
		}
	}
	ours.Facts.Brokers[0].Broker = to.Broker
	ours.Facts.Brokers[0].Connects = to.Connects
}

// What is not of TLS is planted in the report.
func TestCompareFacts(t *testing.T) {
	w := newWorld(t)
	url := secure(t, w.server.ServerTLS(w.ca), speaks(good))
	theirs := w.run(url)
	for name, test := range map[string]struct {
		plant func(*Report, *PathFacts)
		layer Layer
		what  string
	}{
		"suite":     {func(_ *Report, p *PathFacts) { p.Handshake.Suite = "TLS_AES_256_GCM_SHA384 " }, TLS, "cipher suite"},
		"sni":       {func(_ *Report, p *PathFacts) { h := *p.Handshake.Hello; h.ServerName = "x"; p.Handshake.Hello = &h }, TLS, "server name (SNI)"},
		"families":  {func(_ *Report, p *PathFacts) { p.IPv6 = []string{"::1"} }, DNS, "families that the name has"},
		"addresses": {func(_ *Report, p *PathFacts) { p.IPv4 = []string{"10.0.0.1"} }, DNS, "addresses"},
		"refused":   {func(_ *Report, p *PathFacts) { p.Refuses = []string{"10.0.0.1:8883"} }, TCP, "addresses that do not connect"},
		"host":      {func(_ *Report, p *PathFacts) { p.Host = "elsewhere" }, DNS, "name that is looked up"},
		"proxy":     {func(_ *Report, p *PathFacts) { p.Proxy = "http://proxy:3128" }, Proxy, "proxy"},
		"inspected": {func(_ *Report, p *PathFacts) { p.Inspected = "CN=firewall" }, Proxy, "who looks inside"},
		"version":   {func(r *Report, _ *PathFacts) { r.Version = "0.1" }, Configuration, "version of ferrule"},
		"client id": {func(_ *Report, p *PathFacts) { p.ClientID = "another" }, MQTT, "client id"},
		"tpm": {func(r *Report, _ *PathFacts) {
			for i := range r.Checks {
				if r.Checks[i].Layer == TPM {
					r.Checks[i] = Result{Layer: TPM, State: Warned, Cause: "tpm-lockout"}
				}
			}
		}, TPM, "the TPM"},
	} {
		t.Run(name, func(t *testing.T) {
			theirs := through(t, theirs)
			for i := range theirs.Checks {
				if theirs.Checks[i].Layer == TPM {
					theirs.Checks[i].State = OK
				}
			}
			theirs.Facts.Brokers[0].IPv4 = []string{"127.0.0.1"}
			ours := through(t, theirs)
			if c := Compare(ours, theirs); c.First != nil || c.All != nil {
				t.Fatalf("two that are the same differ: %v", c.All)
			}
			test.plant(&ours, &ours.Facts.Brokers[0])
			c := Compare(ours, theirs)
			if c.First == nil || c.First.Layer != test.layer || c.First.What != test.what {
				t.Errorf("first: %v; all: %v", c.First, c.All)
			}
		})
	}
}

// Two runs at the same broker, a moment apart: nothing differs that is named.
func TestCompareIgnoresWhatAlwaysDiffers(t *testing.T) {
	w := newWorld(t)
	url := secure(t, w.server.ServerTLS(w.ca), speaks(good))
	if c := Compare(w.run(url), w.run(url)); c.First != nil || len(c.All) > 0 {
		t.Errorf("%v", c.All)
	}
}

// A failure does not explain itself, and what lies behind it explains nothing.
func TestCompareLooksBeforeTheFailure(t *testing.T) {
	w := newWorld(t)
	theirs := w.run(secure(t, w.server.ServerTLS(w.ca), speaks(good)))
	ours := w.run(secure(t, w.server.ServerTLS(w.ca), func(c net.Conn) {
		speaks(func(byte) ([]byte, bool) { return []byte{packetConnack << 4, 2, 0, 5}, false })(c)
	}), func(o *Options) {
		o.Alone = func() bool { return true }
		o.Roots = func() *x509.CertPool { return w.ca.Pool() }
	})
	sameName(&ours, theirs)
	if c := Compare(ours, theirs); c.First != nil {
		t.Errorf("%v", c.First)
	}
	var b strings.Builder
	if err := Compare(ours, theirs).Print(&b); err != nil || !strings.Contains(b.String(), "nothing differs") {
		t.Errorf("%q, %v", b.String(), err)
	}
}

// A report of somebody else's is foreign bytes.
func FuzzCompare(f *testing.F) {
	f.Add([]byte(`{"schema":1,"facts":{"brokers":[{"broker":"x","handshake":{"hello":{},"broker_chain":[{}],"messages":[]}}]},"checks":[{"layer":"tls","state":"failed"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var r Report
		if json.Unmarshal(text, &r) != nil {
			return
		}
		if c := Compare(r, r); c.First != nil || c.All != nil {
			t.Errorf("it differs from itself: %v", c.All)
		}
		var empty Report
		_ = Compare(r, empty).Print(&strings.Builder{})
		_ = Compare(empty, r).Print(&strings.Builder{})
		_ = r.Print(&strings.Builder{}, Style{})
		_ = r.Explain(&strings.Builder{})
	})
}
