package main

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"ferrule/agent/enroll/peer"
	"ferrule/agent/enroll/registrar"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// maxSecretFile bounds a file with a key or a password, in bytes.
const maxSecretFile = 64 << 10

// backOptions are the flags that name the CA behind.
type backOptions struct {
	issuer string
	roots  string

	stepURL, stepProvisioner, stepKey, stepKeyID, stepCert, stepCertKey string

	estURL, estUser, estCert, estCertKey string
}

func backFlags(e *env) {
	o := &e.issuing.back
	e.Flags.StringVar(&o.issuer, "issuer", registrar.LocalName, "`who` issues: local, step, est, or exec with -- COMMAND")
	e.Flags.StringVar(&o.roots, "issuer-roots", "", "PEM `file`: the roots of the issuer, for its own certificate and those it issues; not for local")
	e.Flags.StringVar(&o.stepURL, "step-url", "", "step-ca's `address`, https")
	e.Flags.StringVar(&o.stepProvisioner, "step-provisioner", "", "`name` of its provisioner of type JWK or X5C")
	e.Flags.StringVar(&o.stepKey, "step-key", "", "PEM `file` with the private key of a JWK provisioner")
	e.Flags.StringVar(&o.stepKeyID, "step-kid", "", "`id` of that key in ca.json (default its thumbprint)")
	e.Flags.StringVar(&o.stepCert, "step-x5c-cert", "", "PEM `file` with the chain for an X5C provisioner")
	e.Flags.StringVar(&o.stepCertKey, "step-x5c-key", "", "PEM `file` with its key")
	e.Flags.StringVar(&o.estURL, "est-url", "", "the EST server's `address`, https")
	e.Flags.StringVar(&o.estUser, "est-user", "", "`file` with user:password for it")
	e.Flags.StringVar(&o.estCert, "est-cert", "", "PEM `file` with the chain to show to it")
	e.Flags.StringVar(&o.estCertKey, "est-key", "", "PEM `file` with its key")
}

// open returns the issuer and the roots that its chains lead to; nil: the CA of the directory.
func (o backOptions) open(command []string) (registrar.Issuer, *x509.CertPool, error) {
	switch o.issuer {
	case registrar.LocalName:
		return nil, nil, nil
	case "step", "est", "exec":
	default:
		return nil, nil, hint.With(fmt.Errorf("%w: --issuer %q is not known", cli.ErrUsage, o.issuer), "it is local, step, est or exec")
	}
	if o.roots == "" {
		return nil, nil, hint.With(fmt.Errorf("%w: --issuer-roots is needed with --issuer %s", cli.ErrUsage, o.issuer),
			"name the file with the roots that its certificates lead to: nothing else is handed to devices")
	}
	roots, err := readPool(o.roots)
	if err != nil {
		return nil, nil, fmt.Errorf("reading --issuer-roots: %w", err)
	}
	var issuer registrar.Issuer
	switch o.issuer {
	case "step":
		issuer, err = o.step(roots)
	case "est":
		issuer, err = o.est(roots)
	case "exec":
		issuer, err = execOf(command)
	}
	return issuer, roots, err
}

func (o backOptions) step(roots *x509.CertPool) (registrar.Issuer, error) {
	const usage = "--issuer step --step-url URL --step-provisioner NAME --step-key FILE, or --step-x5c-cert FILE and --step-x5c-key FILE"
	if o.stepURL == "" || o.stepProvisioner == "" || (o.stepKey == "") == (o.stepCert == "") {
		return nil, hint.With(fmt.Errorf("%w: step-ca's address, a provisioner, and either a key or a certificate are needed", cli.ErrUsage), usage)
	}
	if _, err := peer.ParseURL(o.stepURL); err != nil {
		return nil, hint.With(fmt.Errorf("%w: --step-url: %w", cli.ErrUsage, err), "write it as https://ca.example:443")
	}
	s := &registrar.StepCA{URL: o.stepURL, Roots: roots, Provisioner: o.stepProvisioner, KeyID: o.stepKeyID}
	var err error
	if o.stepKey != "" {
		s.Key, err = readKey(o.stepKey)
		return s, err
	}
	s.Present, err = readPair("--step-x5c-cert", o.stepCert, o.stepCertKey)
	return s, err
}

func (o backOptions) est(roots *x509.CertPool) (registrar.Issuer, error) {
	if o.estURL == "" || (o.estUser == "") == (o.estCert == "") {
		return nil, hint.With(fmt.Errorf("%w: the EST server's address, and either a user or a certificate are needed", cli.ErrUsage),
			"--issuer est --est-url URL --est-user FILE, or --est-cert FILE and --est-key FILE")
	}
	if _, err := peer.ParseURL(o.estURL); err != nil {
		return nil, hint.With(fmt.Errorf("%w: --est-url: %w", cli.ErrUsage, err), "write it as https://est.example")
	}
	s := &registrar.EST{URL: o.estURL, Roots: roots}
	var err error
	if o.estCert != "" {
		s.Present, err = readPair("--est-cert", o.estCert, o.estCertKey)
		return s, err
	}
	text, err := disk.ReadFile(disk.OS(), o.estUser, maxSecretFile)
	if err != nil {
		return nil, fmt.Errorf("reading --est-user: %w", err)
	}
	var found bool
	if s.User, s.Password, found = strings.Cut(strings.TrimSpace(string(text)), ":"); !found || s.User == "" {
		return nil, hint.With(fmt.Errorf("reading --est-user: %s holds no user", o.estUser), "write one line into it, user:password")
	}
	return s, nil
}

func execOf(command []string) (registrar.Issuer, error) {
	if len(command) == 0 || !filepath.IsAbs(command[0]) {
		return nil, hint.With(fmt.Errorf("%w: --issuer exec needs a program by its whole path", cli.ErrUsage), "--issuer exec -- /usr/local/bin/sign-device")
	}
	return &registrar.Exec{Command: command}, nil
}

func readPair(flag, certificate, key string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading %s: %w", flag, err), "give its key too, PEM and without a password")
	}
	return &pair, nil
}

// readKey reads a private key, PKCS #8 or SEC 1, PEM.
func readKey(path string) (crypto.Signer, error) {
	text, err := disk.ReadFile(disk.OS(), path, maxSecretFile)
	if err != nil {
		return nil, fmt.Errorf("reading --step-key: %w", err)
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, hint.With(fmt.Errorf("reading --step-key: %s holds no private key", path),
				"step crypto jwk … makes JSON; this is PEM without a password: step crypto key format, or openssl pkey")
		}
		if key, err := parseKey(block); err == nil {
			return key, nil
		}
	}
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	if block.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("it cannot sign")
	}
	return signer, nil
}
