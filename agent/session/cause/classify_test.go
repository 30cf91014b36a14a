package cause

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"ferrule/internal/hint"
)

// alert is one as crypto/tls gives it.
func alert(text string) error {
	return &net.OpError{Op: "remote error", Err: errors.New("tls: " + text)}
}

type revoked bool

func (r revoked) Error() string { return "certificate 7 is in the list" }
func (r revoked) Revoked() bool { return bool(r) }

func at(err error) error { return &AtProxy{Proxy: "http://proxy.test:3128", Err: err} }

func op(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }

// refusals are errors as they come, where, and what is made of them.
var refusals = []struct {
	stage Stage
	err   error
	cause Cause
	side  Side
	text  string
}{
	{StageDNS, &net.DNSError{Err: "no such host", Name: "broker.test", IsNotFound: true}, Name, SideDevice, "the broker's name has no address"},
	{StageDNS, &net.DNSError{Err: "server misbehaving", Name: "broker.test"}, DNS, SideNetwork, "the name server gave no answer"},
	{StageDNS, fmt.Errorf("%w within 10s", ErrStalled), Stalled, SideNetwork, "the name server did not answer in time"},
	{StageTCP, op(syscall.ECONNREFUSED), Refused, SideBroker, "nothing listens"},
	{StageTCP, op(syscall.ENETUNREACH), Unreachable, SideNetwork, "there is no way"},
	{StageTCP, op(syscall.EHOSTUNREACH), Unreachable, SideNetwork, "there is no way"},
	{StageTCP, errors.Join(op(syscall.ENETUNREACH), op(syscall.ECONNREFUSED)), Refused, SideBroker, "nothing listens"},
	{StageTCP, fmt.Errorf("%w within 10s", ErrStalled), Stalled, SideNetwork, "the broker did not answer in time"},

	{StageDNS, at(&net.DNSError{IsNotFound: true}), ProxyUnreachable, SideDevice, "the proxy's name has no address"},
	{StageDNS, at(&net.DNSError{}), ProxyUnreachable, SideNetwork, "no answer for the proxy's name"},
	{StageTCP, at(op(syscall.ECONNREFUSED)), ProxyUnreachable, SideNetwork, "nothing listens at the proxy's port"},
	{StageTCP, at(op(syscall.ENETUNREACH)), ProxyUnreachable, SideNetwork, "there is no way to the proxy"},
	{StageTCP, at(ErrStalled), ProxyUnreachable, SideNetwork, "the proxy did not answer in time"},
	{StageProxy, at(io.EOF), ProxyUnreachable, SideNetwork, "the proxy closed the connection"},
	{StageProxy, at(x509.UnknownAuthorityError{}), ProxyTLS, SideNetwork, "signed by an authority that is not trusted"},
	{StageProxy, at(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}), ProxyTLS, SideNetwork, "for another name"},
	{StageProxy, at(x509.CertificateInvalidError{Reason: x509.Expired}), ProxyTLS, SideNetwork, "is not valid"},
	{StageProxy, at(tls.RecordHeaderError{Msg: "no TLS"}), ProxyTLS, SideNetwork, "does not speak TLS"},
	{StageProxy, at(alert("handshake failure")), ProxyTLS, SideNetwork, "TLS to the proxy failed"},
	{StageProxy, &ProxyAnswer{Code: 407, Status: "407 Login", Schemes: `Basic realm="x"`}, ProxyAuth, SideDevice, "user and password"},
	{StageProxy, &ProxyAnswer{Code: 407, Status: "407 Login"}, ProxyAuth, SideDevice, "user and password"},
	{StageProxy, &ProxyAnswer{Code: 407, Status: "407 Login", Schemes: "NTLM, Negotiate"}, ProxyAuth, SideNetwork, "a kind of login"},
	{StageProxy, &ProxyAnswer{Code: 403, Status: "403 Forbidden"}, ProxyRefused, SideNetwork, "does not allow"},
	{StageProxy, &ProxyAnswer{Code: 405, Status: "405 No CONNECT"}, ProxyRefused, SideNetwork, "does not allow"},
	{StageProxy, &ProxyAnswer{Code: 502, Status: "502 Bad Gateway"}, ProxyNoWay, SideNetwork, "cannot reach the broker"},
	{StageProxy, fmt.Errorf("%w: it answers in TLS", ErrNotProxy), NotProxy, SideNetwork, "not an HTTP proxy"},
	{StageProxy, fmt.Errorf("%w within 10s", ErrStalled), ProxyUnreachable, SideNetwork, "did not answer CONNECT in time"},
	{StageProxy, op(syscall.ECONNRESET), Closed, SideNetwork, "the proxy closed"},

	{StageTLS, alert("certificate required"), CertificateRequired, SideDevice, "wants a client certificate"},
	{StageTLS, alert("handshake failure"), Handshake, SideDevice, "without a reason"},
	{StageTLS, alert("unknown certificate authority"), CertificateUnknownCA, SideBroker, "does not know who signed"},
	{StageTLS, alert("expired certificate"), CertificateExpired, SideDevice, "has expired"},
	{StageTLS, alert("revoked certificate"), CertificateRevoked, SideDevice, "is revoked"},
	{StageTLS, alert("bad certificate"), CertificateRefused, SideBroker, "refused the device's certificate"},
	{StageTLS, alert("unsupported certificate"), CertificateRefused, SideBroker, "refused the device's certificate"},
	{StageTLS, alert("protocol version not supported"), Version, SideBroker, "neither TLS 1.2 nor 1.3"},
	{StageTLS, alert("no application protocol"), ALPN, SideBroker, "does not speak the ALPN protocol"},
	{StageTLS, alert("internal error"), TLS, SideBroker, "ended the handshake"},
	{StageTLS, errors.New("tls: server selected unadvertised ALPN protocol"), ALPN, SideBroker, "not asked for"},
	{StageTLS, errors.New("tls: server selected unsupported protocol version 301"), Version, SideBroker, "neither"},
	{StageTLS, errors.New("tls: server did something else"), TLS, SideBroker, "the handshake failed"},
	{StageTLS, errors.New("tls: failed to sign handshake: TPM_RC_LOCKOUT"), Key, SideDevice, "did not sign"},
	{StageTLS, errors.New("chain is not signed by an acceptable CA"), CertificateNotAcceptable, SideBroker, "does not list the authority"},
	{StageTLS, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, Plaintext, SideBroker, "does not speak TLS"},
	{StageTLS, io.EOF, Closed, SideBroker, "closed the connection in the handshake"},
	{StageTLS, context.DeadlineExceeded, Stalled, SideBroker, "stalled after ClientHello"},
	{StageTLS, &Distrust{Err: revoked(true)}, BrokerRevoked, SideBroker, "was revoked"},
	{StageTLS, &Distrust{Err: revoked(false)}, BrokerRevocationUnknown, SideBroker, "nothing proves"},
	{StageTLS, &Distrust{Err: errors.New("x")}, BrokerRevocationUnknown, SideBroker, "nothing proves"},
	{StageTLS, x509.SystemRootsError{}, BrokerUnknownCA, SideDevice, "not trusted here"},
	{StageTLS, &Inspected{Authority: "CN=Corp", Err: alert("bad certificate")}, Inspection, SideNetwork, `inspected by "CN=Corp"`},
	{StageConnack, &Inspected{Authority: "CN=Corp", Err: Refusal(5)}, Inspection, SideNetwork, "does not see the device's certificate"},

	{StageWebSocket, &WebSocketAnswer{Code: 401, Status: "401 Unauthorized"}, WebSocketRefused, SideBroker, "does not let the device in"},
	{StageWebSocket, &WebSocketAnswer{Code: 404, Status: "404 Not Found"}, WebSocketPath, SideBroker, "no WebSocket at this path"},
	{StageWebSocket, &WebSocketAnswer{Code: 400, Status: "400 Bad Request"}, NotWebSocket, SideBroker, "does not take WebSockets"},
	{StageWebSocket, &WebSocketAnswer{Code: 200, Status: "200 OK"}, NotWebSocket, SideBroker, "speaks HTTP"},
	{StageWebSocket, &WebSocketAnswer{Code: 503, Status: "503 Unavailable"}, Unavailable, SideBroker, "unavailable"},
	{StageWebSocket, fmt.Errorf("%w: the subprotocol is %q", ErrNotWebSocket, ""), NotWebSocket, SideBroker, "not MQTT over WebSocket"},
	{StageWebSocket, fmt.Errorf("%w within 10s", ErrStalled), Stalled, SideBroker, "WebSocket handshake was not answered"},
	{StageWebSocket, io.ErrUnexpectedEOF, Closed, SideBroker, "in the WebSocket handshake"},

	{StageConnack, Refusal(1), Protocol, SideBroker, "does not speak MQTT 3.1.1"},
	{StageConnack, Refusal(2), ClientID, SideBroker, "client id"},
	{StageConnack, Refusal(3), Unavailable, SideBroker, "unavailable"},
	{StageConnack, Refusal(4), NotAuthorized, SideBroker, "lets the device do nothing"},
	{StageConnack, Refusal(5), NotAuthorized, SideBroker, "lets the device do nothing"},
	{StageConnack, Refusal(77), Protocol, SideBroker, "return code 77"},
	{StageConnack, fmt.Errorf("%w: %w", ErrALPN, io.EOF), ALPN, SideBroker, "did not agree to the ALPN protocol"},
	{StageConnack, os.ErrDeadlineExceeded, Stalled, SideBroker, "CONNECT was not answered in time"},
	{StageConnack, nil, Closed, SideBroker, "instead of answering CONNECT"},
	{StageSuback, io.EOF, Closed, SideBroker, "after SUBSCRIBE"},
	{StageSuback, ErrStalled, Stalled, SideBroker, "SUBSCRIBE was not answered"},
	{StageSuback, ErrSubscription, Subscription, SideBroker, "commands are not heard"},
	{StageUp, io.EOF, Closed, SideBroker, "the broker closed the connection"},
	{StageUp, ErrTooLarge, TooLarge, SideBroker, "max_inbound"},
	{StageUp, ErrProtocol, Protocol, SideBroker, "MQTT 3.1.1"},
	{StageUp, ErrFrozen, Frozen, SideNetwork, "nothing moved"},
	{StageUp, errors.New("pingresp not received, disconnecting"), Frozen, SideNetwork, "nothing moved"},
	{StageUp, ErrNoAck, NoAck, SideBroker, "acknowledges no message"},
	{StageUp, ErrFlood, Commands, SideBroker, "more commands"},
	{StageUp, ErrEntry, Entry, SideBroker, "set aside"},
	{StageUp, ErrDuplicate, DuplicateIdentity, SideDevice, "another client"},
	{StageUp, errors.New("something new"), Unknown, SideBroker, "something new"},
}

