package e2e

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// revocationList has the CA's root, or its device CA, sign a list with these certificates in it.
func (s *site) revocationList(t *testing.T, signer string, number int64, revoked ...string) (path string) {
	t.Helper()
	root, err := tls.LoadX509KeyPair(filepath.Join(s.ca, signer+".crt"), filepath.Join(s.ca, signer+".key"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	for _, file := range revoked {
		block, _ := pem.Decode([]byte(readFile(t, file)))
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: leaf.SerialNumber, RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, root.Leaf, root.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(s.dir, signer+".crl")
	if err := atomicfile.Write(disk.OS(), path, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), os.FileMode(0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// The broker's certificate is taken back while a session stands: the session ends at the next
// look at the list, and stays away until the broker has another certificate.
func TestBrokerRevokedByList(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	clients := readFile(t, filepath.Join(s.ca, "root.crt"))
	s.section(t, fmt.Sprintf("[revocation]\ncrl = [%q]\nrefresh = \"1m\"", s.revocationList(t, "root", 1)))
	broker := s.watched(t, filepath.Join(s.ca, "broker"), clients)
	s.run(t)
	s.waitUp(t)
	s.revocationList(t, "root", 2, filepath.Join(s.ca, "broker.crt"))
	revoked := time.Now()
	deadline := time.Now().Add(2 * time.Minute) // a file is looked at once a minute
	for field(s.status(t), "session", "last_failure", "cause") != "broker-revoked" {
		if time.Now().After(deadline) {
			t.Fatalf("the session did not end; revocation: %v", field(s.status(t), "trust", "revocation"))
		}
		pause(t, 200*time.Millisecond)
	}
	t.Logf("ended %s after the list was there", time.Since(revoked).Round(time.Second))
	waitFor(t, "the end of the session", func() bool { return field(s.status(t), "session", "stage") != "up" })
	if hint, _ := field(s.status(t), "session", "last_failure", "hint").(string); hint == "" {
		t.Error("there is no hint")
	}
	broker.end()
	mustRun(t, "", with(s.factory, "ca", "server", s.ca, "--name", "broker2", "--host", "127.0.0.1")...)
	s.watched(t, filepath.Join(s.ca, "broker2"), clients)
	s.waitUp(t)
	s.stop(t)
}

// With policy hard and nothing that proves the broker's certificate good, there is no session,
// and the hint says what to do; a list is proof enough.
func TestHardPolicyWantsProof(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	s.section(t, "[revocation]\npolicy = \"hard\"")
	s.run(t)
	s.waitRefused(t, "broker-revocation-unknown")
	failure := field(s.status(t), "session", "last_failure")
	if hint, _ := field(s.status(t), "session", "last_failure", "hint").(string); !strings.Contains(hint, "staple") || !strings.Contains(hint, "CRL") {
		t.Errorf("last failure: %v", failure)
	}
	s.checkSilence(t)
	s.stop(t)
	s.edit(t, `policy = "hard"`, fmt.Sprintf("policy = \"hard\"\ncrl = [%q]", s.revocationList(t, "root", 1)))
	s.run(t)
	s.waitUp(t)
	s.stop(t)
}
