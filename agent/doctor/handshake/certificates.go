package handshake

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Certificate is one of a chain, as people look at it.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Names     []string  `json:"names,omitempty"` // DNS names and addresses it is for
	Key       string    `json:"key"`
	Signature string    `json:"signature"`
	// SHA256 is of the whole certificate, in hex.
	SHA256 string `json:"sha256"`
	// Problem says why it could not be read.
	Problem string `json:"problem,omitempty"`
}

// maxChain bounds the certificates that are looked at.
const maxChain = 16

// certificates reads a Certificate message: that of TLS 1.3 has a context, and extensions with each.
func (p *reader) certificates(from Side, c *cursor) (details []string, good bool) {
	t := &p.transcript
	if t.version == tls.VersionTLS13 {
		c.vector(1)
	}
	var chain []Certificate
	stapled := 0
	all := c.vector(3)
	for all.more() {
		der := all.vector(3)
		if all.bad {
			break
		}
		if t.version == tls.VersionTLS13 {
			more := all.vector(2)
			for more.more() {
				id, e := more.u16(), more.vector(2)
				if id == extStatusRequest && !more.bad {
					stapled = len(e.rest)
				}
			}
		}
		if len(chain) < maxChain {
			chain = append(chain, Describe(der.rest))
		}
	}
	good = all.over() && c.over()
	if from == Broker {
		t.BrokerChain, t.Stapled = chain, t.Stapled || stapled > 0
	} else {
		t.DeviceChain, t.shown = chain, true
	}
	if len(chain) == 0 {
		return []string{"none: the " + from.String() + " shows no certificate"}, good
	}
	for i, c := range chain {
		details = append(details, fmt.Sprintf("%d: %s", i, c.line()))
	}
	if stapled > 0 {
		details = append(details, fmt.Sprintf("with a stapled OCSP response of %d bytes", stapled))
	}
	return details, good
}

// Describe reads one certificate. What cannot be read has a Problem, and its digest.
func Describe(der []byte) Certificate {
	digest := sha256.Sum256(der)
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return Certificate{SHA256: hex.EncodeToString(digest[:]), Problem: printable(err.Error())}
	}
	return Of(parsed)
}

// Of describes a certificate that was read.
func Of(c *x509.Certificate) Certificate {
	digest := sha256.Sum256(c.Raw)
	d := Certificate{
		Subject: printable(c.Subject.String()), Issuer: printable(c.Issuer.String()),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
		Key: keyName(c), Signature: c.SignatureAlgorithm.String(), SHA256: hex.EncodeToString(digest[:]),
	}
	for _, name := range c.DNSNames {
		d.addName(name)
	}
	for _, address := range c.IPAddresses {
		d.addName(address.String())
	}
	for _, uri := range c.URIs {
		d.addName(uri.String())
	}
	return d
}

func (c *Certificate) addName(name string) {
	if len(c.Names) < maxNames {
		c.Names = append(c.Names, printable(name))
	}
}

func (c Certificate) line() string {
	if c.Problem != "" {
		return "it cannot be read: " + c.Problem
	}
	const day = time.DateOnly
	text := fmt.Sprintf("%s, issued by %s, %s to %s", c.Subject, c.Issuer, c.NotBefore.Format(day), c.NotAfter.Format(day))
	if len(c.Names) > 0 {
		text += ", for " + strings.Join(c.Names, " ")
	}
	return text + fmt.Sprintf("; %s, signed with %s", c.Key, c.Signature)
}

func keyName(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return c.PublicKeyAlgorithm.String()
}
