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

// BenchmarkAttestation is the TPM's share of an enrollment, with the commands and bytes that
// it takes; activation is of each kind of endorsement key.
func BenchmarkAttestation(b *testing.B) {
	s := tpmtest.Certified(b)
	d := open(b, s.Address(), tpm.Options{})
	k := load(b, d, newKey(b, d, tpm.KeySpec{}))
	e := mustAttest(b, k)
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			before := d.Stats()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			after := d.Stats()
			b.ReportMetric(float64(after.Total()-before.Total())/float64(b.N), "commands/op")
			b.ReportMetric(float64(after.BytesOut-before.BytesOut)/float64(b.N), "B-out/op")
			b.ReportMetric(float64(after.BytesIn-before.BytesIn)/float64(b.N), "B-in/op")
		})
	}
	run("attest", func() error {
		_, err := k.Attest(background, make([]byte, 32))
		return err
	})
	for i, kind := range kinds(b, e, s.Roots()) {
		c, _ := challenge(b, e, i)
		run("activate "+kind, func() error {
			_, err := k.Activate(background, c)
			return err
		})
	}
	run("inspect", func() error {
		d.Inspect(background, tpm.Known{})
		return nil
	})
}

// BenchmarkThreeKeys signs with three keys in turn, which a TPM of three slots has to load
// again each time.
func BenchmarkThreeKeys(b *testing.B) {
	d := open(b, tpmtest.Start(b).Address(), tpm.Options{})
	var keys []*tpm.Key
	for range 3 {
		keys = append(keys, load(b, d, newKey(b, d, tpm.KeySpec{})))
	}
	for i := 0; b.Loop(); i++ {
		mustSign(b, keys[i%3])
	}
}