func TestClassify(t *testing.T) {
	for _, test := range refusals {
		for _, err := range []error{test.err, &StageError{Stage: test.stage, Err: test.err}} {
			if test.err == nil {
				err = nil
			}
			f := Classify(test.stage, err)
			if f.Stage != test.stage || f.Cause != test.cause || f.Side != test.side || !strings.Contains(f.Text, test.text) || f.Hint == "" {
				t.Errorf("%s, %v:\ngot %+v\nwant %s, %s, %q", test.stage, err, f, test.cause, test.side, test.text)
			}
		}
	}
}

// Every cause is one of an error above, but for those that are made without one.
func TestEveryCauseHasItsError(t *testing.T) {
	seen := map[Cause]bool{BrokerName: true, BrokerExpired: true, BrokerInvalid: true, Clock: true} // agent/session/dial, the matrix
	for _, test := range refusals {
		seen[test.cause] = true
	}
	for _, c := range []Cause{Name, DNS, Refused, Unreachable, Stalled, Closed, CertificateRequired, Handshake, CertificateNotAcceptable, CertificateUnknownCA, CertificateExpired,
		CertificateRevoked, CertificateRefused, Key, BrokerUnknownCA, BrokerName, BrokerExpired, BrokerInvalid, BrokerRevoked, BrokerRevocationUnknown, Clock, Version, Plaintext, TLS,
		ProxyUnreachable, ProxyTLS, ProxyAuth, ProxyRefused, ProxyNoWay, NotProxy, Inspection, ALPN, NotWebSocket, WebSocketRefused, WebSocketPath,
		NotAuthorized, ClientID, Unavailable, Protocol, TooLarge, Subscription, Frozen, NoAck, Commands, Entry, Unknown} {
		if !seen[c] {
			t.Errorf("%s has no error", c)
		}
	}
}

