package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"ferrule/agent/doctor/handshake"
	"ferrule/agent/session/cause"
)

// Difference is something that is otherwise in a run that worked.
type Difference struct {
	Layer  Layer  `json:"layer"`
	What   string `json:"what"`
	Ours   string `json:"ours"`
	Theirs string `json:"theirs"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: here %s, there %s", d.Layer, d.What, d.Ours, d.Theirs)
}

// Comparison is what two runs do not share.
type Comparison struct {
	// First is the one that can explain the failure; nil: none can.
	First *Difference `json:"first,omitempty"`
	// All are in the order of the layers, First among them.
	All []Difference `json:"all,omitempty"`
}

// aspect is one thing that is compared. It answers "" where that was not seen: what a failure kept from
// being seen is no difference.
type aspect struct {
	layer Layer
	what  string
	of    func(r *Report, p *PathFacts) string
	// loose ones differ between two runs that both work, too; the one closest to the failure is named
	// where nothing else differs.
	loose bool
	// itself says that it is what became of the layer, and not what was seen of it.
	itself bool
}

// Compare lays ours beside theirs, a run that worked, from this or from another gateway. Of what differs
// it names the first, in the order of the layers, that does not lie behind the layer that failed.
func Compare(ours, theirs Report) Comparison {
	var c Comparison
	failing := Outbox
	if first, failed := ours.First(); failed {
		failing = first.Layer
	}
	mine, other := pick(&ours, &theirs)
	var loose *Difference
	for _, a := range aspects() {
		here, there := a.of(&ours, mine), a.of(&theirs, other)
		if here == "" || there == "" || here == there || a.itself && a.layer == failing {
			continue // a failure does not explain itself
		}
		d := Difference{a.layer, a.what, here, there}
		c.All = append(c.All, d)
		switch {
		case rank(a.layer) > rank(failing):
		case a.loose:
			loose = &d
		case c.First == nil:
			c.First = &d
		}
	}
	if c.First == nil {
		c.First = loose
	}
	return c
}

func rank(l Layer) int { return slices.Index(Layers(), l) }

// pick returns the ways that are compared: that of our failure, or our first, and theirs to the same
// broker, or else theirs that worked.
func pick(ours, theirs *Report) (mine, other *PathFacts) {
	mine, other = new(PathFacts), new(PathFacts)
	if len(ours.Facts.Brokers) > 0 {
		mine = &ours.Facts.Brokers[0]
	}
	if first, failed := ours.First(); failed && first.Broker != "" {
		if i := slices.IndexFunc(ours.Facts.Brokers, func(p PathFacts) bool { return p.Broker == first.Broker }); i >= 0 {
			mine = &ours.Facts.Brokers[i]
		}
	}
	if len(theirs.Facts.Brokers) > 0 {
		other = &theirs.Facts.Brokers[0]
	}
	for i := range theirs.Facts.Brokers {
		if p := &theirs.Facts.Brokers[i]; theirs.brokerWorks(p.Broker) && !theirs.brokerWorks(other.Broker) || p.Broker == mine.Broker {
			other = p
		}
	}
	return mine, other
}

// aspects are what is compared, in the order of the layers.
func aspects() []aspect {
	return slices.Concat(localAspects(), wayAspects(), handshakeAspects(), certificateAspects())
}

// became is what became of a layer.
func became(layer Layer, what string, loose bool) aspect {
	return aspect{layer: layer, what: what, loose: loose, itself: true, of: func(r *Report, _ *PathFacts) string {
		for _, c := range r.Checks {
			if c.Layer != layer {
				continue
			}
			switch c.State {
			case Failed, Warned:
				if c.Cause != "" {
					return c.Cause
				}
				return "good"
			case OK:
				return "good"
			}
		}
		return ""
	}}
}

func localAspects() []aspect {
	return []aspect{
		{layer: Configuration, what: "version of ferrule", loose: true, of: func(r *Report, _ *PathFacts) string { return r.Version }},
		{layer: Configuration, what: "broker", loose: true, of: func(_ *Report, p *PathFacts) string { return p.Broker }},
		became(Configuration, "the configuration", false),
		became(Disk, "the disk", false),
		became(Clock, "the clock", true),
		became(TPM, "the TPM", false),
		became(Identity, "key and certificate", false),
		{layer: Identity, what: "issuer of the device's certificate", of: func(_ *Report, p *PathFacts) string { return p.Issuer }},
	}
}

func wayAspects() []aspect {
	return []aspect{
		{layer: DNS, what: "name that is looked up", of: func(_ *Report, p *PathFacts) string { return p.Host }},
		{layer: DNS, what: "families that the name has", of: familiesOf},
		{layer: DNS, what: "name server", loose: true, of: func(_ *Report, p *PathFacts) string { return strings.Join(p.NameServers, " ") }},
		{layer: DNS, what: "addresses", loose: true, of: addressesOf},
		{layer: TCP, what: "addresses that do not connect", of: refusedOf},
		{layer: TCP, what: "family that connected", loose: true, of: func(_ *Report, p *PathFacts) string { return p.Family }},
		{layer: Proxy, what: "proxy", of: proxyOf},
		{layer: Proxy, what: "who looks inside", of: inspectedOf},
	}
}

// familiesOf says which families there are, where the name was looked up at all.
func familiesOf(_ *Report, p *PathFacts) string {
	var names []string
	if len(p.IPv4) > 0 {
		names = append(names, "IPv4")
	}
	if len(p.IPv6) > 0 {
		names = append(names, "IPv6")
	}
	if len(names) == 0 && len(p.NameServers) > 0 {
		return "none"
	}
	return strings.Join(names, " and ")
}

func addressesOf(_ *Report, p *PathFacts) string {
	return strings.Join(slices.Concat(p.IPv4, p.IPv6), " ")
}

func refusedOf(_ *Report, p *PathFacts) string {
	if len(p.Refuses) == 0 && len(p.Connects) > 0 {
		return "none"
	}
	return strings.Join(p.Refuses, " ")
}

// proxyOf is the proxy, or none where a broker was reached without.
func proxyOf(_ *Report, p *PathFacts) string {
	if p.Proxy == "" && len(p.Handshake.BrokerChain) > 0 {
		return "none"
	}
	return p.Proxy
}

func inspectedOf(_ *Report, p *PathFacts) string {
	if p.Inspected == "" && len(p.Handshake.BrokerChain) > 0 {
		return "nobody"
	}
	return p.Inspected
}

// hello is an aspect of what the device offers.
func hello(what string, of func(h *handshake.Hello) string, loose bool) aspect {
	return aspect{layer: TLS, what: what, loose: loose, of: func(_ *Report, p *PathFacts) string {
		if p.Handshake.Hello == nil {
			return ""
		}
		return or(of(p.Handshake.Hello), "none")
	}}
}

// agreed is an aspect of what the broker chose, where it did.
func agreed(what string, of func(t *handshake.Transcript) string, loose bool) aspect {
	return aspect{layer: TLS, what: what, loose: loose, of: func(_ *Report, p *PathFacts) string {
		if p.Handshake.Version == "" {
			return ""
		}
		return or(of(&p.Handshake), "none")
	}}
}

func handshakeAspects() []aspect {
	return []aspect{
		hello("TLS versions offered", func(h *handshake.Hello) string { return strings.Join(h.Versions, " ") }, false),
		agreed("TLS version", func(t *handshake.Transcript) string { return t.Version }, false),
		// Their order is the processor's.
		hello("cipher suites offered", func(h *handshake.Hello) string { return strings.Join(slices.Sorted(slices.Values(h.Suites)), " ") }, false),
		agreed("cipher suite", func(t *handshake.Transcript) string { return t.Suite }, false),
		hello("groups offered", func(h *handshake.Hello) string { return strings.Join(h.Groups, " ") }, false),
		agreed("group", func(t *handshake.Transcript) string { return t.Group }, false),
		agreed("group that the broker asked for", func(t *handshake.Transcript) string { return t.Retried }, false),
		hello("ALPN offered", func(h *handshake.Hello) string { return strings.Join(h.ALPN, " ") }, false),
		agreed("ALPN", func(t *handshake.Transcript) string { return t.ALPN }, false),
		hello("server name (SNI)", func(h *handshake.Hello) string { return h.ServerName }, false),
		hello("size of ClientHello", func(h *handshake.Hello) string { return fmt.Sprintf("%d bytes", h.Size) }, true),
	}
}

// chain is an aspect of the certificates that the broker showed.
func chain(what string, of func(chain []handshake.Certificate) string, loose bool) aspect {
	return aspect{layer: TLS, what: what, loose: loose, of: func(_ *Report, p *PathFacts) string {
		if len(p.Handshake.BrokerChain) == 0 {
			return ""
		}
		return or(of(p.Handshake.BrokerChain), "none")
	}}
}

func certificateAspects() []aspect {
	leaf := func(of func(c handshake.Certificate) string) func([]handshake.Certificate) string {
		return func(chain []handshake.Certificate) string { return of(chain[0]) }
	}
	return []aspect{
		{layer: TLS, what: "the broker's certificate by our clock", of: validityOf},
		chain("issuer of the broker's certificate", leaf(func(c handshake.Certificate) string { return c.Issuer }), false),
		chain("names of the broker's certificate", leaf(func(c handshake.Certificate) string { return strings.Join(c.Names, " ") }), false),
		chain("length of the broker's chain", func(chain []handshake.Certificate) string { return fmt.Sprint(len(chain)) }, false),
		chain("end of the broker's chain", func(chain []handshake.Certificate) string { return chain[len(chain)-1].Issuer }, false),
		chain("key of the broker's certificate", leaf(func(c handshake.Certificate) string { return c.Key + ", signed with " + c.Signature }), false),
		{layer: TLS, what: "OCSP response", of: stapledOf},
		chain("the broker's certificate", leaf(func(c handshake.Certificate) string { return c.SHA256[:min(16, len(c.SHA256))] }), true),
		{layer: Client, what: "acceptable authorities", of: authoritiesOf},
		{layer: Client, what: "signature schemes that the broker takes", loose: true, of: schemesOf},
		{layer: Client, what: "certificates that the device showed", of: shownOf},
		{layer: MQTT, what: "client id", loose: true, of: func(_ *Report, p *PathFacts) string { return p.ClientID }},
		became(MQTT, "answer to CONNECT", false),
		became(Lines, "the lines", false),
		became(Outbox, "the outbox", false),
	}
}

func authoritiesOf(_ *Report, p *PathFacts) string {
	q := p.Handshake.Request
	switch {
	case q != nil && q.Listed == 0:
		return "any"
	case q != nil:
		names := slices.Sorted(slices.Values(q.Authorities))
		return strings.Join(names, "; ")
	case len(p.Handshake.BrokerChain) > 0 && p.Handshake.Finished:
		return "no certificate is asked for"
	}
	return ""
}

func schemesOf(_ *Report, p *PathFacts) string {
	if p.Handshake.Request == nil {
		return ""
	}
	return strings.Join(p.Handshake.Request.Schemes, " ")
}

// shownOf is how many there were, and who issued them: names and numbers differ from device to device.
func shownOf(_ *Report, p *PathFacts) string {
	t := &p.Handshake
	if t.DeviceChain == nil {
		return ""
	}
	var issuers []string
	for _, c := range t.DeviceChain {
		issuers = append(issuers, or(c.Issuer, "unreadable"))
	}
	return fmt.Sprintf("%d%s", len(issuers), strings.TrimRight(" by "+strings.Join(issuers, ", then "), " by"))
}

// validityOf says how the broker's certificate stands to the clock that judged it.
func validityOf(_ *Report, p *PathFacts) string {
	chain := p.Handshake.BrokerChain
	if len(chain) == 0 || p.Judged.IsZero() {
		return ""
	}
	for i, c := range chain {
		switch {
		case c.Problem != "":
		case p.Judged.Before(c.NotBefore):
			return fmt.Sprintf("certificate %d is not valid before %s", i, c.NotBefore.Format(time.RFC3339))
		case p.Judged.After(c.NotAfter):
			return fmt.Sprintf("certificate %d has expired on %s", i, c.NotAfter.Format(time.RFC3339))
		}
	}
	return "valid"
}

func stapledOf(_ *Report, p *PathFacts) string {
	if len(p.Handshake.BrokerChain) == 0 {
		return ""
	}
	return yes(p.Handshake.Stapled, "stapled", "not stapled")
}

// Print writes what differs, the one that can explain the failure first.
func (c Comparison) Print(w io.Writer) error {
	var b strings.Builder
	switch {
	case len(c.All) == 0:
		b.WriteString("\nnothing differs that was seen in both runs\n")
	case c.First == nil:
		b.WriteString("\nnothing differs that could explain the failure\n")
	default:
		fmt.Fprintf(&b, "\nfirst difference: %s, %s\n", c.First.Layer, c.First.What)
		fmt.Fprintf(&b, "        here    %s\n        there   %s\n", cause.Printable(c.First.Ours), cause.Printable(c.First.Theirs))
	}
	for _, d := range c.All {
		if c.First == nil || d != *c.First {
			fmt.Fprintf(&b, "also different: %s\n", cause.Printable(d.String()))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
