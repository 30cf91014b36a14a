package main

import (
	"crypto/x509"
	"fmt"

	"ferrule/agent/enroll/registrar"
	"ferrule/internal/hint"
)

// backOptions are the flags that name the CA behind.
type backOptions struct {
	issuer string
}

func backFlags(e *env) {
	e.flags.StringVar(&e.issuing.back.issuer, "issuer", registrar.LocalName, "`who` issues: local, step, est or exec")
}

// open returns the issuer and the roots that its chains lead to; nil: the CA of the directory.
func (o backOptions) open(command []string, factory bool) (registrar.Issuer, *x509.CertPool, error) {
	switch o.issuer {
	case registrar.LocalName:
		return nil, nil, nil
	}
	return nil, nil, hint.With(fmt.Errorf("%w: --issuer %q is not known", errUsage, o.issuer), "it is local, step, est or exec")
}
