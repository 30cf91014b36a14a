package encode

// Message is one PUBLISH that the encoder makes itself: a birth certificate of Sparkplug B.
type Message struct {
	Topic    string
	Payload  []byte
	QoS      byte // always 1: births must be acknowledged before readings go
	Retained bool
}

// Will returns the last will of the next connection: Sparkplug's NDEATH. It is asked before each
// CONNECT, and the death certificates of no two connections in a row are the same; before an intended
// DISCONNECT the session publishes what it was given here. An empty topic says that there is none.
func (e *Encoder) Will() (topic string, payload []byte, qos byte, retained bool) {
	if e.node == nil {
		return "", nil, 0, false
	}
	m := e.node.Will()
	return m.Topic, m.Payload, 1, false
}

// Births returns what must be published and acknowledged, in this order, before readings go on:
// with connected everything that this connection needs (right after CONNACK), without it what has
// become known since (before a run, and whenever Join gave nothing). Usually nil.
func (e *Encoder) Births(connected bool) []Message {
	if e.node == nil {
		return nil
	}
	births := e.node.Births(connected)
	if len(births) == 0 {
		return nil
	}
	messages := make([]Message, len(births))
	for i, m := range births {
		messages[i] = Message{Topic: m.Topic, Payload: m.Payload, QoS: 1}
	}
	return messages
}

// Filter returns a further subscription, "" for none: commands of Sparkplug hosts.
func (e *Encoder) Filter() string {
	if e.node == nil {
		return ""
	}
	return e.node.Filter()
}

// Receive takes what came on Filter. rebirth says that Births(false) has something to publish now.
func (e *Encoder) Receive(topic string, payload []byte) (rebirth bool) {
	return e.node != nil && e.node.Receive(topic, payload)
}

// Encoding returns the format and the compression, as they stand in the status: "json", "json+zstd",
// "senml-cbor+zstd".
func (e *Encoder) Encoding() string { return e.encoding }