// A sentence begins small, ends without a full stop, and a repair is not a repetition of it.
func TestTextsReadAsOne(t *testing.T) {
	for _, test := range refusals {
		f := classify(test.stage, cmpErr(test.err))
		for _, text := range []string{f.text, f.hint} {
			if text == "" || strings.HasSuffix(text, ".") || text != strings.TrimSpace(text) || strings.Contains(text, "failed to") {
				t.Errorf("%v: %q", test.err, text)
			}
		}
		if first := []rune(f.text)[0]; unicode.IsUpper(first) && !strings.HasPrefix(f.text, "CONNECT") && !strings.HasPrefix(f.text, "SUBSCRIBE") && !strings.HasPrefix(f.text, "TLS") {
			t.Errorf("%q", f.text)
		}
		if f.text == f.hint {
			t.Errorf("%q twice", f.text)
		}
	}
}

func cmpErr(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

func TestOwnHintWins(t *testing.T) {
	if f := Classify(StageTLS, hint.With(alert("handshake failure"), "do this")); f.Hint != "do this" || f.Cause != Handshake {
		t.Errorf("%+v", f)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":            "plain",
		"a\x1b[2Jb\nc\x00": "a?[2Jb?c?",
		"a\u202eb\u200b":   "a?b?",
		"\xff\xfe":         "?",
		"grün, 例え":         "grün, 例え",
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q gave %q", in, got)
		}
	}
	if got := Printable(strings.Repeat("é", 5000)); len(got) > 503 || !utf8.ValidString(got) {
		t.Errorf("%d bytes", len(got))
	}
}

