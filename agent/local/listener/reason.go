package listener

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ferrule/agent/local/role"
)

// Causes of a refusal: the keys of Status.Refused and of the metric's label.
const (
	NoCertificate   = "no-certificate"
	UnknownCA       = "unknown-ca"
	Expired         = "expired"
	NotYetValid     = "not-yet-valid"
	WrongUsage      = "wrong-usage"     // not for clients
	BadCertificate  = "bad-certificate" // anything else about it
	BadSignature    = "bad-signature"   // the certificate is good and its key was not there
	WeakKey         = "weak-key"
	NoRole          = "no-role"
	NotVerified     = "not-verified" // Options.Verify said no
	RefusedByClient = "refused-by-client"
	Version         = "version"
	Cipher          = "cipher"
	Protocol        = "protocol" // ALPN
	Plaintext       = "plaintext"
	Malformed       = "malformed"
	TooLarge        = "too-large"
	Silent          = "silent"
	Stalled         = "stalled"
	HungUp          = "hung-up"
	Reset           = "reset"
	Displaced       = "displaced"
)

// reason is why a client did not come in. Its text is fit for a log: foreign bytes are escaped.
type reason struct {
	cause, text string
	told        bool // an alert or an answer waits for the client
}

// Refusal is the last reason, as the status shows it.
type Refusal struct {
	At     time.Time `json:"at"`
	Source string    `json:"source"`
	Cause  string    `json:"cause"`
	Text   string    `json:"text"`
}

// explain finds the reason in the error of a handshake. crypto/tls has few error values, so its
// texts are compared where it has none; the PKI tests hold every one of them.
func explain(err error, c *Conn) reason {
	if c.evicted.Load() {
		return reason{Displaced, "gave way to a newer connection", false}
	}
	if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return explainCertificate(certificate)
	}
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return explainHeader(header, c)
	}
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		text := strings.TrimPrefix(remote.Err.Error(), "tls: ")
		return reason{RefusedByClient, "the client refused the listener's certificate or offer: " + text, false}
	}
	for _, find := range []func(error, *Conn) (reason, bool){explainJudge, explainConnection, explainText} {
		if r, ok := find(err, c); ok {
			return r
		}
	}
	return reason{Malformed, "handshake failed: " + printable(err.Error()), true}
}

func explainJudge(err error, _ *Conn) (reason, bool) {
	if errors.Is(err, role.ErrNoRole) {
		return reason{NoRole, err.Error(), true}, true
	}
	if w, ok := errors.AsType[*weakError](err); ok {
		return reason{WeakKey, "certificate with a weak key: " + w.text, true}, true
	}
	if v, ok := errors.AsType[*verifyError](err); ok {
		return reason{NotVerified, "certificate not accepted: " + printable(v.Error()), true}, true
	}
	return reason{}, false
}

func explainConnection(err error, c *Conn) (reason, bool) {
	switch {
	case errors.Is(err, errTooMuch):
		return reason{TooLarge, err.Error(), false}, true
	case errors.Is(err, os.ErrDeadlineExceeded) && c.received.Load() == 0:
		return reason{Silent, fmt.Sprintf("sent nothing for %v", c.listener.options.Patience), false}, true
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.hello:
		return reason{Stalled, fmt.Sprintf("stalled before its ClientHello was whole (%d bytes in %v)", c.received.Load(), c.listener.options.Patience), false}, true
	case errors.Is(err, os.ErrDeadlineExceeded):
		return reason{Stalled, fmt.Sprintf("stalled after its ClientHello for %v", c.listener.options.Patience), false}, true
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return reason{Reset, "reset the connection in the handshake", false}, true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		if c.received.Load() == 0 {
			return reason{HungUp, "hung up without a word", false}, true
		}
		return reason{HungUp, "hung up in the handshake", false}, true
	}
	return reason{}, false
}

