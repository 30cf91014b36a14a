package registrar

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The files of a CA directory. Keys are readable by their owner alone.
const (
	rootName   = "root"
	deviceName = "device-ca"
)

// How long certificates live.
const (
	rootLife     = 20 * 365 * 24 * time.Hour
	serverLife   = 2 * 365 * 24 * time.Hour
	DeviceLife   = 365 * 24 * time.Hour
	clockLeeway  = 5 * time.Minute // clocks of gateways run behind
	maxFileBytes = 64 << 10
)

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

// InitCA makes the CA in dir, or opens the one that is there: it never overwrites a file, so
// it is safe to run again after a cut at any write. A key is durable before anything is
// signed with it.
func InitCA(fsys disk.FS, dir, name string) (*CA, error) {
	if err := makeFolder(fsys, dir); err != nil {
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

// OpenCA opens the CA in dir.
func OpenCA(fsys disk.FS, dir string) (*CA, error) {
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

// makeFolder makes a folder durably, with those above it: a synced file is lost with an
// unsynced folder. One that may not be read was not made here.
func makeFolder(fsys disk.FS, folder string) error {
	if err := fsys.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for up := filepath.Dir(folder); up != folder; folder, up = up, filepath.Dir(up) {
		if err := fsys.SyncDir(up); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// settle makes durable what is in a folder already. A process that was killed between its
// rename and its sync leaves files that are seen, and that a power cut may still take away.
func settle(fsys disk.FS, folder string) error {
	if err := fsys.SyncDir(folder); err != nil {
		return fmt.Errorf("syncing %s: %w", folder, err)
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

func missingKey(dir, file string) error {
	return hint.With(fmt.Errorf("%s is missing", filepath.Join(dir, file+".key")), "put the key back for as long as it signs")
}

func (c *CA) ensureKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := c.readKey(file)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, c.write(file+".key", "PRIVATE KEY", der, 0o600)
}

func (c *CA) readKey(file string) (*ecdsa.PrivateKey, error) {
	der, err := c.read(file+".key", "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der[0])
	if err != nil {
		return nil, fmt.Errorf("reading %s.key: %w", file, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading %s.key: it is a %T, and an EC key is expected", file, key)
	}
	return ec, nil
}

// Server makes, or finds, the certificate of one server: NAME.crt and NAME.key in the
// directory. hosts are DNS names and IP addresses, this machine's own where there are none;
// the certificate is signed by the root. One that is there and lacks a host is an error.
func (c *CA) Server(name string, hosts []string) error {
	if !deviceID.MatchString(name) || name == rootName || name == deviceName {
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

// Device signs the certificate of a device from its checked request. Nothing but the public
// key is taken from the request. The chain is PEM: the certificate, then the device CA.
func (c *CA) Device(csr *x509.CertificateRequest, device string, life time.Duration) (chain []byte, leaf *x509.Certificate, err error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: device},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "urn", Opaque: "ferrule:device:" + url.PathEscape(device)}},
	}
	der, err := sign(template, c.device.certificate, csr.PublicKey, c.device.key, life)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the certificate of %s: %w", device, err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, fmt.Errorf("signing the certificate of %s: %w", device, err)
	}
	chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.device.certificate.Raw})...)
	return chain, leaf, nil
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

func (c *CA) write(file, kind string, der []byte, mode fs.FileMode) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := atomicfile.Write(c.fsys, filepath.Join(c.dir, file), text, mode); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

// read returns the blocks of kind in a file, at least one.
func (c *CA) read(file, kind string) ([][]byte, error) {
	text, err := disk.ReadFile(c.fsys, filepath.Join(c.dir, file), maxFileBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, hint.With(fmt.Errorf("reading %s: %w", filepath.Join(c.dir, file), fs.ErrNotExist), "make a CA first: ferrule-factory ca init DIR")
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	var blocks [][]byte
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == kind {
			blocks = append(blocks, block.Bytes)
		}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("reading %s: it holds no %s", file, kind)
	}
	return blocks, nil
}
