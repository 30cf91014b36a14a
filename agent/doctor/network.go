package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"ferrule/agent/doctor/handshake"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
)

// mostBrokers bounds how many are looked at; each takes a handshake.
const mostBrokers = 8

// brokers looks at all of them at the same time.
func (r *Report) brokers(ctx context.Context, o *Options) {
	if len(r.Checks) > 0 && r.Checks[0].State == Failed || len(o.Brokers) == 0 {
		state := NotReached
		if len(o.Brokers) == 0 && (len(r.Checks) == 0 || r.Checks[0].State != Failed) {
			state = NotNeeded
		}
		for _, layer := range network() {
			r.Checks = append(r.Checks, Result{Layer: layer, State: state})
		}
		return
	}
	ways := make([]*way, min(len(o.Brokers), mostBrokers))
	var all sync.WaitGroup
	for i := range ways {
		ways[i] = newWay(o, o.Brokers[i])
		all.Go(func() { ways[i].walk(ctx) })
	}
	all.Wait()
	for _, w := range ways {
		for _, layer := range network() {
			r.Checks = append(r.Checks, w.results[layer])
		}
		r.Facts.Brokers = append(r.Facts.Brokers, w.facts)
	}
}

// way is the look at the way to one broker.
type way struct {
	o          *Options
	broker     dial.Broker
	credential *identity.Credential
	facts      PathFacts
	results    map[Layer]Result

	recorder *handshake.Recorder
	keys     *handshake.KeyLog
	began    map[cause.Stage]bool
	took     map[cause.Stage]time.Duration
	tried    []dial.Attempt
	probes   *probes
	first    *handshake.Transcript // where another handshake was tried after it
}

func newWay(o *Options, b dial.Broker) *way {
	w := &way{o: o, broker: b, results: make(map[Layer]Result), began: make(map[cause.Stage]bool), took: make(map[cause.Stage]time.Duration),
		recorder: new(handshake.Recorder), keys: handshake.NewKeyLog()}
	w.facts.Broker = b.String()
	if o.Credential != nil {
		w.credential = o.Credential()
	}
	if w.credential != nil {
		w.facts.Issuer = w.credential.Leaf().Issuer.String()
	}
	return w
}

// walk goes the way as far as it leads.
func (w *way) walk(ctx context.Context) {
	defer w.keys.Forget()
	conn, err := w.dial(ctx, w.o.Dial)
	var probing sync.WaitGroup
	w.probes = w.newProbes()
	probing.Go(func() { w.probes.run(ctx, w.o.Timeouts) })
	failure := w.failure(err)
	if conn != nil {
		failure = w.beyond(ctx, conn)
	} else if failure.Cause == cause.Stalled && failure.Stage == cause.StageTLS {
		failure = w.tryClassic(ctx, failure)
	}
	w.recorder.Stop()
	probing.Wait()
	w.read()
	w.conclude(conn, failure)
	w.facts.ClientID = w.o.doctorID()
	if !w.o.Explain {
		w.facts.Handshake.Messages = nil
	}
}

// dial connects as the session does.
func (w *way) dial(ctx context.Context, config dial.Config) (*dial.Conn, error) {
	d, err := dial.Open(dial.Options{
		Config: config, Timeouts: w.o.Timeouts.Timeouts, Log: slog.New(slog.DiscardHandler),
		Trust: dial.Trust{Roots: w.o.Roots, Verify: w.o.Verify}, Observe: w.observer(),
	})
	if err != nil {
		return nil, err
	}
	return d.Dial(ctx, w.broker, w.credential, func(cause.Stage) {})
}

