package main

import (
	"crypto/x509"
	"fmt"
	"time"

	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/internal/cli"
	"ferrule/internal/hint"
	"ferrule/tpm/attest"
)

// issuingOptions are the flags of whatever issues certificates: registrar and batch issue.
type issuingOptions struct {
	ca       string
	life     time.Duration
	factory  bool
	tpmRoots string
	firstUse bool
	back     backOptions
}

func issuingFlags(e *env) {
	o := &e.issuing
	e.Flags.StringVar(&o.ca, "ca", "", "the CA's `directory`")
	e.Flags.DurationVar(&o.life, "life", 0, fmt.Sprintf("how long the CA's certificates live (default %v, with --factory %v)", ca.DeviceLife, ca.FactoryLife))
	e.Flags.BoolVar(&o.factory, "factory", false, "issue factory certificates (IDevID)")
	e.Flags.StringVar(&o.tpmRoots, "tpm-roots", "", "PEM `file`, or folder of files, with the certificates of the TPMs' makers")
	e.Flags.BoolVar(&o.firstUse, "trust-ek-on-first-use", false, "take TPMs without a maker's certificate as they come; recorded so")
	backFlags(e)
	jsonFlag(e)
}

// open reads what the flags name. usage is the hint where one is missing.
func (o issuingOptions) open(usage string, command []string) (registrar.Config, error) {
	if o.ca == "" || o.life < 0 {
		return registrar.Config{}, hint.With(fmt.Errorf("%w: --ca is needed, and --life above zero", cli.ErrUsage), usage)
	}
	authority, book, err := openCA(o.ca)
	if err != nil {
		return registrar.Config{}, err
	}
	c := registrar.Config{CA: authority, Records: book, Life: o.life, Factory: o.factory}
	if c.Life == 0 && o.factory {
		c.Life = ca.FactoryLife
	}
	if c.TPMs, err = o.verifier(); err != nil {
		return c, err
	}
	c.Issuer, c.Roots, err = o.back.open(command)
	return c, err
}

func (o issuingOptions) verifier() (attest.Verifier, error) {
	v := attest.Verifier{TrustOnFirstUse: o.firstUse}
	if o.tpmRoots == "" {
		return v, nil
	}
	certificates, err := readCertificates(o.tpmRoots)
	if err != nil {
		return v, fmt.Errorf("reading --tpm-roots: %w", err)
	}
	v.Roots, v.Intermediates = x509.NewCertPool(), x509.NewCertPool()
	roots := 0
	for _, c := range certificates {
		if c.CheckSignatureFrom(c) == nil {
			v.Roots.AddCert(c)
			roots++
		} else {
			v.Intermediates.AddCert(c)
		}
	}
	if roots == 0 {
		return v, hint.With(fmt.Errorf("reading --tpm-roots: %s holds no root", o.tpmRoots), "add the makers' roots, which are signed by themselves, to the authorities below them")
	}
	return v, nil
}
