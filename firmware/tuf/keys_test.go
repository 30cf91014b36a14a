package tuf_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/tuf"
)

// gotufSigner signs with what go-tuf's own users sign with.
func gotufSigner(t testing.TB, private crypto.Signer) *signer {
	var s signature.Signer
	var err error
	if k, ok := private.(*rsa.PrivateKey); ok {
		s, err = signature.LoadRSAPSSSigner(k, crypto.SHA256, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256})
	} else {
		s, err = signature.LoadSigner(private, crypto.SHA256)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signerOf(t, private.Public(), func(m []byte) []byte { return must(s.SignMessage(strings.NewReader(string(m)))) })
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// Each kind of key of the specification: it is needed, it suffices, and a signature that looks
// right does not.
func TestKeyTypes(t *testing.T) {
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	for name, make := range map[string]func() *signer{
		"ed25519":           func() *signer { return newSigner(t, 77) },
		"ecdsa":             func() *signer { return gotufSigner(t, p256(t)) },
		"ecdsa, older name": func() *signer { return renamed(gotufSigner(t, p256(t)), "ecdsa-sha2-nistp256", "") },
		"rsa":               func() *signer { return gotufSigner(t, rsaKey) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newSim(t))
			w.accept()
			k := make()
			w.repo.trust(root, k)
			w.repo.signers[root] = append(w.repo.signers[root], k)
			w.repo.root.Signed.Roles[root].Threshold = 2
			w.repo.publish(root)
			w.accept()
			w.expect(2, 1, 1, 1)
			sign := k.sign
			k.sign = func(m []byte) []byte { return sign(append(m, ' ')) }
			w.repo.publish(root)
			w.reject(tuf.ErrSignature, "root version 3: not signed as required: 1 of 2 signatures needed by the keys of root version 2")
			k.sign = sign
			w.repo.write(root)
			w.accept()
		})
	}
}

// renamed gives a key another type or scheme.
func renamed(k *signer, keytype, scheme string) *signer {
	key := copyKey(k.key)
	if keytype != "" {
		key.Type = keytype
	}
	if scheme != "" {
		key.Scheme = scheme
	}
	return &signer{key: key, id: must(key.ID()), sign: k.sign}
}

// Keys that we cannot use count for nothing, and hinder nobody who has enough others.
func TestUnusableKeys(t *testing.T) {
	good := newSigner(t, 900)
	ec := gotufSigner(t, p256(t))
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	for name, k := range map[string]*signer{
		"unknown type":           renamed(good, "dilithium", ""),
		"unknown scheme":         renamed(good, "", "ed448"),
		"short ed25519":          withPublic(good, "abcd"),
		"ed25519 that is no hex": withPublic(good, strings.Repeat("zz", 32)),
		"ecdsa that is no PEM":   withPublic(ec, "x"),
		"ecdsa that is another":  withPublic(ec, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(must(good.key.ToPublicKey())))}))),
		"ecdsa of P-384":         gotufSigner(t, p384),
		"ecdsa of rubbish":       withPublic(ec, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1, 2, 3}}))),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newSim(t))
			w.oracle = "" // go-tuf refuses the role for most of these
			w.accept()
			w.repo.trust(snapshot, k)
			w.repo.signers[snapshot] = append(w.repo.signers[snapshot], k)
			w.repo.publish(allRoles...)
			w.accept()
			w.repo.root.Signed.Roles[snapshot].Threshold = 2
			w.repo.publish(allRoles...)
			w.reject(tuf.ErrSignature, "snapshot version 3: not signed as required: 1 of 2")
		})
	}
}

func withPublic(k *signer, public string) *signer {
	key := copyKey(k.key)
	key.Value.PublicKey = public
	return &signer{key: key, id: must(key.ID()), sign: k.sign}
}

// One ECDSA key in two spellings of its PEM is one key.
func TestOneKeyInTwoSpellings(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	k := gotufSigner(t, p256(t))
	twin := withPublic(k, "a comment\n"+k.key.Value.PublicKey+"\n")
	w.repo.root.Signed.Roles[snapshot].KeyIDs = nil
	w.repo.trust(snapshot, k)
	w.repo.trust(snapshot, twin)
	w.repo.signers[snapshot] = []*signer{k, twin}
	w.repo.root.Signed.Roles[snapshot].Threshold = 2
	w.repo.publish(allRoles...)
	w.reject(tuf.ErrSignature, "snapshot version 2: not signed as required: 1 of 2")
}

// Metadata that go-tuf signs and writes itself, all its own way: defaults, times with fractions,
// line breaks.
func TestWrittenByGoTUFAlone(t *testing.T) {
	keys := map[string]signature.Signer{}
	r := metadata.Root(later.Add(123456789))
	for _, role := range []string{root, timestamp, snapshot, targets} {
		private := p256(t)
		keys[role] = must(signature.LoadSigner(private, crypto.SHA256))
		if err := r.Signed.AddKey(must(metadata.KeyFromPublicKey(private.Public())), role); err != nil {
			t.Fatal(err)
		}
	}
	tg := metadata.Targets(later.Add(1))
	tg.Signed.Targets["gw/1.0"] = must(metadata.TargetFile().FromBytes("gw/1.0", []byte("image")))
	sn, ts := metadata.Snapshot(later), metadata.Timestamp(later)
	for _, err := range []error{errOf(r.Sign(keys[root])), errOf(tg.Sign(keys[targets])), errOf(sn.Sign(keys[snapshot])), errOf(ts.Sign(keys[timestamp]))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	repo := &sim{t: t, files: map[string][]byte{
		"1.root.json": must(r.ToBytes(true)), "1.targets.json": must(tg.ToBytes(true)),
		"1.snapshot.json": must(sn.ToBytes(true)), "timestamp.json": must(ts.ToBytes(true)),
	}}
	w := newWorld(t, repo)
	w.accept()
	if got := w.last.All(); len(got) != 1 || got[0].SHA256() != sha256.Sum256([]byte("image")) || got[0].Length() != 5 {
		t.Errorf("%+v", got)
	}
}

func errOf(_ *metadata.Signature, err error) error { return err }
