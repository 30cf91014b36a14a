// Package doctor checks every layer between the device and its cloud, in order, and names the one
// that fails: cause, side and repair. The trap is the doctor who does harm: nothing is changed on
// disk or TPM, no port is opened, and the running session is never thrown out by its own client id.
package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"ferrule/agent/doctor/handshake"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
)

// Layer is one thing between the device and its cloud.
type Layer string

// The layers, in their order. Those from dns to round-trip are looked at for every broker.
const (
	Configuration Layer = "configuration"
	Disk          Layer = "disk"
	Clock         Layer = "clock"
	TPM           Layer = "tpm"
	Identity      Layer = "identity" // key and certificate
	DNS           Layer = "dns"
	TCP           Layer = "tcp"
	Proxy         Layer = "proxy"
	TLS           Layer = "tls"
	Client        Layer = "client-certificate" // as the broker judged it
	WebSocket     Layer = "websocket"
	MQTT          Layer = "mqtt"
	Subscription  Layer = "subscription"
	RoundTrip     Layer = "round-trip"
	Lines         Layer = "lines"
	Outbox        Layer = "outbox"
	Updates       Layer = "updates"
)

// Layers returns all of them, in order.
func Layers() []Layer {
	return []Layer{Configuration, Disk, Clock, TPM, Identity, DNS, TCP, Proxy, TLS, Client, WebSocket, MQTT, Subscription, RoundTrip, Lines, Outbox, Updates}
}

// network is the layers of one broker.
func network() []Layer {
	return []Layer{DNS, TCP, Proxy, TLS, Client, WebSocket, MQTT, Subscription, RoundTrip}
}

// State says what became of a layer.
type State string

// The states.
const (
	OK         State = "ok"
	Warned     State = "warning"     // it works, and somebody should look
	Failed     State = "failed"      // Cause, Side, Text and Repair say why
	NotReached State = "not reached" // a layer before it failed
	NotNeeded  State = "not needed"  // nothing of it is configured, or nothing of it can be seen
)

// Result is what was seen of a layer.
type Result struct {
	Layer Layer `json:"layer"`
	// Broker is its URL, for the layers of the network.
	Broker string `json:"broker,omitempty"`
	State  State  `json:"state"`
	// Saw is what was seen, a line each.
	Saw []string `json:"saw,omitempty"`
	// Cause, in one word, the side that it is on, what it is and its repair, a line each.
	Cause  string `json:"cause,omitempty"`
	Side   string `json:"side,omitempty"` // device, broker or network
	Text   string `json:"text,omitempty"`
	Repair string `json:"repair,omitempty"`
	// Warnings are what somebody should look at although the layer works.
	Warnings []Warning     `json:"warnings,omitempty"`
	Took     time.Duration `json:"took_ns,omitempty"`
}

// Warning is something that works, and will not for ever.
type Warning struct {
	Text   string `json:"text"`
	Repair string `json:"repair"`
}

// Report is what all layers said.
type Report struct {
	Schema  int       `json:"schema"` // of this document; 1
	At      time.Time `json:"at"`
	Version string    `json:"version"`
	Device  string    `json:"device,omitempty"`
	// By is who looked: agent, the running one, or command, where none runs.
	By string `json:"by"`
	// State is ok, warning or failed.
	State State `json:"state"`
	// Failing is the first layer that failed, where State is failed.
	Failing Layer    `json:"failing,omitempty"`
	Checks  []Result `json:"checks"`
	// Facts are what --compare looks at.
	Facts Facts         `json:"facts"`
	Took  time.Duration `json:"took_ns"`
}

const schema = 1

// Who looked.
const (
	ByAgent   = "agent"
	ByCommand = "command"
)

// Check is one layer and how it is looked at.
type Check struct {
	Layer Layer
	// Run returns when ctx ends at the latest. It need not set Layer and Took.
	Run func(ctx context.Context) Result
}