// observer notes what happens on the way. A stage that begins again forgets how it went before.
func (w *way) observer() *dial.Observer {
	return &dial.Observer{
		Begin: func(stage cause.Stage) {
			w.began[stage] = true
			if layer, ok := stageLayers()[stage]; ok {
				w.o.begin(layer, w.facts.Broker)
			}
			if stage == cause.StageTCP {
				w.tried = nil
			}
		},
		End: func(stage cause.Stage, took time.Duration, _ error) { w.took[stage] = took },
		Resolved: func(host string, addresses []netip.Addr) {
			w.facts.Host = host
			w.facts.IPv4, w.facts.IPv6 = families(addresses)
		},
		Tried: func(a dial.Attempt) { w.tried = append(w.tried, a) },
		Wrap: func(raw net.Conn) net.Conn {
			w.recorder.Reset()
			return w.recorder.Wrap(raw)
		},
		Answered: w.noteDate,
		TLS:      w.openHandshake,
	}
}

// noteDate keeps what the other side's clock says: a server that has none sends no Date (RFC 9110, 6.6.1).
func (w *way) noteDate(_ cause.Stage, header http.Header) {
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		w.facts.Date = date.UTC()
	}
}

// openHandshake lets doctor read the one handshake that it makes. It is a full one: a resumed session
// would show neither certificate.
func (w *way) openHandshake(config *tls.Config) {
	w.keys.Forget()
	if config.KeyLogWriter != nil { // a build made for it
		config.KeyLogWriter = io.MultiWriter(w.keys, config.KeyLogWriter)
	} else {
		config.KeyLogWriter = w.keys
	}
	config.ClientSessionCache = nil
	w.facts.Judged = time.Now()
	if config.Time != nil {
		w.facts.Judged = config.Time()
	}
	w.facts.Judged = w.facts.Judged.UTC()
}

// stageLayers are the layers that the stages of dialling belong to.
func stageLayers() map[cause.Stage]Layer {
	return map[cause.Stage]Layer{cause.StageDNS: DNS, cause.StageTCP: TCP, cause.StageProxy: Proxy, cause.StageTLS: TLS,
		cause.StageWebSocket: WebSocket, cause.StageConnack: MQTT, cause.StageSuback: Subscription, cause.StageUp: RoundTrip}
}

// failure classifies the error of an attempt; the zero Failure for none.
func (w *way) failure(err error) cause.Failure {
	if err == nil {
		return cause.Failure{}
	}
	if at, ok := errors.AsType[*cause.AtProxy](err); ok {
		w.facts.Proxy = at.Proxy
	}
	stage := cause.StageDNS
	if e, ok := errors.AsType[*cause.StageError](err); ok {
		stage = e.Stage
	}
	return cause.Classify(stage, err)
}

// beyond goes on when the broker is reached: is our certificate taken, does it speak MQTT?
func (w *way) beyond(ctx context.Context, conn *dial.Conn) cause.Failure {
	defer conn.Close()
	w.o.begin(Client, w.facts.Broker)
	if !conn.Path.WebSocket { // an answer came over it already
		if err := conn.Prove(ctx); err != nil {
			return cause.Classify(cause.StageConnack, conn.Explain(err))
		}
	}
	return w.speak(ctx, conn)
}

// tryClassic looks whether a handshake that stalled would get through with a ClientHello that fits
// into one segment: some boxes in between let no larger one pass.
func (w *way) tryClassic(ctx context.Context, failure cause.Failure) cause.Failure {
	if w.o.Dial.PostQuantum == dial.PostQuantumNever {
		return failure
	}
	first := handshake.Read(w.recorder, w.keys)
	config := w.o.Dial
	config.PostQuantum = dial.PostQuantumNever
	w.first = &first
	conn, err := w.dial(ctx, config)
	if err != nil {
		return failure
	}
	_ = conn.Close()
	size := 0
	if first.Hello != nil {
		size = first.Hello.Size
	}
	failure.Cause, failure.Side = CauseLargeHello, cause.SideNetwork
	failure.Text = fmt.Sprintf("a ClientHello of %d bytes gets no answer, and a small one does", size)
	failure.Hint = answer(CauseLargeHello).Repair
	return failure
}

