package trust

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"runtime"
	"testing"
	"time"
)

// largeList revokes n certificates with serial numbers of 16 octets, as most authorities have.
func largeList(b testing.TB, p *pki, n int) []byte {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for range n {
		serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	return must[[]byte](b)(x509.CreateRevocationList(rand.Reader, l, p.issuing.Certificate, p.issuing.key))
}

// BenchmarkList reads a list of 10,000 entries, beside Go's own reader, and says what is kept.
func BenchmarkList(b *testing.B) {
	p := newPKI(b)
	text := largeList(b, p, 10_000)
	b.Run("ferrule", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(text)))
		var l *list
		for b.Loop() {
			l = must[*list](b)(parseList(text))
			if err := l.signedBy(p.issuing.Certificate); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(cap(l.data)+4*cap(l.at)), "kept-B")
	})
	b.Run("crypto-x509", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(text)))
		var l *x509.RevocationList
		for b.Loop() {
			l = must[*x509.RevocationList](b)(x509.ParseRevocationList(text))
		}
		runtime.KeepAlive(l)
	})
}

// BenchmarkCheck judges a connection: by lists of 10,000 entries, and by a staple.
func BenchmarkCheck(b *testing.B) {
	p := newPKI(b)
	root, large := p.root.revoke(b, nil), largeList(b, p, 10_000)
	delegated := p.issuing.issue(b, "responder", responder)
	for name, test := range map[string]struct {
		staple []byte
		lists  [][]byte
	}{
		"nothing":               {},
		"lists":                 {nil, [][]byte{root, large}},
		"staple of the issuer":  {p.issuing.staple(b, p.issuing, p.broker.SerialNumber), [][]byte{root}},
		"staple of a responder": {delegated.staple(b, p.issuing, p.broker.SerialNumber), [][]byte{root}},
	} {
		b.Run(name, func(b *testing.B) {
			policy := PolicyHard
			if test.lists == nil {
				policy = PolicySoft
			}
			v := revocation(b, newWorld(), policy, test.lists...)
			state := p.state(test.staple)
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Check(state); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
