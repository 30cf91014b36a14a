package agenttest_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/agenttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLedgerKeepsWholeLines(t *testing.T) {
	name := filepath.Join(t.TempDir(), "ledger")
	l, err := agenttest.OpenLedger(name, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"a", "b"} {
		if err := l.Append(agenttest.Message{Topic: topic, Payload: []byte("\x00\n{}")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(text, text[:len(text)/4]...), 0o600); err != nil { // as kill -9 may leave it
		t.Fatal(err)
	}
	got, err := agenttest.ReadLedger(name)
	if err != nil || len(got) != 2 || got[1].Topic != "b" || string(got[1].Payload) != "\x00\n{}" {
		t.Errorf("%+v, %v", got, err)
	}
	again, err := agenttest.OpenLedger(name, false) // the broker that follows the killed one
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Append(agenttest.Message{Topic: "c"}); err != nil {
		t.Fatal(err)
	}
	if got, err := agenttest.ReadLedger(name); err != nil || len(got) != 3 || got[2].Topic != "c" {
		t.Errorf("behind an unfinished line: %+v, %v", got, err)
	}
	if err := os.WriteFile(name, []byte("{}\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := agenttest.ReadLedger(name); err == nil {
		t.Error("a damaged line went unnoticed")
	}
}

func TestCertificatesAreWhatWasAskedFor(t *testing.T) {
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Server("broker.example")
	if err != nil {
		t.Fatal(err)
	}
	device, err := ca.Device("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(i *agenttest.Issued, o x509.VerifyOptions) error {
		issuing, err := x509.ParseCertificate(i.TLS.Certificate[1])
		if err != nil {
			t.Fatal(err)
		}
		o.Roots, o.Intermediates = ca.Pool(), x509.NewCertPool()
		o.Intermediates.AddCert(issuing)
		_, err = i.Leaf.Verify(o)
		return err
	}
	for _, name := range []string{"localhost", "127.0.0.1", "broker.example"} {
		if err := verify(server, x509.VerifyOptions{DNSName: name}); err != nil {
			t.Error(err)
		}
	}
	client := x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if err := verify(device, client); err != nil || device.Leaf.Subject.CommonName != "gw-1" {
		t.Error(err)
	}
	if verify(server, client) == nil {
		t.Error("a server's certificate would do for a client")
	}
	if _, err := tls.X509KeyPair(device.ChainPEM, device.KeyPEM); err != nil {
		t.Error(err)
	}
	expired, err := ca.Issue(agenttest.Leaf{CommonName: "gw-1", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	if err != nil || verify(expired, client) == nil {
		t.Errorf("expired: %v", err)
	}
}
