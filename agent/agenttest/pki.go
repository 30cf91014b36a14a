package agenttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CA is a certificate authority that lives in memory: a P-256 root, and below it the issuer of
// all other certificates.
type CA struct {
	root, issuing       *x509.Certificate
	rootKey, issuingKey *ecdsa.PrivateKey
}

// NewCA makes a root and an issuer that carry name.
func NewCA(name string) (*CA, error) {
	ca := &CA{}
	var err error
	if ca.rootKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if ca.issuingKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	root := authority(name + " root")
	if ca.root, err = sign(root, root, &ca.rootKey.PublicKey, ca.rootKey); err != nil {
		return nil, err
	}
	issuing := authority(name + " issuing")
	issuing.MaxPathLenZero = true
	ca.issuing, err = sign(issuing, ca.root, &ca.issuingKey.PublicKey, ca.rootKey)
	return ca, err
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(10 * 365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", template.Subject, err)
	}
	return x509.ParseCertificate(der)
}

// Pool holds the root: what a client or a broker trusts.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	return pool
}

// ServerTLS is the configuration of a broker or another server with this certificate, for
// clients of the CA clients.
func (i *Issued) ServerTLS(clients *CA) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.TLS},
		ClientCAs:    clients.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// RootPEM is the root as a file holds it.
func (ca *CA) RootPEM() []byte { return encodeCertificates(ca.root) }

// Leaf says what a certificate is to hold; the zero values are good ones.
type Leaf struct {
	// CommonName is the device's id, or the server's name.
	CommonName string
	// Names are DNS names and IP addresses; with any, the certificate is for a server.
	Names []string
	// NotBefore and NotAfter are an hour ago and a year from now.
	NotBefore, NotAfter time.Time
	// Key is the public key that is certified; nil: a new P-256 key.
	Key crypto.PublicKey
}

// Issued is a certificate with its chain and, where the CA made it, its key.
type Issued struct {
	Leaf     *x509.Certificate
	ChainPEM []byte // leaf and issuer
	KeyPEM   []byte // PKCS #8
	TLS      tls.Certificate
}

// Fingerprint is the SHA-256 of the leaf, in hex.
func (i *Issued) Fingerprint() string { return fingerprint(i.Leaf) }

func fingerprint(c *x509.Certificate) string {
	digest := sha256.Sum256(c.Raw)
	return hex.EncodeToString(digest[:])
}

// Issue makes a certificate.
func (ca *CA) Issue(l Leaf) (*Issued, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: l.CommonName},
		NotBefore:   l.NotBefore,
		NotAfter:    l.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = template.NotBefore.Add(365 * 24 * time.Hour)
	}
	for _, name := range l.Names {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	issued, public := &Issued{}, l.Key
	if public == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		issued.KeyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		issued.TLS.PrivateKey, public = key, &key.PublicKey
	}
	leaf, err := sign(template, ca.issuing, public, ca.issuingKey)
	if err != nil {
		return nil, err
	}
	issued.Leaf, issued.ChainPEM = leaf, encodeCertificates(leaf, ca.issuing)
	issued.TLS.Leaf, issued.TLS.Certificate = leaf, [][]byte{leaf.Raw, ca.issuing.Raw}
	return issued, nil
}

// Server makes the certificate of a server on this machine, and for further names.
func (ca *CA) Server(names ...string) (*Issued, error) {
	return ca.Issue(Leaf{CommonName: "broker", Names: append([]string{"localhost", "127.0.0.1", "::1"}, names...)})
}

// Device makes the certificate of a device with a new key.
func (ca *CA) Device(id string) (*Issued, error) { return ca.Issue(Leaf{CommonName: id}) }

func encodeCertificates(certificates ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