// Options is what doctor is handed.
type Options struct {
	Version string
	Device  string
	By      string
	// Checks are of the layers that doctor cannot see by itself: configuration, disk, tpm, identity,
	// lines, outbox, updates. One that is missing is not needed. Where the configuration fails nothing
	// else is reached.
	Checks []Check

	Clock identity.Clock
	// Credential is shown to brokers; nil: none, and they are asked all the same.
	Credential func() *identity.Credential
	Brokers    []dial.Broker
	Dial       dial.Config
	Roots      func() *x509.CertPool
	// Verify judges a broker as the session does; nil: nobody does.
	Verify   func(tls.ConnectionState) error
	Timeouts Timeouts

	// Settle is called when the layers up to identity were looked at: it may set what they found out,
	// Device, Credential, ClientID, Filter and Probe. nil: nothing.
	Settle func(o *Options)
	// ClientID is the session's. It is shown only where Alone says that no agent of this device runs,
	// and only to a broker that refused the one that doctor uses. nil: one runs.
	ClientID string
	Alone    func() bool
	// Filter is what the session subscribes to for commands; empty: nothing.
	Filter string
	// Probe is the topic of the message that goes to the broker and is acknowledged.
	Probe string
	// Session tells how the running one is; nil: none runs here.
	Session func() Session

	// Explain keeps the handshakes, message by message, in the report.
	Explain bool
	// Progress is told of each layer when it begins; nil: nobody is.
	Progress func(layer Layer, broker string)
}

// Session is the running session, as far as doctor needs it.
type Session struct {
	Broker     string // its URL; empty: it is not up
	Since      time.Time
	Subscribed bool
	Published  uint64
	Acked      uint64
	// Last is why it was down the last time.
	Last *cause.Failure
}

// Timeouts bounds each stage by itself; zero means the default.
type Timeouts struct {
	dial.Timeouts
	Connack, Suback, Puback, Probe time.Duration
	// All bounds the whole run.
	All time.Duration
}

// DefaultTimeouts let a run end within a minute.
func DefaultTimeouts() Timeouts {
	const each = 8 * time.Second
	return Timeouts{
		Timeouts: dial.Timeouts{DNS: each, TCP: each, Proxy: each, TLS: each, WebSocket: each},
		Connack:  each, Suback: each, Puback: each, Probe: 5 * time.Second, All: 55 * time.Second,
	}
}

func (t *Timeouts) fill() {
	d := DefaultTimeouts()
	for _, f := range []struct {
		own *time.Duration
		def time.Duration
	}{
		{&t.DNS, d.DNS}, {&t.TCP, d.TCP}, {&t.Proxy, d.Proxy}, {&t.TLS, d.TLS}, {&t.WebSocket, d.WebSocket},
		{&t.Connack, d.Connack}, {&t.Suback, d.Suback}, {&t.Puback, d.Puback}, {&t.Probe, d.Probe}, {&t.All, d.All},
	} {
		*f.own = cmp.Or(*f.own, f.def)
	}
}

// Run looks at every layer and returns within Timeouts.All.
func Run(ctx context.Context, o Options) Report {
	o.Timeouts.fill()
	ctx, cancel := context.WithTimeout(ctx, o.Timeouts.All)
	defer cancel()
	start := time.Now()
	r := Report{Schema: schema, At: start.UTC(), Version: o.Version, Device: o.Device, By: o.By}
	r.look(ctx, &o)
	r.sum()
	r.Took = time.Since(start)
	return r
}

// look runs the checks in the order of the layers.
func (r *Report) look(ctx context.Context, o *Options) {
	r.Facts.Clock = clockFacts(o.Clock)
	for _, layer := range Layers() {
		if slices.Contains(network(), layer) {
			if layer == DNS {
				if o.Settle != nil {
					o.Settle(o)
				}
				r.Device = o.Device
				r.brokers(ctx, o)
			}
			continue
		}
		if len(r.Checks) > 0 && r.Checks[0].State == Failed { // without a configuration nobody knows what to look at
			r.Checks = append(r.Checks, Result{Layer: layer, State: NotReached})
			continue
		}
		r.Checks = append(r.Checks, o.check(ctx, layer))
	}
	r.compareClocks()
}

// check looks at a layer that is not the network's.
func (o *Options) check(ctx context.Context, layer Layer) Result {
	if layer == Clock && o.Clock != nil {
		return checkClock(o.Clock)
	}
	i := slices.IndexFunc(o.Checks, func(c Check) bool { return c.Layer == layer })
	if i < 0 {
		return Result{Layer: layer, State: NotNeeded}
	}
	o.begin(layer, "")
	start := time.Now()
	result := o.Checks[i].Run(ctx)
	result.Layer, result.Took = layer, time.Since(start)
	return result.settled()
}

