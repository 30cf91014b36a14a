package dial

import (
	"errors"
	"net"
	"net/url"
	"strconv"
)

// proxy is where the way to the broker is asked for. Its String holds no password.
type proxy struct {
	env    bool // ask the environment, for each broker
	secure bool // TLS to the proxy
	host   string
	port   string
	user   *url.Userinfo
}

// none says that there is no proxy.
func (p proxy) none() bool { return p.host == "" && !p.env }

// String returns the proxy's URL without user and password.
func (p proxy) String() string {
	switch {
	case p.env:
		return "env"
	case p.host == "":
		return ""
	case p.secure:
		return "https://" + net.JoinHostPort(p.host, p.port)
	}
	return "http://" + net.JoinHostPort(p.host, p.port)
}

// parseProxy reads session.proxy. Its errors hold nothing of text, which may hold a password.
func parseProxy(text string) (proxy, error) {
	switch text {
	case "":
		return proxy{}, nil
	case "env":
		return proxy{env: true}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return proxy{}, errors.New("not a URL")
	}
	return proxyOf(u)
}

func proxyOf(u *url.URL) (proxy, error) {
	p := proxy{host: u.Hostname(), port: u.Port(), user: u.User}
	switch u.Scheme {
	case "http":
		if p.port == "" {
			p.port = "80"
		}
	case "https":
		p.secure = true
		if p.port == "" {
			p.port = "443"
		}
	default:
		return proxy{}, errors.New("the scheme must be http or https")
	}
	switch n, err := strconv.Atoi(p.port); {
	case p.host == "":
		return proxy{}, errors.New("the host is missing")
	case err != nil || n < 1 || n > 65535:
		return proxy{}, errors.New("that is not a port")
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return proxy{}, errors.New("there is something behind the port")
	}
	return p, nil
}
