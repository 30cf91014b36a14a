package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/cli"
)

// printed collects what a command prints while it runs.
type printed struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// must runs a command to its end and returns what it printed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs printed
	if code := run(t.Context(), args, &out, &errs); code != cli.ExitDone {
		t.Fatalf("%v: exit code %d\n%s", args, code, &errs)
	}
	return out.String()
}

// The whole story of a device at the factory: CA, token, registrar on a free port,
// certificate, record; then the registrar is told to end and does.
func TestRegistrar(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	must(t, "ca", "init", dir)
	token := strings.TrimSpace(must(t, "token", "add", dir, "--device", "gw-1"))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stdout, w := io.Pipe()
	var log printed
	ended := make(chan int, 1)
	go func() { // ends with ctx; waited for below
		ended <- run(ctx, []string{"registrar", "--ca", dir, "--listen", "127.0.0.1:0", "--life", "24h", "--allow-software-keys", "--log", "json"}, w, &log)
		_ = w.Close()
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%v; its log: %s", err, &log)
	}
	_, address, found := strings.Cut(strings.TrimSpace(line), "registrar listens on ")
	if !found {
		t.Fatalf("it printed %q", line)
	}
	result := obtain(t, enroll.Config{Method: enroll.MethodRegistrar, URL: address, Roots: filepath.Join(dir, "root.crt")}, token)
	if result.Device != "gw-1" {
		t.Errorf("device %q", result.Device)
	}
	cancel()
	if code := <-ended; code != cli.ExitDone {
		t.Errorf("told to end, it exits with %d: %s", code, &log)
	}
	var record struct {
		Device, Chain string
		NotAfter      time.Time `json:"not_after"`
	}
	records := must(t, "records", dir)
	if err := json.Unmarshal([]byte(records), &record); err != nil || strings.Count(records, "\n") != 1 {
		t.Fatalf("records %q: %v", records, err)
	}
	if life := time.Until(record.NotAfter); record.Chain != string(result.Chain) || life < 23*time.Hour || life > 24*time.Hour {
		t.Errorf("record %+v", record)
	}
	if state := must(t, "token", "list", dir); !strings.Contains(state, "redeemed on") {
		t.Errorf("tokens:\n%s", state)
	}
	for text := range strings.Lines(log.String()) {
		if !json.Valid([]byte(text)) {
			t.Errorf("the log is not JSON: %s", text)
		}
	}
	if !strings.Contains(log.String(), `"device":"gw-1"`) || strings.Contains(log.String(), token) {
		t.Errorf("log:\n%s", &log)
	}
}

func obtain(t *testing.T, c enroll.Config, token string) enroll.Result {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	result, err := enroll.Enroll(t.Context(), c, enroll.Request{Token: token, Now: time.Now, CSR: func(device string) ([]byte, error) {
		return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, key)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return result
}
