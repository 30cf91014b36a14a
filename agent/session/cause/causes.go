package cause

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// ofLink knows the ends that we brought about ourselves.
func ofLink(_ Stage, err error) (finding, bool) {
	switch {
	case errors.Is(err, ErrTooLarge):
		return finding{TooLarge, SideBroker, "the broker sent more than session.max_inbound allows",
			"find who publishes it to the device's command topic, or raise session.max_inbound"}, true
	case errors.Is(err, ErrProtocol):
		return finding{Protocol, SideBroker, "the broker does not speak MQTT 3.1.1 as it should",
			"check that the port is an MQTT listener"}, true
	case errors.Is(err, ErrSubscription):
		return finding{Subscription, SideBroker, "readings flow, but commands are not heard",
			"let the broker's access rules permit this device to subscribe to session.topics.command"}, true
	case errors.Is(err, ErrFrozen), strings.HasPrefix(err.Error(), "pingresp not received"):
		return finding{Frozen, SideNetwork, "the link was up, but nothing moved any more",
			"a firewall or NAT on the way may have forgotten the connection; if this repeats, shorten session.keepalive"}, true
	case errors.Is(err, ErrNoAck):
		return finding{NoAck, SideBroker, "the broker answers pings but acknowledges no message",
			"look at the broker's load and disk"}, true
	case errors.Is(err, ErrFlood):
		return finding{Commands, SideBroker, "more commands came than are taken at one time",
			"find who publishes to the device's command topic"}, true
	case errors.Is(err, ErrEntry):
		return finding{Entry, SideBroker, "an entry ended three connections and was set aside",
			"the broker may have a limit on the size of messages; status shows how many entries are set aside"}, true
	}
	return finding{}, false
}

// IsAlert says whether err is a TLS alert that the other side sent. Go keeps the alert itself
// unexported in a net.OpError (crypto/tls/alert.go), so its text is all there is.
func IsAlert(err error) bool { return alertText(err) != "" }

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
		return finding{CertificateRequired, SideDevice, "the broker wants a client certificate and got none", "enroll the device: ferrule enroll"}, true
	case "handshake failure":
		return finding{Handshake, SideDevice, "the broker ended the handshake without a reason",
			"TLS 1.2 brokers refuse a missing certificate in these words; check that the broker's list of authorities holds the one that signed the device's certificate"}, true
	case "unknown certificate authority":
		return finding{CertificateUnknownCA, SideBroker, "the broker does not know who signed the device's certificate", register}, true
	case "expired certificate":
		return finding{CertificateExpired, SideDevice, "the broker says that the device's certificate has expired",
			"renew it: ferrule enroll; if it is still valid, the broker's clock is wrong"}, true
	case "revoked certificate":
		return finding{CertificateRevoked, SideDevice, "the device's certificate is revoked", "ask who runs the registrar, then: ferrule enroll"}, true
	case "bad certificate", "unsupported certificate", "unknown certificate", "access denied":
		return finding{CertificateRefused, SideBroker, "the broker refused the device's certificate", register}, true
	case "no application protocol":
		return finding{ALPN, SideBroker, "the broker does not speak the ALPN protocol that session.brokers names",
			"AWS IoT Core wants ?alpn=x-amzn-mqtt-ca at port 443, most others no ?alpn= at all"}, true
	case "protocol version not supported":
		return finding{Version, SideBroker, "the broker speaks neither TLS 1.2 nor 1.3", "enable TLS 1.2 or 1.3 on the broker"}, true
	default:
		return finding{TLS, SideBroker, "the broker ended the handshake", "the broker's log has its side of it"}, true
	}
}

// ofKey knows what our own certificate and key do to a handshake before anything is sent.
func ofKey(_ Stage, err error) (finding, bool) {
	switch text := err.Error(); {
	case strings.Contains(text, "not signed by an acceptable CA"): // crypto/tls, SupportsCertificate
		return finding{CertificateNotAcceptable, SideBroker, "the broker does not list the authority that signed the device's certificate",
			"add that authority to the broker's list, or enroll the device with one that it lists"}, true
	case strings.Contains(text, "failed to sign"):
		return finding{Key, SideDevice, "the device's key did not sign", "look at the TPM: ferrule status, and dmesg for its driver"}, true
	}
	return finding{}, false
}

