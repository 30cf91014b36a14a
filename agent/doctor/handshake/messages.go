package handshake

import (
	"bytes"
	"crypto/tls"
	"encoding/asn1"
	"fmt"
	"strings"

	"crypto/x509/pkix"
)

// retryRandom is the random of a HelloRetryRequest (RFC 8446, 4.1.3).
var retryRandom = [32]byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// handshake takes one handshake message.
func (p *reader) handshake(from Side, kind byte, body []byte, sealed bool) {
	m := Message{Name: messageName(kind), Size: 4 + len(body), Sealed: sealed}
	c := &cursor{rest: body}
	good := true
	switch kind {
	case typeClientHello:
		m.Details, good = p.clientHello(c, len(body))
	case typeServerHello:
		m.Name, m.Details, good = p.serverHello(c)
	case typeEncryptedExtensions:
		m.Details, good = p.encryptedExtensions(c)
	case typeCertificate:
		m.Details, good = p.certificates(from, c)
	case typeCertificateStatus:
		p.transcript.Stapled = c.u8() == certificateTypeOfOCSP
		response := c.vector(3)
		m.Details = []string{fmt.Sprintf("OCSP response of %d bytes", len(response.rest))}
		good = c.over()
	case typeServerKeyExchange:
		m.Details, good = p.serverKeyExchange(c)
	case typeCertificateRequest:
		m.Details, good = p.certificateRequest(c)
	case typeCertificateVerify:
		m.Details, good = p.certificateVerify(from, c)
	case typeFinished:
		p.transcript.finished[from] = true
	case typeNewSessionTicket:
		m.Details = []string{"a ticket by which the session can be resumed"}
	}
	if !good {
		m.Details = append(m.Details, "it is not as RFC 8446 has it: the rest of it was not read")
	}
	p.message(from, m)
}

func list(what string, names []string) string {
	if len(names) == 0 {
		return what + ": none"
	}
	return what + ": " + strings.Join(names, ", ")
}

