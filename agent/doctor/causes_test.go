package doctor

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
)

// expect fails unless layer is the one that failed, for this cause, with side, text and repair, all
// before it were reached, and none behind it was.
func expect(t *testing.T, r Report, layer Layer, what cause.Cause, side cause.Side, text string) {
	t.Helper()
	c, failed := r.First()
	if !failed || c.Layer != layer || c.Cause != string(what) || c.Side != string(side) || !strings.Contains(c.Text, text) || c.Repair == "" || strings.Contains(c.Repair, "\n") {
		show(t, r)
		t.Fatalf("want layer %s, cause %s, side %s, text with %q and a repair; got %+v", layer, what, side, text, c)
	}
	if r.State != Failed || r.Failing != layer {
		t.Errorf("the report's state is %s, failing %s", r.State, r.Failing)
	}
	for _, other := range r.Checks {
		if other.Broker == "" {
			continue
		}
		if behind := rank(other.Layer) > rank(layer); behind != (other.State == NotReached) && other.Layer != layer {
			t.Errorf("layer %s is %s, and %s failed", other.Layer, other.State, layer)
		}
	}
}

// each runs f for brokers of TLS 1.2 and 1.3.
func each(t *testing.T, f func(t *testing.T, version uint16)) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, version)
		})
	}
}

func limited(config *tls.Config, version uint16) *tls.Config {
	config.MinVersion, config.MaxVersion = version, version
	return config
}

// opensslVersion is the flag that pins openssl to one.
func opensslVersion(version uint16) string {
	if version == tls.VersionTLS12 {
		return "-tls1_2"
	}
	return "-tls1_3"
}

// mosquittoVersion answers "" where mosquitto cannot be pinned: tls_version names the least that it takes.
func mosquittoVersion(version uint16) (string, bool) {
	return "tls_version tlsv1.3", version == tls.VersionTLS13
}

// servers are the same broker in Go, openssl and, for TLS 1.3, mosquitto. Each refuses what it has to
// refuse by its own code.
func (w *world) servers(version uint16, server *agenttest.Issued, clients *agenttest.CA) map[string]string {
	w.t.Helper()
	urls := map[string]string{
		"Go":      secure(w.t, limited(server.ServerTLS(clients), version), speaks(good)),
		"openssl": w.openssl(server, clients, opensslVersion(version), "-Verify 4 -verify_return_error -CAfile {ca}"),
	}
	if line, can := mosquittoVersion(version); can {
		urls["mosquitto"], _ = w.mosquitto(server, clients, line)
	}
	return urls
}

// Causes 1 and 2 of 11: no client certificate. TLS 1.3 tells it at the first read, TLS 1.2 says only
// handshake failure, and what was sent says the rest.
func TestCause01And02NoClientCertificate(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		w.device = nil
		for name, url := range w.servers(version, w.server, w.ca) {
			r := w.run(url)
			what, text := cause.CertificateRequired, "certificate required"
			if version == tls.VersionTLS12 {
				what, text = cause.Handshake, "got none"
			}
			expect(t, r, Client, what, cause.SideDevice, text)
			if c, _ := r.First(); !strings.Contains(c.Repair, "ferrule enroll") {
				t.Errorf("%s: repair %q", name, c.Repair)
			}
			if !strings.Contains(strings.Join(find(t, r, Client).Saw, "\n"), "no certificate was shown") {
				t.Errorf("%s: saw %q", name, find(t, r, Client).Saw)
			}
		}
	})
}

// Cause 3: ours is of an authority that the broker does not list. It is not shown at all, and the
// authorities that it does list are named.
func TestCause03CertificateNotAcceptable(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		other := must[*agenttest.CA](t)(agenttest.NewCA("other"))
		servers := w.servers(version, w.server, other)
		delete(servers, "mosquitto") // it lists no authorities
		for name, url := range servers {
			r := w.run(url)
			expect(t, r, Client, cause.CertificateNotAcceptable, cause.SideBroker, "not signed by an acceptable CA")
			if saw := strings.Join(find(t, r, Client).Saw, "\n"); !strings.Contains(saw, "CN=other root") {
				t.Errorf("%s: the authorities are not named: %q", name, saw)
			}
		}
	})
}

// Cause 4: the broker lists none, so ours is shown, and it does not know who signed it.
func TestCause04CertificateUnknownCA(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		other := must[*agenttest.CA](t)(agenttest.NewCA("other"))
		unlisted := w.openssl(w.server, other, opensslVersion(version), "-Verify 4 -verify_return_error -verifyCAfile {ca}")
		urls := []string{unlisted}
		if line, can := mosquittoVersion(version); can {
			url, _ := w.mosquitto(w.server, other, line)
			urls = append(urls, url)
		}
		for _, url := range urls {
			expect(t, w.run(url), Client, cause.CertificateUnknownCA, cause.SideBroker, "unknown certificate authority")
		}
		r := w.run(unlisted)
		if saw := strings.Join(find(t, r, Client).Saw, "\n"); !strings.Contains(saw, "shown certificate 0: CN=device-1") {
			t.Errorf("saw %q", saw)
		}
	})
}

