package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ferrule/internal/hint"
)

// Failure says why there is no connection: where, what, on whose side, and what to do.
type Failure struct {
	Stage Stage `json:"stage"`
	Cause Cause `json:"cause"`
	// Side is who can repair it.
	Side Side   `json:"side"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// At is when it happened.
	At time.Time `json:"at,omitzero"`
}

// Side is who can repair a failure.
type Side string

// The sides.
const (
	SideDevice  Side = "device"
	SideBroker  Side = "broker"
	SideNetwork Side = "network"
)

// Cause is one word for what happened.
type Cause string

// The causes. Those of a TLS handshake, as Go and OpenSSL show them, were measured one by one;
// each has a test against a real server.
const (
	CauseName        Cause = "name"        // the broker's name has no address
	CauseDNS         Cause = "dns"         // the name server gave no answer
	CauseRefused     Cause = "refused"     // nothing listens
	CauseUnreachable Cause = "unreachable" // no way there
	CauseStalled     Cause = "stalled"     // no answer in time
	CauseClosed      Cause = "closed"      // ended without a word

	CauseCertificateRequired      Cause = "certificate-required"       // TLS 1.3: the broker got no certificate
	CauseHandshake                Cause = "handshake-refused"          // TLS 1.2 says no more than this
	CauseCertificateNotAcceptable Cause = "certificate-not-acceptable" // ours is of no authority that the broker lists
	CauseCertificateUnknownCA     Cause = "certificate-unknown-ca"     // the broker does not know who signed ours
	CauseCertificateExpired       Cause = "certificate-expired"        // ours, by the broker's clock
	CauseCertificateRevoked       Cause = "certificate-revoked"        // ours
	CauseCertificateRefused       Cause = "certificate-refused"        // ours, for another reason
	CauseKey                      Cause = "key"                        // our key did not sign

	CauseBrokerUnknownCA Cause = "broker-unknown-ca" // we do not know who signed the broker's
	CauseBrokerName      Cause = "broker-name"       // the broker's certificate is for another name
	CauseBrokerExpired   Cause = "broker-expired"    // the broker's certificate
	CauseBrokerInvalid   Cause = "broker-invalid"    // the broker's certificate, for another reason
	CauseBrokerRevoked   Cause = "broker-revoked"    // the broker's certificate, or an authority's above it
	// nobody can tell whether the broker's certificate was revoked, and that is not accepted
	CauseBrokerRevocationUnknown Cause = "broker-revocation-unknown"
	CauseClock                   Cause = "clock"       // ours is before the broker's certificate
	CauseVersion                 Cause = "tls-version" // no common version
	CausePlaintext               Cause = "plaintext"   // the port does not speak TLS
	CauseTLS                     Cause = "tls"         // another alert or handshake error

	CauseNotAuthorized Cause = "not-authorized"  // CONNACK 4 or 5
	CauseClientID      Cause = "client-id"       // CONNACK 2
	CauseUnavailable   Cause = "unavailable"     // CONNACK 3
	CauseProtocol      Cause = "protocol"        // not MQTT 3.1.1
	CauseTooLarge      Cause = "too-large"       // a packet above max_inbound
	CauseSubscription  Cause = "subscription"    // SUBACK 0x80
	CauseFrozen        Cause = "frozen"          // the link is up and nothing moves
	CauseNoAck         Cause = "no-ack"          // the broker lives and acknowledges nothing
	CauseCommands      Cause = "command-flood"   // more commands than are taken
	CauseEntry         Cause = "entry-set-aside" // an entry that ended three connections
	CauseUnknown       Cause = "unknown"
)

// What ends a connection on our side.
var (
	errFrozen       = errors.New("nothing moved on the link")
	errNoAck        = errors.New("no message was acknowledged")
	errSubscription = errors.New("the broker refused the subscription")
	errStalled      = errors.New("no answer")
	errFlood        = errors.New("too many commands at one time")
	errEntry        = errors.New("entry set aside")
)

// finding is what Classify knows of a cause.
type finding struct {
	cause Cause
	side  Side
	text  string
	hint  string
}

// Classify names the cause of an error that ended an attempt or a connection at stage, the
// side that it is on, and the repair. It owns the table of causes.
func Classify(stage Stage, err error) Failure {
	if err == nil {
		err = io.EOF
	}
	if staged, ok := errors.AsType[*stageError](err); ok {
		err = staged.err
	}
	f := classify(stage, err)
	if own := hint.Of(err); own != "" {
		f.hint = own
	}
	return Failure{Stage: stage, Cause: f.cause, Side: f.side, Text: printable(f.text + " (" + err.Error() + ")"), Hint: f.hint}
}

func classify(stage Stage, err error) finding {
	for _, look := range []func(Stage, error) (finding, bool){
		ofLink, ofAlert, ofVerification, ofKey, ofHandshake, ofConnack, ofNetwork,
	} {
		if f, ok := look(stage, err); ok {
			return f
		}
	}
	return finding{CauseUnknown, SideBroker, "the connection failed", "the broker's log has its side of it"}
}

// ofLink knows the ends that we brought about ourselves.
func ofLink(_ Stage, err error) (finding, bool) {
	switch {
	case errors.Is(err, errTooLarge):
		return finding{CauseTooLarge, SideBroker, "the broker sent more than session.max_inbound allows",
			"find who publishes it to the device's command topic, or raise session.max_inbound"}, true
	case errors.Is(err, errProtocol):
		return finding{CauseProtocol, SideBroker, "the broker does not speak MQTT 3.1.1 as it should",
			"check that the port is an MQTT listener"}, true
	case errors.Is(err, errSubscription):
		return finding{CauseSubscription, SideBroker, "readings flow, but commands are not heard",
			"let the broker's access rules permit this device to subscribe to session.topics.command"}, true
	case errors.Is(err, errFrozen), strings.HasPrefix(err.Error(), "pingresp not received"):
		return finding{CauseFrozen, SideNetwork, "the link was up, but nothing moved any more",
			"a firewall or NAT on the way may have forgotten the connection; if this repeats, shorten session.keepalive"}, true
	case errors.Is(err, errNoAck):
		return finding{CauseNoAck, SideBroker, "the broker answers pings but acknowledges no message",
			"look at the broker's load and disk"}, true
	case errors.Is(err, errFlood):
		return finding{CauseCommands, SideBroker, "more commands came than are taken at one time",
			"find who publishes to the device's command topic"}, true
	case errors.Is(err, errEntry):
		return finding{CauseEntry, SideBroker, "an entry ended three connections and was set aside",
			"the broker may have a limit on the size of messages; status shows how many entries are set aside"}, true
	}
	return finding{}, false
}

// isAlert says whether err is a TLS alert that the other side sent. Go keeps the alert itself
// unexported in a net.OpError (crypto/tls/alert.go), so its text is all there is.
func isAlert(err error) bool { return alertText(err) != "" }

func alertText(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && op.Err != nil {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return ""
}

// ofAlert knows the alerts (RFC 8446, 6.2) by Go's words for them. With TLS 1.3 they come at
// the first read, when CONNECT is already on its way.
func ofAlert(_ Stage, err error) (finding, bool) {
	const register = "let the broker trust the authority that signed the device's certificate"
	switch text := alertText(err); text {
	case "":
		return finding{}, false
	case "certificate required":
		return finding{CauseCertificateRequired, SideDevice, "the broker wants a client certificate and got none", "enroll the device: ferrule enroll"}, true
	case "handshake failure":
		return finding{CauseHandshake, SideDevice, "the broker ended the handshake without a reason",
			"TLS 1.2 brokers refuse a missing certificate in these words; check that the broker's list of authorities holds the one that signed the device's certificate"}, true
	case "unknown certificate authority":
		return finding{CauseCertificateUnknownCA, SideBroker, "the broker does not know who signed the device's certificate", register}, true
	case "expired certificate":
		return finding{CauseCertificateExpired, SideDevice, "the broker says that the device's certificate has expired",
			"renew it: ferrule enroll; if it is still valid, the broker's clock is wrong"}, true
	case "revoked certificate":
		return finding{CauseCertificateRevoked, SideDevice, "the device's certificate is revoked", "ask who runs the registrar, then: ferrule enroll"}, true
	case "bad certificate", "unsupported certificate", "unknown certificate", "access denied":
		return finding{CauseCertificateRefused, SideBroker, "the broker refused the device's certificate", register}, true
	case "protocol version not supported":
		return finding{CauseVersion, SideBroker, "the broker speaks neither TLS 1.2 nor 1.3", "enable TLS 1.2 or 1.3 on the broker"}, true
	default:
		return finding{CauseTLS, SideBroker, "the broker ended the handshake", "the broker's log has its side of it"}, true
	}
}

// ofVerification knows what is wrong with the broker's certificate.
func ofVerification(_ Stage, err error) (finding, bool) {
	if d, ok := errors.AsType[*distrust](err); ok && d.revoked() {
		return finding{CauseBrokerRevoked, SideBroker, "the broker's certificate, or that of an authority above it, was revoked",
			"give the broker a new certificate"}, true
	} else if ok {
		return finding{CauseBrokerRevocationUnknown, SideBroker, "nothing proves that the broker's certificate was not revoked",
			"let the broker staple an OCSP response, or give the device the CRLs of its authorities"}, true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return finding{CauseBrokerName, SideBroker, "the broker's certificate is for another name",
			"write in session.brokers the name that the certificate carries"}, true
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch {
		case invalid.Reason == x509.Expired && strings.Contains(invalid.Detail, "is before"):
			return finding{CauseClock, SideDevice, "the gateway's clock is before the broker's certificate", "set the clock (timedatectl)"}, true
		case invalid.Reason == x509.Expired:
			return finding{CauseBrokerExpired, SideBroker, "the broker's certificate has expired",
				"renew it; if it is still valid, the gateway's clock is ahead (timedatectl)"}, true
		}
		return finding{CauseBrokerInvalid, SideBroker, "the broker's certificate is not valid", "have the broker's certificate issued anew"}, true
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, noRoots := errors.AsType[x509.SystemRootsError](err)
	if unknown || noRoots {
		return finding{CauseBrokerUnknownCA, SideDevice, "the broker's certificate is signed by an authority that is not trusted here",
			"name the right authority in session.roots; if it is right, somebody is in between"}, true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return finding{CauseBrokerInvalid, SideBroker, "the broker's certificate is not valid", "have the broker's certificate issued anew"}, true
	}
	return finding{}, false
}

// ofKey knows what our own certificate and key do to a handshake before anything is sent.
func ofKey(_ Stage, err error) (finding, bool) {
	switch text := err.Error(); {
	case strings.Contains(text, "not signed by an acceptable CA"): // crypto/tls, SupportsCertificate
		return finding{CauseCertificateNotAcceptable, SideBroker, "the broker does not list the authority that signed the device's certificate",
			"add that authority to the broker's list, or enroll the device with one that it lists"}, true
	case strings.Contains(text, "failed to sign"):
		return finding{CauseKey, SideDevice, "the device's key did not sign", "look at the TPM: ferrule status, and dmesg for its driver"}, true
	}
	return finding{}, false
}

// ofHandshake knows how a handshake fails without an alert.
func ofHandshake(stage Stage, err error) (finding, bool) {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return finding{CausePlaintext, SideBroker, "the port does not speak TLS", "use the broker's TLS port, usually 8883"}, true
	}
	if stage != StageTLS && stage != StageRotate {
		return finding{}, false
	}
	switch text := err.Error(); {
	case strings.Contains(text, "unsupported protocol version"), strings.Contains(text, "no supported versions"):
		return finding{CauseVersion, SideBroker, "the broker speaks neither TLS 1.2 nor 1.3", "enable TLS 1.2 or 1.3 on the broker"}, true
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded), isClosed(err):
		return finding{}, false
	case strings.Contains(text, "tls: "):
		return finding{CauseTLS, SideBroker, "the handshake failed", "the broker's log has its side of it"}, true
	}
	return finding{}, false
}

// ofConnack knows the return codes of CONNACK (MQTT 3.1.1, 3.2.2.3).
func ofConnack(_ Stage, err error) (finding, bool) {
	switch {
	case errors.Is(err, packets.ErrorRefusedNotAuthorised), errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword):
		return finding{CauseNotAuthorized, SideBroker, "the broker knows the certificate but lets the device do nothing",
			"register the device with the broker; its name is the CN of its certificate"}, true
	case errors.Is(err, packets.ErrorRefusedIDRejected):
		return finding{CauseClientID, SideBroker, "the broker refused the client id", "set session.client_id to what the broker expects"}, true
	case errors.Is(err, packets.ErrorRefusedServerUnavailable):
		return finding{CauseUnavailable, SideBroker, "the broker says that it is unavailable", "wait, or look at the broker"}, true
	case errors.Is(err, packets.ErrorRefusedBadProtocolVersion), errors.Is(err, packets.ErrorProtocolViolation):
		return finding{CauseProtocol, SideBroker, "the broker does not speak MQTT 3.1.1", "enable MQTT 3.1.1 on the broker"}, true
	}
	return finding{}, false
}

// isClosed says whether the other side ended the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// ofNetwork knows what can happen at any stage.
func ofNetwork(stage Stage, err error) (finding, bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return finding{CauseName, SideDevice, "the broker's name has no address", "check the spelling in session.brokers"}, true
		}
		return finding{CauseDNS, SideNetwork, "the name server gave no answer", "check the gateway's name server and its way there"}, true
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return finding{CauseRefused, SideBroker, "nothing listens at the broker's port", "check the port in session.brokers and that the broker runs"}, true
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return finding{CauseUnreachable, SideNetwork, "there is no way to the broker", "check the gateway's network and its default route"}, true
	case errors.Is(err, errStalled), errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return stalled(stage), true
	case isClosed(err):
		return closed(stage), true
	}
	return finding{}, false
}

// stalled says what was waited for in vain.
func stalled(stage Stage) finding {
	f := finding{cause: CauseStalled, side: SideBroker, hint: "the other end is reached but silent: look at the broker's log, and for a proxy in between"}
	switch stage {
	case StageDNS:
		f.side, f.text, f.hint = SideNetwork, "the name server did not answer in time", "check the gateway's name server"
	case StageTCP:
		f.side, f.text, f.hint = SideNetwork, "the broker did not answer in time", "a firewall may drop packets to this port"
	case StageTLS:
		f.text = "the handshake stalled after ClientHello"
	case StageConnack:
		f.text = "CONNECT was not answered in time"
	case StageSuback:
		f.text = "SUBSCRIBE was not answered in time"
	default:
		f.text = "there was no answer in time"
	}
	return f
}

// closed says what was going on when the other side closed the connection.
func closed(stage Stage) finding {
	f := finding{cause: CauseClosed, side: SideBroker, hint: "the broker's log has the reason"}
	switch stage {
	case StageTLS:
		f.text, f.hint = "the broker closed the connection in the handshake", "check that the port is a TLS listener, and the broker's log"
	case StageConnack:
		f.text, f.hint = "the broker closed the connection instead of answering CONNECT", "some brokers refuse a device that they do not know in this way; the broker's log has the reason"
	case StageSuback:
		f.text, f.hint = "the broker closed the connection after SUBSCRIBE", "some brokers do so where the device may not subscribe to session.topics.command, or publish"
	default:
		f.text = "the broker closed the connection"
	}
	return f
}

// printable makes foreign text fit for a log and a terminal.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}
