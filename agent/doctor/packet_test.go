package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"ferrule/agent/session/cause"
)

// What a broker sends is hostile until checked: nothing is allocated by a length alone, and every
// error is one that has an answer.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{packetConnack << 4, 2, 0, 5})
	f.Add([]byte{packetSuback << 4, 3, 0, subscribeID, 1})
	f.Add([]byte{packetPuback << 4, 2, 0, publishID})
	f.Add(publishPacket("a/b", []byte("payload")))
	f.Add([]byte{packetPublish << 4, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for {
			p, err := readPacket(r)
			if err != nil {
				if !errors.Is(err, cause.ErrProtocol) && !errors.Is(err, cause.ErrTooLarge) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%v", err)
				}
				return
			}
			_, _ = p.connack()
			_, _ = p.suback()
			_ = p.puback()
		}
	})
}

// A packet that is written reads back.
func TestPackets(t *testing.T) {
	long := publishPacket("a/b", bytes.Repeat([]byte("x"), 300))
	p, err := readPacket(bufio.NewReader(bytes.NewReader(long)))
	if err != nil || p.kind != packetPublish || len(p.body) != 2+3+2+300 {
		t.Errorf("%+v, %v", p, err)
	}
	if got := connectPacket("device-1-doctor", true); !bytes.HasPrefix(got, []byte("\x10\x1b\x00\x04MQTT\x04\x02\x00\x3c\x00\x0fdevice-1-doctor")) {
		t.Errorf("%q", got)
	}
}