// Cause 5: ours has expired.
func TestCause05CertificateExpired(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		w.device = must[*agenttest.Issued](t)(w.ca.Issue(agenttest.Leaf{CommonName: "device-1",
			NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)}))
		for _, url := range w.servers(version, w.server, w.ca) {
			expect(t, w.run(url), Client, cause.CertificateExpired, cause.SideDevice, "expired")
		}
	})
}

// Cause 6: the broker's certificate is of an unknown authority, for another name, or expired.
func TestCause06BrokersCertificate(t *testing.T) {
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		leaf    agenttest.Leaf
		foreign bool
		what    cause.Cause
		side    cause.Side
		text    string
	}{
		"unknown authority": {agenttest.Leaf{Names: []string{"127.0.0.1"}}, true, cause.BrokerUnknownCA, cause.SideDevice, "unknown authority"},
		"wrong name":        {agenttest.Leaf{Names: []string{"other.example"}}, false, cause.BrokerName, cause.SideBroker, "127.0.0.1"},
		"expired": {agenttest.Leaf{Names: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(-day)},
			false, cause.BrokerExpired, cause.SideBroker, "is after"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, version uint16) {
				w := newWorld(t)
				ca := w.ca
				if test.foreign {
					ca = must[*agenttest.CA](t)(agenttest.NewCA("foreign"))
				}
				for name, url := range w.servers(version, must[*agenttest.Issued](t)(ca.Issue(test.leaf)), w.ca) {
					r := w.run(url)
					expect(t, r, TLS, test.what, test.side, test.text)
					if saw := strings.Join(find(t, r, TLS).Saw, "\n"); !strings.Contains(saw, "certificate 0: ") {
						t.Errorf("%s: the certificate is not shown: %q", name, saw)
					}
				}
			})
		})
	}
}

// Cause 7: our clock stands in 1970.
func TestCause07Clock(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		w.clock = identity.TrustedClock(func() time.Time { return time.Unix(60, 0) })
		for _, url := range w.servers(version, w.server, w.ca) {
			expect(t, w.run(url), TLS, cause.Clock, cause.SideDevice, "1970-01-01")
		}
	})
}

// Cause 8: no common version.
func TestCause08Version(t *testing.T) {
	w := newWorld(t)
	config := w.server.ServerTLS(w.ca)
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for _, url := range []string{
		secure(t, config, speaks(good)),
		w.openssl(w.server, w.ca, "-tls1_1 -cipher ALL@SECLEVEL=0"),
	} {
		expect(t, w.run(url), TLS, cause.Version, cause.SideBroker, "protocol version")
	}
}

// Cause 9: the port speaks something else, and what it said is shown.
func TestCause09Plaintext(t *testing.T) {
	w := newWorld(t)
	r := w.run(serve(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = c.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
	}))
	expect(t, r, TLS, cause.Plaintext, cause.SideBroker, "does not look like a TLS handshake")
	if saw := strings.Join(find(t, r, TLS).Saw, "\n"); !strings.Contains(saw, "HTTP/1.0 400") {
		t.Errorf("saw %q", saw)
	}
}

// Cause 10: the broker closes at once, as plaintext MQTT listeners do.
func TestCause10Closed(t *testing.T) {
	w := newWorld(t)
	expect(t, w.run(serve(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) })), TLS, cause.Closed, cause.SideBroker, "EOF")
}

// Cause 11: the broker stalls.
func TestCause11Stalled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect(t, w.run(serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), quick), TLS, cause.Stalled, cause.SideBroker, "stalled after ClientHello")
}

// Something on the way lets only a small ClientHello through.
func TestLargeClientHelloDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config := w.server.ServerTLS(w.ca)
	url := serve(t, func(c net.Conn) {
		buffer := make([]byte, 16<<10)
		n, _ := io.ReadAtLeast(c, buffer, 5)
		if size := int(buffer[3])<<8 | int(buffer[4]); size > 1000 {
			_, _ = io.Copy(io.Discard, c)
			return
		}
		conn := tls.Server(&prefixed{Conn: c, first: buffer[:n]}, config)
		if conn.Handshake() == nil {
			speaks(good)(conn)
		}
	})
	expect(t, w.run(url, quick), TLS, CauseLargeHello, cause.SideNetwork, "a small one does")
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// A broker that shares no suite with us says handshake_failure, like one that wants a certificate.
func TestNothingInCommon(t *testing.T) {
	w := newWorld(t)
	url := w.openssl(w.server, w.ca, "-tls1_2 -cipher AES256-CCM8:@SECLEVEL=0")
	expect(t, w.run(url), TLS, CauseNothingInCommon, cause.SideBroker, "finds nothing that both speak")
}

// Nothing listens; there is no such name.
func TestCausesBeforeTLS(t *testing.T) {
	w := newWorld(t)
	expect(t, w.run("mqtts://127.0.0.1:"+freePort(t)), TCP, cause.Refused, cause.SideBroker, "refused")
	r := w.run("mqtts://no-such-host.invalid:8883")
	if c, failed := r.First(); !failed || c.Layer != DNS || c.Repair == "" {
		t.Errorf("%+v", c)
	}
}