func (p *reader) clientHello(c *cursor, size int) (details []string, good bool) {
	h := &Hello{Size: headerSize + 4 + size}
	legacy := c.u16()
	c.take(32)
	c.vector(1) // session id
	suites := c.vector(2)
	h.Suites = named(suites.u16s(), suiteName)
	c.vector(1) // compression
	var order []string
	good = extensions(c, func(id uint16, e *cursor) {
		if !isGrease(id) {
			order = append(order, extensionName(id))
		}
		h.extension(id, e)
	})
	if len(h.Versions) == 0 {
		h.Versions = []string{versionName(legacy)}
	}
	if p.transcript.Hello == nil {
		p.transcript.Hello = h
	}
	details = []string{
		list("versions", h.Versions), list("suites", h.Suites), list("groups", h.Groups), list("key shares", h.Shares),
		list("ALPN", h.ALPN), "server name: " + orNone(h.ServerName), list("signature schemes", h.Schemes), list("extensions", order),
	}
	return details, good
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// extension takes one extension of a ClientHello.
func (h *Hello) extension(id uint16, e *cursor) {
	switch id {
	case extServerName:
		names := e.vector(2)
		if kind, name := names.u8(), names.vector(2); kind == nameTypeHost && !names.bad {
			h.ServerName = printable(string(name.rest))
		}
	case extVersions:
		v := e.vector(1)
		h.Versions = named(v.u16s(), versionName)
	case extGroups:
		v := e.vector(2)
		h.Groups = named(v.u16s(), groupName)
	case extSchemes:
		v := e.vector(2)
		h.Schemes = named(v.u16s(), schemeName)
	case extALPN:
		h.ALPN = protocols(e)
	case extKeyShare:
		for shares := e.vector(2); shares.more(); {
			group, share := shares.u16(), shares.vector(2)
			if !isGrease(group) && !shares.bad {
				h.Shares = append(h.Shares, fmt.Sprintf("%s (%d bytes)", groupName(group), len(share.rest)))
			}
		}
	case extPreSharedKey:
		h.Resumption = true
	case extSessionTicket:
		h.Resumption = h.Resumption || len(e.rest) > 0
	}
}

func protocols(e *cursor) (names []string) {
	for all := e.vector(2); all.more(); {
		name := all.vector(1)
		if !all.bad {
			names = append(names, printable(string(name.rest)))
		}
	}
	return names
}

// extensions gives each extension that is left in c to take. Having none is good.
func extensions(c *cursor, take func(id uint16, e *cursor)) (good bool) {
	if c.over() {
		return true
	}
	all := c.vector(2)
	for all.more() {
		id, e := all.u16(), all.vector(2)
		if all.bad {
			return false
		}
		take(id, &e)
		if e.bad {
			return false
		}
	}
	return all.over() && c.over()
}

func (p *reader) serverHello(c *cursor) (name string, details []string, good bool) {
	t := &p.transcript
	name = messageName(typeServerHello)
	version, random := c.u16(), c.take(32)
	c.vector(1) // session id
	suite := c.u16()
	c.u8() // compression
	var group uint16
	var order []string
	var alpn, preShared bool
	good = extensions(c, func(id uint16, e *cursor) {
		order = append(order, extensionName(id))
		switch id {
		case extVersions:
			version = e.u16()
		case extKeyShare:
			group = e.u16()
		case extALPN:
			if names := protocols(e); len(names) == 1 {
				t.ALPN, alpn = names[0], true
			}
		case extPreSharedKey:
			preShared = true
		}
	})
	if !good && c.bad && random == nil {
		return name, nil, false
	}
	if bytes.Equal(random, retryRandom[:]) {
		t.Retried = groupName(group)
		text := fmt.Sprintf("the broker wants %s, of which the device had sent no share: one round trip more", t.Retried)
		return "HelloRetryRequest", []string{text, list("extensions", order)}, good
	}
	t.version, p.suite = version, suite
	t.Version, t.Suite = versionName(version), suiteName(suite)
	t.Resumed = preShared
	details = []string{"version: " + t.Version + p.whyVersion(random), "suite: " + t.Suite}
	if group != 0 {
		t.Group = groupName(group)
		details = append(details, "group: "+t.Group+p.whyGroup())
	}
	if alpn {
		details = append(details, "ALPN: "+t.ALPN)
	}
	if preShared {
		details = append(details, "the session of before is resumed: no certificate is shown, and no signature made")
	}
	return name, append(details, list("extensions", order)), good
}

// whyVersion says why it is this version.
func (p *reader) whyVersion(random []byte) string {
	h := p.transcript.Hello
	if h == nil || len(h.Versions) == 0 || h.Versions[0] == p.transcript.Version {
		return ": the highest that the device offers"
	}
	// RFC 8446, 4.1.3: a broker that could do more says so in its random.
	if tail := string(random[24:]); tail == "DOWNGRD\x01" || tail == "DOWNGRD\x00" {
		return ": the broker knows a higher one, but did not see it offered; somebody in between takes it away"
	}
	return ": the device offers " + h.Versions[0] + ", the broker has no higher one than this"
}

// whyGroup says why it is this group.
func (p *reader) whyGroup() string {
	h := p.transcript.Hello
	switch {
	case h == nil:
		return ""
	case p.transcript.Retried != "":
		return ": as the broker had asked for"
	case len(h.Groups) > 0 && h.Groups[0] == p.transcript.Group:
		return ": the device's first choice"
	}
	return ": what the broker took of the device's key shares"
}

func (p *reader) encryptedExtensions(c *cursor) (details []string, good bool) {
	t := &p.transcript
	var order []string
	good = extensions(c, func(id uint16, e *cursor) {
		order = append(order, extensionName(id))
		if id == extALPN {
			if names := protocols(e); len(names) == 1 {
				t.ALPN = names[0]
			}
		}
	})
	details = []string{"ALPN: " + orNone(t.ALPN) + p.whyALPN(), list("extensions", order)}
	return details, good
}

func (p *reader) whyALPN() string {
	if h := p.transcript.Hello; h != nil && len(h.ALPN) > 0 && p.transcript.ALPN == "" {
		return ": the broker did not choose one of " + strings.Join(h.ALPN, ", ")
	}
	return ""
}

// serverKeyExchange is the share of a TLS 1.2 broker (RFC 8422, 5.4).
func (p *reader) serverKeyExchange(c *cursor) (details []string, good bool) {
	const namedCurve = 3
	if c.u8() != namedCurve {
		return nil, false
	}
	p.transcript.Group = groupName(c.u16())
	c.vector(1)
	scheme := c.u16()
	p.transcript.Signature = schemeName(scheme)
	c.vector(2)
	return []string{"group: " + p.transcript.Group + p.whyGroup(), "signed with " + p.transcript.Signature}, c.over()
}

func (p *reader) certificateVerify(from Side, c *cursor) (details []string, good bool) {
	scheme := schemeName(c.u16())
	signature := c.vector(2)
	if from == Broker {
		p.transcript.Signature = scheme
	} else {
		p.transcript.DeviceSignature = scheme
	}
	return []string{fmt.Sprintf("signed with %s, %d bytes", scheme, len(signature.rest))}, c.over()
}

// certificateRequest reads that of TLS 1.3, which is made of extensions, and that of 1.2.
func (p *reader) certificateRequest(c *cursor) (details []string, good bool) {
	r := &Request{}
	if p.transcript.version == tls.VersionTLS13 {
		c.vector(1) // context
		good = extensions(c, func(id uint16, e *cursor) {
			switch id {
			case extSchemes:
				v := e.vector(2)
				r.Schemes = named(v.u16s(), schemeName)
			case extAuthorities:
				r.authorities(e)
			}
		})
	} else {
		c.vector(1) // types of certificates, which the schemes say better
		v := c.vector(2)
		r.Schemes = named(v.u16s(), schemeName)
		r.authorities(c)
		good = c.over()
	}
	p.transcript.Request = r
	if r.Listed == 0 {
		details = append(details, "acceptable authorities: none is listed, so any may be tried")
	} else {
		details = append(details, fmt.Sprintf("acceptable authorities: %d", r.Listed))
		for _, name := range r.Authorities {
			details = append(details, "  "+name)
		}
	}
	return append(details, list("signature schemes", r.Schemes)), good
}

// authorities reads distinguished names (RFC 8446, 4.2.4).
func (r *Request) authorities(c *cursor) {
	for all := c.vector(2); all.more(); {
		name := all.vector(2)
		if all.bad {
			c.bad = true
			return
		}
		r.Listed++
		if len(r.Authorities) < maxAuthorities {
			r.Authorities = append(r.Authorities, distinguished(name.rest))
		}
	}
}

// distinguished is a name as people read it.
func distinguished(der []byte) string {
	var rdn pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &rdn); err != nil || len(rest) > 0 {
		return fmt.Sprintf("a name that cannot be read (%d bytes)", len(der))
	}
	return printable(rdn.String())
}
