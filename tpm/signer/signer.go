// Package signer reaches a key that a helper process keeps, over a unix socket. Every request
// has a connection of its own, so that no transport error outlives the request it hit; and no
// signature is believed before it was checked with the public key that was pinned at the start.
//
// The protocol is in docs/signer.md: a helper for another kind of token is a page of C.
package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// What a helper may answer. A Keys returns them, wrapped; a Client hands them on.
var (
	// ErrUnsupported: the helper does not know the verb, the hash or the curve, or the key is
	// no P-256 or P-384 key.
	ErrUnsupported = errors.New("not supported")
	// ErrNoKey: there is no key of that name.
	ErrNoKey = errors.New("no such key")
	// ErrAmbiguous: more than one key answers to the name.
	ErrAmbiguous = errors.New("more than one key")
	// ErrKeyExists: a key of that name would be made a second time.
	ErrKeyExists = errors.New("key exists already")
	// ErrRefused: the helper does not do that for this client.
	ErrRefused = errors.New("refused")
	// ErrUnavailable: the token is away or does not answer; asking again may help.
	ErrUnavailable = errors.New("token is not available")
	// ErrFailed: the token refused, for a reason that none of the others covers.
	ErrFailed = errors.New("token failed")
	// ErrMalformed: the helper could not read the request, or its answer broke the protocol.
	ErrMalformed = errMalformed
)

// What a Client may find wrong by itself.
var (
	// ErrUnreachable: no helper listens, or it hung up or was silent until the time was over.
	ErrUnreachable = errors.New("no answer from the signer helper")
	// ErrPermission: the socket is there, and this user may not connect to it.
	ErrPermission = errors.New("permission denied")
	// ErrKeyChanged: the helper signs with another key than the one that was opened.
	ErrKeyChanged = errors.New("the helper has another key now")
	// ErrBadSignature: the signature is not one of the key over this digest.
	ErrBadSignature = errors.New("the helper gave a wrong signature")
)

// statuses are the numbers of the errors in an answer; 0 is success.
var statuses = [...]error{
	1: ErrMalformed,
	2: ErrUnsupported,
	3: ErrNoKey,
	4: ErrAmbiguous,
	5: ErrKeyExists,
	6: ErrRefused,
	7: ErrUnavailable,
	8: ErrFailed,
}

func statusOf(err error) byte {
	for n, sentinel := range statuses {
		if sentinel != nil && errors.Is(err, sentinel) {
			return byte(n)
		}
	}
	return byte(len(statuses) - 1)
}

// statusError is the error that an answer carries. The helper's text is escaped: it goes to logs.
func statusError(a answer) error {
	sentinel := ErrFailed
	if int(a.status) < len(statuses) {
		sentinel = statuses[a.status]
	}
	text := escape(string(a.body))
	text = strings.TrimPrefix(text, sentinel.Error()+": ")
	if text == "" || text == sentinel.Error() {
		return fmt.Errorf("the helper says: %w", sentinel)
	}
	return fmt.Errorf("the helper says: %w: %s", sentinel, text)
}

func escape(s string) string {
	var out strings.Builder
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			r = '?'
		}
		out.WriteRune(r)
	}
	return out.String()
}

// hashes and curves have these numbers on the wire.
var (
	hashes = [...]crypto.Hash{1: crypto.SHA256, 2: crypto.SHA384, 3: crypto.SHA512}
	curves = [...]elliptic.Curve{1: elliptic.P256(), 2: elliptic.P384()}
)

func hashOf(number byte) (crypto.Hash, bool) {
	if number == 0 || int(number) >= len(hashes) {
		return 0, false
	}
	return hashes[number], true
}

func hashNumber(h crypto.Hash) (byte, bool) {
	for n, known := range hashes {
		if n > 0 && known == h {
			return byte(n), true
		}
	}
	return 0, false
}

func curveOf(number byte) (elliptic.Curve, bool) {
	if number == 0 || int(number) >= len(curves) {
		return nil, false
	}
	return curves[number], true
}

func curveNumber(c elliptic.Curve) (byte, bool) {
	for n, known := range curves {
		if n > 0 && known == c {
			return byte(n), true
		}
	}
	return 0, false
}

// A Description is what a helper says of a key.
type Description struct {
	Public *ecdsa.PublicKey // on P-256 or P-384
	// Hardware: the key cannot be copied by whoever reads the disk.
	Hardware bool
}
