package tpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// certify makes a certificate for public, signed by itself or by ca.
func certify(t testing.TB, name string, public crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// configs are those of a client with key and of a server that requires a certificate.
func configs(t testing.TB, key crypto.Signer, version uint16) (client, server *tls.Config) {
	t.Helper()
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serverCert := certify(t, "broker", serverKey.Public(), serverKey)
	clientCert := certify(t, "gw-0001", key.Public(), key)
	pool := func(c *x509.Certificate) *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(c)
		return p
	}
	client = &tls.Config{
		MinVersion: version, MaxVersion: version, ServerName: "broker", RootCAs: pool(serverCert),
		Certificates:       []tls.Certificate{{Certificate: [][]byte{clientCert.Raw}, PrivateKey: key, Leaf: clientCert}},
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	server = &tls.Config{
		MinVersion: version, MaxVersion: version, ClientCAs: pool(clientCert), ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{serverCert.Raw}, PrivateKey: serverKey}},
	}
	return client, server
}

// handshake connects, exchanges a byte (TLS 1.3 sends its ticket after the handshake), and
// reports whether the session was resumed and whom the server saw.
func handshake(t testing.TB, client, server *tls.Config) (resumed bool, peer string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type seen struct {
		name string
		err  error
	}
	result := make(chan seen, 1)
	go func() { // ends with the connection
		raw, err := l.Accept()
		if err != nil {
			result <- seen{err: err}
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		if _, err = c.Write([]byte("!")); err == nil {
			_, _ = io.Copy(io.Discard, c)
			result <- seen{name: c.ConnectionState().PeerCertificates[0].Subject.CommonName}
			return
		}
		result <- seen{err: err}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	resumed = c.ConnectionState().DidResume
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s := <-result
	if s.err != nil {
		t.Fatal(s.err)
	}
	return resumed, s.name
}

func TestOneSignPerFullHandshakeNonePerResumed(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
			t.Run(fmt.Sprint(tls.VersionName(version), " ", curve.Params().Name), func(t *testing.T) {
				d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
				client, server := configs(t, load(t, d, newKey(t, d, tpm.KeySpec{Curve: curve})), version)
				for i, want := range []struct {
					resumed bool
					signs   uint64
				}{{false, 1}, {true, 0}, {true, 0}} {
					var resumed bool
					var peer string
					cost := spent(d, func() { resumed, peer = handshake(t, client, server) })
					var all uint64
					for _, n := range cost {
						all += n
					}
					if resumed != want.resumed || cost["Sign"] != want.signs || all != want.signs || peer != "gw-0001" {
						t.Errorf("handshake %d: resumed %t, commands %v, the server saw %q", i+1, resumed, cost, peer)
					}
				}
			})
		}
	}
}
