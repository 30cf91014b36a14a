package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

func newCA(t testing.TB, dir string) *ca.CA {
	t.Helper()
	c, err := ca.Init(disk.OS(), dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"broker", "registrar"} {
		if err := c.Server(name, []string{"localhost", "127.0.0.1"}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// contents returns every file of a folder, by name.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(text)
	}
	return files
}

func sameFiles(t testing.TB, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s is another one", name)
		}
	}
}

func TestInitTwiceChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	newCA(t, dir)
	first := contents(t, dir)
	newCA(t, dir)
	sameFiles(t, contents(t, dir), first)
	for name := range first {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if want := os.FileMode(0o600); strings.HasSuffix(name, ".key") && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
}

// A root whose key is kept elsewhere is not a root that is missing.
func TestRootKeyKeptElsewhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	newCA(t, dir)
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	c := newCA(t, dir)
	if err := c.Server("second", nil); err == nil || hint.Of(err) == "" {
		t.Errorf("a server certificate without the root's key: %v", err)
	}
	if c, err := ca.Open(disk.OS(), dir); err != nil {
		t.Error(err)
	} else if _, err := c.Device(leafFor(request(t, key(t), "gw-1"))); err != nil {
		t.Errorf("a device's certificate without the root's key: %v", err)
	}
	sameFiles(t, contents(t, dir), before)
}

// What is missing or does not belong together is told, and nothing is made in its place.
func TestIncompleteCA(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(dir string) error
		says  string
	}{
		"device key gone":       {remove("device-ca.key"), "device-ca.key is missing"},
		"root gone":             {remove("root.crt"), "root.crt"},
		"device key of another": {replace("device-ca.key", "broker.key"), "do not belong together"},
		"root of another":       {otherRoot, "not of this root"},
		"server key gone":       {remove("broker.key"), "its key broker.key is not"},
		"server key of another": {replace("broker.key", "registrar.key"), "do not belong together"},
		"empty root":            {func(dir string) error { return os.WriteFile(filepath.Join(dir, "root.crt"), nil, 0o600) }, "holds no CERTIFICATE"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			newCA(t, dir)
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			before := contents(t, dir)
			c, err := ca.Init(disk.OS(), dir, "test")
			if err == nil {
				_, err = ca.Open(disk.OS(), dir)
			}
			if err == nil {
				err = c.Server("broker", []string{"localhost"})
			}
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q", err, test.says)
			}
			sameFiles(t, contents(t, dir), before)
		})
	}
}

func remove(name string) func(string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

func replace(name, by string) func(string) error {
	return func(dir string) error { return os.Rename(filepath.Join(dir, by), filepath.Join(dir, name)) }
}

func otherRoot(dir string) error {
	if _, err := ca.Init(disk.OS(), dir+"2", "another"); err != nil {
		return err
	}
	for _, name := range []string{"root.crt", "root.key"} {
		if err := os.Rename(filepath.Join(dir+"2", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func TestServerCertificates(t *testing.T) {
	c := newCA(t, filepath.Join(t.TempDir(), "ca"))
	if err := c.Server("broker", []string{"elsewhere.example"}); err == nil || hint.Of(err) == "" {
		t.Errorf("a certificate that lacks a host was taken for good: %v", err)
	}
	for _, name := range []string{"", "../x", "root", "device-ca", "a/b"} {
		if err := c.Server(name, nil); err == nil {
			t.Errorf("files named %q were written", name)
		}
	}
}

// Whatever a power cut leaves of a CA in the making, the next run completes it, and what was
// finished before the cut is the same afterwards.
func TestPowerCutWhileMakingTheCA(t *testing.T) {
	states := disktest.Replay(t, func(d *disktest.Disk) {
		c, err := ca.Init(d, "/factory/ca", "test")
		if err != nil {
			t.Fatal(err)
		}
		d.Mark(string(mustContent(t, d, "/factory/ca/root.crt")))
		if err := c.Server("broker", nil); err != nil {
			t.Fatal(err)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		c, err := ca.Init(state, "/factory/ca", "test")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Server("broker", nil); err != nil {
			t.Error(err)
		}
		if _, err := ca.Open(state, "/factory/ca"); err != nil {
			t.Error(err)
		}
		for _, mark := range state.Marks() {
			if string(mustContent(t, state, "/factory/ca/root.crt")) != mark {
				t.Error("a root that was ready was replaced")
			}
		}
	})
	t.Logf("%d disks", states)
}

func mustContent(t testing.TB, d *disktest.Disk, name string) []byte {
	t.Helper()
	text, ok := d.Content(name)
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	return text
}

// openssl reads our request and verifies what the CA made, by its purpose.
func TestOpensslReadsRequestsAndVerifiesChains(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	c := newCA(t, dir)
	csr := request(t, key(t), "gw-1")
	csrFile := filepath.Join(dir, "gw-1.csr")
	write(t, csrFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))
	if out := openssl(t, "req", "-in", csrFile, "-verify", "-noout", "-subject"); !strings.Contains(out, "CN = gw-1") && !strings.Contains(out, "CN=gw-1") {
		t.Errorf("openssl read %q", out)
	}
	chain, err := c.Device(leafFor(csr))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gw-1.crt")
	leaf := chain[0]
	write(t, file, encode(chain))
	root := filepath.Join(dir, "root.crt")
	openssl(t, "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", root, "-untrusted", file, file)
	openssl(t, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost", "-CAfile", root, filepath.Join(dir, "broker.crt"))
	if out, err := exec.Command("openssl", "verify", "-purpose", "sslserver", "-CAfile", root, "-untrusted", file, file).CombinedOutput(); err == nil {
		t.Errorf("a device may pose as a server: %s", out)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "urn:ferrule:device:gw-1" {
		t.Errorf("names of the device: %v", leaf.URIs)
	}
}

// Nothing but the key is taken from a request.
func TestExtensionsOfARequestAreNotCopied(t *testing.T) {
	c := newCA(t, filepath.Join(t.TempDir(), "ca"))
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "gw-1"}, DNSNames: []string{"broker.example"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}, // CA: true
	}, key(t))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.Device(leafFor(csr))
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if leaf.IsCA || len(leaf.DNSNames) > 0 || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth ||
		leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("the certificate has what its request asked for: %+v", leaf)
	}
}

func encode(chain []*x509.Certificate) (text []byte) {
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

func leafFor(csr *x509.CertificateRequest) ca.Leaf {
	return ca.Leaf{Device: "gw-1", Key: csr.PublicKey, Life: time.Hour}
}

func key(t testing.TB) *ecdsa.PrivateKey { return keyOn(t, elliptic.P256()) }

func keyOn(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func request(t testing.TB, k *ecdsa.PrivateKey, device string) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, k)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func write(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func openssl(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func extension(names []byte) pkix.Extension {
	return pkix.Extension{Id: []int{2, 5, 29, 17}, Value: names}
}
