package signer

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// FuzzRequest: what a client sends is refused, or comes back the same.
func FuzzRequest(f *testing.F) {
	f.Add(request{verb: verbSign, number: 1, id: 7, name: "gw", digest: make([]byte, 32)}.encode())
	f.Add(request{verb: verbDescribe, id: 1}.encode())
	f.Add(request{verb: verbCreate, number: 2, id: 1, name: "gw"}.encode())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := readFrame(bytes.NewReader(data), maxRequest)
		if err != nil {
			return
		}
		if len(frame) > maxRequest || !bytes.HasPrefix(data, frame) {
			t.Fatalf("a frame of %d bytes", len(frame))
		}
		q, err := parseRequest(frame)
		switch {
		case err == nil && !bytes.Equal(q.encode(), frame):
			t.Fatalf("%+v is %x, and came from %x", q, q.encode(), frame)
		case err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupported):
			t.Fatalf("an error without a status: %v", err)
		}
	})
}

// FuzzAnswer: what a helper sends is refused, or comes back the same; its text is harmless.
func FuzzAnswer(f *testing.F) {
	q := request{verb: verbSign, id: 7}
	f.Add(answer{verb: verbSign, id: 7, body: []byte{0x30, 0}}.encode(), byte(verbSign))
	f.Add(answer{verb: verbDescribe, id: 7, flags: flagHardware, body: []byte{0x30, 0}}.encode(), byte(verbDescribe))
	f.Add(answer{verb: verbSign, id: 7, status: 3, body: []byte("no\x1bsuch key")}.encode(), byte(verbSign))
	f.Add(answer{status: 200}.encode(), byte(verbSign))
	f.Fuzz(func(t *testing.T, data []byte, v byte) {
		q.verb = verb(v)
		frame, err := readFrame(bytes.NewReader(data), maxAnswer)
		if err != nil {
			return
		}
		a, err := parseAnswer(frame, q)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(a.encode(), frame) {
			t.Fatalf("%+v is %x, and came from %x", a, a.encode(), frame)
		}
		if a.status != 0 {
			text := statusError(a).Error()
			if strings.ContainsAny(text, "\x1b\n\r\x00\u009b") || len(text) > maxBody+100 {
				t.Fatalf("text %q", text)
			}
		}
	})
}

// The text of an error fits, however long, and ends with a whole character.
func TestErrorText(t *testing.T) {
	for _, r := range []string{"x", "ü", "€", "\x1b", "\xff"} {
		text := errorText(errors.New(strings.Repeat(r, 1000)))
		if len(text) > maxBody || len(text) < maxBody-3 || strings.ContainsAny(string(text), "\x1b\uFFFD") {
			t.Errorf("%q: %d bytes", r, len(text))
		}
	}
}
