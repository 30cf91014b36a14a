package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/internal/disk"

	"ferrule/agent/session/cause"
)

// each runs f for a broker of TLS 1.2 and one of 1.3.
func each(t *testing.T, f func(t *testing.T, version uint16)) {
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) { f(t, version) })
	}
}

// listen answers handshakes with config and counts the bytes that clients send behind them.
func listen(t *testing.T, config *tls.Config) (address string, received *atomic.Int64) {
	t.Helper()
	received = new(atomic.Int64)
	r := startRogue(t, config, func(p peer) {
		n, _ := io.Copy(io.Discard, p)
		received.Add(n)
	})
	return r.address, received
}

// attempt makes the attempt of a session and returns what Classify makes of it.
func attempt(t *testing.T, s *Session) cause.Failure {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sec, err := s.dialer.Dial(ctx, s.brokers[0], s.identity.Current(), s.begin)
	if err == nil {
		var l *link
		if l, err = s.open(ctx, sec); err == nil {
			l.disconnect()
			t.Fatal("connected")
		}
	}
	var e *cause.StageError
	if !errors.As(err, &e) {
		t.Fatalf("%v has no stage", err)
	}
	return cause.Classify(e.Stage, err)
}

func expect(t *testing.T, f cause.Failure, stage cause.Stage, what cause.Cause, side cause.Side, text string) {
	t.Helper()
	if f.Stage != stage || f.Cause != what || f.Side != side || !strings.Contains(f.Text, text) || f.Hint == "" {
		t.Errorf("got %+v,\nwant stage %s, cause %s, side %s, text with %q, and a hint", f, stage, what, side, text)
	}
}

// refusalStage is where a refused client certificate shows.
func refusalStage(version uint16) cause.Stage {
	if version == tls.VersionTLS13 {
		return cause.StageConnack
	}
	return cause.StageTLS
}

// bare connects as a client would that has, or shows, what config says.
func bare(t *testing.T, address string, config *tls.Config) cause.Failure {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, stage := tls.Client(conn, config), cause.StageTLS
	if err = c.Handshake(); err == nil {
		stage = cause.StageConnack
		_, _ = c.Write([]byte{1 << 4, 0})
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil {
		t.Fatal("accepted")
	}
	return cause.Classify(stage, err)
}

// Causes 1 and 2: no client certificate, in TLS 1.3 and 1.2.
func TestCauseNoClientCertificate(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		config := w.server.ServerTLS(w.ca)
		config.MaxVersion = version
		address, _ := listen(t, config)
		m := w.startMosquitto()
		for name, address := range map[string]string{"Go": address, "mosquitto": m.address} {
			f := bare(t, address, &tls.Config{RootCAs: w.ca.Pool(), ServerName: "localhost", MaxVersion: version})
			if version == tls.VersionTLS13 {
				expect(t, f, cause.StageConnack, cause.CertificateRequired, cause.SideDevice, "certificate required")
			} else {
				expect(t, f, cause.StageTLS, cause.Handshake, cause.SideDevice, "handshake failure")
			}
			if t.Failed() {
				t.Fatal("with", name)
			}
		}
	})
}

// Cause 3: ours is of no authority that the broker lists; it is not sent at all.
func TestCauseCertificateNotAcceptable(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		config := w.server.ServerTLS(must[*agenttest.CA](t)(agenttest.NewCA("other")))
		config.MaxVersion = version
		address, received := listen(t, config)
		expect(t, attempt(t, w.session(address)), cause.StageTLS, cause.CertificateNotAcceptable, cause.SideBroker, "not signed by an acceptable CA")
		if received.Load() != 0 {
			t.Error("something was sent behind the handshake")
		}
	})
}

// Cause 4: the broker does not know who signed ours, and we showed it all the same.
func TestCauseCertificateUnknownCA(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		foreign := must[*agenttest.Issued](t)(must[*agenttest.CA](t)(agenttest.NewCA("other")).Device("device-1"))
		config := w.server.ServerTLS(w.ca)
		config.MaxVersion = version
		address, _ := listen(t, config)
		m := w.startMosquitto()
		for _, address := range []string{address, m.address} {
			f := bare(t, address, &tls.Config{RootCAs: w.ca.Pool(), ServerName: "localhost", MaxVersion: version,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign.TLS, nil }})
			expect(t, f, refusalStage(version), cause.CertificateUnknownCA, cause.SideBroker, "unknown certificate authority")
		}
	})
}

// Cause 5: ours has expired. The session meets it as any client would.
func TestCauseCertificateExpired(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca := must[*agenttest.CA](t)(agenttest.NewCA("test"))
		w := newWorldOf(t, ca, must[*agenttest.Issued](t)(ca.Issue(agenttest.Leaf{CommonName: "device-1",
			NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})))
		config := w.server.ServerTLS(w.ca)
		config.MaxVersion = version
		address, _ := listen(t, config)
		expect(t, attempt(t, w.session(address)), refusalStage(version), cause.CertificateExpired, cause.SideDevice, "expired certificate")
		extra := "tls_version tlsv1.3"
		if version == tls.VersionTLS12 {
			extra = "tls_version tlsv1.2"
		}
		m := w.startMosquitto(extra)
		f := attempt(t, w.session(m.address))
		if version == tls.VersionTLS13 || f.Stage == cause.StageTLS { // mosquitto takes tls_version as the least
			expect(t, f, f.Stage, cause.CertificateExpired, cause.SideDevice, "expired certificate")
		}
	})
}

