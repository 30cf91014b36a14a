package ca

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"slices"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// crlName is the revocation list of the device CA, for brokers.
const (
	crlName     = deviceName + ".crl"
	maxCRLBytes = 16 << 20
)

// Revocation is one certificate that the device CA takes back.
type Revocation struct {
	Serial *big.Int
	At     time.Time
}

// WriteCRL makes the revocation list say exactly what is revoked; a list that says so already
// is left alone. It is valid as long as the CA: a broker refuses every device when its list
// has expired, and nobody comes by to renew one.
func (c *CA) WriteCRL(revoked []Revocation) error {
	number := big.NewInt(1)
	old, err := c.readCRL()
	switch {
	case err == nil && c.says(old, revoked):
		return settle(c.fsys, c.dir)
	case err == nil:
		number.Add(old.Number, number)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	list := &x509.RevocationList{Number: number, ThisUpdate: time.Now().Add(-clockLeeway), NextUpdate: c.device.certificate.NotAfter}
	for _, r := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.Serial, RevocationTime: r.At})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.device.certificate, c.device.key)
	if err != nil {
		return fmt.Errorf("signing the revocation list: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	if err := atomicfile.Write(c.fsys, filepath.Join(c.dir, crlName), text, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", crlName, err)
	}
	return nil
}

// says reports whether a list is ours and names exactly what is revoked.
func (c *CA) says(list *x509.RevocationList, revoked []Revocation) bool {
	if list.CheckSignatureFrom(c.device.certificate) != nil || len(list.RevokedCertificateEntries) != len(revoked) {
		return false
	}
	return !slices.ContainsFunc(revoked, func(r Revocation) bool {
		return !slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
			return e.SerialNumber.Cmp(r.Serial) == 0
		})
	})
}

func (c *CA) readCRL() (*x509.RevocationList, error) {
	text, err := disk.ReadFile(c.fsys, filepath.Join(c.dir, crlName), maxCRLBytes)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("reading %s: it is no PEM", crlName)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", crlName, err)
	}
	if list.Number == nil {
		list.Number = new(big.Int)
	}
	return list, nil
}
