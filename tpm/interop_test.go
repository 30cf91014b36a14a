package tpm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// tool runs a program of another project against the TPM s. Ours must not be connected: the
// simulator serves one at a time.
func tool(t testing.TB, s *tpmtest.Swtpm, dir, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing; run: make deps", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	tcti := "swtpm:path=" + s.Socket()
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti, "TPM2OPENSSL_TCTI="+tcti, "TSS2_LOG=all+NONE")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// flush frees what the tools leave behind: objects, loaded and saved sessions.
func flush(t testing.TB, s *tpmtest.Swtpm, dir string) {
	t.Helper()
	for _, kind := range []string{"-t", "-l", "-s"} {
		tool(t, s, dir, "tpm2_flushcontext", kind)
	}
}

// makeSRK makes the SRK as the tools do, which need to be told of noDA.
func makeSRK(t testing.TB, s *tpmtest.Swtpm, dir string) {
	t.Helper()
	tool(t, s, dir, "tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-g", "sha256", "-c", "srk.ctx",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt")
	tool(t, s, dir, "tpm2_evictcontrol", "-Q", "-C", "o", "-c", "srk.ctx", "0x81000001")
	flush(t, s, dir)
}

// openssl runs it with the TPM's provider before its own.
func openssl(t testing.TB, s *tpmtest.Swtpm, dir, command string, args ...string) {
	t.Helper()
	tool(t, s, dir, "openssl", append([]string{command, "-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2"}, args...)...)
}

// use opens the key in path, and returns its warnings after it has signed.
func use(t *testing.T, s *tpmtest.Swtpm, path string) []string {
	t.Helper()
	o := keyOptions(t, s.Address(), "")
	k, err := tpm.OpenKey(background, "tpm2:file="+path, o)
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, k)
	warned := k.(interface{ Warnings() []string }).Warnings()
	d, _ := o.Device(background)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return warned
}

func TestKeysThatOpenSSLWrote(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	makeSRK(t, s, dir)
	for name, opts := range map[string][]string{
		"P-256 below the owner": {"-algorithm", "EC", "-pkeyopt", "group:P-256"},
		"P-256 below the SRK":   {"-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "parent:0x81000001"},
		"P-384 below the SRK":   {"-algorithm", "EC", "-pkeyopt", "group:P-384", "-pkeyopt", "parent:0x81000001"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			openssl(t, s, dir, "genpkey", append(opts, "-out", "k.pem")...)
			if w := use(t, s, filepath.Join(dir, "k.pem")); len(w) != 1 || !strings.Contains(w[0], "noDA") {
				t.Errorf("warnings %q", w)
			}
		})
	}
}

func TestKeysThatTPM2ToolsWrote(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	makeSRK(t, s, dir)
	for name, c := range map[string]struct {
		attributes, parent, scheme string
		warned                     string
	}{
		"as the tools like it":    {"", "0x81000001", "ecc256", "noDA"},
		"as it should be":         {"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign", "0x81000001", "ecc256", ""},
		"bound to SHA-256":        {"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign", "0x81000001", "ecc256:ecdsa-sha256", "SHA-256"},
		"below a derived primary": {"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign", "srk.ctx", "ecc256", ""},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			pub, priv, file := filepath.Join(out, "k.pub"), filepath.Join(out, "k.priv"), filepath.Join(out, "k.pem")
			create := []string{"-Q", "-C", c.parent, "-G", c.scheme, "-u", pub, "-r", priv}
			if c.attributes != "" {
				create = append(create, "-a", c.attributes)
			}
			tool(t, s, dir, "tpm2_create", create...)
			flush(t, s, dir)
			tool(t, s, dir, "tpm2_encodeobject", "-C", c.parent, "-u", pub, "-r", priv, "-o", file)
			flush(t, s, dir)
			got := use(t, s, file)
			if ok := slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, c.warned) }); (c.warned != "") != ok || len(got) > 1 {
				t.Errorf("warnings %q", got)
			}
		})
	}
}

// TestOpenSSLMakesACSRFromOurKey: what we store is what the world calls a TPM key file.
func TestOpenSSLMakesACSRFromOurKey(t *testing.T) {
	for name, spec := range map[string]tpm.KeySpec{
		"P-256":           {},
		"P-384":           {Curve: elliptic.P384()},
		"below the owner": {Parent: tpm.OwnerHandle},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := tpmtest.Start(t), t.TempDir()
			o := keyOptions(t, s.Address(), dir)
			k, err := tpm.CreateKeyAt(background, "tpm2:file=device.key", spec, o)
			if err != nil {
				t.Fatal(err)
			}
			d, _ := o.Device(background)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			openssl(t, s, dir, "req", "-new", "-key", "device.key", "-subj", "/CN=gw-0001", "-out", "device.csr")
			data, err := os.ReadFile(filepath.Join(dir, "device.csr"))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(data)
			csr, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if err := csr.CheckSignature(); err != nil {
				t.Error(err)
			}
			if csr.Subject.CommonName != "gw-0001" || !k.Public().(*ecdsa.PublicKey).Equal(csr.PublicKey) {
				t.Errorf("subject %s, another key", csr.Subject)
			}
		})
	}
}
