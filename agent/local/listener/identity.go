package listener

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The self-made certificate.
const (
	// File is its name in Source.Folder: the key, then the certificate, replaced as one.
	File = "local-tls.pem"
	// lifetime is what browsers take at most, in 2020's rule of 398 days.
	lifetime = 397 * 24 * time.Hour
	// renewBefore is how long before its end it is renewed.
	renewBefore = 90 * 24 * time.Hour
	maxNames    = 32
	maxFile     = 1 << 20
)

// Source is where the listener's own certificate comes from.
type Source struct {
	// Certificate and Key are PEM files; both empty: it is self-made. The key is a software key
	// on purpose: with one in the TPM every stranger could spend its signatures.
	Certificate, Key string
	Folder           string // of the self-made one; "" keeps it in memory
	FS               disk.FS
	// Names returns what the self-made one is for, host names and addresses; nil: those of this
	// machine.
	Names func() []string
}

// identity is the certificate that clients see.
type identity struct {
	source  Source
	address string
	now     func() time.Time
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]
}

// CertificateStatus is what a client can compare before it believes.
type CertificateStatus struct {
	// SHA256 is that of the certificate, in hex.
	SHA256 string `json:"sha256"`
	// Pin is the SHA-256 of its public key in base64, as curl --pinnedpubkey takes it behind
	// "sha256//". It stays when a self-made certificate is renewed.
	Pin      string    `json:"pin"`
	NotAfter time.Time `json:"not_after"`
	SelfMade bool      `json:"self_made"`
	Names    []string  `json:"names,omitempty"`
}

func openIdentity(o Options) (*identity, error) {
	i := &identity{source: o.Source, address: o.Address, now: o.Now, log: o.Log}
	if i.source.FS == nil {
		i.source.FS = disk.OS()
	}
	if i.source.Names == nil {
		i.source.Names = func() []string { return machineNames(o.Address) }
	}
	if err := i.refresh(); i.current.Load() == nil {
		return nil, err
	} else if err != nil {
		o.Log.Warn("certificate of the local listener", slog.Any("err", err))
	}
	return i, nil
}

func (i *identity) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return i.current.Load(), nil
}

// refresh reads the files again, or renews the self-made certificate when it is due.
func (i *identity) refresh() error {
	if i.source.Certificate != "" {
		return i.load()
	}
	return i.selfMade()
}

func (i *identity) load() error {
	chain, err := disk.ReadFile(i.source.FS, i.source.Certificate, maxFile)
	if err != nil {
		return hint.With(fmt.Errorf("reading local.certificate: %w", err), "let the file be readable for the agent's user, or leave local.certificate out for a self-made one")
	}
	key, err := disk.ReadFile(i.source.FS, i.source.Key, maxFile)
	if err != nil {
		return hint.With(fmt.Errorf("reading local.key: %w", err), "let the file be readable for the agent's user")
	}
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return hint.With(fmt.Errorf("reading local.certificate and local.key: %w", err), "they are PEM files, the listener's certificate first, and belong together")
	}
	i.current.Store(&certificate)
	if now := i.now(); now.After(certificate.Leaf.NotAfter) {
		return fmt.Errorf("local.certificate expired on %s", certificate.Leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// selfMade keeps the certificate that there is, or makes a new one for the same key. One that
// cannot be stored serves until the agent ends.
func (i *identity) selfMade() error {
	names := i.source.Names()
	have := i.current.Load()
	if have == nil {
		have = i.stored()
	}
	if have != nil && !i.due(have.Leaf, names) {
		i.current.Store(have)
		return nil
	}
	text, certificate, err := i.make(have, names)
	if err != nil {
		return err
	}
	i.current.Store(certificate)
	if i.source.Folder == "" {
		return nil
	}
	if err := atomicfile.Write(i.source.FS, filepath.Join(i.source.Folder, File), text, 0o600); err != nil {
		return fmt.Errorf("keeping the listener's certificate: %w", err)
	}
	return nil
}

// due says whether a certificate is near its end, not valid yet by our clock, or lacks a name.
// Names that are gone stay, so that an address which comes and goes costs one renewal.
func (i *identity) due(leaf *x509.Certificate, names []string) bool {
	now := i.now()
	if now.After(leaf.NotAfter.Add(-renewBefore)) || now.Before(leaf.NotBefore) {
		return true
	}
	have := namesOf(leaf)
	return len(have) < maxNames && slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(have, n) })
}

