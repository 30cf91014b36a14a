package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"ferrule/internal/hint"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"
)

// Server makes, or finds, the certificate of one server: NAME.crt and NAME.key in the
// directory. hosts are DNS names and IP addresses, this machine's own where there are none;
// the certificate is signed by the root. One that is there and lacks a host is an error.
func (c *CA) Server(name string, hosts []string) error {
	if !fileName.MatchString(name) || name == rootName || name == deviceName {
		return hint.With(fmt.Errorf("%q cannot be the name of a server's files", name), "take letters, digits and . _ -")
	}
	der, err := c.read(name+".crt", "CERTIFICATE")
	if err == nil {
		return c.checkServer(name, der[0], hosts)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(hosts) == 0 {
		hosts = []string{"localhost", "127.0.0.1"}
	}
	if c.root.key == nil {
		return missingKey(c.dir, rootName)
	}
	key, err := c.ensureKey(name)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	signed, err := sign(template, c.root.certificate, key.Public(), c.root.key, serverLife)
	if err != nil {
		return fmt.Errorf("signing %s: %w", name, err)
	}
	return c.write(name+".crt", "CERTIFICATE", signed, 0o644)
}

// checkServer says what is wrong with a server certificate that is there already.
func (c *CA) checkServer(name string, der []byte, hosts []string) error {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading %s.crt: %w", name, err)
	}
	again := fmt.Sprintf("remove %s to have a new one made for the same key", filepath.Join(c.dir, name+".crt"))
	key, err := c.readKey(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return hint.With(fmt.Errorf("%s.crt is there, and its key %s.key is not", name, name),
			fmt.Sprintf("put the key back, or remove %s to have both made anew", filepath.Join(c.dir, name+".crt")))
	case err != nil:
		return err
	case !key.PublicKey.Equal(certificate.PublicKey):
		return hint.With(fmt.Errorf("%s.crt and %s.key do not belong together", name, name), again)
	}
	if err := certificate.CheckSignatureFrom(c.root.certificate); err != nil {
		return hint.With(fmt.Errorf("%s.crt is not of this CA: %w", name, err), again)
	}
	if time.Now().After(certificate.NotAfter) {
		return hint.With(fmt.Errorf("%s.crt expired on %s", name, certificate.NotAfter.Format(time.DateOnly)), again)
	}
	for _, host := range hosts {
		if err := certificate.VerifyHostname(host); err != nil {
			return hint.With(fmt.Errorf("%s.crt is there already, for other hosts: %w", name, err), again)
		}
	}
	return nil
}