// ofHandshake knows how a handshake fails without an alert.
func ofHandshake(stage Stage, err error) (finding, bool) {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return finding{Plaintext, SideBroker, "the port does not speak TLS", "use the broker's TLS port, usually 8883"}, true
	}
	if stage != StageTLS && stage != StageRotate {
		return finding{}, false
	}
	switch text := err.Error(); {
	case isALPN(err):
		return finding{ALPN, SideBroker, "the broker chose an ALPN protocol that was not asked for", "something else than an MQTT broker may listen at this port"}, true
	case strings.Contains(text, "unsupported protocol version"), strings.Contains(text, "no supported versions"):
		return finding{Version, SideBroker, "the broker speaks neither TLS 1.2 nor 1.3", "enable TLS 1.2 or 1.3 on the broker"}, true
	case IsTimeout(err), errors.Is(err, context.DeadlineExceeded), IsClosed(err):
		return finding{}, false
	case strings.Contains(text, "tls: "):
		return finding{TLS, SideBroker, "the handshake failed", "the broker's log has its side of it"}, true
	}
	return finding{}, false
}

// ofConnack knows the return codes of CONNACK (MQTT 3.1.1, 3.2.2.3).
func ofConnack(_ Stage, err error) (finding, bool) {
	code, ok := errors.AsType[Refusal](err)
	if !ok {
		return finding{}, false
	}
	switch code {
	case 4, 5:
		return finding{NotAuthorized, SideBroker, "the broker knows the certificate but lets the device do nothing",
			"register the device with the broker; its name is the CN of its certificate"}, true
	case 2:
		return finding{ClientID, SideBroker, "the broker refused the client id", "set session.client_id to what the broker expects"}, true
	case 3:
		return finding{Unavailable, SideBroker, "the broker says that it is unavailable", "wait, or look at the broker"}, true
	default:
		return finding{Protocol, SideBroker, "the broker does not speak MQTT 3.1.1", "enable MQTT 3.1.1 on the broker"}, true
	}
}

// IsClosed says whether the other side ended the connection.
func IsClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// ofNetwork knows what can happen at any stage.
func ofNetwork(stage Stage, err error) (finding, bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return finding{Name, SideDevice, "the broker's name has no address", "check the spelling in session.brokers"}, true
		}
		return finding{DNS, SideNetwork, "the name server gave no answer", "check the gateway's name server and its way there"}, true
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return finding{Refused, SideBroker, "nothing listens at the broker's port", "check the port in session.brokers and that the broker runs"}, true
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return finding{Unreachable, SideNetwork, "there is no way to the broker", "check the gateway's network and its default route"}, true
	case errors.Is(err, ErrStalled), errors.Is(err, context.DeadlineExceeded), IsTimeout(err):
		return stalled(stage), true
	case IsClosed(err):
		return closed(stage), true
	}
	return finding{}, false
}

// stalled says what was waited for in vain.
func stalled(stage Stage) finding {
	f := finding{cause: Stalled, side: SideBroker, hint: "the other end is reached but silent: look at the broker's log, and for a proxy in between"}
	switch stage {
	case StageDNS:
		f.side, f.text, f.hint = SideNetwork, "the name server did not answer in time", "check the gateway's name server"
	case StageTCP:
		f.side, f.text, f.hint = SideNetwork, "the broker did not answer in time", "a firewall may drop packets to this port; try the broker's port 443, or a proxy"
	case StageProxy:
		f.cause, f.side, f.text, f.hint = ProxyUnreachable, SideNetwork, "the proxy did not answer CONNECT in time", "the proxy may not reach the broker: check its log, and the broker's name and port"
	case StageTLS:
		f.text = "the handshake stalled after ClientHello"
	case StageWebSocket:
		f.text = "the WebSocket handshake was not answered in time"
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
	f := finding{cause: Closed, side: SideBroker, hint: "the broker's log has the reason"}
	switch stage {
	case StageTLS:
		f.text, f.hint = "the broker closed the connection in the handshake", "check that the port is a TLS listener, and the broker's log"
	case StageProxy:
		f.side, f.text, f.hint = SideNetwork, "the proxy closed the connection", "the proxy's log has the reason; check too whether session.proxy is http:// or https://"
	case StageWebSocket:
		f.text, f.hint = "the broker closed the connection in the WebSocket handshake", "check that the port takes WebSockets; with TLS 1.3 a broker may refuse the device's certificate in this way: its log has the reason"
	case StageConnack:
		f.text, f.hint = "the broker closed the connection instead of answering CONNECT", "some brokers refuse a device that they do not know in this way; the broker's log has the reason"
	case StageSuback:
		f.text, f.hint = "the broker closed the connection after SUBSCRIBE", "some brokers do so where the device may not subscribe to session.topics.command, or publish"
	default:
		f.text = "the broker closed the connection"
	}
	return f
}

// IsTimeout says whether err is a deadline that passed.
func IsTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
