//go:build cgo

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/signer"

	"github.com/miekg/pkcs11"
)

// A key made in the token signs a request that openssl verifies.
func TestKeyMadeInTheToken(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	tok := mustOpenToken(t, h.config("gateway"))
	socket := serveToken(t, tok)
	if _, err := tpm.OpenKey(t.Context(), uri(socket, "p256"), tpm.KeyOptions{}); !errors.Is(err, tpm.ErrNoKey) || hint.Of(err) == "" {
		t.Fatalf("what is not there: %v", err)
	}
	for name, curve := range map[string]elliptic.Curve{"p256": elliptic.P256(), "p384": elliptic.P384()} {
		k, err := tpm.CreateKeyAt(t.Context(), uri(socket, name), tpm.KeySpec{Curve: curve}, tpm.KeyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if k.Ref() != uri(socket, name) || !k.Weak() {
			t.Errorf("ref %q, weak %t; SoftHSM is no hardware", k.Ref(), k.Weak())
		}
		if _, err := tpm.CreateKeyAt(t.Context(), uri(socket, name), tpm.KeySpec{}, tpm.KeyOptions{}); !errors.Is(err, tpm.ErrKeyExists) {
			t.Errorf("again: %v", err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-0001"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		h.write("csr.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
		out, err := exec.CommandContext(t.Context(), need(t, "openssl"), "req", "-verify", "-noout", "-in", h.file("csr.pem")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "OK") {
			t.Errorf("%s: openssl: %v\n%s", name, err, out)
		}
		if again := openKey(t, socket, name); !again.Public().(*ecdsa.PublicKey).Equal(k.Public()) {
			t.Errorf("%s: another key", name)
		}
		long := sha512.Sum512([]byte("longer than the order"))
		if signature, err := k.Sign(nil, long[:], crypto.SHA512); err != nil || !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), long[:], signature) {
			t.Errorf("%s over SHA-512: %v", name, err)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := tpm.OpenKey(t.Context(), uri(socket, ""), tpm.KeyOptions{}); !errors.Is(err, tpm.ErrUnsupported) || !strings.Contains(err.Error(), "2") {
		t.Errorf("one of two: %v", err)
	}
}

// Both versions of TLS cost one signature for a full handshake and none for a resumed one.
func TestHandshakes(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	c := h.config("gateway")
	c.module = h.faulty()
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	k := openKey(t, serveToken(t, mustOpenToken(t, c)), "gw")
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	device, err := ca.Issue(agenttest.Leaf{CommonName: "gw-0001", Key: k.Public()})
	if err != nil {
		t.Fatal(err)
	}
	chain := tls.Certificate{PrivateKey: k, Leaf: device.Leaf}
	for block, rest := pem.Decode(device.ChainPEM); block != nil; block, rest = pem.Decode(rest) {
		chain.Certificate = append(chain.Certificate, block.Bytes)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			client := &tls.Config{
				MinVersion: version, MaxVersion: version, RootCAs: ca.Pool(),
				Certificates: []tls.Certificate{chain}, ClientSessionCache: tls.NewLRUClientSessionCache(1),
			}
			h.calls("s")
			for round, want := range []int{1, 0, 0} {
				peer, resumed := handshake(t, client, server.ServerTLS(ca))
				if n := h.calls("s"); n != want || resumed != (round > 0) || peer != "gw-0001" {
					t.Errorf("round %d: %d signatures, resumed %t, seen as %q", round, n, resumed, peer)
				}
			}
		})
	}
}

// server keys of one ticket, so that the listeners below resume each other's sessions.
var ticketKey = [32]byte{1}

func handshake(t *testing.T, client, server *tls.Config) (peer string, resumed bool) {
	t.Helper()
	server.SetSessionTicketKeys([][32]byte{ticketKey})
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if err := conn.(*tls.Conn).Handshake(); err == nil {
			fmt.Fprintf(conn, "%s\n", conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName)
		}
	})
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(answer)), conn.ConnectionState().DidResume
}

