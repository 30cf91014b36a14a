package handshake

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pki is a self-made authority with a server and a client.
type pki struct {
	root           *x509.Certificate
	pool           *x509.CertPool
	server, client tls.Certificate
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(name string, ca bool, parent *x509.Certificate, public any) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true, DNSNames: []string{"broker.example"}}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	p := &pki{root: make("root\x1b[2J", true, nil, &rootKey.PublicKey), pool: x509.NewCertPool()}
	p.pool.AddCert(p.root)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.client = tls.Certificate{Certificate: [][]byte{make("device-1", false, p.root, &ecKey.PublicKey).Raw}, PrivateKey: ecKey}
	p.server = tls.Certificate{Certificate: [][]byte{make("broker", false, p.root, &rsaKey.PublicKey).Raw}, PrivateKey: rsaKey}
	return p
}

// recording is one handshake, as both ends and the recorder saw it.
type recording struct {
	Transcript
	recorder  *Recorder
	keys      *KeyLog
	theirs    *bytes.Buffer // the key log of the server
	state     tls.ConnectionState
	clientErr error
}

// shake makes a handshake, then the client reads once.
func (p *pki) shake(t testing.TB, server, client func(*tls.Config)) recording {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	r := recording{recorder: new(Recorder), keys: NewKeyLog(), theirs: new(bytes.Buffer)}
	config := &tls.Config{Certificates: []tls.Certificate{p.server}, ClientCAs: p.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		KeyLogWriter: r.theirs, NextProtos: []string{"mqtt"}}
	server(config)
	var serving sync.WaitGroup
	serving.Go(func() {
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, config)
		if conn.Handshake() == nil {
			_, _ = conn.Write([]byte("CONNACK of the broker"))
			_, _ = conn.Read(make([]byte, 64))
			_ = conn.Close()
		}
	})
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer serving.Wait()
	defer raw.Close()
	mine := &tls.Config{RootCAs: p.pool, ServerName: "broker.example", Certificates: []tls.Certificate{p.client}, KeyLogWriter: r.keys, NextProtos: []string{"mqtt"}}
	client(mine)
	conn := tls.Client(r.recorder.Wrap(raw), mine)
	if r.clientErr = conn.Handshake(); r.clientErr == nil {
		r.state = conn.ConnectionState()
		if _, r.clientErr = conn.Read(make([]byte, 64)); r.clientErr == nil {
			_, r.clientErr = conn.Write([]byte("CONNECT of the device"))
			_ = conn.Close()
		}
	}
	r.Transcript = Read(r.recorder, r.keys)
	return r
}

func nothing(*tls.Config) {}

func (r recording) names() (names []string) {
	for _, m := range r.Messages {
		names = append(names, m.From.String()[:1]+":"+m.Name)
	}
	return names
}

func (r recording) text() string {
	var b strings.Builder
	_ = r.Explain(&b)
	return b.String()
}

