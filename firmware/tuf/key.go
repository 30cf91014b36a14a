package tuf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
)

// key is one public key of a root; public is nil where we cannot check its signatures.
type key struct {
	id     string
	public interface{ Equal(x crypto.PublicKey) bool }
}

// authority says whose signatures make a file of one role trusted.
type authority struct {
	keyids    []string // as listed
	threshold int64
	keys      []key // those of keyids that the root describes, each once
}

// signature is one entry of "signatures"; sig is nil where it is not hexadecimal, which is a
// signature that does not verify and no reason to refuse the others.
type signature struct {
	keyid string
	sig   []byte
}

// parseKey reads a key and checks that its id is the hash of it (TUF 4.2: clients MUST calculate
// each KEYID). Unknown types and schemes are kept without the ability to verify: another reader
// of the same root may know them.
func parseKey(id string, v *value) (key, error) {
	sum := sha256.Sum256(v.canonical(nil))
	if want := hex.EncodeToString(sum[:]); id != want {
		return key{}, fmt.Errorf("key %.80q must be called %s, the hash of it", id, want)
	}
	k := key{id: id}
	public := v.get("keyval").get("public")
	if v.kind != object || public.kind != text {
		return key{}, fmt.Errorf("key %s has no keyval.public", id)
	}
	switch v.get("keytype").text + " " + v.get("scheme").text {
	case "ed25519 ed25519":
		if b, err := hex.DecodeString(public.text); err == nil && len(b) == ed25519.PublicKeySize {
			k.public = ed25519.PublicKey(b)
		}
	// The second is what go-tuf and securesystemslib called the type before.
	case "ecdsa ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256 ecdsa-sha2-nistp256":
		if p, ok := parsePEM(public.text).(*ecdsa.PublicKey); ok && p.Curve == elliptic.P256() {
			k.public = p
		}
	case "rsa rsassa-pss-sha256":
		// The upper bound is on our work: a verification grows with the square of the size.
		if p, ok := parsePEM(public.text).(*rsa.PublicKey); ok && p.Size() >= 256 && p.Size() <= 1024 {
			k.public = p
		}
	}
	return k, nil
}

func parsePEM(s string) crypto.PublicKey {
	block, _ := pem.Decode([]byte(s))
	if block == nil {
		return nil
	}
	p, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil
	}
	return p
}

func (k key) verify(message, sig []byte) bool {
	sum := sha256.Sum256(message)
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, message, sig)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, sum[:], sig)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(p, crypto.SHA256, sum[:], sig, nil) == nil
	}
	return false
}

// verify checks that a threshold of different keys has signed d. One key under two ids counts
// once: whoever adds a comment to a key makes another id of it.
func (a *authority) verify(d *document) error {
	var counted []key
	for _, k := range a.keys {
		if int64(len(counted)) >= a.threshold {
			break
		}
		if k.public == nil || slices.ContainsFunc(counted, func(c key) bool { return k.public.Equal(c.public) }) {
			continue
		}
		for _, s := range d.signatures {
			if s.keyid == k.id && k.verify(d.signed, s.sig) {
				counted = append(counted, k)
				break
			}
		}
	}
	if int64(len(counted)) < a.threshold {
		return fmt.Errorf("%d of %d signatures needed", len(counted), a.threshold)
	}
	return nil
}