// read reads what was recorded of the handshake that counts.
func (w *way) read() {
	if w.first != nil {
		w.facts.Handshake = *w.first
		return
	}
	w.facts.Handshake = handshake.Read(w.recorder, w.keys)
}

// conclude makes the results of what was seen.
func (w *way) conclude(conn *dial.Conn, f cause.Failure) {
	if conn != nil {
		w.facts.Proxy, w.facts.WebSocket, w.facts.Inspected, w.facts.Family = conn.Path.Proxy, conn.Path.WebSocket, conn.Path.Inspected, conn.Path.Family
	}
	failed := w.failedLayer(&f)
	reached := true
	for _, layer := range network() {
		r := Result{Layer: layer, Broker: w.facts.Broker, State: NotReached}
		if reached {
			r = w.describe(layer, conn)
		}
		if layer == failed {
			r, reached = r.of(f), false
		}
		w.results[layer] = r
	}
}

// failedLayer says where a failure belongs, and makes it more exact by what was recorded; "" for none.
func (w *way) failedLayer(f *cause.Failure) Layer {
	if f.Cause == "" {
		return ""
	}
	t := &w.facts.Handshake
	switch f.Cause {
	case cause.Handshake:
		return w.refusedHandshake(f)
	case cause.CertificateRequired, cause.CertificateNotAcceptable, cause.CertificateUnknownCA, cause.CertificateExpired,
		cause.CertificateRevoked, cause.CertificateRefused, cause.Key:
		return Client
	case cause.ALPN, cause.Inspection:
		return TLS
	case cause.Closed, cause.Stalled:
		if f.Stage == cause.StageTLS && t.DeviceChain != nil {
			return Client // it was shown, and then the broker had nothing more to say
		}
	}
	if layer, ok := stageLayers()[f.Stage]; ok {
		return layer
	}
	return MQTT
}

// refusedHandshake tells a broker that wants a certificate from one that shares nothing with us: both
// say handshake_failure.
func (w *way) refusedHandshake(f *cause.Failure) Layer {
	t := &w.facts.Handshake
	switch {
	case t.DeviceChain != nil && len(t.DeviceChain) == 0:
		f.Text = "the broker wants a client certificate and got none; TLS 1.2 says only: handshake failure"
		f.Hint = "enroll the device: ferrule enroll"
		return Client
	case t.DeviceChain != nil:
		return Client
	case t.Version == "":
		f.Cause, f.Side = CauseNothingInCommon, cause.SideBroker
		f.Text = "the broker finds nothing that both speak among the device's versions, suites, groups and signature schemes"
		f.Hint = answer(CauseNothingInCommon).Repair
	}
	return TLS
}

// describe is what was seen of a layer that works.
func (w *way) describe(layer Layer, conn *dial.Conn) Result {
	r := Result{Layer: layer, Broker: w.facts.Broker, Took: w.took[stageOf(layer)]}
	switch layer {
	case DNS:
		w.describeDNS(&r)
	case TCP:
		w.describeTCP(&r)
	case Proxy:
		if !w.began[cause.StageProxy] {
			r.State = NotNeeded
			break
		}
		r.Saw = append(r.Saw, "the way goes through the proxy "+strings.TrimSpace(w.facts.Proxy))
	case TLS:
		w.describeTLS(&r)
	case Client:
		w.describeClient(&r)
	case WebSocket:
		if !w.began[cause.StageWebSocket] {
			r.State = NotNeeded
			break
		}
		r.Saw = append(r.Saw, "the broker speaks MQTT over a WebSocket")
	case MQTT, Subscription, RoundTrip:
		seen := w.results[layer] // by speak
		r.State, r.Saw, r.Warnings, r.Took = seen.State, seen.Saw, seen.Warnings, seen.Took
	}
	return r.settled()
}

func stageOf(layer Layer) cause.Stage {
	for stage, l := range stageLayers() {
		if l == layer {
			return stage
		}
	}
	return ""
}