func (o *Options) begin(layer Layer, broker string) {
	if o.Progress != nil {
		o.Progress(layer, broker)
	}
}

// settled gives a result without a state the one that follows from what it holds.
func (r Result) settled() Result {
	if r.State == "" || r.State == OK {
		r.State = OK
		if len(r.Warnings) > 0 {
			r.State = Warned
		}
	}
	return r
}

// Warn adds a warning.
func (r *Result) Warn(text, repair string) {
	r.Warnings = append(r.Warnings, Warning{Text: cause.Printable(text), Repair: repair})
}

// Fail makes a result that says why.
func (r Result) Fail(what, side, text, repair string) Result {
	r.State, r.Cause, r.Side, r.Text, r.Repair = Failed, what, side, cause.Printable(text), repair
	return r
}

// of makes the failure of a connection that of a layer.
func (r Result) of(f cause.Failure) Result {
	return r.Fail(string(f.Cause), string(f.Side), f.Text, f.Hint)
}

// sum says what the layers come to. A broker that cannot be reached is a warning where another one can.
func (r *Report) sum() {
	works := slices.ContainsFunc(r.Checks, func(c Result) bool { return c.Layer == MQTT && (c.State == OK || c.State == Warned) })
	r.State = OK
	for i := range r.Checks {
		c := &r.Checks[i]
		if c.State == Failed && c.Broker != "" && works && !r.brokerWorks(c.Broker) {
			c.State = Warned
			c.Warn(c.Text+"; another broker works", c.Repair)
		}
		switch {
		case c.State == Failed && r.State != Failed:
			r.State, r.Failing = Failed, c.Layer
		case c.State == Warned && r.State == OK:
			r.State = Warned
		}
	}
}

// brokerWorks says whether the MQTT layer of this one was reached, and works.
func (r *Report) brokerWorks(broker string) bool {
	return slices.ContainsFunc(r.Checks, func(c Result) bool {
		return c.Broker == broker && c.Layer == MQTT && (c.State == OK || c.State == Warned)
	})
}

// First returns the failing check, if there is one.
func (r *Report) First() (Result, bool) {
	i := slices.IndexFunc(r.Checks, func(c Result) bool { return c.State == Failed })
	if i < 0 {
		return Result{}, false
	}
	return r.Checks[i], true
}

// Facts are what was seen, in a form that two runs can be compared by.
type Facts struct {
	Clock   ClockFacts  `json:"clock"`
	Brokers []PathFacts `json:"brokers,omitempty"`
}

// ClockFacts is the clock as it was.
type ClockFacts struct {
	Now     time.Time `json:"now"`
	Floor   time.Time `json:"floor"`
	Trusted bool      `json:"trusted"`
}

// PathFacts is the way to one broker.
type PathFacts struct {
	Broker string `json:"broker"`
	// Host is who was looked up: the broker's, or the proxy's.
	Host        string   `json:"host,omitempty"`
	NameServers []string `json:"name_servers,omitempty"`
	IPv4        []string `json:"ipv4,omitempty"`
	IPv6        []string `json:"ipv6,omitempty"`
	// Connects and Refuses are the addresses that TCP reached and did not reach.
	Connects  []string `json:"connects,omitempty"`
	Refuses   []string `json:"refuses,omitempty"`
	Family    string   `json:"family,omitempty"` // of the address that was used
	Proxy     string   `json:"proxy,omitempty"`
	WebSocket bool     `json:"websocket,omitempty"`
	Inspected string   `json:"inspected,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	// Date is what the other side's clock says, where it says it.
	Date time.Time `json:"date,omitzero"`
	// Device is the issuer of the certificate that the device has.
	Issuer string `json:"issuer,omitempty"`
	// Judged is the time that the broker's certificate was judged by.
	Judged time.Time `json:"judged,omitzero"`
	// Handshake is the last one. Its Messages are there with --explain alone.
	Handshake handshake.Transcript `json:"handshake"`
}