// texts are those of crypto/tls, in Go 1.26, that mean one of our causes.
var texts = [...]struct{ part, cause, say string }{
	{"client didn't provide a certificate", NoCertificate, "showed no certificate"},
	{"unsupported versions", Version, "offers no TLS version from 1.2 on"},
	{"protocol version not supported", Version, "offers no TLS version from 1.2 on"},
	{"unsupported application protocol", Protocol, "does not offer http/1.1"},
	{"no cipher suite supported", Cipher, "shares no cipher suite with us"},
	{"no key exchanges supported", Cipher, "shares no key exchange with us"},
	{"no ECDHE curve supported", Cipher, "shares no key exchange with us"},
	{"inappropriate protocol fallback", Version, "fell back to an older TLS version than it could have"},
	{"doesn't support any of the certificate's signature algorithms", Cipher, "shares no signature algorithm with us"},
	{"signature algorithm", BadSignature, "signed with an algorithm that was not offered"},
	{"invalid signature", BadSignature, "did not prove that it holds the certificate's key"},
	{"failed to parse client certificate", BadCertificate, "sent a certificate that is none"},
	{"RSA key", WeakKey, "certificate with an RSA key of an unusable size"},
	{"unsupported public key", WeakKey, "certificate with a key of an unsupported kind"},
}

func explainText(err error, _ *Conn) (reason, bool) {
	text := err.Error()
	for _, t := range texts {
		if strings.Contains(text, t.part) {
			return reason{t.cause, t.say + " (" + printable(text) + ")", true}, true
		}
	}
	return reason{}, false
}

// explainCertificate reads what crypto/x509 found.
func explainCertificate(err *tls.CertificateVerificationError) reason {
	who := ""
	if len(err.UnverifiedCertificates) > 0 {
		who = " (" + role.Describe(err.UnverifiedCertificates[0]) + ")"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err.Err); ok && strings.Contains(err.Err.Error(), "insecure algorithm") {
		return reason{BadCertificate, "certificate signed with an algorithm that nobody believes any more" + who, true}
	} else if ok {
		return reason{UnknownCA, "certificate of a CA that [local] does not name" + who, true}
	}
	if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err.Err); ok {
		return reason{BadCertificate, "certificate with a critical extension nobody knows" + who, true}
	}
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err.Err)
	if !ok {
		return reason{BadCertificate, "certificate not accepted: " + printable(err.Err.Error()) + who, true}
	}
	switch {
	case invalid.Reason == x509.Expired && strings.Contains(invalid.Detail, "is before"):
		return reason{NotYetValid, "certificate not valid yet: " + printable(invalid.Detail) + who, true}
	case invalid.Reason == x509.Expired:
		return reason{Expired, "certificate expired: " + printable(invalid.Detail) + who, true}
	case invalid.Reason == x509.IncompatibleUsage:
		return reason{WrongUsage, "certificate is not for clients" + who, true}
	}
	return reason{BadCertificate, "certificate not accepted: " + printable(invalid.Error()) + who, true}
}

// explainHeader names what came instead of TLS.
func explainHeader(err tls.RecordHeaderError, c *Conn) reason {
	switch head := err.RecordHeader; {
	case c.hello:
		return reason{Malformed, "broken TLS record in the handshake: " + printable(err.Msg), true}
	case looksLikeHTTP(head):
		return reason{Plaintext, "plain HTTP on a TLS port", true}
	case head[0] == 0x10: // MQTT 3.1.1, 3.1: CONNECT
		return reason{Plaintext, "plain MQTT on a TLS port", true}
	default:
		return reason{Plaintext, fmt.Sprintf("no TLS: first bytes % x", head[:]), true}
	}
}

func looksLikeHTTP(head [5]byte) bool {
	switch string(head[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "CONNE", "PATCH", "PRI *":
		return true
	}
	return false
}

// printable makes text from a wire fit for a log: one line of ASCII, bounded.
func printable(text string) string {
	const most = 300
	quoted := strconv.QuoteToASCII(text)
	quoted = strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
	if len(quoted) > most {
		return quoted[:most] + "..."
	}
	return quoted
}
