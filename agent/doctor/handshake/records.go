package handshake

import (
	"crypto/tls"
	"fmt"
	"time"
)

// The types of records (RFC 8446, 5.1).
const (
	recordCCS         = 20
	recordAlert       = 21
	recordHandshake   = 22
	recordApplication = 23
)

const (
	headerSize = 5
	maxRecord  = 1<<14 + 2048 // TLS 1.2; 1.3 allows less
	maxMessage = 256 << 10
)

// reader puts records, and messages out of them, together.
type reader struct {
	transcript Transcript
	keys       *KeyLog
	suite      uint16
	at         time.Duration
	sides      [2]stream
}

// stream is one direction.
type stream struct {
	raw       []byte // a record that has not come whole
	message   []byte // a handshake message that has not
	sealed    bool   // behind ChangeCipherSpec of TLS 1.2: nothing can be read any more
	openers   []*opener
	finished  bool
	withheld  int // sealed records that could not be opened
	announced bool
}

// feed takes what went in one piece. It answers false when the rest cannot be read.
func (p *reader) feed(c chunk) bool {
	s := &p.sides[c.from]
	p.at = c.at
	s.raw = append(s.raw, c.data...)
	for len(s.raw) >= headerSize {
		kind, size := s.raw[0], int(s.raw[3])<<8|int(s.raw[4])
		if kind < recordCCS || kind > recordApplication || s.raw[1] != 3 || size > maxRecord {
			p.end(c.from, "what the %s sent is not TLS: %s", c.from, glimpse(s.raw))
			return false
		}
		if len(s.raw) < headerSize+size {
			return true
		}
		record := s.raw[:headerSize+size]
		s.raw = s.raw[headerSize+size:]
		if !p.record(c.from, kind, record) {
			return false
		}
	}
	return true
}

// end notes why nothing more can be read.
func (p *reader) end(_ Side, format string, args ...any) {
	if p.transcript.Ended == "" {
		p.transcript.Ended = printable(fmt.Sprintf(format, args...))
	}
}

// record takes one record as it went.
func (p *reader) record(from Side, kind byte, record []byte) bool {
	s, content := &p.sides[from], record[headerSize:]
	switch {
	case kind == recordCCS:
		// TLS 1.3 sends it for the sake of middleboxes, and it means nothing (RFC 8446, D.4).
		if p.transcript.version != 0 && p.transcript.version < tls.VersionTLS13 {
			p.message(from, Message{Name: "ChangeCipherSpec", Size: len(content)})
			s.sealed = true
		}
		return true
	case p.transcript.version == tls.VersionTLS13 && kind == recordApplication:
		return p.opened(from, record)
	case s.sealed || kind == recordApplication:
		p.sealedRecord(from, kind, len(content))
		return true
	}
	return p.content(from, kind, content, false)
}

// opened opens a record of TLS 1.3.
func (p *reader) opened(from Side, record []byte) bool {
	s := &p.sides[from]
	if s.openers == nil {
		s.openers = p.newOpeners(from)
	}
	for i, o := range s.openers {
		if o == nil {
			continue
		}
		kind, content, ok := o.open(record[:headerSize], record[headerSize:])
		if !ok {
			continue
		}
		if i > 0 {
			s.openers[0] = nil // the keys of the handshake are over
		}
		return p.content(from, kind, content, true)
	}
	s.withheld++
	if s.withheld == 1 {
		p.message(from, Message{Name: "sealed record", Size: len(record) - headerSize, Sealed: true, Details: []string{"its keys are not known"}})
	}
	return true
}

// newOpeners returns those of the handshake and of what follows it.
func (p *reader) newOpeners(from Side) []*opener {
	labels := [2][2]string{Device: {deviceHandshake, deviceTraffic}, Broker: {brokerHandshake, brokerTraffic}}[from]
	return []*opener{newOpener(p.suite, p.keys.secret(labels[0])), newOpener(p.suite, p.keys.secret(labels[1]))}
}

// sealedRecord counts a record of TLS 1.2 behind ChangeCipherSpec.
func (p *reader) sealedRecord(from Side, kind byte, size int) {
	s := &p.sides[from]
	switch {
	case kind == recordHandshake && !s.finished:
		s.finished = true
		p.transcript.finished[from] = true
		p.message(from, Message{Name: "Finished", Size: size, Sealed: true})
	case kind == recordAlert:
		p.message(from, Message{Name: "Alert", Size: size, Sealed: true, Details: []string{"sealed: TLS 1.2 hides it here"}})
	case kind == recordApplication && !s.announced:
		s.announced = true
		p.message(from, Message{Name: "application data", Size: size, Sealed: true, Details: []string{"the handshake is over"}})
	}
}

// content takes what a record holds.
func (p *reader) content(from Side, kind byte, content []byte, sealed bool) bool {
	s := &p.sides[from]
	switch kind {
	case recordAlert:
		p.alert(from, content, sealed)
	case recordHandshake:
		s.message = append(s.message, content...)
		return p.messages(from, sealed)
	case recordApplication:
		if !s.announced {
			s.announced = true
			p.message(from, Message{Name: "application data", Size: len(content), Sealed: sealed, Details: []string{"the handshake is over"}})
		}
	}
	return true
}

// messages takes the handshake messages that have come whole.
func (p *reader) messages(from Side, sealed bool) bool {
	s := &p.sides[from]
	for len(s.message) >= 4 {
		size := int(s.message[1])<<16 | int(s.message[2])<<8 | int(s.message[3])
		if size > maxMessage {
			p.end(from, "the %s announces a message of %d bytes", from, size)
			return false
		}
		if len(s.message) < 4+size {
			return true
		}
		kind, body := s.message[0], s.message[4:4+size]
		s.message = s.message[4+size:]
		p.handshake(from, kind, body, sealed)
	}
	return true
}

// message notes one message.
func (p *reader) message(from Side, m Message) {
	if len(p.transcript.Messages) < maxMessages {
		m.From, m.At = from, p.at
		p.transcript.Messages = append(p.transcript.Messages, m)
	}
}

// alert takes an alert record.
func (p *reader) alert(from Side, content []byte, sealed bool) {
	if len(content) != 2 {
		p.message(from, Message{Name: "Alert", Size: len(content), Sealed: sealed, Details: []string{"not as long as an alert is"}})
		return
	}
	a := Alert{From: from, Code: content[1], Name: alertName(content[1]), Fatal: content[0] == 2}
	if len(p.transcript.Alerts) < maxMessages {
		p.transcript.Alerts = append(p.transcript.Alerts, a)
	}
	level := "warning"
	if a.Fatal {
		level = "fatal"
	}
	p.message(from, Message{Name: "Alert", Size: 2, Sealed: sealed, Details: []string{fmt.Sprintf("%s: %s (%d), sent by the %s", level, a.Name, a.Code, from)}})
}