// Cause 6: the broker's certificate. No byte of CONNECT leaves.
func TestCauseBrokersCertificate(t *testing.T) {
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		leaf    agenttest.Leaf
		foreign bool
		cause   cause.Cause
		side    cause.Side
		text    string
	}{
		"unknown authority": {agenttest.Leaf{Names: []string{"127.0.0.1"}}, true, cause.BrokerUnknownCA, cause.SideDevice, "unknown authority"},
		"wrong name":        {agenttest.Leaf{Names: []string{"other.example"}}, false, cause.BrokerName, cause.SideBroker, "127.0.0.1"},
		"expired": {agenttest.Leaf{Names: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(-day)},
			false, cause.BrokerExpired, cause.SideBroker, "is after"},
		"not yet valid": {agenttest.Leaf{Names: []string{"127.0.0.1"}, NotBefore: time.Now().Add(day), NotAfter: time.Now().Add(2 * day)},
			false, cause.Clock, cause.SideDevice, "is before"},
		"client certificate": {agenttest.Leaf{CommonName: "127.0.0.1"}, false, cause.BrokerName, cause.SideBroker, "Common Name"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, version uint16) {
				w := newWorld(t)
				ca := w.ca
				if test.foreign {
					ca = must[*agenttest.CA](t)(agenttest.NewCA("other"))
				}
				config := must[*agenttest.Issued](t)(ca.Issue(test.leaf)).ServerTLS(w.ca)
				config.MaxVersion = version
				address, received := listen(t, config)
				expect(t, attempt(t, w.session(address)), cause.StageTLS, test.cause, test.side, test.text)
				if received.Load() != 0 {
					t.Error("a byte of CONNECT left")
				}
			})
		})
	}
}

// Cause 7: our clock stands at 1970.
func TestCauseClock(t *testing.T) {
	w := newWorld(t)
	id, err := identity.Open(context.Background(),
		identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true},
		identity.Options{StateDir: w.dir, FS: disk.OS(), Log: w.log.logger(), Clock: identity.TrustedClock(func() time.Time { return time.Unix(60, 0) })})
	if err != nil {
		t.Fatal(err)
	}
	w.identity = id
	t.Cleanup(func() { _ = id.Close() })
	address, _ := listen(t, w.server.ServerTLS(w.ca))
	expect(t, attempt(t, w.session(address)), cause.StageTLS, cause.Clock, cause.SideDevice, "1970-01-01")
}

// Cause 8: no common version.
func TestCauseVersion(t *testing.T) {
	w := newWorld(t)
	config := w.server.ServerTLS(w.ca)
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	address, _ := listen(t, config)
	expect(t, attempt(t, w.session(address)), cause.StageTLS, cause.Version, cause.SideBroker, "protocol version")
}

// Cause 9: a port that speaks something else.
func TestCausePlaintext(t *testing.T) {
	w := newWorld(t)
	r := startRogue(t, nil, func(p peer) {
		_, _ = p.Read(make([]byte, 4096))
		p.write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
	})
	expect(t, attempt(t, w.session(r.address)), cause.StageTLS, cause.Plaintext, cause.SideBroker, "first record does not look like a TLS handshake")
}

// Cause 10: the broker closes at once, as plaintext MQTT listeners do.
func TestCauseClosed(t *testing.T) {
	w := newWorld(t)
	r := startRogue(t, nil, func(p peer) { _, _ = p.Read(make([]byte, 4096)) })
	expect(t, attempt(t, w.session(r.address)), cause.StageTLS, cause.Closed, cause.SideBroker, "EOF")
}

// Cause 11: the broker stalls.
func TestCauseStalled(t *testing.T) {
	w := newWorld(t)
	r := startRogue(t, nil, func(p peer) { _, _ = io.Copy(io.Discard, p) })
	expect(t, attempt(t, short(w.session(r.address))), cause.StageTLS, cause.Stalled, cause.SideBroker, "stalled after ClientHello")
}

func TestCausesBeforeTLS(t *testing.T) {
	w := newWorld(t)
	expect(t, attempt(t, w.session(freeAddress(t))), cause.StageTCP, cause.Refused, cause.SideBroker, "refused")
	if f := attempt(t, w.session("no-such-host.invalid:8883")); f.Stage != cause.StageDNS || f.Cause != cause.Name && f.Cause != cause.DNS && f.Cause != cause.Stalled {
		t.Errorf("failure: %+v", f)
	}
}

func TestCausesOfConnack(t *testing.T) {
	for code, what := range map[byte]cause.Cause{1: cause.Protocol, 2: cause.ClientID, 3: cause.Unavailable, 4: cause.NotAuthorized, 5: cause.NotAuthorized} {
		w := newWorld(t)
		r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
			p.read()
			p.write([]byte{packetConnack << 4, 2, 0, code})
			p.read()
		})
		f := attempt(t, w.session(r.address))
		expect(t, f, cause.StageConnack, what, cause.SideBroker, "")
		if n := r.connections(); n != 1 {
			t.Errorf("code %d: %d connections: the refusal was tried again as MQTT 3.1", code, n)
		}
	}
}

func TestKeyThatDoesNotSign(t *testing.T) {
	expect(t, cause.Classify(cause.StageTLS, errors.New("tls: failed to sign handshake: TPM_RC_LOCKOUT")), cause.StageTLS, cause.Key, cause.SideDevice, "TPM_RC_LOCKOUT")
}

func TestForeignTextIsMadePrintable(t *testing.T) {
	f := cause.Classify(cause.StageTLS, x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"a\x1b[2J\nb\xff"}}, Host: "c"})
	if strings.ContainsAny(f.Text, "\x1b\n") || !utf8.ValidString(f.Text) {
		t.Errorf("%q", f.Text)
	}
	if f := cause.Classify(cause.StageUp, errors.New(strings.Repeat("é", 5000))); len(f.Text) > 520 {
		t.Errorf("%d bytes", len(f.Text))
	}
}
