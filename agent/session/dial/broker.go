package dial

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
)

// Broker is one entry of session.brokers.
type Broker struct {
	text string // as configured
	host string
	port string
}

// ParseBroker reads mqtts://HOST[:PORT].
func ParseBroker(text string) (Broker, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Broker{}, errors.New("not a URL")
	}
	switch {
	case u.Scheme != "mqtts":
		return Broker{}, fmt.Errorf("the scheme is %q, and only mqtts is spoken", u.Scheme)
	case u.User != nil:
		return Broker{}, errors.New("there is no password here, the certificate logs in")
	case u.Hostname() == "":
		return Broker{}, errors.New("the host is missing")
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return Broker{}, errors.New("there is something behind the port")
	}
	b := Broker{text: text, host: u.Hostname(), port: u.Port()}
	if b.port == "" {
		b.port = "8883"
	}
	if n, err := strconv.Atoi(b.port); err != nil || n < 1 || n > 65535 {
		return Broker{}, fmt.Errorf("%q is not a port", b.port)
	}
	return b, nil
}

// Address returns host:port.
func (b Broker) Address() string { return net.JoinHostPort(b.host, b.port) }

// String returns the URL as it was configured.
func (b Broker) String() string { return b.text }

// Host returns the name, or address, that the broker's certificate must be for.
func (b Broker) Host() string { return b.host }
