package handshake

import (
	"crypto/tls"
	"fmt"
	"time"
)

// Side is one end of the connection.
type Side int

// The sides.
const (
	Device Side = iota
	Broker
)

func (s Side) String() string { return [...]string{"device", "broker"}[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Side) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Side) UnmarshalText(text []byte) error {
	switch string(text) {
	case "device":
		*s = Device
	case "broker":
		*s = Broker
	default:
		return fmt.Errorf("%q is no side of a handshake", text)
	}
	return nil
}

// Transcript is what was said in a handshake, as far as it could be read.
type Transcript struct {
	Messages []Message `json:"messages"`
	// What was chosen; empty where it did not come to that.
	Version string `json:"version,omitempty"`
	Suite   string `json:"suite,omitempty"`
	Group   string `json:"group,omitempty"`
	ALPN    string `json:"alpn,omitempty"`
	// Retried is the group that the broker asked for in a HelloRetryRequest.
	Retried string `json:"retried,omitempty"`
	// Resumed says that the broker took up a session of before.
	Resumed bool `json:"resumed,omitempty"`
	// Stapled says that an OCSP response came with the certificate.
	Stapled bool `json:"stapled,omitempty"`

	Hello       *Hello        `json:"hello,omitempty"`        // the device's first
	BrokerChain []Certificate `json:"broker_chain,omitempty"` // as sent
	Request     *Request      `json:"request,omitempty"`      // for a client certificate
	// DeviceChain is what the device showed, nil where it did not come to that; empty: nothing.
	DeviceChain []Certificate `json:"device_chain,omitzero"`
	// Signature is the scheme by which the broker proved its key, DeviceSignature the device.
	Signature       string  `json:"signature,omitempty"`
	DeviceSignature string  `json:"device_signature,omitempty"`
	Alerts          []Alert `json:"alerts,omitempty"`
	// Ended says why reading stopped before the end of what was recorded.
	Ended string `json:"ended,omitempty"`
	// Finished says that both sides have.
	Finished bool `json:"finished"`

	version  uint16
	shown    bool // a Certificate of the device was seen
	finished [2]bool
}

// Message is one message of either side.
type Message struct {
	From Side `json:"from"`
	// At is when its last byte went, since the connection stood.
	At   time.Duration `json:"at_ns"`
	Name string        `json:"name"`
	// Size is in bytes, without the record around it.
	Size int `json:"size"`
	// Sealed says that it went encrypted.
	Sealed  bool     `json:"sealed,omitempty"`
	Details []string `json:"details,omitempty"`
}

// Alert is one that was sent (RFC 8446, section 6).
type Alert struct {
	From  Side   `json:"from"`
	Code  uint8  `json:"code"`
	Name  string `json:"name"`
	Fatal bool   `json:"fatal"`
}

// Hello is what the device offered.
type Hello struct {
	Size       int      `json:"size"` // in bytes, of the record
	Versions   []string `json:"versions"`
	Suites     []string `json:"suites"`
	Groups     []string `json:"groups,omitempty"`
	Shares     []string `json:"shares,omitempty"`
	ALPN       []string `json:"alpn,omitempty"`
	ServerName string   `json:"server_name,omitempty"`
	Schemes    []string `json:"schemes,omitempty"`
	Resumption bool     `json:"resumption,omitempty"`
}

// Request is what the broker wants of a client certificate.
type Request struct {
	Schemes []string `json:"schemes,omitempty"`
	// Authorities are the names of those it lists, at most maxAuthorities; Listed counts all of them. None
	// are listed by a broker that takes any.
	Authorities []string `json:"authorities,omitempty"`
	Listed      int      `json:"listed"`
}

const (
	maxMessages    = 256
	maxAuthorities = 64
	maxNames       = 16 // of a certificate
)

// Read reads what r has recorded, with the secrets of k; without them (nil) the sealed part of a TLS 1.3
// handshake stays sealed.
func Read(r *Recorder, k *KeyLog) Transcript { return read(r.taken(), k) }

func read(chunks []chunk, k *KeyLog) Transcript {
	p := &reader{keys: k}
	for _, c := range chunks {
		if !p.feed(c) {
			break
		}
	}
	t := &p.transcript
	t.Finished = t.finished[Device] && t.finished[Broker]
	if t.version != 0 {
		t.Version = tls.VersionName(t.version)
	}
	if t.shown && t.DeviceChain == nil {
		t.DeviceChain = []Certificate{}
	}
	return *t
}
