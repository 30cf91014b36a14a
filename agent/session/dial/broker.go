package dial

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Broker is one entry of session.brokers. It may be compared.
type Broker struct {
	text string // as configured
	host string // a name in ASCII, or an address
	port string
	path string // of a WebSocket; empty: none is spoken
	alpn string
}

// ParseBroker reads mqtts://HOST[:PORT][?alpn=PROTOCOL] or wss://HOST[:PORT][/PATH][?alpn=PROTOCOL].
// The ports are 8883 and 443 where none is named, the path /mqtt.
func ParseBroker(text string) (Broker, error) {
	u, err := url.Parse(text)
	switch {
	case len(text) > maxURL:
		return Broker{}, fmt.Errorf("longer than %d bytes", maxURL)
	case err != nil:
		return Broker{}, errors.New("not a URL")
	case u.User != nil:
		return Broker{}, errors.New("there is no password here, the certificate logs in")
	case u.Fragment != "":
		return Broker{}, errors.New("there is something behind #")
	}
	b := Broker{text: text, port: u.Port()}
	usual := "8883"
	switch u.Scheme {
	case "mqtts":
		if u.Path != "" && u.Path != "/" {
			return Broker{}, errors.New("there is a path, which only wss:// has")
		}
	case "wss":
		usual, b.path = "443", u.EscapedPath()
		if b.path == "" {
			b.path = "/mqtt"
		}
	default:
		return Broker{}, fmt.Errorf("the scheme is %q, and only mqtts and wss are spoken", u.Scheme)
	}
	if b.port == "" {
		b.port = usual
	}
	if n, err := strconv.Atoi(b.port); err != nil || n < 1 || n > 65535 {
		return Broker{}, fmt.Errorf("%q is not a port", b.port)
	}
	if b.alpn, err = alpnOf(u.RawQuery); err != nil {
		return Broker{}, err
	}
	b.host, err = parseHost(u.Hostname())
	return b, err
}

// maxURL bounds what one entry of session.brokers may hold.
const maxURL = 1024

// alpnOf reads the query of a broker's URL.
func alpnOf(query string) (string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", errors.New("what follows ? cannot be read")
	}
	for key, all := range values {
		// RFC 7301, 3.1: a protocol's name has 1 to 255 bytes.
		if key != "alpn" || len(all) != 1 || all[0] == "" || len(all[0]) > 255 {
			return "", errors.New("what follows ? may be one alpn=PROTOCOL")
		}
	}
	return values.Get("alpn"), nil
}

// parseHost checks a host and gives it in the form that name servers, certificates and proxies
// know it in.
func parseHost(host string) (string, error) {
	if host == "" {
		return "", errors.New("the host is missing")
	}
	if address, err := netip.ParseAddr(host); err == nil {
		if strings.ContainsFunc(address.Zone(), odd) {
			return "", fmt.Errorf("%q is not an interface", address.Zone())
		}
		return address.String(), nil
	}
	ascii := host
	if strings.ContainsFunc(host, func(r rune) bool { return r > 0x7f }) {
		ascii = punycode(host)
	}
	if ascii == "" || len(ascii) > 254 || strings.ContainsFunc(ascii, odd) {
		return "", fmt.Errorf("%q is not a host name", host)
	}
	return ascii, nil
}

// odd says that no host's name, and no interface's, has this character.
func odd(r rune) bool {
	return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// punycode gives a host in ASCII (RFC 5891), or as it is where that cannot be done. net/http does
// so with the Host of a request and exports no other way; a second copy of its tables would cost
// the device 130 kB.
func punycode(host string) string {
	var b bytes.Buffer
	r := http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Host: strings.ToLower(host)}
	if r.Write(&b) != nil {
		return host
	}
	_, rest, _ := strings.Cut(b.String(), "Host: ")
	ascii, _, _ := strings.Cut(rest, "\r\n")
	return ascii
}

// Address returns host:port.
func (b Broker) Address() string { return net.JoinHostPort(b.host, b.port) }

// String returns the URL as it was configured.
func (b Broker) String() string { return b.text }

// Host returns the name in ASCII, or the address, of the broker.
func (b Broker) Host() string { return b.host }

// Port returns the number of the broker's port.
func (b Broker) Port() string { return b.port }

// ALPN returns the application protocol that is to be asked for; empty: none.
func (b Broker) ALPN() string { return b.alpn }

// WebSocket returns the path of the broker's WebSocket; false: MQTT is spoken on TLS.
func (b Broker) WebSocket() (path string, ok bool) { return b.path, b.path != "" }

// ServerName returns what the broker's certificate must be for: the host without the zone of an
// IPv6 address and without a final dot, neither of which a certificate knows.
func (b Broker) ServerName() string {
	host, _, _ := strings.Cut(b.host, "%")
	return strings.TrimSuffix(host, ".")
}

// authority returns what a web server is asked for: the host as certificates know it, and the
// port unless it is the usual one.
func (b Broker) authority() string {
	host := b.ServerName()
	switch {
	case b.port != "443":
		return net.JoinHostPort(host, b.port)
	case strings.Contains(host, ":"):
		return "[" + host + "]"
	}
	return host
}

// Shown returns what may be shown of a broker's URL, however wrong it is: no user and no password,
// which do not belong there.
func Shown(text string) string {
	at := strings.LastIndex(text, "@")
	if at < 0 {
		return text
	}
	scheme, _, found := strings.Cut(text, "://")
	if !found || len(scheme) > at {
		return "…" + text[at:]
	}
	return scheme + "://…" + text[at:]
}
