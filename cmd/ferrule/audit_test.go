package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/audit"
	"ferrule/internal/disk"
)

type trustedClock struct{}

func (trustedClock) Now() time.Time { return time.Now() }
func (trustedClock) Trusted() bool  { return true }

// auditLog makes a log of three lines below a folder and returns it with the file of its public key.
func auditLog(t *testing.T) (dir, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	dir, key = filepath.Join(state, "audit"), filepath.Join(state, "device.pub")
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(audit.Options{
		Config: audit.Default(), FS: disk.OS(), Dir: dir, Device: func() string { return "gw-17" },
		Key: func() crypto.Signer { return private }, Clock: trustedClock{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := l.Append(t.Context(), audit.Event{Name: "command.refused"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, key
}

func TestAuditVerify(t *testing.T) {
	dir, key := auditLog(t)
	verify := func(args ...string) (code int, stdout, stderr string) {
		var out, errs strings.Builder
		code = run(t.Context(), append([]string{"audit", "verify", "--dir", dir, "--key", key}, args...), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, out, _ := verify()
	if code != exitDone || !strings.Contains(out, "lines      1 to 3") || !strings.Contains(out, `of "gw-17"`) || !strings.Contains(out, "whole") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	segment := filepath.Join(dir, "audit-0000000001.jsonl")
	text, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(text), `"seq":2`, `"seq":9`, 1)
	if err := os.WriteFile(segment, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := verify()
	if code != exitIdentity || !strings.Contains(errs, "audit-0000000001.jsonl line 2") || !strings.Contains(errs, "hint:") || strings.Contains(out, "whole") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	code, out, _ = verify("--json")
	var report audit.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitIdentity || report.Break == nil || report.Break.Line != 2 {
		t.Errorf("exit code %d, %v:\n%s", code, err, out)
	}
}

func TestAuditMistakes(t *testing.T) {
	dir, key := auditLog(t)
	for name, c := range map[string]struct {
		code int
		want string
		args []string
	}{
		"word":     {exitUsage, "verify", []string{"audit", "show", "--dir", dir, "--key", key}},
		"no word":  {exitUsage, "verify", []string{"audit"}},
		"no key":   {exitIdentity, "no such file", []string{"audit", "verify", "--dir", dir, "--key", key + "x"}},
		"no PEM":   {exitIdentity, "neither a certificate", []string{"audit", "verify", "--dir", dir, "--key", os.DevNull}},
		"no dir":   {1, "no such file", []string{"audit", "verify", "--dir", dir + "x", "--key", key}},
		"no setup": {exitConfig, "configuration", []string{"audit", "verify", "--config", dir + "/x.toml"}},
	} {
		var out, errs strings.Builder
		if code := run(t.Context(), c.args, &out, &errs); code != c.code || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%s: exit code %d:\n%s", name, code, errs.String())
		}
	}
}
