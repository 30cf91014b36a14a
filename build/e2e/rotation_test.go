package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// A new certificate takes over under load: every connection opened later shows it, on both
// versions of TLS, and no message is lost. One that cannot be used changes nothing.
func TestRotation(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { testRotation(t, version) })
	}
}

func testRotation(t *testing.T, version uint16) {
	s := newSite(t, siteOptions{sync: "1s", every: 20 * time.Millisecond, points: 4, weak: true})
	s.process.Kill() // its place is taken by one that tells who connects
	broker := s.brokerWithVersion(t, version)
	s.run(t)
	waitFor(t, "the first connection", func() bool { return len(broker.Connections()) == 1 })
	old := s.leaf(t)
	if got := broker.Connections()[0].Leaf; got != old {
		t.Fatalf("the broker saw %s; the certificate is %s", got, old)
	}

	s.refuseStrangers(t, broker, old)

	mustRun(t, s.token(t, siteDevice), with(s.ferrule, "enroll", "--force", "--config", s.config, "--token", "-")...)
	fresh := s.leaf(t)
	if fresh == old {
		t.Fatal("enroll --force gave the same certificate")
	}
	before := len(broker.Connections())
	s.hangUp(t)
	waitFor(t, "the new certificate", func() bool { return len(broker.Connections()) > before })
	broker.Cut()
	if err := broker.Mend(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "one more connection", func() bool { return len(broker.Connections()) > before+1 })
	for _, c := range broker.Connections()[before:] {
		if c.Leaf != fresh || c.TLSVersion != tls.VersionName(version) {
			t.Errorf("after the rotation a connection shows %s on %s; want %s", c.Leaf, c.TLSVersion, fresh)
		}
	}
	s.waitDrained(t)
	s.stop(t)
	s.judge(t, nil, promise{})
}

// refuseStrangers puts certificates in place that must not take over: one for another key,
// one for another device, which are never staged, and one of a CA that the broker does not
// know, which the broker refuses on the second connection while the first lives on.
func (s *site) refuseStrangers(t *testing.T, broker *agenttest.Broker, old string) {
	t.Helper()
	path := filepath.Join(s.state, "device.crt")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stranger, _ := s.clientCertificate(t, siteDevice)
	s.replace(t, path, stranger)
	s.hangUp(t)
	waitFor(t, "the mismatch to be told", func() bool { return strings.Contains(s.agent.output(), "not for this key") })

	s.replace(t, path, s.certificateFor(t, "gw-2", filepath.Join(s.ca, "device-ca")))
	s.hangUp(t)
	waitFor(t, "the other device to be told", func() bool { return strings.Contains(s.agent.output(), "is for device") })

	other := filepath.Join(s.dir, "other-ca")
	mustRun(t, "", append(s.factory, "ca", "init", other)...)
	s.replace(t, path, s.certificateFor(t, siteDevice, filepath.Join(other, "root")))
	s.hangUp(t)
	waitFor(t, "the broker's refusal", func() bool {
		text, _ := field(s.status(t), "session", "last_failure", "text").(string)
		return strings.Contains(text, "new certificate was not accepted")
	})
	if c := broker.Connections(); len(c) != 1 || c[0].Leaf != old {
		t.Errorf("certificates that cannot be used led to the connections %+v", c)
	}
	if field(s.status(t), "session", "stage") != "up" {
		t.Error("the old session did not live on")
	}
	if err := os.WriteFile(path, good, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *site) brokerWithVersion(t *testing.T, version uint16) *agenttest.Broker {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(s.ca, "broker.crt"), filepath.Join(s.ca, "broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(s.ca, "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(root)
	ledger, err := agenttest.OpenLedger(s.ledger(), false)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := agenttest.StartBroker(agenttest.BrokerConfig{
		Address: s.broker, Ledger: ledger.Append,
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: clients, MaxVersion: version},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = broker.Close(), ledger.Close() })
	return broker
}

// leaf returns the digest of the device's certificate on disk.
func (s *site) leaf(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.state, "device.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	digest := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(digest[:])
}

func (s *site) hangUp(t *testing.T) {
	t.Helper()
	if err := s.agent.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

func (s *site) replace(t *testing.T, path, by string) {
	t.Helper()
	text, err := os.ReadFile(by)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// certificateFor has openssl issue a certificate for the device's own key, in a device's
// name, by the CA in the files ca.crt and ca.key.
func (s *site) certificateFor(t *testing.T, device, ca string) (path string) {
	t.Helper()
	openssl := need(t, "openssl")
	csr, leaf := filepath.Join(s.dir, "device.csr"), filepath.Join(s.dir, "device.leaf")
	mustRun(t, "", openssl, "req", "-new", "-key", filepath.Join(s.state, "device.pem"), "-subj", "/CN="+device, "-out", csr)
	mustRun(t, "", openssl, "x509", "-req", "-in", csr, "-days", "1", "-CA", ca+".crt", "-CAkey", ca+".key", "-CAcreateserial", "-out", leaf)
	return leaf
}

func (s *site) waitDrained(t *testing.T) {
	t.Helper()
	waitFor(t, "the backlog to drain", func() bool {
		status := s.status(t)
		depth, _ := field(status, "outbox", "depth").(float64)
		return field(status, "session", "stage") == "up" && depth <= 4
	})
}
