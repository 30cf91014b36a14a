package registrar_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll"
	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

// gateway is a device with a TPM, as it enrolls.
type gateway struct {
	tpm      *tpm.Device
	key      tpm.DeviceKey
	options  tpm.KeyOptions
	claim    attest.Claim
	evidence []byte
}

func newGateway(t testing.TB, chip *tpmtest.Swtpm) *gateway {
	t.Helper()
	d, err := tpm.Open(t.Context(), tpm.Options{Path: chip.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	g := &gateway{tpm: d}
	g.options = tpm.KeyOptions{StateDir: t.TempDir(), Device: func(context.Context) (*tpm.Device, error) { return d, nil }}
	g.create(t, "device.key")
	return g
}

func (g *gateway) create(t testing.TB, file string) {
	t.Helper()
	var err error
	if g.key, err = tpm.CreateKeyAt(t.Context(), "tpm2:file="+file, tpm.KeySpec{}, g.options); err != nil {
		t.Fatal(err)
	}
}

func (g *gateway) csr(device string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, g.key)
}

func (g *gateway) Evidence(ctx context.Context, nonce []byte, device string, csr []byte) ([]byte, error) {
	g.claim = attest.Claim{Nonce: nonce, Device: device, CSR: csr}
	e, err := g.key.(tpm.Attester).Attest(ctx, g.claim.Qualify())
	if err != nil {
		return nil, err
	}
	g.evidence, err = json.Marshal(e)
	return g.evidence, err
}

func (g *gateway) open(ctx context.Context, challenge []byte) ([]byte, error) {
	c, err := attest.ParseChallenge(challenge)
	if err != nil {
		return nil, err
	}
	return g.key.(tpm.Attester).Activate(ctx, c)
}

func (g *gateway) Answer(ctx context.Context, challenge []byte) ([]byte, error) {
	secret, err := g.open(ctx, challenge)
	return g.claim.Answer(secret, g.evidence, challenge), err
}

func (g *gateway) enroll(t testing.TB, s *service, r enroll.Request) (*tls.Certificate, error) {
	t.Helper()
	r.CSR, r.Attest = g.csr, g
	c := enroll.Config{Method: enroll.MethodRegistrar, URL: s.url, Roots: filepath.Join(s.dir, "root.crt")}
	result, err := enroll.Enroll(t.Context(), c, r)
	if err != nil {
		return nil, err
	}
	certificate := &tls.Certificate{PrivateKey: g.key}
	for _, leaf := range certificates(t, result.Chain) {
		certificate.Certificate = append(certificate.Certificate, leaf.Raw)
	}
	return certificate, nil
}

func certificates(t testing.TB, text []byte) (chain []*x509.Certificate) {
	t.Helper()
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return chain
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
}

// verifier trusts the maker of a chip.
func verifier(chip *tpmtest.Swtpm) attest.Verifier {
	v := attest.Verifier{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
	for n, c := range chip.Roots() {
		if n == 0 {
			v.Roots.AddCert(c)
		} else {
			v.Intermediates.AddCert(c)
		}
	}
	return v
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	reason, ok := errors.AsType[*wire.Error](err)
	if !ok || reason.Code != code {
		t.Errorf("%v; want %s", err, code)
	}
}

// The whole life of a gateway with a real TPM, over TLS: enrolled, renewed with its key and with
// a new one, cleared and back, and nobody else in its place.
func TestTheLifeOfAGateway(t *testing.T) {
	chip := tpmtest.Certified(t)
	s := serveWith(t, registrar.Config{TPMs: verifier(chip)})
	g := newGateway(t, chip)
	if _, err := g.enroll(t, s, enroll.Request{Purpose: enroll.First, Device: "gw-1"}); err == nil {
		t.Error("a TPM that nobody knows is let in")
	} else {
		wantCode(t, err, wire.CodeNotEntitled)
	}
	first, err := g.enroll(t, s, enroll.Request{Purpose: enroll.First, Token: s.token(t, "gw-1", time.Hour)})
	if err != nil {
		t.Fatal(err, s.log)
	}
	d, err := s.book.Device("gw-1")
	if err != nil || d.FirstUse || d.Weak || len(d.EK) != 64 || d.TPM.Manufacturer == "" {
		t.Errorf("the record: %+v, %v", d, err)
	}
	t.Logf("the TPM on record: %+v", d.TPM)
	second, err := g.enroll(t, s, enroll.Request{Purpose: enroll.Renew, Present: first, SameKey: true, Device: "gw-1"})
	if err != nil {
		t.Fatal(err, s.log)
	}
	g.create(t, "next.key")
	third, err := g.enroll(t, s, enroll.Request{Purpose: enroll.Renew, Present: second, Device: "gw-1"})
	if err != nil {
		t.Fatal(err, s.log)
	}
	if _, err := g.enroll(t, s, enroll.Request{Purpose: enroll.Renew, Present: first, Device: "gw-1"}); err == nil {
		t.Error("a certificate that was replaced twice renews itself")
	}
	g.create(t, "after-clear.key")
	if _, err := g.enroll(t, s, enroll.Request{Purpose: enroll.Return, Device: "gw-1"}); err != nil {
		t.Fatal(err, s.log)
	}
	stranger := newGateway(t, tpmtest.Other(t))
	_, err = stranger.enroll(t, s, enroll.Request{Purpose: enroll.Return, Device: "gw-1"})
	wantCode(t, err, wire.CodeNotEntitled)
	_, err = stranger.enroll(t, s, enroll.Request{Purpose: enroll.Renew, Device: "gw-1", Present: third})
	wantCode(t, err, wire.CodeEKTaken)
	_, err = stranger.enroll(t, s, enroll.Request{Purpose: enroll.First, Token: s.token(t, "gw-1", time.Hour)})
	wantCode(t, err, wire.CodeEKTaken)
	_, err = g.enroll(t, s, enroll.Request{Purpose: enroll.First, Token: s.token(t, "gw-2", time.Hour)})
	wantCode(t, err, wire.CodeEKTaken)
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("the log:\n%s", s.log)
	}
}

// A chip without a certificate, or of a maker whom nobody here trusts.
func TestChipsThatNobodyVouchesFor(t *testing.T) {
	chip, bare := tpmtest.Certified(t), tpmtest.Start(t)
	strict := serveWith(t, registrar.Config{})
	_, err := newGateway(t, chip).enroll(t, strict, enroll.Request{Token: strict.token(t, "gw-1", time.Hour)})
	wantCode(t, err, wire.CodeAttestation)
	trusting := serveWith(t, registrar.Config{TPMs: attest.Verifier{TrustOnFirstUse: true}})
	g := newGateway(t, bare)
	if _, err := g.enroll(t, trusting, enroll.Request{Token: trusting.token(t, "gw-1", time.Hour)}); err != nil {
		t.Fatal(err, trusting.log)
	}
	_, err = g.enroll(t, strict, enroll.Request{Token: strict.token(t, "gw-1", time.Hour)})
	wantCode(t, err, wire.CodeAttestation)
	if d, err := trusting.book.Device("gw-1"); err != nil || !d.FirstUse || d.EK == "" {
		t.Errorf("the record: %+v, %v", d, err)
	}
	// Known since then, it returns where nobody trusts at first use any more.
	again := serveAt(t, trusting.dir, registrar.Config{})
	g.create(t, "again.key")
	if _, err := g.enroll(t, again, enroll.Request{Purpose: enroll.Return, Device: "gw-1"}); err != nil {
		t.Error(err, again.log)
	}
}

// By files: what one TPM collected, it alone can read the answer to.
func TestByFiles(t *testing.T) {
	chip := tpmtest.Certified(t)
	authority, book := newCA(t, filepath.Join(t.TempDir(), "ca"))
	r := registrar.New(registrar.Config{CA: authority, Records: book, TPMs: verifier(chip), Life: 24 * time.Hour}, slog.New(slog.DiscardHandler))
	g := newGateway(t, chip)
	order, err := registrar.NewOrder("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	collect := func(g *gateway, order wire.Order) []byte {
		t.Helper()
		csr, err := g.csr(order.Device)
		if err != nil {
			t.Fatal(err)
		}
		evidence, err := g.Evidence(t.Context(), order.Nonce, order.Device, csr)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(wire.Collected{Order: order, Evidence: []wire.Item{{Kind: wire.KindCSR, Data: csr}, {Kind: wire.KindTPM, Data: evidence}}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	text := collect(g, order)
	delivery, err := r.Deliver(t.Context(), order, time.Now(), text)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := g.open(t.Context(), delivery.Challenge.Data)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := g.claim.Unseal(secret, g.evidence, delivery.Challenge.Data, delivery.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	chain := certificates(t, plain)
	if len(chain) != 2 || chain[0].Subject.CommonName != "gw-1" || !g.key.Public().(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
		t.Errorf("the chain: %s", plain)
	}
	again, err := r.Deliver(t.Context(), order, time.Now(), text)
	if err != nil || again.Serial != delivery.Serial {
		t.Errorf("again: %v, another certificate: %v", err, again.Serial != delivery.Serial)
	}
	if d, err := book.Device("gw-1"); err != nil || len(d.Certificates) != 1 || !d.Certificates[0].Sealed {
		t.Errorf("the record: %+v, %v", d, err)
	}
	other := newGateway(t, tpmtest.Other(t))
	if _, err := other.open(t.Context(), delivery.Challenge.Data); err == nil {
		t.Error("another TPM opens the challenge")
	}
	// What is not the evidence for this order gets nothing.
	second, err := registrar.NewOrder("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	third, err := registrar.NewOrder("gw-3")
	if err != nil {
		t.Fatal(err)
	}
	relabelled := wire.Collected{}
	if err := json.Unmarshal(text, &relabelled); err != nil {
		t.Fatal(err)
	}
	relabelled.Order = second
	forged, err := json.Marshal(relabelled)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		order wire.Order
		text  []byte
		code  string
	}{
		"for another order":         {second, text, wire.CodeMalformed},
		"relabelled for it":         {second, forged, wire.CodeAttestation},
		"of another device":         {third, text, wire.CodeMalformed},
		"of a TPM that is taken":    {third, collect(g, third), wire.CodeEKTaken},
		"of another TPM":            {order, collect(other, order), wire.CodeEKTaken},
		"no JSON":                   {order, text[:len(text)-2], wire.CodeMalformed},
		"giant":                     {order, slices.Repeat([]byte(" "), registrar.MaxCollected+1), wire.CodeMalformed},
		"nothing":                   {order, nil, wire.CodeMalformed},
		"a request without its TPM": {order, []byte(strings.Replace(string(text), `"tpm"`, `"other"`, 1)), wire.CodeEvidence},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Deliver(t.Context(), test.order, time.Now(), test.text)
			wantCode(t, err, test.code)
		})
	}
	g.create(t, "another.key")
	_, err = r.Deliver(t.Context(), order, time.Now(), collect(g, order))
	wantCode(t, err, wire.CodeTokenUsed)
	if _, err := book.RevokeDevice(t.Context(), "gw-1", false); err != nil {
		t.Fatal(err)
	}
	_, err = r.Deliver(t.Context(), second, time.Now().Add(-time.Hour), collect(g, second))
	wantCode(t, err, wire.CodeNotEntitled)
	if _, err := r.Deliver(t.Context(), second, time.Now().Add(time.Second), collect(g, second)); err != nil {
		t.Errorf("an order after the revocation: %v", err)
	}
}

// Attested enrollment and renewal with each CA that can be behind, and what openssl says of it.
func TestBackEnds(t *testing.T) {
	chip := tpmtest.Certified(t)
	for name, start := range map[string]func(*testing.T) (registrar.Issuer, *x509.CertPool, []byte){
		"local": func(*testing.T) (registrar.Issuer, *x509.CertPool, []byte) { return nil, nil, nil },
		"step":  stepByKey, "step-x5c": stepByCertificate, "est": estServer, "est-user": estUser, "exec": program,
	} {
		t.Run(name, func(t *testing.T) {
			issuer, roots, rootPEM := start(t)
			s := serveWith(t, registrar.Config{TPMs: verifier(chip), Issuer: issuer, Roots: roots, Life: 24 * time.Hour})
			if rootPEM == nil {
				var err error
				if rootPEM, err = os.ReadFile(filepath.Join(s.dir, "root.crt")); err != nil {
					t.Fatal(err)
				}
			}
			g := newGateway(t, chip)
			first, err := g.enroll(t, s, enroll.Request{Purpose: enroll.First, Token: s.token(t, "gw-1", time.Hour)})
			if err != nil {
				t.Fatal(err, s.log)
			}
			g.create(t, "next.key")
			second, err := g.enroll(t, s, enroll.Request{Purpose: enroll.Renew, Device: "gw-1", Present: first})
			if err != nil {
				t.Fatal(err, s.log)
			}
			for _, c := range []*tls.Certificate{first, second} {
				opensslVerifies(t, rootPEM, c)
			}
			if d, err := s.book.Device("gw-1"); err != nil || len(d.Certificates) != 2 || d.Certificates[0].Issuer != strings.Split(name, "-")[0] {
				t.Errorf("the record: %+v, %v", d, err)
			}
		})
	}
}

func stepByKey(t *testing.T) (registrar.Issuer, *x509.CertPool, []byte) {
	s := startStep(t, agenttest.StepOptions{})
	return &registrar.StepCA{URL: s.URL(), Roots: s.Pool(), Provisioner: agenttest.StepJWK, Key: s.Key(), KeyID: agenttest.StepKeyID}, s.Pool(), s.RootPEM()
}

func stepByCertificate(t *testing.T) (registrar.Issuer, *x509.CertPool, []byte) {
	factory, err := agenttest.NewCA("factory")
	if err != nil {
		t.Fatal(err)
	}
	s := startStep(t, agenttest.StepOptions{Factory: factory})
	own, err := factory.Device("registrar")
	if err != nil {
		t.Fatal(err)
	}
	return &registrar.StepCA{URL: s.URL(), Roots: s.Pool(), Provisioner: agenttest.StepX5C, Present: &own.TLS}, s.Pool(), s.RootPEM()
}

func startStep(t *testing.T, o agenttest.StepOptions) *agenttest.StepCA {
	t.Helper()
	program, err := agenttest.StepCAProgram()
	if err != nil {
		t.Fatal(err)
	}
	s, err := agenttest.StartStepCA(t.Context(), program, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func startEST(t *testing.T) (*agenttest.EST, *agenttest.CA, *agenttest.CA) {
	t.Helper()
	authority, err := agenttest.NewCA("est")
	if err != nil {
		t.Fatal(err)
	}
	factory, err := agenttest.NewCA("factory")
	if err != nil {
		t.Fatal(err)
	}
	server, err := agenttest.StartEST(agenttest.ESTConfig{CA: authority, Factory: factory, Users: map[string]string{"ra": "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server, authority, factory
}

func estServer(t *testing.T) (registrar.Issuer, *x509.CertPool, []byte) {
	server, authority, factory := startEST(t)
	own, err := factory.Device("registrar")
	if err != nil {
		t.Fatal(err)
	}
	return &registrar.EST{URL: server.URL(), Roots: authority.Pool(), Present: &own.TLS}, authority.Pool(), authority.RootPEM()
}

func estUser(t *testing.T) (registrar.Issuer, *x509.CertPool, []byte) {
	server, authority, _ := startEST(t)
	return &registrar.EST{URL: server.URL(), Roots: authority.Pool(), User: "ra", Password: "secret"}, authority.Pool(), authority.RootPEM()
}

// program is a CA of openssl, as somebody's own script would be.
func program(t *testing.T) (registrar.Issuer, *x509.CertPool, []byte) {
	dir := t.TempDir()
	authority, err := ca.Init(disk.OS(), dir, "script")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "sign")
	write(t, script, []byte(`#!/bin/sh
set -eu
[ "$FERRULE_DEVICE" = gw-1 ] && [ ${#FERRULE_EK} = 64 ] && [ "$FERRULE_LIFE" = 86400 ] && [ "$FERRULE_FACTORY" = 0 ]
cd "$1"
printf 'extendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n' >ext
openssl x509 -req -days 1 -CA device-ca.crt -CAkey device-ca.key -set_serial "0x$(openssl rand -hex 15)" -extfile ext 2>/dev/null
cat device-ca.crt
`))
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority.Root())
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Root().Raw})
	return &registrar.Exec{Command: []string{"/bin/sh", script, dir}}, roots, text
}

func opensslVerifies(t *testing.T, root []byte, c *tls.Certificate) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	dir := t.TempDir()
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	write(t, filepath.Join(dir, "root"), root)
	write(t, filepath.Join(dir, "chain"), chain)
	out, err := exec.Command("openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", filepath.Join(dir, "root"),
		"-untrusted", filepath.Join(dir, "chain"), filepath.Join(dir, "chain")).CombinedOutput()
	if err != nil {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}