// A whole TLS 1.3 handshake, opened by the secrets of this one connection, in every suite.
func TestReadTLS13(t *testing.T) {
	p := newPKI(t)
	r := p.shake(t, nothing, nothing)
	want := "d:ClientHello b:ServerHello b:EncryptedExtensions b:CertificateRequest b:Certificate b:CertificateVerify b:Finished d:Certificate d:CertificateVerify d:Finished"
	if got := strings.Join(r.names(), " "); !strings.HasPrefix(got, want) || !strings.Contains(got, "b:application data") || !strings.Contains(got, "d:application data") {
		t.Fatalf("%v\n%s", r.clientErr, r.text())
	}
	if !r.Finished || r.Version != "TLS 1.3" || r.Suite != tls.CipherSuiteName(r.state.CipherSuite) || r.Group != r.state.CurveID.String() || r.ALPN != "mqtt" || r.Ended != "" {
		t.Errorf("%+v", r.Transcript)
	}
	if r.Hello.ServerName != "broker.example" || !slices.Contains(r.Hello.Versions, "TLS 1.2") || len(r.Hello.Shares) == 0 || r.Hello.Size < 1400 || r.Hello.Size > 1700 {
		t.Errorf("%+v", r.Hello)
	}
	if r.Request.Listed != 1 || !strings.HasPrefix(r.Request.Authorities[0], "CN=root") || len(r.DeviceChain) != 1 || r.DeviceChain[0].Subject != "CN=device-1" ||
		!strings.HasPrefix(r.BrokerChain[0].Key, "RSA 2048") || r.Signature != "PSSWithSHA256" || r.DeviceSignature != "ECDSAWithP256AndSHA256" {
		t.Errorf("%+v %+v %s %s", r.Request, r.BrokerChain, r.Signature, r.DeviceSignature)
	}
	if text := r.text(); strings.ContainsAny(text, "\x1b") || strings.Contains(text, "CONNACK") || !strings.Contains(text, "both sides finished") {
		t.Errorf("%s", text)
	}
	var back Transcript
	if err := json.Unmarshal(encode(t, r.Transcript), &back); err != nil || len(back.Messages) != len(r.Messages) {
		t.Error(err)
	}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The three suites of TLS 1.3: Go chooses by the processor, so records are sealed here by hand with the
// one that was not chosen, by the rules of RFC 8446, 5.2.
func TestOpenersOfAllSuites(t *testing.T) {
	for suite, size := range map[uint16]int{tls.TLS_AES_128_GCM_SHA256: 32, tls.TLS_AES_256_GCM_SHA384: 48, tls.TLS_CHACHA20_POLY1305_SHA256: 32} {
		secret := bytes.Repeat([]byte{7}, size)
		in, out := newOpener(suite, secret), newOpener(suite, secret)
		for n := range 3 {
			plain := append([]byte("message"), recordHandshake, 0, 0)
			header := []byte{recordApplication, 3, 3, 0, byte(len(plain) + 16)}
			nonce := bytes.Clone(out.iv)
			nonce[11] ^= byte(n)
			kind, content, ok := in.open(header, out.aead.Seal(nil, nonce, plain, header))
			if !ok || kind != recordHandshake || string(content) != "message" {
				t.Errorf("%s: %v %q", tls.CipherSuiteName(suite), ok, content)
			}
		}
		if newOpener(suite, secret[1:]) != nil || newOpener(0x1399, secret) != nil {
			t.Error("a secret that does not fit, or an unknown suite, has an opener")
		}
	}
}

// TLS 1.2 hides nothing of what matters.
func TestReadTLS12(t *testing.T) {
	p := newPKI(t)
	r := p.shake(t, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, nothing)
	for _, want := range []string{"d:ClientHello b:ServerHello b:Certificate b:ServerKeyExchange b:CertificateRequest b:ServerHelloDone d:Certificate d:ClientKeyExchange d:CertificateVerify d:ChangeCipherSpec d:Finished"} {
		if got := strings.Join(r.names(), " "); !strings.HasPrefix(got, want) {
			t.Fatalf("%v\n%s", r.clientErr, r.text())
		}
	}
	if !r.Finished || r.Version != "TLS 1.2" || r.ALPN != "mqtt" || r.Request.Listed != 1 || len(r.DeviceChain) != 1 || r.Group == "" || r.Signature == "" {
		t.Errorf("%+v", r.Transcript)
	}
}

// Who refused whom, and by which alert, also where TLS 1.3 says so only behind the handshake.
func TestReadRefusals(t *testing.T) {
	p := newPKI(t)
	for name, test := range map[string]struct {
		server, client func(*tls.Config)
		from           Side
		alert          string
		shown          int // certificates of the device; -1: it did not come to that
	}{
		"no certificate": {nothing, func(c *tls.Config) { c.Certificates = nil }, Broker, "certificate_required", 0},
		"no certificate, 1.2": {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, func(c *tls.Config) { c.Certificates = nil },
			Broker, "handshake_failure", 0},
		"unknown authority": {func(c *tls.Config) {
			c.ClientCAs = nil
			c.ClientAuth = tls.RequireAnyClientCert
			c.VerifyConnection = refuse
		}, nothing, Broker, "bad_certificate", 1},
		"we refuse": {nothing, func(c *tls.Config) { c.ServerName = "other.example" }, Device, "bad_certificate", -1},
		"version":   {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, nothing, Broker, "protocol_version", -1},
		"protocol":  {nothing, func(c *tls.Config) { c.NextProtos = []string{"h2"} }, Broker, "no_application_protocol", -1},
	} {
		t.Run(name, func(t *testing.T) {
			r := p.shake(t, test.server, test.client)
			if !slices.ContainsFunc(r.Alerts, func(a Alert) bool { return a.From == test.from && a.Name == test.alert && a.Fatal }) {
				t.Errorf("%v: alerts %+v\n%s", r.clientErr, r.Alerts, r.text())
			}
			if test.shown < 0 != (r.DeviceChain == nil) || test.shown >= 0 && len(r.DeviceChain) != test.shown {
				t.Errorf("the device showed %v", r.DeviceChain)
			}
			if !strings.Contains(r.text(), fmt.Sprintf("the %s ended it: %s", test.from, test.alert)) {
				t.Errorf("%s", r.text())
			}
		})
	}
}

func refuse(tls.ConnectionState) error { return fmt.Errorf("not this one") }

// A broker that wants another group asks once more.
func TestReadRetry(t *testing.T) {
	p := newPKI(t)
	r := p.shake(t, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} }, nothing)
	if r.Retried != "P-521" || r.Group != "P-521" || !strings.Contains(strings.Join(r.names(), " "), "b:HelloRetryRequest d:ClientHello b:ServerHello") {
		t.Errorf("%s", r.text())
	}
}

