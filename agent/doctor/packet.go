package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"ferrule/agent/session/cause"
)

// The packets of MQTT 3.1.1 that doctor speaks (section 2.2.1), and what a broker may answer them by.
const (
	packetConnect    = 1
	packetConnack    = 2
	packetPublish    = 3
	packetPuback     = 4
	packetSubscribe  = 8
	packetSuback     = 9
	packetDisconnect = 14
)

// maxPacket bounds one packet that comes, in bytes: commands may wait for the device.
const maxPacket = 1 << 20

// packet is one that came, without its fixed header.
type packet struct {
	kind, flags byte
	body        []byte
}

// readPacket reads one packet. What comes must be one of MQTT 3.1.1 that a broker may send.
func readPacket(r *bufio.Reader) (packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return packet{}, err
	}
	p := packet{kind: first >> 4, flags: first & 15}
	size, err := readLength(r)
	if err != nil {
		return packet{}, err
	}
	switch p.kind {
	case packetConnack, packetPublish, packetPuback, packetSuback:
	default:
		return packet{}, fmt.Errorf("%w: a packet of type %d came", cause.ErrProtocol, p.kind)
	}
	if size > maxPacket {
		return packet{}, fmt.Errorf("%w: %d bytes", cause.ErrTooLarge, size)
	}
	p.body, err = io.ReadAll(io.LimitReader(r, int64(size)))
	if err == nil && len(p.body) < size {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

// readLength reads a remaining length (2.2.3).
func readLength(r *bufio.Reader) (size int, err error) {
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		size |= int(b&127) << shift
		if b < 128 {
			return size, nil
		}
	}
	return 0, fmt.Errorf("%w: a length without end", cause.ErrProtocol)
}

// appendPacket appends a packet with its fixed header.
func appendPacket(dst []byte, kind, flags byte, body []byte) []byte {
	dst = append(dst, kind<<4|flags)
	n := len(body)
	for n >= 128 {
		dst = append(dst, byte(n)|128)
		n >>= 7
	}
	return append(append(dst, byte(n)), body...)
}

func appendString(dst []byte, s string) []byte {
	return append(append(dst, byte(len(s)>>8), byte(len(s))), s...)
}

// connectPacket opens a session (3.1). Without clean the broker keeps what it has for the client.
func connectPacket(clientID string, clean bool) []byte {
	const keepalive = 60 // seconds
	flags := byte(0)
	if clean {
		flags = 2
	}
	body := append(appendString(nil, "MQTT"), 4, flags, 0, keepalive)
	return appendPacket(nil, packetConnect, 0, appendString(body, clientID))
}

// The packet ids of the one subscription and the one message.
const (
	subscribeID = 1
	publishID   = 2
)

// subscribePacket asks for QoS 1 (3.8).
func subscribePacket(filter string) []byte {
	return appendPacket(nil, packetSubscribe, 2, append(appendString([]byte{0, subscribeID}, filter), 1))
}

// publishPacket is a message at QoS 1 (3.3).
func publishPacket(topic string, payload []byte) []byte {
	body := append(appendString(nil, topic), 0, publishID)
	return appendPacket(nil, packetPublish, 2, append(body, payload...))
}

func disconnectPacket() []byte { return []byte{packetDisconnect << 4, 0} }

// connack reads the answer to CONNECT (3.2): nil, or the refusal.
func (p packet) connack() (present bool, err error) {
	if p.kind != packetConnack || p.flags != 0 || len(p.body) != 2 || p.body[0] > 1 {
		return false, fmt.Errorf("%w: CONNECT was answered by type %d with %d bytes", cause.ErrProtocol, p.kind, len(p.body))
	}
	if p.body[1] != 0 {
		return false, cause.Refusal(p.body[1])
	}
	return p.body[0] == 1, nil
}

// suback reads the answer to SUBSCRIBE (3.9). It answers the QoS.
func (p packet) suback() (qos byte, err error) {
	if len(p.body) != 3 || p.body[0] != 0 || p.body[1] != subscribeID || p.body[2] > 2 && p.body[2] != 0x80 {
		return 0, fmt.Errorf("%w: SUBSCRIBE was answered by something else", cause.ErrProtocol)
	}
	if p.body[2] == 0x80 {
		return 0, cause.ErrSubscription
	}
	return p.body[2], nil
}

// puback checks the answer to PUBLISH (3.4).
func (p packet) puback() error {
	if len(p.body) != 2 || p.body[0] != 0 || p.body[1] != publishID {
		return fmt.Errorf("%w: PUBLISH was answered by something else", cause.ErrProtocol)
	}
	return nil
}
