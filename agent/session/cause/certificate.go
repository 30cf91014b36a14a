package cause

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strconv"
	"strings"
)

// ofVerification knows what is wrong with the broker's certificate.
func ofVerification(_ Stage, err error) (finding, bool) {
	if d, ok := errors.AsType[*Distrust](err); ok && d.Revoked() {
		return finding{BrokerRevoked, SideBroker, "the broker's certificate, or that of an authority above it, was revoked",
			"give the broker a new certificate"}, true
	} else if ok {
		return finding{BrokerRevocationUnknown, SideBroker, "nothing proves that the broker's certificate was not revoked",
			"let the broker staple an OCSP response, or give the device the CRLs of its authorities"}, true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return finding{BrokerName, SideBroker, "the broker's certificate is for another name",
			"write in session.brokers the name that the certificate carries"}, true
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return invalidity(invalid, shownFirst(err)), true
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, noRoots := errors.AsType[x509.SystemRootsError](err)
	if unknown || noRoots {
		return unknownAuthority(err), true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return finding{BrokerInvalid, SideBroker, "the broker's certificate is not valid", anew}, true
	}
	return finding{}, false
}

const anew = "have the broker's certificate issued anew"

// shownFirst returns the certificate that the broker showed for itself, or nil.
func shownFirst(err error) *x509.Certificate {
	if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(v.UnverifiedCertificates) > 0 {
		return v.UnverifiedCertificates[0]
	}
	return nil
}

// invalidity names what is wrong with a chain whose authority is known.
func invalidity(invalid x509.CertificateInvalidError, leaf *x509.Certificate) finding {
	whose := "the broker's certificate"
	if leaf != nil && invalid.Cert != nil && !leaf.Equal(invalid.Cert) {
		whose = "the certificate of an authority above the broker's"
	}
	f := finding{cause: BrokerInvalid, side: SideBroker, hint: anew}
	switch invalid.Reason {
	case x509.Expired:
		if strings.Contains(invalid.Detail, "is before") {
			return finding{Clock, SideDevice, "the gateway's clock is before " + whose, "set the clock (timedatectl)"}
		}
		return finding{BrokerExpired, SideBroker, whose + " has expired", "renew it; if it is still valid, the gateway's clock is ahead (timedatectl)"}
	case x509.IncompatibleUsage:
		f.text, f.hint = "the certificate that the broker shows is not a server's", "have it issued with the extended key usage serverAuth"
	case x509.TooManyIntermediates:
		f.text, f.hint = "there are too many authorities between the broker's certificate and its root", "have it issued by an authority that the path length allows"
	case x509.NotAuthorizedToSign:
		f.text, f.hint = "who signed the broker's certificate is not an authority", "have it issued by one (basicConstraints CA:TRUE, keyUsage keyCertSign)"
	case x509.CANotAuthorizedForThisName, x509.CANotAuthorizedForExtKeyUsage, x509.NameConstraintsWithoutSANs, x509.UnconstrainedName:
		f.text, f.hint = "an authority above the broker may not certify this name", "have the certificate issued by an authority whose name constraints permit it"
	default:
		f.text = whose + " is not valid"
	}
	return f
}

// unknownAuthority names why no authority that is trusted vouches for the broker. One that comes
// close says why it does not count: Go has only words for that.
func unknownAuthority(err error) finding {
	_, rest, _ := strings.Cut(err.Error(), "(possibly because of ")
	quoted, _ := strconv.QuotedPrefix(rest)
	why, _ := strconv.Unquote(quoted)
	switch {
	case strings.Contains(why, "cannot sign this kind of certificate"):
		return invalidity(x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}, nil)
	case strings.Contains(why, "insecure"):
		return finding{BrokerInvalid, SideBroker, "a signature above the broker's certificate is too weak",
			"have it issued anew with SHA-256 and a key of 2048 bits RSA, or of P-256"}
	}
	text := "the broker's certificate is signed by an authority that is not trusted here"
	if leaf := shownFirst(err); leaf != nil {
		text += ", " + strconv.Quote(leaf.Issuer.String())
	}
	return finding{BrokerUnknownCA, SideDevice, text,
		"if that is the broker's authority, name it in session.roots; if it is one of your network's, it opens TLS: have the broker's name exempted, or name it in session.inspection_roots"}
}
