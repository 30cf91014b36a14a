package modbus

import "encoding/binary"

// CRC is the checksum of V1.02, 2.5.1.2 over p; it travels low byte first.
func CRC(p []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, b := range p {
		crc = crc>>8 ^ crcTable[byte(crc)^b]
	}
	return crc
}

// crcTable holds the checksum steps of polynomial 0xA001 for each byte.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

// LRC is the checksum of V1.02, 2.5.2.2 over p: the two's complement of the sum of its bytes.
func LRC(p []byte) byte {
	sum := byte(0)
	for _, b := range p {
		sum += b
	}
	return -sum
}

func appendCRC(dst []byte, start int) []byte {
	return binary.LittleEndian.AppendUint16(dst, CRC(dst[start:]))
}

// sound tells whether the frame's last two bytes are its checksum.
func sound(frame []byte) bool {
	n := len(frame) - 2
	return n >= 2 && binary.LittleEndian.Uint16(frame[n:]) == CRC(frame[:n])
}
