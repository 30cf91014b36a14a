package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// What talkers say, made here by hand from the standards, and not by the code under test.

// sentence makes an NMEA 0183 sentence of what stands between $ and *.
func sentence(body string) string {
	var sum byte
	for i := range len(body) {
		sum ^= body[i]
	}
	return fmt.Sprintf("$%s*%02X\r\n", body, sum)
}

// block makes a VE.Direct block: the sum of all bytes is 0 (VE.Direct Protocol 3.33).
func block(fields ...string) string {
	var b []byte
	for i := 0; i+1 < len(fields); i += 2 {
		b = append(b, "\r\n"+fields[i]+"\t"+fields[i+1]...)
	}
	b = append(b, "\r\nChecksum\t"...)
	var sum byte
	for _, c := range b {
		sum += c
	}
	return string(append(b, -sum))
}

// crc16 is a reflected CRC of 16 bits.
func crc16(polynomial, crc uint16, data []byte) uint16 {
	for _, b := range data {
		crc ^= uint16(b)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ polynomial
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

func crcX25(data []byte) uint16 { return ^crc16(0x8408, 0xFFFF, data) }

// telegram makes a P1 telegram: CRC16-ARC from / to ! (DSMR P1 companion standard 5.0.2, 5.2).
func telegram(header string, lines ...string) string {
	text := "/" + header + "\r\n\r\n"
	for _, line := range lines {
		text += line + "\r\n"
	}
	text += "!"
	return fmt.Sprintf("%s%04X\r\n", text, crc16(0xA001, 0, []byte(text)))
}

// smlEntry is one value of a list: code, unit (DLMS), scaler, value.
type smlEntry struct {
	code   string // six bytes in hex
	unit   byte
	scaler int8
	value  int64
}

// transmission makes a response of SML 1.04: open, list, close, within the transport protocol.
func transmission(server []byte, list ...smlEntry) []byte {
	octets := func(b []byte) []byte { return append([]byte{byte(len(b) + 1)}, b...) }
	none := byte(0x01)
	var values []byte
	for _, e := range list {
		code, err := hex.DecodeString(e.code)
		if err != nil {
			panic(err)
		}
		values = append(append(values, 0x77), octets(code)...)
		values = append(values, none, none, 0x62, e.unit, 0x52, byte(e.scaler), 0x59)
		values = append(binary.BigEndian.AppendUint64(values, uint64(e.value)), none)
	}
	open := bytes.Join([][]byte{{0x76, none, none}, octets([]byte{0, 1}), octets(server), {none, none}}, nil)
	get := bytes.Join([][]byte{{0x77, none}, octets(server), {none, none}, {0x70 | byte(len(list))}, values, {none, none}}, nil)
	b := []byte{0x1B, 0x1B, 0x1B, 0x1B, 1, 1, 1, 1}
	b = appendMessage(b, 1, 0x0101, open)
	b = appendMessage(b, 2, 0x0701, get)
	b = appendMessage(b, 3, 0x0201, []byte{0x71, none})
	pad := -len(b) & 3
	b = append(b, make([]byte, pad)...)
	b = append(b, 0x1B, 0x1B, 0x1B, 0x1B, 0x1A, byte(pad))
	return binary.LittleEndian.AppendUint16(b, crcX25(b))
}

// appendMessage appends one SML message with its CRC.
func appendMessage(b []byte, transaction byte, tag uint16, body []byte) []byte {
	from := len(b)
	b = append(b, 0x76, 0x02, transaction, 0x62, 0, 0x62, 0, 0x72, 0x63, byte(tag>>8), byte(tag))
	b = append(b, body...)
	crc := crcX25(b[from:])
	return append(b, 0x63, byte(crc), byte(crc>>8), 0)
}

// meterBus answers as an M-Bus unit with a primary address: SND_NKE with E5, REQ_UD2 with a
// telegram of variable structure (EN 13757-2, 5; EN 13757-3, 6).
func meterBus(address byte, records ...byte) func(asked []byte) (int, []byte) {
	user := append([]byte{0x08, address, 0x72,
		0x78, 0x56, 0x34, 0x12, // identification 12345678
		0x77, 0x04, 14, 0x04, // ACW, version 14, heat
		1, 0, 0, 0}, records...)
	long := append([]byte{0x68, byte(len(user)), byte(len(user)), 0x68}, user...)
	var sum byte
	for _, b := range user {
		sum += b
	}
	long = append(long, sum, 0x16)
	return func(asked []byte) (int, []byte) {
		const short = 5
		switch {
		case len(asked) == 0:
			return 0, nil
		case asked[0] == 0x68: // a selection, or an order: not for this one
			if len(asked) < 2 || len(asked) < int(asked[1])+6 {
				return 0, nil
			}
			return int(asked[1]) + 6, nil
		case asked[0] != 0x10:
			return 1, nil
		case len(asked) < short:
			return 0, nil
		case asked[2] != address:
			return short, nil
		case asked[1] == 0x40:
			return short, []byte{0xE5}
		}
		return short, long
	}
}
