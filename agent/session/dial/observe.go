package dial

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"time"

	"ferrule/agent/session/cause"
)

// Observer is told what happens while Dial runs. Its functions are called one at a time, in
// order, by the goroutine that called Dial; each may be nil.
type Observer struct {
	// Begin and End frame every stage of dialling: dns, tcp, proxy, tls, websocket. A stage that
	// is tried once more begins once more.
	Begin func(stage cause.Stage)
	End   func(stage cause.Stage, took time.Duration, err error)
	// Resolved tells what the name server said of host, the proxy's where there is one.
	Resolved func(host string, addresses []netip.Addr)
	// Tried tells of every address that was connected to, or was to be, when the race is over.
	Tried func(a Attempt)
	// Wrap gives the connection that TLS to the broker is spoken on, which is raw or a proxy's
	// tunnel; it may record what goes over it.
	Wrap func(raw net.Conn) net.Conn
	// Answered tells the header that a proxy, or the web server before a broker, answered by.
	Answered func(stage cause.Stage, header http.Header)
	// TLS is shown, and may change, the configuration before the handshake with the broker.
	TLS func(config *tls.Config)
}

func (o *Observer) begin(stage cause.Stage) {
	if o != nil && o.Begin != nil {
		o.Begin(stage)
	}
}

func (o *Observer) end(stage cause.Stage, took time.Duration, err error) {
	if o != nil && o.End != nil {
		o.End(stage, took, err)
	}
}

func (o *Observer) resolved(host string, addresses []netip.Addr) {
	if o != nil && o.Resolved != nil {
		o.Resolved(host, addresses)
	}
}

func (o *Observer) tried(all []Attempt) {
	if o == nil || o.Tried == nil {
		return
	}
	for _, a := range all {
		o.Tried(a)
	}
}

func (o *Observer) wrap(c net.Conn) net.Conn {
	if o == nil || o.Wrap == nil {
		return c
	}
	return o.Wrap(c)
}

func (o *Observer) tls(config *tls.Config) {
	if o != nil && o.TLS != nil {
		o.TLS(config)
	}
}

func (o *Observer) answered(stage cause.Stage, header http.Header) {
	if o != nil && o.Answered != nil {
		o.Answered(stage, header)
	}
}