// Without secrets what is sealed stays so.
func TestReadWithoutSecrets(t *testing.T) {
	p := newPKI(t)
	r := p.shake(t, nothing, nothing)
	r.keys.Forget()
	sealed := Read(r.recorder, r.keys)
	if sealed.Version != "TLS 1.3" || len(sealed.BrokerChain) > 0 || !strings.Contains(fmt.Sprint(sealed.Messages), "its keys are not known") {
		t.Errorf("%+v", sealed)
	}
	if none := Read(r.recorder, nil); none.Version != "TLS 1.3" || none.Finished {
		t.Errorf("%+v", none)
	}
}

// The secrets of the connection, as the server wrote them down, are in nothing that is shown or encoded.
func TestSecretsAreNotShown(t *testing.T) {
	p := newPKI(t)
	r := p.shake(t, nothing, nothing)
	all := strings.Join([]string{r.text(), string(encode(t, r.Transcript)), string(encode(t, r.keys)), string(encode(t, map[string]any{"k": *r.keys, "r": r.recorder})),
		fmt.Sprintf("%v %+v %#v %s %q %x", r.keys, r.keys, r.keys, r.keys, r.keys, r.keys), fmt.Sprintf("%v %+v %#v", *r.keys, *r.keys, *r.keys),
		fmt.Sprintf("%+v %#v", r.Transcript, r.Transcript)}, "\n")
	n := 0
	for line := range strings.Lines(r.theirs.String()) {
		fields := strings.Fields(line)
		secret, err := hex.DecodeString(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		n++
		for _, way := range []string{fields[2], strings.ToUpper(fields[2]), string(secret), base64.StdEncoding.EncodeToString(secret), fmt.Sprint(secret), strings.Trim(fmt.Sprint(secret), "[]")} {
			if strings.Contains(all, way) {
				t.Errorf("%s is shown as %q", fields[0], way)
			}
		}
		if held := r.keys.secret(fields[0]); strings.HasPrefix(fields[0], "SERVER_H") && !bytes.Equal(held, secret) {
			t.Error("the control: this is not the secret that was held")
		}
	}
	if n < 4 {
		t.Errorf("%d secrets", n)
	}
}

// What is not TLS is shown as far as it is text.
func TestReadForeignProtocols(t *testing.T) {
	for text, want := range map[string]string{"SSH-2.0-OpenSSH_9\r\n": `"SSH-2.0-OpenSSH_9\r\n"`, "\x20\x02\x00\x05\x00": "20 02 00 05 00", "\x16\x03\x01\xff\xff": "16 03 01 ff ff"} {
		got := read([]chunk{{from: Broker, data: []byte(text)}}, nil)
		if !strings.Contains(got.Ended, want) {
			t.Errorf("%q: %q", text, got.Ended)
		}
	}
}

// hostile gives recorded bytes in pieces: a byte of side and length, then the piece.
func hostile(data []byte) (chunks []chunk) {
	for len(data) > 2 {
		n := min(int(data[1])<<2|int(data[0]>>1&3), len(data)-2)
		chunks = append(chunks, chunk{from: Side(data[0] & 1), data: data[2 : 2+n]})
		data = data[2+n:]
	}
	return chunks
}

// pack is the other way round.
func pack(chunks []chunk) (data []byte) {
	for _, c := range chunks {
		for rest := c.data; len(rest) > 0; {
			n := min(len(rest), 1000)
			data = append(append(data, byte(c.from)|byte(n&3)<<1, byte(n>>2)), rest[:n]...)
			rest = rest[n:]
		}
	}
	return data
}

// bounded fails where a transcript grew beyond its bounds or cannot be shown.
func bounded(t *testing.T, got Transcript) {
	t.Helper()
	if len(got.Messages) > maxMessages || len(got.BrokerChain) > maxChain || len(got.DeviceChain) > maxChain || got.Request != nil && len(got.Request.Authorities) > maxAuthorities {
		t.Error("there is more of it than is allowed")
	}
	var b strings.Builder
	if err := got.Explain(&b); err != nil {
		t.Error(err)
	}
	for _, r := range b.String() {
		if r != '\n' && r < ' ' || r == 0x7f {
			t.Fatalf("%q acts on a terminal", r)
		}
	}
	if _, err := json.Marshal(got); err != nil {
		t.Error(err)
	}
}

func FuzzRecords(f *testing.F) {
	p := newPKI(f)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := p.shake(f, func(c *tls.Config) { c.MaxVersion = version }, nothing)
		f.Add(pack(r.recorder.taken()))
	}
	f.Fuzz(func(t *testing.T, data []byte) { bounded(t, read(hostile(data), nil)) })
}

// FuzzMessages reaches the parsers behind the seals, too.
func FuzzMessages(f *testing.F) {
	p := newPKI(f)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := p.shake(f, func(c *tls.Config) { c.MaxVersion = version }, nothing)
		for _, c := range r.recorder.taken() {
			if len(c.data) > headerSize+4 && c.data[0] == recordHandshake {
				f.Add(version, byte(c.from), c.data[headerSize], c.data[headerSize+4:])
			}
		}
	}
	for kind := range byte(25) {
		f.Add(uint16(tls.VersionTLS13), byte(Broker), kind, []byte{0, 0, 4, 0, 43, 0, 0})
	}
	f.Fuzz(func(t *testing.T, version uint16, from, kind byte, body []byte) {
		r := &reader{}
		r.transcript.version = version
		r.handshake(Side(from&1), kind, body, false)
		r.handshake(Side(from&1), kind, body, true)
		bounded(t, r.transcript)
	})
}

func FuzzKeyLog(f *testing.F) {
	f.Add([]byte("CLIENT_TRAFFIC_SECRET_0 00 ff\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if n, err := NewKeyLog().Write(line); n != len(line) || err != nil {
			t.Error(n, err)
		}
	})
}