// stored reads the file; nil where there is none that can be used. It is only a cache.
func (i *identity) stored() *tls.Certificate {
	if i.source.Folder == "" {
		return nil
	}
	text, err := disk.ReadFile(i.source.FS, filepath.Join(i.source.Folder, File), maxFile)
	if err == nil {
		var certificate tls.Certificate
		if certificate, err = tls.X509KeyPair(text, text); err == nil {
			return &certificate
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		i.log.Warn("the listener's self-made certificate is made anew", slog.Any("err", err))
	}
	return nil
}

// make makes a certificate, for the key of the one before where there is one, so that who
// compares keys needs no new pin.
func (i *identity) make(before *tls.Certificate, names []string) (text []byte, made *tls.Certificate, err error) {
	var key *ecdsa.PrivateKey
	if before != nil {
		key, _ = before.PrivateKey.(*ecdsa.PrivateKey)
		if now := i.now(); !now.After(before.Leaf.NotAfter) {
			names = append(slices.Clone(names), namesOf(before.Leaf)...)
		}
	}
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, fmt.Errorf("making the listener's key: %w", err)
		}
	}
	template, err := i.template(names)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, crypto.Signer(key))
	if err != nil {
		return nil, nil, fmt.Errorf("making the listener's certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the listener's key: %w", err)
	}
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: private}) // a buffer takes everything
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	certificate, err := tls.X509KeyPair(out.Bytes(), out.Bytes())
	return out.Bytes(), &certificate, err
}

func (i *identity) template(names []string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	now := i.now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "ferrule local"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// For itself alone: whoever installs it in a browser trusts no other name by it.
		BasicConstraintsValid: true,
	}
	var taken []string
	for _, name := range names {
		if slices.Contains(taken, name) || len(taken) >= maxNames {
			continue
		}
		taken = append(taken, name)
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return template, nil
}

func namesOf(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// machineNames are the host name and the addresses that a client can reach the listener by.
func machineNames(address string) []string {
	names := []string{"localhost"}
	if name, err := os.Hostname(); err == nil && dnsName(name) && name != "localhost" {
		names = append(names, name)
	}
	if listen, _, err := net.SplitHostPort(address); err == nil && listen != "" {
		if ip := net.ParseIP(listen); ip == nil && dnsName(listen) || ip != nil && !ip.IsUnspecified() {
			if !slices.Contains(names, listen) {
				names = append(names, listen)
			}
			return names
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil { // a sandbox without AF_NETLINK
		return append(names, "127.0.0.1", "::1")
	}
	for _, a := range addresses {
		if network, ok := a.(*net.IPNet); ok && !network.IP.IsLinkLocalUnicast() {
			names = append(names, network.IP.String())
		}
	}
	return names
}

// dnsName keeps out what crypto/x509 would refuse to encode.
func dnsName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return name != "" && len(name) <= 253
}

func (i *identity) status() CertificateStatus {
	leaf := i.current.Load().Leaf
	digest, pin := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return CertificateStatus{
		SHA256: hex.EncodeToString(digest[:]), Pin: base64.StdEncoding.EncodeToString(pin[:]),
		NotAfter: leaf.NotAfter, SelfMade: i.source.Certificate == "", Names: namesOf(leaf),
	}
}

// Probe reads the files that s names, and makes nothing.
func (s Source) Probe() error {
	if s.Certificate == "" {
		return nil
	}
	i := &identity{source: s, now: time.Now}
	if i.source.FS == nil {
		i.source.FS = disk.OS()
	}
	return i.load()
}
