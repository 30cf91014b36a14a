// Package ca is a P-256 root and, below it, the CA that signs devices, in one directory of plain
// PEM files that openssl reads. The trap is the second run: nothing that is there is ever
// replaced, for every device and broker that trusts it would be lost.
package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"regexp"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The files of a CA directory. Keys are readable by their owner alone.
const (
	rootName   = "root"
	deviceName = "device-ca"
)

// How long certificates of authorities and servers live.
const (
	rootLife     = 40 * 365 * 24 * time.Hour // longer than a line runs and its last gateway lives
	serverLife   = 2 * 365 * 24 * time.Hour
	clockLeeway  = 5 * time.Minute // clocks of gateways run behind
	maxFileBytes = 64 << 10
)

// fileName keeps the names of servers fit for files.
var fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CA is a P-256 root, which signs servers, and below it the CA that signs devices. It lives
// in one directory of plain PEM files that openssl reads. root.key may be kept elsewhere and
// be put back only for the next server certificate: devices are enrolled without it.
type CA struct {
	fsys   disk.FS
	dir    string
	root   authority
	device authority
}

type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer // nil where it is kept elsewhere
}

// Init makes the CA in dir, or opens the one that is there: it never overwrites a file, so
// it is safe to run again after a cut at any write. A key is durable before anything is
// signed with it.
func Init(fsys disk.FS, dir, name string) (*CA, error) {
	if err := disk.MakeFolder(fsys, dir); err != nil {
		return nil, fmt.Errorf("making the CA directory: %w", err)
	}
	if err := settle(fsys, dir); err != nil {
		return nil, err
	}
	c := &CA{fsys: fsys, dir: dir}
	_, rootErr := c.readAuthority(rootName)
	_, deviceErr := c.readAuthority(deviceName)
	if errors.Is(rootErr, fs.ErrNotExist) && !errors.Is(deviceErr, fs.ErrNotExist) {
		return nil, hint.With(fmt.Errorf("%s is there, and root.crt is not", filepath.Join(dir, deviceName+".crt")),
			"put root.crt back, or make a new CA in an empty directory")
	}
	var err error
	if c.root, err = c.ensureAuthority(rootName, name+" root", nil); err != nil {
		return nil, err
	}
	if c.device, err = c.ensureAuthority(deviceName, name+" device CA", &c.root); err != nil {
		return nil, err
	}
	return c, c.checkDeviceCA()
}

// Open opens the CA in dir.
func Open(fsys disk.FS, dir string) (*CA, error) {
	c := &CA{fsys: fsys, dir: dir}
	var err error
	if c.root, err = c.readAuthority(rootName); err != nil {
		return nil, err
	}
	if c.device, err = c.readAuthority(deviceName); err != nil {
		return nil, err
	}
	if c.device.key == nil {
		return nil, missingKey(dir, deviceName)
	}
	if err := c.checkDeviceCA(); err != nil {
		return nil, err
	}
	return c, settle(fsys, dir)
}

func (c *CA) checkDeviceCA() error {
	if err := c.device.certificate.CheckSignatureFrom(c.root.certificate); err != nil {
		return fmt.Errorf("%s.crt in %s is not of this root: %w", deviceName, c.dir, err)
	}
	return nil
}

// ensureAuthority makes an authority where there is no certificate of it. One that is there
// is never replaced, with or without its key: every device and broker that trusts it would
// be lost.
func (c *CA) ensureAuthority(file, name string, issuer *authority) (authority, error) {
	a, err := c.readAuthority(file)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	if issuer != nil && issuer.key == nil {
		return a, missingKey(c.dir, rootName)
	}
	key, err := c.ensureKey(file)
	if err != nil {
		return a, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
	}
	parent, signer := template, crypto.Signer(key)
	if issuer != nil {
		template.MaxPathLenZero = true // it signs devices, not further CAs
		parent, signer = issuer.certificate, issuer.key
	}
	der, err := sign(template, parent, key.Public(), signer, rootLife)
	if err != nil {
		return a, fmt.Errorf("signing %s: %w", name, err)
	}
	if err := c.write(file+".crt", "CERTIFICATE", der, 0o644); err != nil {
		return a, err
	}
	return c.readAuthority(file)
}

// readAuthority returns fs.ErrNotExist only where there is no certificate.
func (c *CA) readAuthority(file string) (authority, error) {
	der, err := c.read(file+".crt", "CERTIFICATE")
	if err != nil {
		return authority{}, err
	}
	certificate, err := x509.ParseCertificate(der[0])
	if err != nil {
		return authority{}, fmt.Errorf("reading %s.crt: %w", file, err)
	}
	key, err := c.readKey(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return authority{certificate, nil}, nil
	case err != nil:
		return authority{}, err
	case !key.PublicKey.Equal(certificate.PublicKey):
		return authority{}, fmt.Errorf("%s.crt and %s.key do not belong together", file, file)
	}
	return authority{certificate, key}, nil
}

// sign fills in serial number and validity and signs.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer, life time.Duration) ([]byte, error) {
	// RFC 5280, 4.1.2.2: positive, at most 20 octets; here 127 random bits.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	template.NotBefore, template.NotAfter = now.Add(-clockLeeway), now.Add(life)
	return x509.CreateCertificate(rand.Reader, template, parent, public, signer)
}

// Serving returns the certificate and key of one server.
func (c *CA) Serving(name string) (tls.Certificate, error) {
	certificate, err := c.readAuthority(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	if certificate.key == nil {
		return tls.Certificate{}, missingKey(c.dir, name)
	}
	return tls.Certificate{Certificate: [][]byte{certificate.certificate.Raw}, PrivateKey: certificate.key, Leaf: certificate.certificate}, nil
}

// DeviceCA returns the certificate that signs devices, and Root the one above it.
func (c *CA) DeviceCA() *x509.Certificate { return c.device.certificate }

// Root returns the certificate that devices and brokers trust.
func (c *CA) Root() *x509.Certificate { return c.root.certificate }
