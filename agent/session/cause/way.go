package cause

import (
	"errors"
	"fmt"
	"strings"
)

// What goes wrong on the way to the broker, before MQTT or instead of it.
var (
	ErrNotProxy     = errors.New("not an HTTP proxy")
	ErrNotWebSocket = errors.New("not a WebSocket of MQTT")
	ErrALPN         = errors.New("no common ALPN protocol")
)

// AtProxy is an error on the way to the proxy.
type AtProxy struct {
	Proxy string // its URL, without user and password
	Err   error
}

func (e *AtProxy) Error() string { return "proxy " + e.Proxy + ": " + e.Err.Error() }
func (e *AtProxy) Unwrap() error { return e.Err }

// ProxyAnswer is what a proxy says to CONNECT instead of 2xx (RFC 9110, 9.3.6).
type ProxyAnswer struct {
	Code    int
	Status  string // as it came
	Schemes string // of authentication that a 407 offers, as they came
}

func (e *ProxyAnswer) Error() string {
	if e.Schemes != "" {
		return fmt.Sprintf("the proxy answered %q and offers %q", e.Status, e.Schemes)
	}
	return fmt.Sprintf("the proxy answered %q", e.Status)
}

// WebSocketAnswer is what a web server says instead of 101 (RFC 6455, 4.1).
type WebSocketAnswer struct {
	Code   int
	Status string // as it came
}

func (e *WebSocketAnswer) Error() string { return fmt.Sprintf("the server answered %q", e.Status) }

// Inspected is an error on a connection whose TLS ends at somebody in between, who is trusted to
// look inside.
type Inspected struct {
	Authority string // that vouches for them
	Err       error
}

func (e *Inspected) Error() string { return fmt.Sprintf("inspected by %q: %v", e.Authority, e.Err) }
func (e *Inspected) Unwrap() error { return e.Err }

// ofWay knows what is in between.
func ofWay(_ Stage, err error) (finding, bool) {
	if _, ok := errors.AsType[*Inspected](err); ok {
		return finding{Inspection, SideNetwork, "somebody in between opens TLS, so the broker does not see the device's certificate",
			"have the broker's name exempted from TLS inspection at the proxy or firewall, or take another way"}, true
	}
	if at, ok := errors.AsType[*AtProxy](err); ok {
		return toProxy(at.Err), true
	}
	if answer, ok := errors.AsType[*ProxyAnswer](err); ok {
		return proxyAnswered(answer), true
	}
	if answer, ok := errors.AsType[*WebSocketAnswer](err); ok {
		return webAnswered(answer.Code), true
	}
	switch {
	case errors.Is(err, ErrNotProxy):
		return finding{NotProxy, SideNetwork, "what answers at session.proxy is not an HTTP proxy",
			"check host and port of session.proxy, and whether it is http:// or https://"}, true
	case errors.Is(err, ErrNotWebSocket):
		return finding{NotWebSocket, SideBroker, "the port speaks HTTP, but not MQTT over WebSocket",
			"check port and path in session.brokers; brokers usually take wss://HOST:443/mqtt, and a load balancer before them must pass WebSockets on"}, true
	case errors.Is(err, ErrALPN):
		return finding{ALPN, SideBroker, "the broker did not agree to the ALPN protocol that session.brokers names",
			"the port may be a web server's; AWS IoT Core wants ?alpn=x-amzn-mqtt-ca at port 443, most others no ?alpn= at all"}, true
	}
	return finding{}, false
}

