package signer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The sizes of the protocol (docs/signer.md). A length that says more is refused before
// anything of it is read.
const (
	version    = 1
	headerSize = 16 // length, version, verb, number, name length or flags, request id

	// MaxName is the longest name of a key, in bytes of UTF-8.
	MaxName    = 64
	maxDigest  = 64
	maxBody    = 400 // public key, signature or error text
	maxRequest = headerSize + MaxName + maxDigest
	maxAnswer  = headerSize + maxBody
)

// verb says what is asked.
type verb byte

const (
	verbDescribe verb = 1
	verbSign     verb = 2
	verbCreate   verb = 3
)

func (v verb) String() string {
	switch v {
	case verbDescribe:
		return "describe"
	case verbSign:
		return "sign"
	case verbCreate:
		return "create"
	}
	return fmt.Sprintf("verb %d", byte(v))
}

// request is what a client sends.
type request struct {
	verb   verb
	number byte // sign: the hash; create: the curve; describe: 0
	id     uint64
	name   string
	digest []byte // sign only
}

// answer is what a helper sends back. With a status other than 0 the body is text.
type answer struct {
	verb   verb
	status byte
	flags  byte
	id     uint64 // 0: answers the connection, not the request, and is an error
	body   []byte
}

// flagHardware in the answer to describe and create: whoever reads the disk cannot copy the key.
const flagHardware = 1

// errMalformed says which rule of the protocol bytes break.
var errMalformed = errors.New("malformed frame")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

func header(length int, verb verb, b6, b7 byte, id uint64) []byte {
	frame := make([]byte, headerSize, length)
	binary.BigEndian.PutUint32(frame, uint32(length-4))
	frame[4], frame[5], frame[6], frame[7] = version, byte(verb), b6, b7
	binary.BigEndian.PutUint64(frame[8:], id)
	return frame
}

func (q request) encode() []byte {
	frame := header(headerSize+len(q.name)+len(q.digest), q.verb, q.number, byte(len(q.name)), q.id)
	return append(append(frame, q.name...), q.digest...)
}

func (a answer) encode() []byte {
	body := a.body
	if len(body) > maxBody {
		body = body[:maxBody]
	}
	return append(header(headerSize+len(body), a.verb, a.status, a.flags, a.id), body...)
}

// readFrame reads one frame of at most limit bytes, its length included.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	frame := make([]byte, 4, limit)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(frame)
	if length < headerSize-4 || length > uint32(limit-4) {
		return nil, malformed("a length of %d, not %d to %d", length, headerSize-4, limit-4)
	}
	frame = frame[:4+length]
	if _, err := io.ReadFull(r, frame[4:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return frame, nil
}

// parseRequest takes a frame of readFrame. With an error, the verb and id are those of the
// frame all the same, so that the refusal can name them.
func parseRequest(frame []byte) (request, error) {
	q := request{verb: verb(frame[5]), number: frame[6], id: binary.BigEndian.Uint64(frame[8:])}
	rest, nameLength := frame[headerSize:], int(frame[7])
	switch {
	case frame[4] != version:
		return q, malformed("version %d, not %d", frame[4], version)
	case q.id == 0:
		return q, malformed("a request id of 0")
	case nameLength > MaxName || nameLength > len(rest):
		return q, malformed("a name of %d bytes", nameLength)
	}
	q.name, q.digest = string(rest[:nameLength]), rest[nameLength:]
	if err := CheckName(q.name); err != nil {
		return q, malformed("%s", err)
	}
	switch q.verb {
	case verbSign:
		h, ok := hashOf(q.number)
		if !ok {
			return q, fmt.Errorf("%w: hash number %d", ErrUnsupported, q.number)
		}
		if len(q.digest) != h.Size() {
			return q, malformed("a digest of %d bytes for %v", len(q.digest), h)
		}
	case verbDescribe, verbCreate:
		if len(q.digest) != 0 {
			return q, malformed("%d bytes after the name", len(q.digest))
		}
		q.digest = nil
		if _, ok := curveOf(q.number); q.verb == verbCreate && !ok {
			return q, fmt.Errorf("%w: curve number %d", ErrUnsupported, q.number)
		}
		if q.verb == verbDescribe && q.number != 0 {
			return q, malformed("byte 6 is %d, not 0", q.number)
		}
	default:
		return q, fmt.Errorf("%w: %v", ErrUnsupported, q.verb)
	}
	return q, nil
}

// parseAnswer takes a frame of readFrame and holds it against its request.
func parseAnswer(frame []byte, q request) (answer, error) {
	a := answer{
		verb: verb(frame[5]), status: frame[6], flags: frame[7],
		id: binary.BigEndian.Uint64(frame[8:]), body: frame[headerSize:],
	}
	switch {
	case frame[4] != version:
		return a, malformed("version %d, not %d", frame[4], version)
	case a.id == 0 && a.status == 0:
		return a, malformed("a success with request id 0")
	case a.id != 0 && a.id != q.id:
		return a, malformed("the answer to request %#x, and %#x was asked", a.id, q.id)
	case a.id != 0 && a.verb != q.verb:
		return a, malformed("an answer to %v, and %v was asked", a.verb, q.verb)
	case a.flags&^flagHardware != 0, q.verb == verbSign && a.flags != 0:
		return a, malformed("flags %#x", a.flags)
	}
	return a, nil
}

// CheckName says what is wrong with a key's name: it is at most MaxName bytes of printable
// UTF-8. The empty name is good; it means the one key that the helper has.
func CheckName(name string) error {
	switch {
	case len(name) > MaxName:
		return fmt.Errorf("a key name of %d bytes, more than %d", len(name), MaxName)
	case !utf8.ValidString(name):
		return errors.New("a key name that is not UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("a key name with characters that cannot be printed")
	}
	return nil
}
