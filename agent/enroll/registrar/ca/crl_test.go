package ca_test

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/internal/disk/disktest"
)

func revocation(n int64) ca.Revocation {
	return ca.Revocation{Serial: big.NewInt(n), At: time.Now().Add(-time.Minute)}
}

func readCRL(t testing.TB, text []byte) *x509.RevocationList {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM: %q", text)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// The list says what is revoked, its number only grows, and nobody is locked out by its end.
func TestRevocationList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	c := newCA(t, dir)
	read := func() *x509.RevocationList {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "device-ca.crl"))
		if err != nil {
			t.Fatal(err)
		}
		return readCRL(t, text)
	}
	number := big.NewInt(0)
	for _, revoked := range [][]ca.Revocation{nil, {revocation(7)}, {revocation(7), revocation(8)}, {revocation(8)}} {
		for range 2 { // the second time nothing is to be done
			if err := c.WriteCRL(revoked); err != nil {
				t.Fatal(err)
			}
		}
		list := read()
		if len(list.RevokedCertificateEntries) != len(revoked) || list.Number.Cmp(new(big.Int).Add(number, big.NewInt(1))) != 0 {
			t.Errorf("%d entries, number %v after %v", len(list.RevokedCertificateEntries), list.Number, number)
		}
		if !list.NextUpdate.Equal(c.DeviceCA().NotAfter) || list.CheckSignatureFrom(c.DeviceCA()) != nil {
			t.Errorf("it is good until %v, the CA until %v", list.NextUpdate, c.DeviceCA().NotAfter)
		}
		number = list.Number
	}
	if err := os.WriteFile(filepath.Join(dir, "device-ca.crl"), []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteCRL(nil); err == nil {
		t.Error("a spoilt list was replaced by one whose number may be lower")
	}
}

func TestRevocationListPowerCut(t *testing.T) {
	disktest.Replay(t, func(d *disktest.Disk) {
		c, err := ca.Init(d, "/ca", "test")
		if err != nil {
			t.Fatal(err)
		}
		d.Mark(0)
		for n := range 2 {
			if err := c.WriteCRL([]ca.Revocation{revocation(int64(7 + n))}); err != nil {
				t.Fatal(err)
			}
			d.Mark(n + 1)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		if len(state.Marks()) == 0 {
			return
		}
		c, err := ca.Open(state, "/ca")
		if err != nil {
			t.Fatal(err)
		}
		if len(state.Marks()) > 1 {
			if n := readCRL(t, mustContent(t, state, "/ca/device-ca.crl")).Number; n.Int64() < int64(len(state.Marks())-1) {
				t.Errorf("number %v", n)
			}
		}
		if err := c.WriteCRL([]ca.Revocation{revocation(9)}); err != nil {
			t.Error(err)
		}
	})
}

// A factory certificate names its TPM as RFC 4108 has it, and openssl finds the chain good.
func TestFactoryCertificate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	c := newCA(t, dir)
	ek := strings.Repeat("0123456789abcdef", 4)
	chain, err := c.Device(ca.Leaf{Device: "gw-1", Key: &key(t).PublicKey, Life: ca.FactoryLife, Factory: true, EK: ek})
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if ca.HardwareSerial(leaf) != ek || len(leaf.URIs) != 1 || time.Until(leaf.NotAfter) < ca.FactoryLife-time.Hour {
		t.Errorf("it names %q, %v, and ends on %v", ca.HardwareSerial(leaf), leaf.URIs, leaf.NotAfter)
	}
	file := filepath.Join(dir, "gw-1.crt")
	write(t, file, encode(chain))
	openssl(t, "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", filepath.Join(dir, "root.crt"), "-untrusted", file, file)
	raw := hex.EncodeToString(leaf.Raw)
	// otherName, id-on-hardwareModuleName, [0], SEQUENCE, 2.23.133.1.2, OCTET STRING of 32 bytes
	if want := "a037" + "06082b06010505070804" + "a02b" + "3029" + "06056781050102" + "0420" + ek; !strings.Contains(raw, want) {
		t.Errorf("the name is not in %s", raw)
	}
	for name, l := range map[string]ca.Leaf{
		"without a TPM": {Device: "gw-1", Key: &key(t).PublicKey, Life: time.Hour, Factory: true},
		"operational":   {Device: "gw-1", Key: &key(t).PublicKey, Life: time.Hour, EK: ek},
	} {
		if chain, err := c.Device(l); err != nil || ca.HardwareSerial(chain[0]) != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Device(ca.Leaf{Device: "gw-1", Key: &key(t).PublicKey, Factory: true, EK: "no hash"}); err == nil {
		t.Error("a hash that is none")
	}
}

// A certificate never outlives the CA.
func TestLifeEndsWithTheCA(t *testing.T) {
	c := newCA(t, filepath.Join(t.TempDir(), "ca"))
	chain, err := c.Device(ca.Leaf{Device: "gw-1", Key: &key(t).PublicKey, Life: 100 * 365 * 24 * time.Hour})
	if err != nil || chain[0].NotAfter.After(c.DeviceCA().NotAfter) {
		t.Errorf("%v, %v", chain[0].NotAfter, err)
	}
}

// FuzzHardwareSerial: no alternative name makes the reader panic, or gives more than it holds.
func FuzzHardwareSerial(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Add([]byte{0x30, 4, 0xa0, 2, 6, 0})
	f.Fuzz(func(t *testing.T, names []byte) {
		c := &x509.Certificate{}
		c.Extensions = append(c.Extensions, extension(names))
		if serial := ca.HardwareSerial(c); len(serial) > 2*len(names) {
			t.Errorf("%q", serial)
		}
	})
}
