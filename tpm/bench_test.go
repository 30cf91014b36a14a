package tpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// BenchmarkRoundTrip is the floor: the smallest command, through us and through go-tpm's
// own transport, which dials for each.
func BenchmarkRoundTrip(b *testing.B) {
	s := tpmtest.Start(b)
	b.Run("ferrule", func(b *testing.B) {
		d := open(b, s.Address(), tpm.Options{})
		defer d.Close()
		for b.Loop() {
			if _, err := random(background, d); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("go-tpm", func(b *testing.B) {
		c, err := linuxudstpm.Open(s.Socket())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		for b.Loop() {
			if _, err := (tpm2.GetRandom{BytesRequested: 2}).Execute(c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSign signs with the TPM, and with a software key for comparison.
func BenchmarkSign(b *testing.B) {
	software, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	s := tpmtest.Start(b)
	d := open(b, s.Address(), tpm.Options{})
	digest := make([]byte, 32)
	for name, k := range map[string]crypto.Signer{
		"software P-256": software,
		"TPM P-256":      load(b, d, newKey(b, d, tpm.KeySpec{})),
		"TPM P-384":      load(b, d, newKey(b, d, tpm.KeySpec{Curve: elliptic.P384()})),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWarmStart opens the TPM, checks the SRK, and loads and frees the key.
func BenchmarkWarmStart(b *testing.B) {
	s := tpmtest.Start(b)
	d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		b.Fatal(err)
	}
	f := newKey(b, d, tpm.KeySpec{})
	_ = d.Close()
	for b.Loop() {
		d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
		if err != nil {
			b.Fatal(err)
		}
		load(b, d, f)
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandshake is a mutual TLS handshake over loopback, both sides in this process.
func BenchmarkHandshake(b *testing.B) {
	s := tpmtest.Start(b)
	d := open(b, s.Address(), tpm.Options{})
	k := load(b, d, newKey(b, d, tpm.KeySpec{}))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client, server := configs(b, k, version)
		b.Run(tls.VersionName(version)+" resumed", func(b *testing.B) {
			for b.Loop() {
				handshake(b, client, server)
			}
		})
		b.Run(tls.VersionName(version)+" full", func(b *testing.B) {
			client := client.Clone()
			client.ClientSessionCache = nil
			for b.Loop() {
				handshake(b, client, server)
			}
		})
	}
}
