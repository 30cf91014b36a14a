package doctor

import (
	"fmt"
	"strings"
	"time"

	"ferrule/agent/doctor/handshake"
)

// soon is how little a broker's certificate may have left before somebody should know.
const soon = 14 * 24 * time.Hour

// describeTLS tells what was agreed on, and by whom the broker is vouched for.
func (w *way) describeTLS(r *Result) {
	t := &w.facts.Handshake
	if h := t.Hello; h != nil {
		r.Saw = append(r.Saw, fmt.Sprintf("ClientHello of %d bytes for %q, groups %s", h.Size, h.ServerName, strings.Join(h.Groups, " ")))
	}
	if t.Ended != "" {
		r.Saw = append(r.Saw, t.Ended)
	}
	if t.Retried != "" {
		r.Saw = append(r.Saw, "the broker asked for another key share, "+t.Retried+": one round trip more")
	}
	if t.Version != "" {
		r.Saw = append(r.Saw, strings.Join([]string{t.Version, t.Suite, "group " + or(t.Group, "none"), "ALPN " + or(t.ALPN, "none")}, ", "))
	}
	for i, c := range t.BrokerChain {
		r.Saw = append(r.Saw, describeCertificate(i, c))
	}
	if len(t.BrokerChain) == 0 {
		return
	}
	leaf := t.BrokerChain[0]
	left := leaf.NotAfter.Sub(w.facts.Judged)
	r.Saw = append(r.Saw, fmt.Sprintf("it is judged at %s, with %s left; OCSP response %s", stamp(w.facts.Judged), roughly(max(left, 0)), yes(t.Stapled, "stapled", "not stapled")))
	if left > 0 && left < soon {
		r.Warn(fmt.Sprintf("the broker's certificate expires on %s", leaf.NotAfter.Format(time.DateOnly)), "have it renewed")
	}
	if w.facts.Inspected != "" {
		r.Warn(fmt.Sprintf("%s looks inside the connection; the broker does not see the device's certificate", w.facts.Inspected),
			"have the broker's name taken out of the inspection")
	}
}

// describeClient tells what the broker wants of the device's certificate, and what it was shown.
func (w *way) describeClient(r *Result) {
	t := &w.facts.Handshake
	switch {
	case t.Request == nil && t.Version != "":
		r.Warn("the broker asks for no client certificate, so it cannot know by it who connects",
			"require client certificates on the broker (mosquitto: require_certificate true), or find what ends TLS before it")
		return
	case t.Request == nil:
		return
	case t.Request.Listed == 0:
		r.Saw = append(r.Saw, "the broker asks for a certificate and lists no authorities: any may be tried")
	default:
		const most = 8
		names := t.Request.Authorities
		text := strings.Join(names[:min(len(names), most)], "; ")
		if t.Request.Listed > most {
			text += fmt.Sprintf("; and %d more", t.Request.Listed-most)
		}
		r.Saw = append(r.Saw, fmt.Sprintf("the broker asks for a certificate of one of %d authorities: %s", t.Request.Listed, text))
	}
	for i, c := range t.DeviceChain {
		r.Saw = append(r.Saw, "shown "+describeCertificate(i, c))
	}
	if t.DeviceChain != nil && len(t.DeviceChain) == 0 {
		r.Saw = append(r.Saw, "no certificate was shown")
	}
}

func describeCertificate(i int, c handshake.Certificate) string {
	if c.Problem != "" {
		return fmt.Sprintf("certificate %d cannot be read: %s", i, c.Problem)
	}
	text := fmt.Sprintf("certificate %d: %s by %s, %s to %s, %s", i, c.Subject, c.Issuer,
		c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly), c.Key)
	if len(c.Names) > 0 {
		text += ", for " + strings.Join(c.Names, " ")
	}
	return text
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func yes(is bool, a, b string) string {
	if is {
		return a
	}
	return b
}
