// Package agenttest is a cloud in a box for tests and the demo: an MQTT broker that requires
// client certificates and writes every message to its ledger before it acknowledges it. So
// what was acknowledged is in the ledger even when the broker is killed, which no broker of
// Debian's promises.
package agenttest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// BrokerConfig is what a broker is made of.
type BrokerConfig struct {
	// Address to listen on; 127.0.0.1:0 takes a free port.
	Address string
	// TLS has the broker's certificate and the CAs of its clients. StartBroker requires and
	// verifies client certificates, whatever ClientAuth says.
	TLS *tls.Config
	// Ledger is called for every PUBLISH before its PUBACK; with an error there is none. It
	// is called from the goroutines of all clients. Nil: no ledger.
	Ledger func(Message) error
	// OnConnect, if set, is called for every CONNECT that is accepted.
	OnConnect func(Connection)
	// Log gets the broker's own words; nil discards them.
	Log *slog.Logger
}

// Message is one PUBLISH that reached the broker.
type Message struct {
	Client, Topic string
	Payload       []byte
	QoS           byte
	Retain, Dup   bool
	At            time.Time
}

// Connection is one CONNECT as the broker saw it.
type Connection struct {
	ClientID   string
	CommonName string // of the client's certificate
	Leaf       string // SHA-256 of the client's certificate, hex
	TLSVersion string
	Resumed    bool
	At         time.Time
}

// Broker is a running broker.
type Broker struct {
	config BrokerConfig
	server *mqtt.Server
	gate   *gate

	mu          sync.Mutex
	connections []Connection
}

// StartBroker starts a broker. Close ends it and all its connections.
func StartBroker(c BrokerConfig) (*Broker, error) {
	if c.TLS == nil || c.TLS.ClientCAs == nil {
		return nil, errors.New("a broker without client CAs would let everybody in")
	}
	config := c.TLS.Clone()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	var listen net.ListenConfig
	listener, err := listen.Listen(context.Background(), "tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{config: c, gate: newGate(listener, config)}
	b.server = mqtt.New(&mqtt.Options{InlineClient: true, Logger: c.Log})
	if err := b.server.AddHook(&hook{broker: b}, nil); err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	if err := b.server.AddListener(listeners.NewNet("tls", b.gate)); err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	if err := b.server.Serve(); err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	return b, nil
}

// Address returns host:port.
func (b *Broker) Address() string { return b.gate.Addr().String() }

// Cut breaks every connection and refuses new ones until Mend.
func (b *Broker) Cut() { b.gate.shut() }

// Mend lets clients connect again.
func (b *Broker) Mend() error { return b.gate.reopen() }

// Publish sends a message to whoever has subscribed, at QoS 1.
func (b *Broker) Publish(topic string, payload []byte, retain bool) error {
	return b.server.Publish(topic, payload, retain, 1)
}

// Connections lists every accepted CONNECT so far, the oldest first.
func (b *Broker) Connections() []Connection {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.connections)
}

// Close ends the broker.
func (b *Broker) Close() error {
	b.gate.drain()
	return b.server.Close()
}

// hook is the broker's view of mochi's events.
type hook struct {
	mqtt.HookBase
	broker *Broker
}

func (h *hook) ID() string { return "agenttest" }

func (h *hook) Provides(event byte) bool {
	return event == mqtt.OnConnectAuthenticate || event == mqtt.OnACLCheck || event == mqtt.OnPublish
}

// OnConnectAuthenticate notes who connects; the handshake has checked the certificate.
func (h *hook) OnConnectAuthenticate(client *mqtt.Client, _ packets.Packet) bool {
	conn, ok := client.Net.Conn.(*tls.Conn)
	if !ok || len(conn.ConnectionState().PeerCertificates) == 0 {
		return false
	}
	state := conn.ConnectionState()
	leaf := sha256.Sum256(state.PeerCertificates[0].Raw)
	c := Connection{
		ClientID: client.ID, CommonName: state.PeerCertificates[0].Subject.CommonName,
		Leaf: hex.EncodeToString(leaf[:]), TLSVersion: tls.VersionName(state.Version), Resumed: state.DidResume, At: time.Now(),
	}
	h.broker.mu.Lock()
	h.broker.connections = append(h.broker.connections, c)
	h.broker.mu.Unlock()
	if h.broker.config.OnConnect != nil {
		h.broker.config.OnConnect(c)
	}
	return true
}

func (h *hook) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// OnPublish runs before the PUBACK is sent. A message that the ledger did not take is not
// acknowledged, so its sender keeps it.
func (h *hook) OnPublish(client *mqtt.Client, p packets.Packet) (packets.Packet, error) {
	if h.broker.config.Ledger == nil || client.Net.Inline {
		return p, nil
	}
	err := h.broker.config.Ledger(Message{
		Client: client.ID, Topic: p.TopicName, Payload: slices.Clone(p.Payload), QoS: p.FixedHeader.Qos,
		Retain: p.FixedHeader.Retain, Dup: p.FixedHeader.Dup, At: time.Now(),
	})
	if err != nil {
		return p, packets.ErrRejectPacket
	}
	return p, nil
}
