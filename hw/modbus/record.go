package modbus

import (
	"encoding/binary"
	"fmt"
)

// Record is a run of registers of a file (Application Protocol V1.1b3, 6.14 and 6.15).
type Record struct {
	File   uint16 // from 1 on
	Number uint16 // of the first register in the file, 0 to 9999
	Count  uint16 // registers
	Data   []byte // of the registers, big-endian; none in a request to read
}

const (
	recordType    = 6    // the only reference type that there is
	recordHead    = 7    // bytes: type, file, number, count
	lastRecord    = 9999 // 0x270F
	maxReadFile   = 245  // bytes of the request, and of the answer, after their byte counts
	maxWriteFile  = 251
	leastReadFile = recordHead
)

// RecordRequest is the request that reads (function 20) or writes (function 21) records.
func RecordRequest(f Function, unit byte, records ...Record) Request {
	r := Request{Unit: unit, Function: f}
	for _, c := range records {
		r.Data = c.appendHead(r.Data)
		if f == WriteFileRecord {
			r.Data = append(r.Data, c.Data...)
		}
	}
	return r
}

func (c *Record) appendHead(dst []byte) []byte {
	return appendWords(append(dst, recordType), c.File, c.Number, c.Count)
}

// Records are the records that a request of function 20 or 21 names. Their Data points into the
// request's.
func (r Request) Records() ([]Record, error) {
	var list []Record
	for data := r.Data; len(data) > 0; {
		c, rest, ok := cutRecord(r.Function, data)
		if !ok {
			return nil, malformed("records")
		}
		list, data = append(list, c), rest
	}
	return list, nil
}

// cutRecord takes the first record off the data of a request.
func cutRecord(f Function, data []byte) (c Record, rest []byte, ok bool) {
	if len(data) < recordHead || data[0] != recordType {
		return c, nil, false
	}
	word := func(at int) uint16 { return binary.BigEndian.Uint16(data[at:]) }
	c = Record{File: word(1), Number: word(3), Count: word(5)}
	rest = data[recordHead:]
	if f == WriteFileRecord {
		if n := 2 * int(c.Count); n <= len(rest) {
			c.Data, rest = rest[:n:n], rest[n:]
			return c, rest, true
		}
		return c, nil, false
	}
	return c, rest, true
}

// recordRefusal is what a unit finds wrong with a request of function 20 or 21 before it looks for
// the file: byte counts are exception 3, what they point to is exception 2 (V1.1b3, figures 24, 25).
func (r *Request) recordRefusal() (Exception, error) {
	n, most := len(r.Data), maxReadFile
	if r.Function == WriteFileRecord {
		most = maxWriteFile
	}
	if n < leastReadFile || n > most || r.Function == ReadFileRecord && (n%recordHead != 0 || r.answerBytes() > maxReadFile) {
		return IllegalValue, fmt.Errorf("%w: function %d with %d bytes of records", ErrRequest, r.Function, n)
	}
	for data := r.Data; len(data) > 0; {
		c, rest, ok := cutRecord(r.Function, data)
		switch {
		case !ok && data[0] == recordType:
			return IllegalValue, fmt.Errorf("%w: function %d with a record cut off", ErrRequest, r.Function)
		case !ok, c.File == 0, c.Count == 0, int(c.Number)+int(c.Count)-1 > lastRecord:
			return IllegalAddress, fmt.Errorf("%w: function %d for record %d of file %d, %d registers", ErrRequest, r.Function, c.Number, c.File, c.Count)
		}
		data = rest
	}
	return 0, nil
}

// answerBytes is how many bytes of data the answer to a request of function 20 carries.
func (r *Request) answerBytes() int {
	n := 0
	for data := r.Data; len(data) >= recordHead; data = data[recordHead:] {
		n += 2 + 2*int(binary.BigEndian.Uint16(data[5:]))
	}
	return n
}

// recordsFit tells whether the data of an answer to function 20 has the records that were asked for.
func recordsFit(request, answer []byte) bool {
	for ; len(request) >= recordHead; request = request[recordHead:] {
		n := 2 * int(binary.BigEndian.Uint16(request[5:]))
		if len(answer) < 2+n || int(answer[0]) != 1+n || answer[1] != recordType {
			return false
		}
		answer = answer[2+n:]
	}
	return len(answer) == 0
}