// Whatever strangers write into certificates, answers and alerts: a failure has every field, is
// bounded, and fit for a terminal.
func FuzzClassify(f *testing.F) {
	f.Add(uint8(0), "407", "Basic")
	f.Add(uint8(3), "x\x1b[2J", "\r\n")
	f.Add(uint8(5), "certificate signed by unknown authority (possibly because of \"x509: insecure\" while", "\xff")
	stages := []Stage{StageDNS, StageTCP, StageProxy, StageTLS, StageWebSocket, StageConnack, StageSuback, StageUp, StageRotate, "other"}
	f.Fuzz(func(t *testing.T, n uint8, a, b string) {
		stage := stages[int(n)%len(stages)]
		for _, err := range []error{
			errors.New(a), alert(a), &AtProxy{Proxy: a, Err: errors.New(b)}, &AtProxy{Proxy: a, Err: alert(b)},
			&ProxyAnswer{Code: int(n) * 3, Status: a, Schemes: b}, &WebSocketAnswer{Code: int(n) * 3, Status: a}, &Inspected{Authority: a, Err: errors.New(b)},
			&Distrust{Err: errors.New(a)}, x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{a}}, Host: b},
			x509.CertificateInvalidError{Reason: x509.InvalidReason(n), Detail: a}, fmt.Errorf("%s: %w", a, x509.UnknownAuthorityError{}),
			&net.DNSError{Err: a, Name: b, IsNotFound: n%2 == 0}, tls.RecordHeaderError{Msg: a}, Refusal(n), fmt.Errorf("%w: %s", ErrNotWebSocket, a), fmt.Errorf("%w: %s", ErrNotProxy, b),
		} {
			f := Classify(stage, err)
			if f.Stage != stage || f.Cause == "" || f.Side == "" || f.Text == "" || f.Hint == "" {
				t.Errorf("%v: %+v", err, f)
			}
			if len(f.Text) > 503 || !utf8.ValidString(f.Text) || strings.ContainsFunc(f.Text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", f.Text)
			}
		}
	})
}