func TestKeysAreNamedByLabelAndID(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	one, two, p384 := newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P384())
	h.put("gateway", "same", "01", one)
	h.put("gateway", "same", "02", two)
	h.put("gateway", "gw 3", "03", p384)
	h.put("gateway", "twin-a", "04", newKey(t, elliptic.P256()))
	h.put("gateway", "twin-b", "04", newKey(t, elliptic.P256()))
	h.put("gateway", "p521", "05", newKey(t, elliptic.P521()))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	h.put("gateway", "rsa", "06", rsaKey)
	tok := mustOpenToken(t, h.config("gateway"))
	for name, want := range map[string]*ecdsa.PrivateKey{"id:01": one, "id:02": two, "gw 3": p384, "id:03": p384} {
		if d, err := tok.Describe(t.Context(), name); err != nil || !d.Public.Equal(&want.PublicKey) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// The ids of the twins are the same and their labels are not: the signature says which public
	// key belongs to which.
	a, errA := tok.Describe(t.Context(), "twin-a")
	b, errB := tok.Describe(t.Context(), "twin-b")
	if err := errors.Join(errA, errB); err != nil || a.Public.Equal(b.Public) {
		t.Errorf("twins: %v", err)
	}
	for name, want := range map[string]error{
		"same": signer.ErrAmbiguous, "id:04": signer.ErrAmbiguous, "": signer.ErrAmbiguous,
		"rsa": signer.ErrNoKey, "id:zz": signer.ErrNoKey, "id:": signer.ErrNoKey, "no": signer.ErrNoKey,
		"p521": signer.ErrUnsupported,
	} {
		if _, err := tok.Describe(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
	list, err := tok.list(t.Context())
	if err != nil || len(list) != 6 {
		t.Errorf("%d keys listed, %v", len(list), err)
	}
}

func TestOneKeyServed(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	gw := newKey(t, elliptic.P256())
	h.put("gateway", "gw", "01", gw)
	h.put("gateway", "secret", "02", newKey(t, elliptic.P256()))
	c := h.config("gateway")
	c.key, c.create = "gw", false
	tok := mustOpenToken(t, c)
	for name, want := range map[string]error{"": nil, "gw": nil, "secret": signer.ErrNoKey, "id:01": signer.ErrNoKey} {
		d, err := tok.Describe(t.Context(), name)
		if !errors.Is(err, want) || err == nil && !d.Public.Equal(&gw.PublicKey) {
			t.Errorf("describing %q: %v", name, err)
		}
		if _, err := tok.Sign(t.Context(), name, crypto.SHA256, digestOf("x")); !errors.Is(err, want) {
			t.Errorf("signing with %q: %v", name, err)
		}
	}
	if _, err := tok.Create(t.Context(), "new", elliptic.P256()); !errors.Is(err, signer.ErrRefused) {
		t.Errorf("creating without --create: %v", err)
	}
	tok.c.create = true
	for name, want := range map[string]error{"new": signer.ErrNoKey, "gw": signer.ErrKeyExists} {
		if _, err := tok.Create(t.Context(), name, elliptic.P256()); !errors.Is(err, want) {
			t.Errorf("creating %q: %v", name, err)
		}
	}
	tok.c.key = ""
	for _, name := range []string{"", "id:07"} {
		if _, err := tok.Create(t.Context(), name, elliptic.P256()); !errors.Is(err, signer.ErrUnsupported) {
			t.Errorf("creating %q: %v", name, err)
		}
	}
}

// Whatever is lost in the token, in the module or around it comes back with the next signature.
func TestTokenLostAndFound(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	key := newKey(t, elliptic.P256())
	h.put("gateway", "gw", "01", key)
	c := h.config("gateway")
	c.fresh = time.Nanosecond
	tok := mustOpenToken(t, c)
	socket := serveToken(t, tok)
	k := openKey(t, socket, "gw")
	inModule := func(f func(m *pkcs11.Ctx, s *session) error) {
		t.Helper()
		tok.turn <- struct{}{}
		defer func() { <-tok.turn }()
		if err := f(tok.module, tok.s); err != nil {
			t.Fatal(err)
		}
	}
	for name, lose := range map[string]func(){
		"nothing":            func() {},
		"the session":        func() { inModule(func(m *pkcs11.Ctx, s *session) error { return m.CloseSession(s.handle) }) },
		"all sessions":       func() { inModule(func(m *pkcs11.Ctx, s *session) error { return m.CloseAllSessions(s.slot) }) },
		"the login":          func() { inModule(func(m *pkcs11.Ctx, s *session) error { return m.Logout(s.handle) }) },
		"the module's state": func() { inModule(func(m *pkcs11.Ctx, _ *session) error { return m.Finalize() }) },
		"module restarted": func() {
			inModule(func(m *pkcs11.Ctx, _ *session) error { return errors.Join(m.Finalize(), m.Initialize()) })
		},
		"an operation left open": func() {
			inModule(func(m *pkcs11.Ctx, s *session) error {
				return m.SignInit(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, s.keys["gw"].private)
			})
		},
		"token initialised again": func() {
			h.initToken("gateway", true)
			h.put("gateway", "gw", "02", key)
		},
	} {
		lose()
		if err := sign(k); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	h.initToken("gateway", true)
	if err := sign(k); !errors.Is(err, tpm.ErrNoKey) {
		t.Errorf("the key is gone: %v", err)
	}
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	if err := sign(k); !errors.Is(err, tpm.ErrHelper) || !errors.Is(err, signer.ErrKeyChanged) || hint.Of(err) == "" {
		t.Errorf("another key in its place: %v", err)
	}
	h.initToken("gateway", true)
	h.put("gateway", "gw", "01", key)
	if err := sign(k); err != nil {
		t.Errorf("the right key again: %v", err)
	}
}

// thin-edge.io#4353: a module that fails until it is initialised, or loaded, again.
func TestModuleThatIsWedged(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	c := h.config("gateway")
	c.module = h.faulty()
	tok := mustOpenToken(t, c)
	socket := serveToken(t, tok)
	k := openKey(t, socket, "gw")
	for _, c := range []struct {
		plan          string
		logins, inits int
	}{{"session", 1, 1}, {"module", 2, 2}, {"library", 3, 3}, {"", 0, 0}} {
		h.plan(c.plan)
		h.calls("")
		for range 3 {
			if err := sign(k); err != nil {
				t.Fatalf("%q: %v", c.plan, err)
			}
		}
		if l, i := h.notes(); l != c.logins || i != c.inits {
			t.Errorf("%q: %d logins and %d initialisations, want %d and %d", c.plan, l, i, c.logins, c.inits)
		}
	}
	h.plan("always")
	short, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := tok.Sign(short, "gw", crypto.SHA256, digestOf("x")); !errors.Is(err, signer.ErrUnavailable) || !strings.Contains(err.Error(), "CKR_DEVICE_ERROR") {
		t.Errorf("always: %v", err)
	}
	h.plan("flip")
	if _, err := tok.Describe(t.Context(), "gw"); !errors.Is(err, signer.ErrFailed) {
		t.Errorf("a key whose signatures are wrong: %v", err)
	}
	h.plan("")
	if err := sign(k); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	h.plan("flip")
	if err := sign(k); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("a wrong signature: %v", err)
	}
}

// A module that says so is hardware, for keys that cannot leave it.
func TestHardware(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	c := h.config("gateway")
	c.module = h.faulty()
	h.plan("hardware")
	tok := mustOpenToken(t, c)
	d, err := tok.Create(t.Context(), "gw", elliptic.P256())
	if err != nil || !d.Hardware {
		t.Errorf("hardware %t, %v", d.Hardware, err)
	}
	if k := openKey(t, serveToken(t, tok), "gw"); k.Weak() {
		t.Error("a key in hardware is reported as weak")
	}
	h.plan("")
	tok.turnBack()
	if d, err := tok.Describe(t.Context(), "gw"); err != nil || d.Hardware {
		t.Errorf("in software: hardware %t, %v", d.Hardware, err)
	}
}

// turnBack forgets the session.
func (t *token) turnBack() {
	t.turn <- struct{}{}
	t.back(0)
	<-t.turn
}

// A wrong PIN is tried once in the life of the process, and never as the last try.
func TestWrongPINIsNotTriedAgain(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	c := h.config("gateway")
	c.module = h.faulty()
	h.write("pin", "000000\n")
	if _, err := openToken(t.Context(), c); !errors.Is(err, errPIN) || hint.Of(err) == "" || strings.Contains(err.Error(), "000000") {
		t.Errorf("wrong from the start: %v", err)
	}
	if n := h.calls("l"); n != 1 {
		t.Errorf("%d logins", n)
	}
	h.write("pin", pin)
	tok := mustOpenToken(t, c)
	if n := h.calls("l"); n != 1 {
		t.Errorf("%d logins", n)
	}
	// The session is lost, and the file has another PIN by now.
	h.write("pin", "111111")
	for range 5 {
		tok.turnBack()
		if _, err := tok.Sign(t.Context(), "gw", crypto.SHA256, digestOf("x")); err == nil {
			t.Error("signed with a wrong PIN")
		}
	}
	if n := h.calls("l"); n != 1 {
		t.Errorf("%d logins with a wrong PIN", n)
	}
	if cause := context.Cause(tok.dead); !errors.Is(cause, errPIN) {
		t.Errorf("the process is to end by %v", cause)
	}
	tok.close()
	h.write("pin", pin)
	h.plan("final")
	if _, err := openToken(t.Context(), c); !errors.Is(err, errPIN) || !strings.Contains(err.Error(), "lock") {
		t.Errorf("the last try: %v", err)
	}
	if n := h.calls("l"); n != 0 {
		t.Errorf("the last try was used up: %d", n)
	}
}

// A key that wants the PIN for each signature gets it.
func TestKeyThatAlwaysAuthenticates(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	c := h.config("gateway")
	c.module = h.faulty()
	tok := mustOpenToken(t, c)
	tok.turn <- struct{}{}
	attribute := pkcs11.NewAttribute
	_, _, err := tok.module.GenerateKeyPair(tok.s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		[]*pkcs11.Attribute{
			attribute(pkcs11.CKA_EC_PARAMS, paramsOf(elliptic.P256())), attribute(pkcs11.CKA_TOKEN, true),
			attribute(pkcs11.CKA_LABEL, "careful"),
		},
		[]*pkcs11.Attribute{
			attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, true), attribute(pkcs11.CKA_SIGN, true),
			attribute(pkcs11.CKA_LABEL, "careful"), attribute(pkcs11.CKA_ALWAYS_AUTHENTICATE, true),
		})
	<-tok.turn
	if err != nil {
		t.Fatal(err)
	}
	k := openKey(t, serveToken(t, tok), "careful")
	h.calls("")
	if err := errors.Join(sign(k), sign(k)); err != nil {
		t.Error(err)
	}
	if n := h.calls("l"); n != 2 {
		t.Errorf("%d logins for 2 signatures", n)
	}
}

func TestManyClients(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	tok := mustOpenToken(t, h.config("gateway"))
	socket := serveToken(t, tok)
	var all sync.WaitGroup
	for n := range 100 {
		c := openKey(t, socket, "gw")
		all.Go(func() {
			if n%10 == 0 {
				tok.turnBack()
			}
			if err := sign(c); err != nil {
				t.Errorf("client %d: %v", n, err)
			}
		})
	}
	all.Wait()
}

// A signature through the socket, beside one in the token alone.
func BenchmarkSign(b *testing.B) {
	h := newSofthsm(b)
	h.initToken("gateway", false)
	h.put("gateway", "gw", "01", newKey(b, elliptic.P256()))
	tok := mustOpenToken(b, h.config("gateway"))
	k := openKey(b, serveToken(b, tok), "gw")
	digest := digestOf("ferrule")
	b.Run("socket", func(b *testing.B) {
		for b.Loop() {
			if _, err := k.Sign(nil, digest, crypto.SHA256); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("token", func(b *testing.B) {
		for b.Loop() {
			if _, err := tok.Sign(b.Context(), "gw", crypto.SHA256, digest); err != nil {
				b.Fatal(err)
			}
		}
	})
}
