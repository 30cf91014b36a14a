package signer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/signer.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The frames that docs/signer.md shows are those that go over the wire.
func TestDocumentedFrames(t *testing.T) {
	text := page(t)
	for _, frame := range [][]byte{
		request{verb: verbDescribe, id: 1, name: "gw"}.encode(),
		answer{verb: verbDescribe, status: 3, id: 1, body: []byte("no such key")}.encode(),
	} {
		h := hex.EncodeToString(frame)
		line := strings.Join([]string{h[:8], h[8:10], h[10:12], h[12:14], h[14:16], h[16:32], h[32:]}, " ")
		if !strings.Contains(text, "    "+line+"\n") {
			t.Errorf("docs/signer.md does not show %s", line)
		}
	}
}

// The helper that docs/signer.md shows is one.
func TestDocumentedHelper(t *testing.T) {
	_, code, _ := strings.Cut(page(t), "```python\n")
	code, _, found := strings.Cut(code, "```\n")
	if !found {
		t.Fatal("docs/signer.md shows no helper")
	}
	dir, err := os.MkdirTemp("", "sig") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file("helper.py"), []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is missing; run: make deps", program)
		}
	}
	generate := exec.CommandContext(t.Context(), "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", file("key.pem"))
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	helper := exec.Command("python3", file("helper.py"), file("s"), file("key.pem"))
	var said bytes.Buffer
	helper.Stderr = &said
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = helper.Process.Kill()
		_ = helper.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	c, err := Open(t.Context(), Options{Socket: file("s")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Hardware() {
		t.Error("a file calls itself hardware")
	}
	for _, h := range hashes[1:] {
		digest := bytes.Repeat([]byte{0xa5}, h.Size())
		if signature, err := c.Sign(nil, digest, h); err != nil || !ecdsa.VerifyASN1(c.Public().(*ecdsa.PublicKey), digest, signature) {
			t.Errorf("%v: %v", h, err)
		}
	}
	if _, err := Open(t.Context(), Options{Socket: file("s"), Key: "other"}); !errors.Is(err, ErrNoKey) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Create(t.Context(), Options{Socket: file("s"), Key: "gw"}, elliptic.P256()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("creating: %v", err)
	}
}
