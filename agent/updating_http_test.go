package agent

import (
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
)

// TestUpdateTransport: the server sees the certificate of now, one signature serves many connections,
// and roots that change are looked at.
func TestUpdateTransport(t *testing.T) {
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := agenttest.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := agenttest.StartUpdates(dir, certificate.ServerTLS(ca))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	id := enrolled(t, ca, "gw-1")
	pool := ca.Pool()
	transport := &updateTransport{credential: func() *identity.Credential { return id.Current() }, roots: func() *x509.CertPool { return pool }}
	defer transport.close()
	get := func() error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL()+"/file", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "content" {
			t.Errorf("%q, %v", text, err)
		}
		return nil
	}
	for range 5 {
		if err := get(); err != nil {
			t.Fatal(err)
		}
		server.Cut() // a download that is cut
		if err := server.Mend(); err != nil {
			t.Fatal(err)
		}
	}
	if st := id.Status(); st.FullHandshakes != 1 || st.Resumed != 4 {
		t.Errorf("%d full handshakes, %d resumed", st.FullHandshakes, st.Resumed)
	}
	id = enrolled(t, ca, "gw-2") // as after a renewal
	if err := get(); err != nil {
		t.Fatal(err)
	}
	seen := server.Requests()
	if first, last := seen[0].Device, seen[len(seen)-1].Device; first != "gw-1" || last != "gw-2" {
		t.Errorf("seen as %s, then as %s", first, last)
	}
	pool = other.Pool()
	if err := get(); err == nil {
		t.Error("a server of other roots was believed")
	}
}

// enrolled is an identity whose key is a file.
func enrolled(t *testing.T, ca *agenttest.CA, name string) *identity.Identity {
	t.Helper()
	device, err := ca.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, data := range map[string][]byte{"device.crt": device.ChainPEM, "device.pem": device.KeyPEM} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := identity.Default()
	c.TPM, c.Key, c.AllowSoftwareKey = "none", "file:device.pem", true
	id, err := identity.Open(t.Context(), c, identity.Options{
		StateDir: dir, FS: disk.OS(), Clock: identity.TrustedClock(time.Now), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = id.Close() })
	return id
}
