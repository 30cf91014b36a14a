package handshake

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"hash"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeyLog takes the traffic secrets of one connection from crypto/tls, as a tls.Config's KeyLogWriter.
// They are held in memory until Forget, and there is no way to print them: whatever shows a KeyLog
// shows a word.
type KeyLog struct{ held *secrets }

type secrets struct {
	mu    sync.Mutex
	label map[string][]byte
}

// NewKeyLog returns an empty one.
func NewKeyLog() *KeyLog { return &KeyLog{held: &secrets{label: make(map[string][]byte)}} }

// The labels of the secrets that are kept (SSLKEYLOGFILE, RFC 9850); the master secret of TLS 1.2,
// CLIENT_RANDOM, is not needed and not kept.
const (
	deviceHandshake = "CLIENT_HANDSHAKE_TRAFFIC_SECRET"
	brokerHandshake = "SERVER_HANDSHAKE_TRAFFIC_SECRET"
	deviceTraffic   = "CLIENT_TRAFFIC_SECRET_0"
	brokerTraffic   = "SERVER_TRAFFIC_SECRET_0"
)

// Write takes one line: a label, the client's random and the secret.
func (k *KeyLog) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	if len(fields) != 3 {
		return len(line), nil
	}
	switch label := string(fields[0]); label {
	case deviceHandshake, brokerHandshake, deviceTraffic, brokerTraffic:
		secret := make([]byte, hex.DecodedLen(len(fields[2])))
		if _, err := hex.Decode(secret, fields[2]); err != nil {
			return len(line), nil
		}
		k.held.mu.Lock()
		defer k.held.mu.Unlock()
		k.held.label[label] = secret
	}
	return len(line), nil
}

// Forget overwrites the secrets.
func (k *KeyLog) Forget() {
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	for label, secret := range k.held.label {
		clear(secret)
		delete(k.held.label, label)
	}
}

func (k *KeyLog) secret(label string) []byte {
	if k == nil {
		return nil
	}
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	return bytes.Clone(k.held.label[label])
}

// The words that stand for a KeyLog wherever it is printed or encoded.
const unsaid = "secrets, not shown"

// String implements fmt.Stringer.
func (k *KeyLog) String() string { return unsaid }

// GoString implements fmt.GoStringer.
func (k *KeyLog) GoString() string { return unsaid }

// MarshalText implements encoding.TextMarshaler.
func (k *KeyLog) MarshalText() ([]byte, error) { return []byte(unsaid), nil }

// String implements fmt.Stringer.
func (*secrets) String() string { return unsaid }

// GoString implements fmt.GoStringer.
func (*secrets) GoString() string { return unsaid }

// opener opens the records of one direction that are sealed with one secret (RFC 8446, 5.2, 5.3).
type opener struct {
	aead cipher.AEAD
	iv   []byte
	seq  uint64
}

// newOpener derives key and nonce; nil where the suite or the secret is not there.
func newOpener(suite uint16, secret []byte) *opener {
	size, digest := 32, sha256.New
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		size = 16
	case tls.TLS_AES_256_GCM_SHA384:
		digest = sha512.New384
	case tls.TLS_CHACHA20_POLY1305_SHA256:
	default:
		return nil
	}
	if len(secret) != digest().Size() {
		return nil
	}
	key, iv := expand(digest, secret, "key", size), expand(digest, secret, "iv", 12)
	o := &opener{iv: iv}
	if suite == tls.TLS_CHACHA20_POLY1305_SHA256 {
		o.aead, _ = chacha20poly1305.New(key) // of the right length
		return o
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	if o.aead, err = cipher.NewGCM(block); err != nil {
		return nil
	}
	return o
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
func expand(digest func() hash.Hash, secret []byte, label string, size int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(size >> 8), byte(size), byte(len(label))}, label...)
	out, err := hkdf.Expand(digest, secret, string(append(info, 0)), size)
	if err != nil {
		return make([]byte, size) // never: size is far below the limit of 255 digests
	}
	return out
}

// open opens one record and returns its content without padding, and its inner type.
func (o *opener) open(header, sealed []byte) (kind byte, content []byte, ok bool) {
	nonce := bytes.Clone(o.iv)
	for i := range 8 {
		nonce[len(nonce)-1-i] ^= byte(o.seq >> (8 * i))
	}
	plain, err := o.aead.Open(nil, nonce, sealed, header)
	if err != nil {
		return 0, nil, false
	}
	o.seq++
	plain = bytes.TrimRight(plain, "\x00")
	if len(plain) == 0 {
		return 0, nil, true
	}
	return plain[len(plain)-1], plain[:len(plain)-1], true
}
