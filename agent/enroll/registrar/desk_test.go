package registrar

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"testing"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk"
	"ferrule/tpm/attest"
)

const caDir = "/factory/ca"

var someone = caller{source: "192.0.2.1"}

// desk is a registrar that believes pretended TPMs, without a network.
type desk struct {
	*Registrar
	dir string
}

func registrarOn(t testing.TB, fsys disk.FS) *desk {
	return deskOn(t, fsys, caDir, Config{AllowSoftwareKeys: true})
}

// deskOn opens a registrar on a disk, with c for what is not the disk's.
func deskOn(t testing.TB, fsys disk.FS, dir string, c Config) *desk {
	t.Helper()
	var err error
	if c.CA, err = ca.Init(fsys, dir, "test"); err != nil {
		t.Fatal(err)
	}
	if c.Records, err = records.Open(fsys, dir); err != nil {
		t.Fatal(err)
	}
	if c.Life == 0 {
		c.Life = time.Hour
	}
	d := &desk{New(c, slog.New(slog.DiscardHandler)), dir}
	d.check = believe
	return d
}

func (d *desk) token(t testing.TB, device string) string {
	t.Helper()
	token, err := d.Records.AddToken(device, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (d *desk) device(t testing.TB, id string) records.Device {
	t.Helper()
	got, err := d.Records.Device(id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// pretender is a device with a pretended TPM: evidence that believe takes, whose challenge is
// not encrypted.
type pretender struct {
	key       *ecdsa.PrivateKey
	ek        string // seed of the EK; "" no TPM
	firstUse  bool
	shown     []*x509.Certificate
	chain     []*x509.Certificate // what it got
	serial    string
	spoil     func(answer []byte) []byte
	challenge func()
}

func newPretender(t testing.TB, ek string) *pretender {
	t.Helper()
	p := &pretender{ek: ek}
	p.rekey(t)
	return p
}

func (p *pretender) rekey(t testing.TB) {
	t.Helper()
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
}

func (p *pretender) hash() string { return hash([]byte(p.ek)) }

func (p *pretender) csr(t testing.TB, device string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// items is the evidence for a claim.
func (p *pretender) items(t testing.TB, nonce []byte, device string) ([]wire.Item, attest.Claim) {
	t.Helper()
	claim := attest.Claim{Nonce: nonce, Device: device, CSR: p.csr(t, device)}
	items := []wire.Item{{Kind: wire.KindCSR, Data: claim.CSR}}
	if p.ek == "" {
		return items, claim
	}
	public, err := x509.MarshalPKIXPublicKey(&p.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate := []byte("certificate")
	if p.firstUse {
		certificate = nil
	}
	text, err := json.Marshal(attest.Evidence{
		EKs: []attest.Endorsement{{Public: []byte(p.ek), Certificate: certificate}},
		AK:  []byte("ak"), Key: public, Certify: claim.Qualify(), Signature: []byte("signature"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(items, wire.Item{Kind: wire.KindTPM, Data: text}), claim
}

// enroll goes the whole way without a network.
func (p *pretender) enroll(t testing.TB, d *desk, q wire.Begin) *wire.Error {
	t.Helper()
	from := caller{source: "192.0.2.1", chain: p.shown}
	q.Versions = []int{wire.Version}
	begun, refused := d.begin(t.Context(), from, q)
	if refused != nil {
		return refused
	}
	items, claim := p.items(t, begun.Nonce, begun.Device)
	challenged, refused := d.evidence(t.Context(), from, wire.Evidence{Session: begun.Session, Evidence: items})
	if refused != nil {
		return refused
	}
	if p.challenge != nil {
		p.challenge()
	}
	answers := []wire.Item{}
	for _, c := range challenged.Challenges {
		answer := claim.Answer(open(t, c.Data), items[1].Data, c.Data)
		if p.spoil != nil {
			answer = p.spoil(answer)
		}
		answers = append(answers, wire.Item{Kind: wire.KindActivation, Data: answer})
	}
	issued, refused := d.finish(t.Context(), from, wire.Finish{Session: begun.Session, Answers: answers})
	if refused != nil {
		return refused
	}
	p.serial, p.chain = issued.Serial, parse(t, issued.Chain)
	return nil
}

// open is the TPM that opens a challenge.
func open(t testing.TB, challenge []byte) []byte {
	t.Helper()
	c, err := attest.ParseChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	return c.Credential
}

func parse(t testing.TB, text string) (chain []*x509.Certificate) {
	t.Helper()
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return chain
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
}

// believe stands in for tpm/attest: it takes what a pretender makes, for this claim.
func believe(e attest.Evidence, c attest.Claim, known func(string) bool) (proof, error) {
	if string(e.Certify) != string(c.Qualify()) {
		return nil, &attest.Refusal{Reason: "certify-claim", Err: io.ErrUnexpectedEOF}
	}
	key, err := x509.ParsePKIXPublicKey(e.Key)
	if err != nil {
		return nil, err
	}
	p := pretended{ek: hash(e.EKs[0].Public), key: key, firstUse: e.EKs[0].Certificate == nil}
	if p.firstUse && string(e.EKs[0].Public) == "unvouched" && !known(p.ek) {
		return nil, &attest.Refusal{Reason: "ek-certificate-none", Err: io.ErrUnexpectedEOF}
	}
	return p, nil
}

type pretended struct {
	ek       string
	key      crypto.PublicKey
	firstUse bool
}

func (p pretended) EK() string            { return p.ek }
func (p pretended) FirstUse() bool        { return p.firstUse }
func (p pretended) Key() crypto.PublicKey { return p.key }
func (p pretended) TPM() (string, string, string) {
	if p.firstUse {
		return "", "", ""
	}
	return "IBM", "pretended", "1"
}

func (p pretended) Challenge(random io.Reader) (attest.Challenge, []byte, error) {
	secret := make([]byte, sha256.Size)
	_, err := io.ReadFull(random, secret)
	return attest.Challenge{Credential: secret, Secret: []byte("seed")}, secret, err
}
