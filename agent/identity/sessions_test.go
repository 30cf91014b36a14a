package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// selfSigned is a certificate that both ends of these tests show and trust.
func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gw"}, DNSNames: []string{"broker"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A link that breaks in the middle of a handshake says nothing about the ticket that was
// offered: the connection after it is resumed, and costs no signature. A ticket that fails
// again and again is given up.
func TestABrokenHandshakeKeepsTheTicket(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { testBrokenHandshake(t, version) })
	}
}

func testBrokenHandshake(t *testing.T, version uint16) {
	certificate := selfSigned(t)
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	server := &tls.Config{Certificates: []tls.Certificate{certificate}, MaxVersion: version,
		ClientCAs: roots, ClientAuth: tls.RequireAnyClientCert}
	var counters handshakes
	credential, err := newCredential(certificate.PrivateKey.(*ecdsa.PrivateKey), []*x509.Certificate{certificate.Leaf}, time.Now, &counters)
	if err != nil {
		t.Fatal(err)
	}
	client := credential.TLS(roots, "broker")
	if connect(t, client, server) {
		t.Fatal("the first connection was resumed")
	}
	for range patience - 1 {
		breakOff(t, client)
	}
	if !connect(t, client, server) {
		t.Error("a link that broke twice cost a full handshake")
	}
	for range patience {
		breakOff(t, client)
	}
	if connect(t, client, server) {
		t.Error("a ticket that failed three times in a row was offered again")
	}
	if counters.full.Load() != 2 || counters.resumed.Load() != 1 {
		t.Errorf("%d full, %d resumed; want 2 and 1", counters.full.Load(), counters.resumed.Load())
	}
}

// link is a TCP connection; a net.Pipe has no buffer, and both ends may write at once.
func link(t *testing.T) (near, far net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if near, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// connect makes one connection, reads one byte, with which TLS 1.3's tickets come, and
// reports whether it was resumed.
func connect(t *testing.T, client, server *tls.Config) (resumed bool) {
	t.Helper()
	near, far := link(t)
	served := make(chan error, 1)
	go func() {
		conn := tls.Server(far, server)
		_, err := conn.Write([]byte{1})
		served <- err
	}()
	conn := tls.Client(near, client)
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		t.Fatalf("reading: %v", err)
	}
	if err := <-served; err != nil {
		t.Fatalf("serving: %v", err)
	}
	return conn.ConnectionState().DidResume
}

// breakOff lets the network break after the ClientHello.
func breakOff(t *testing.T, client *tls.Config) {
	t.Helper()
	near, far := link(t)
	go func() {
		var b [512]byte
		_, _ = far.Read(b[:])
		_ = far.Close()
	}()
	if err := tls.Client(near, client).HandshakeContext(context.Background()); err == nil {
		t.Fatal("a handshake without a server succeeded")
	}
}
