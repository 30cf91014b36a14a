package authorize

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/internal/jws"
)

// maxPEM bounds an issuer's file, in bytes.
const maxPEM = 64 << 10

// issuer is a pinned key. A certificate is a container of its key, and of the time it may be used in.
type issuer struct {
	name       string // what iss must be; "" is anything
	key        crypto.PublicKey
	thumbprint string
	from, to   time.Time // zero where no certificate says
}

// readIssuers reads the files of the configuration.
func readIssuers(fsys disk.FS, dir string, entries []string) ([]issuer, error) {
	var all []issuer
	for _, entry := range entries {
		name, file := "", entry
		if i := strings.LastIndexByte(entry, '='); i >= 0 {
			name, file = entry[:i], entry[i+1:]
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		text, err := disk.ReadFile(fsys, file, maxPEM)
		if err != nil {
			return nil, hint.With(fmt.Errorf("reading the issuer of authorised commands: %w", err), "name the issuer's public key in authorize.issuers")
		}
		found, err := parseIssuers(name, text)
		if err != nil {
			return nil, fmt.Errorf("reading the issuer of authorised commands %s: %w", file, err)
		}
		all = append(all, found...)
	}
	if len(all) > maxIssuers {
		return nil, fmt.Errorf("authorize.issuers hold %d keys; %d are allowed", len(all), maxIssuers)
	}
	return all, nil
}

// parseIssuers reads the keys of one file. What is not understood there is an error: half a file of keys
// would refuse commands for a reason that nobody finds.
func parseIssuers(name string, text []byte) ([]issuer, error) {
	var found []issuer
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		i, err := parseIssuer(block)
		if err != nil {
			return nil, err
		}
		i.name = name
		found = append(found, i)
	}
	if len(found) == 0 {
		return nil, errors.New("no PEM block in it")
	}
	if len(bytes.TrimSpace(text)) > 0 {
		return nil, errors.New("there is something behind its last PEM block")
	}
	return found, nil
}

func parseIssuer(block *pem.Block) (i issuer, err error) {
	switch block.Type {
	case "PUBLIC KEY":
		i.key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		var c *x509.Certificate
		if c, err = x509.ParseCertificate(block.Bytes); err != nil {
			return i, err
		}
		if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
			return i, errors.New("its certificate is not for signatures (keyUsage)")
		}
		i.key, i.from, i.to = c.PublicKey, c.NotBefore, c.NotAfter
	default:
		err = fmt.Errorf("a PEM block %.40q instead of PUBLIC KEY or CERTIFICATE", block.Type)
		if strings.Contains(block.Type, "PRIVATE KEY") {
			err = hint.With(err, "the issuer's private key must not be on a device; remove it, and give the device issuer.pem")
		}
	}
	if err != nil {
		return i, err
	}
	if err = jws.Usable(i.key); err != nil {
		return i, err
	}
	i.thumbprint, err = jws.Thumbprint(i.key)
	return i, err
}

// current reports whether the issuer's certificate, if any, is in force at now.
func (i issuer) current(now time.Time, leeway time.Duration) bool {
	return i.to.IsZero() || !now.Before(i.from.Add(-leeway)) && !now.After(i.to)
}
