package e2e

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/internal/disk"
	"ferrule/tpm"
)

// quietLine is a site whose line is of no interest: one reading a second from each unit.
var quietLine = siteOptions{sync: "1s", every: time.Second, points: 1}

// edit changes the configuration; what is to be replaced has to be there.
func (s *site) edit(t *testing.T, oldnew ...string) {
	t.Helper()
	text := readFile(t, s.config)
	for n := 0; n < len(oldnew); n += 2 {
		if !strings.Contains(text, oldnew[n]) {
			t.Fatalf("the configuration holds no %q:\n%s", oldnew[n], text)
		}
		text = strings.Replace(text, oldnew[n], oldnew[n+1], 1)
	}
	s.file(t, filepath.Base(s.config), text)
}

// section adds lines to the configuration, before its first table of a line.
func (s *site) section(t *testing.T, lines string) {
	t.Helper()
	s.edit(t, "[[line]]", lines+"\n[[line]]")
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// restartRegistrar ends the registrar and starts it at the same address with other flags.
func (w *world) restartRegistrar(t *testing.T, flags ...string) {
	t.Helper()
	if w.issuing != nil {
		w.issuing.kill()
	}
	address := strings.TrimPrefix(w.registrar, "https://")
	w.issuing = start(t, "registrar", with(w.factory, append([]string{"registrar", "--ca", w.ca, "--listen", address}, flags...)...)...)
	w.issuing.waitLine(t, "127.0.0.1:")
}

// watched is a broker in this process, which tells who connects. Its clients are those of the
// roots, PEM; its certificate is that of NAME.crt and NAME.key.
func (s *site) watched(t *testing.T, name string, roots ...string) *watchedBroker {
	t.Helper()
	s.process.Kill()
	certificate, err := tls.LoadX509KeyPair(name+".crt", name+".key")
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	for _, root := range roots {
		clients.AppendCertsFromPEM([]byte(root))
	}
	ledger, err := agenttest.OpenLedger(s.ledger(), false)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := agenttest.StartBroker(agenttest.BrokerConfig{
		Address: s.broker, Ledger: ledger.Append,
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: clients},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &watchedBroker{Broker: broker, ledger: ledger}
	t.Cleanup(w.end)
	return w
}

// watchedBroker is a broker in this process with its ledger. It may be ended before its test.
type watchedBroker struct {
	*agenttest.Broker
	ledger *agenttest.Ledger
	once   sync.Once
}

func (w *watchedBroker) end() {
	w.once.Do(func() {
		w.Cut() // else connections outlive it
		_, _ = w.Close(), w.ledger.Close()
	})
}

// waitLeaf waits for a connection with a certificate other than all before, and returns its digest.
func waitLeaf(t *testing.T, b *watchedBroker, before ...string) (leaf string) {
	t.Helper()
	waitFor(t, "another certificate", func() bool {
		for _, c := range b.Connections() {
			known := false
			for _, old := range before {
				known = known || c.Leaf == old
			}
			if leaf = c.Leaf; !known {
				return true
			}
		}
		return false
	})
	return leaf
}

// waitUp waits for a session that stands.
func (s *site) waitUp(t *testing.T) {
	t.Helper()
	waitFor(t, "the session", func() bool { return field(s.status(t), "session", "stage") == "up" })
}

// count is a number of the status.
func count(status map[string]any, path ...string) int {
	n, _ := field(status, path...).(float64)
	return int(n)
}

// authority is a CA by the files of its certificate and key.
type authority struct{ certificate, key string }

func (s *site) deviceCA() authority {
	return authority{filepath.Join(s.ca, "device-ca.crt"), filepath.Join(s.ca, "device-ca.key")}
}

// certify puts a certificate of this device and its present key in place that a CA of the test's
// choice has signed, and that ends when the test says.
func (s *site) certify(t *testing.T, ca authority, notAfter time.Time) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.certificate, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: siteDevice}, NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, pair.Leaf, s.certificate(t).PublicKey, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + readFile(t, ca.certificate)
	if err := os.WriteFile(filepath.Join(s.state, "device.crt"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// certificate is the device's own, as it lies on the disk.
func (s *site) certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(readFile(t, filepath.Join(s.state, "device.crt"))))
	if block == nil {
		t.Fatal("device.crt holds no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settled checks that the state directory holds one key and one certificate, which is for it, and
// nothing that waits.
func (s *site) settled(t *testing.T) {
	t.Helper()
	for _, name := range []string{"device.key.next", "device.crt.next", "reset"} {
		if _, err := os.Stat(filepath.Join(s.state, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	public, err := tpm.PublicOf("tpm2:file=device.key", tpm.KeyOptions{FS: disk.OS(), StateDir: s.state})
	if err != nil {
		t.Fatal(err)
	}
	if key, ok := s.certificate(t).PublicKey.(*ecdsa.PublicKey); !ok || !key.Equal(public) {
		t.Error("the certificate is not for the key of device.key")
	}
}

// established counts the connections that stand at a port of this machine (proc(5), net/tcp).
func established(t *testing.T, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	local := fmt.Sprintf("0100007F:%04X", port)
	peers := make(map[string]bool) // a line may come twice while connections come and go
	for line := range strings.Lines(readFile(t, "/proc/thread-self/net/tcp")) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[1] == local && fields[3] == "01" {
			peers[fields[2]] = true
		}
	}
	return len(peers)
}