// toProxy says why the proxy itself is not reached.
func toProxy(err error) finding {
	f := finding{cause: ProxyUnreachable, side: SideNetwork, hint: "check host and port of session.proxy, and the way there"}
	switch classify(StageTLS, err).cause {
	case Name:
		f.side, f.text, f.hint = SideDevice, "the proxy's name has no address", "check the spelling of session.proxy, and the gateway's name server"
	case DNS:
		f.text = "the name server gave no answer for the proxy's name"
	case Refused:
		f.text = "nothing listens at the proxy's port"
	case Unreachable:
		f.text = "there is no way to the proxy"
	case Stalled:
		f.text = "the proxy did not answer in time"
	case Closed:
		f.text, f.hint = "the proxy closed the connection", "the proxy's log has the reason; check that it may be used from this network"
	case BrokerUnknownCA:
		f.cause, f.text, f.hint = ProxyTLS, "the proxy's certificate is signed by an authority that is not trusted here", "name that authority in session.proxy_roots"
	case BrokerName:
		f.cause, f.text, f.hint = ProxyTLS, "the proxy's certificate is for another name", "write in session.proxy the name that the certificate carries"
	case BrokerExpired, BrokerInvalid, Clock:
		f.cause, f.text, f.hint = ProxyTLS, "the proxy's certificate is not valid", "renew it; if it is still valid, the gateway's clock is wrong (timedatectl)"
	case Plaintext:
		f.cause, f.text, f.hint = ProxyTLS, "the proxy does not speak TLS", "write session.proxy with http:// instead of https://"
	default:
		f.cause, f.text, f.hint = ProxyTLS, "TLS to the proxy failed", "the proxy's log has its side of it"
	}
	return f
}

// proxyAnswered names the answers to CONNECT.
func proxyAnswered(a *ProxyAnswer) finding {
	switch {
	case a.Code == 407 && a.Schemes != "" && !strings.Contains(strings.ToLower(a.Schemes), "basic"):
		return finding{ProxyAuth, SideNetwork, "the proxy wants a kind of login that is not spoken here",
			"have the proxy take Basic authentication from this gateway, or let it through by its address"}
	case a.Code == 407, a.Code == 401: // tinyproxy answers 401 to a wrong password
		return finding{ProxyAuth, SideDevice, "the proxy does not take the user and password, or there are none",
			`write them in session.proxy: "http://user:password@proxy.example:3128"`}
	case a.Code >= 500: // tinyproxy answers 500 where others answer 502
		return finding{ProxyNoWay, SideNetwork, "the proxy cannot reach the broker",
			"check the broker's name and port in session.brokers; the proxy must be able to resolve the name, and its firewall must let it out to that port"}
	}
	return finding{ProxyRefused, SideNetwork, "the proxy does not allow the connection to the broker",
		"have the broker's name and port allowed at the proxy; many let only port 443 out, so use the broker's port 443 if it has one"}
}

// webAnswered names what a web server says instead of speaking WebSocket.
func webAnswered(code int) finding {
	switch {
	case code == 401, code == 403:
		return finding{WebSocketRefused, SideBroker, "the web server before the broker does not let the device in",
			"it may want another login than the certificate, or not have got it: what ends TLS before the broker must ask for the certificate and pass it on"}
	case code == 404, code == 405:
		return finding{WebSocketPath, SideBroker, "there is no WebSocket at this path", "check the path in session.brokers; most brokers use /mqtt"}
	case code >= 500:
		return finding{Unavailable, SideBroker, "the web server before the broker says that it is unavailable", "look whether the broker behind it runs"}
	case code == 400, code == 426:
		return finding{NotWebSocket, SideBroker, "the web server does not take WebSockets here",
			"what lies before the broker must pass on the headers Upgrade and Connection; check the path in session.brokers too"}
	}
	return finding{NotWebSocket, SideBroker, "the port speaks HTTP, but not MQTT over WebSocket", "check port and path in session.brokers; most brokers use /mqtt"}
}

// isALPN says whether a handshake failed for what the broker said of the application protocol. Go
// has no type for it (crypto/tls, checkALPN).
func isALPN(err error) bool {
	text := err.Error()
	return strings.Contains(text, "server selected unadvertised ALPN protocol") || strings.Contains(text, "server advertised unrequested ALPN extension")
}
