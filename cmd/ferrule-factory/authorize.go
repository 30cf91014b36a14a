package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ferrule/agent/command/authorize"
	"ferrule/internal/atomicfile"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/internal/jws"
)

const (
	issuerKey    = "issuer.key" // stays with whoever authorises
	issuerPublic = "issuer.pem" // goes to the devices
	maxIssuer    = 64 << 10     // bytes of any file that is read here
)

// authorizeOptions are the flags of authorize and authorize init.
type authorizeOptions struct {
	kind        string
	key         string
	device      string
	issuer      string
	scopes      scopes
	valid       time.Duration
	thumbprint  string
	certificate string
	args        string
}

// scopes collects --scope, which may be given several times.
type scopes []string

func (s *scopes) String() string { return strings.Join(*s, " ") }

func (s *scopes) Set(scope string) error {
	if _, err := authorize.ParseScope(scope); err != nil {
		return err
	}
	*s = append(*s, scope)
	return nil
}

func authorizeInitFlags(e *env) {
	e.Flags.StringVar(&e.authorize.kind, "kind", "ed25519", "the `kind` of key: ed25519 or p256")
	jsonFlag(e)
}

func authorizeFlags(e *env) {
	o := &e.authorize
	e.Flags.StringVar(&o.key, "key", "", "the issuer's private key, a `file` of authorize init")
	e.Flags.StringVar(&o.device, "device", "", "the device's `id`; that of --certificate unless given")
	e.Flags.Var(&o.scopes, "scope", "what is allowed, as write:LINE/UNIT/POINT=0..50 or restart; a `scope` of docs/authorised-commands.md; may be repeated")
	e.Flags.DurationVar(&o.valid, "valid", 5*time.Minute, "how long the token is good, 15m at most")
	e.Flags.StringVar(&o.certificate, "certificate", "", "the device's certificate, a PEM `file`: the token is for its key")
	e.Flags.StringVar(&o.thumbprint, "thumbprint", "", "instead of --certificate: the `thumbprint` (RFC 7638) of the device's key")
	e.Flags.StringVar(&o.issuer, "issuer", "", "the `name` that goes into iss; the key's thumbprint unless given")
	e.Flags.StringVar(&o.args, "args", "", "allow these args alone: their `JSON` exactly as it will be sent")
	jsonFlag(e)
}

// runAuthorizeInit makes an issuer's key. Run again it changes nothing.
func runAuthorizeInit(_ context.Context, e *env) error {
	fsys, dir := disk.OS(), e.Flags.Arg(0)
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making an issuer: %w", err)
	}
	key, err := readIssuerKey(fsys, filepath.Join(dir, issuerKey))
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeIssuerKey(fsys, dir, e.authorize.kind)
	}
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	public := filepath.Join(dir, issuerPublic)
	if err := atomicfile.Write(fsys, public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		return err
	}
	thumbprint, err := jws.Thumbprint(key.Public())
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]string{"key": filepath.Join(dir, issuerKey), "public": public, "thumbprint": thumbprint})
	}
	fmt.Fprintf(e.Stdout, "%s  keep it off every device\n%s  name it in authorize.issuers of the devices\nthumbprint %s\n",
		filepath.Join(dir, issuerKey), public, thumbprint)
	return nil
}

// makeIssuerKey makes and stores a key. Where the public half is there alone, the private one is kept
// elsewhere, and a new pair would lock out the devices that trust the old one.
func makeIssuerKey(fsys disk.FS, dir, kind string) (key crypto.Signer, err error) {
	if f, err := fsys.OpenFile(filepath.Join(dir, issuerPublic), os.O_RDONLY, 0); err == nil {
		_ = f.Close()
		return nil, hint.With(fmt.Errorf("making an issuer: %s has an %s and no %s", dir, issuerPublic, issuerKey),
			"bring the key back, or choose another folder")
	}
	switch kind {
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		err = fmt.Errorf("%w: --kind %q is neither ed25519 nor p256", cli.ErrUsage, kind)
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(fsys, filepath.Join(dir, issuerKey), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// readIssuerKey reads a private key as openssl and authorize init write it.
func readIssuerKey(fsys disk.FS, path string) (crypto.Signer, error) {
	der, err := readPEM(fsys, path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("reading %s: a key of type %T does not sign", path, parsed)
	}
	if err := jws.Usable(key.Public()); err != nil {
		return nil, hint.With(fmt.Errorf("reading %s: %w", path, err), "make a key with: ferrule-factory authorize init DIR")
	}
	return key, nil
}

// readPEM returns the first block of a kind.
func readPEM(fsys disk.FS, path, kind string) ([]byte, error) {
	text, err := disk.ReadFile(fsys, path, maxIssuer)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("reading %s: it holds no %s", path, kind)
		}
		if block.Type == kind {
			return block.Bytes, nil
		}
		text = rest
	}
}

// runAuthorize prints a token for one command of one device.
func runAuthorize(_ context.Context, e *env) error {
	o := e.authorize
	if o.key == "" || len(o.scopes) == 0 || (o.certificate == "") == (o.thumbprint == "") {
		return hint.With(fmt.Errorf("%w: --key and --scope are needed, and either --certificate or --thumbprint", cli.ErrUsage),
			"ferrule-factory authorize --key issuer.key --certificate device.crt --scope write:LINE/UNIT/POINT=0..50")
	}
	if err := readDevice(&o); err != nil {
		return err
	}
	if o.device == "" {
		return hint.With(fmt.Errorf("%w: --device is needed with --thumbprint", cli.ErrUsage), "ferrule-factory authorize … --device ID")
	}
	key, err := readIssuerKey(disk.OS(), o.key)
	if err != nil {
		return err
	}
	grant := authorize.Grant{Issuer: o.issuer, Device: o.device, Key: o.thumbprint, Scope: o.scopes.String(), Life: o.valid}
	if o.args != "" {
		grant.Args = authorize.Digest([]byte(o.args))
	}
	token, claims, err := authorize.Issue(key, grant, time.Now())
	if err != nil {
		return fmt.Errorf("authorising: %w", err)
	}
	if e.json {
		return e.printJSON(struct {
			Token  string           `json:"token"`
			Claims authorize.Claims `json:"claims"`
		}{token, claims})
	}
	fmt.Fprintln(e.Stdout, token)
	return nil
}

// readDevice takes id and key of the device from its certificate.
func readDevice(o *authorizeOptions) error {
	if o.certificate == "" {
		return nil
	}
	der, err := readPEM(disk.OS(), o.certificate, "CERTIFICATE")
	if err != nil {
		return err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading %s: %w", o.certificate, err)
	}
	name := certificate.Subject.CommonName
	if o.device != "" && o.device != name {
		return fmt.Errorf("the certificate %s is of %q, and the token is to be for %q", o.certificate, name, o.device)
	}
	o.device = name
	o.thumbprint, err = jws.Thumbprint(certificate.PublicKey)
	return err
}
