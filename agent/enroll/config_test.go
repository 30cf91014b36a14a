package enroll_test

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"net/http"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

func TestConfigSaysWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		config enroll.Config
		says   string // "": it is good
	}{
		"default":       {enroll.Default(), ""},
		"est":           {enroll.Config{Method: "est", URL: "https://est.example/.well-known/est/label", Roots: "r"}, ""},
		"step":          {enroll.Config{Method: "step", URL: "https://ca.example:9000", Roots: "r", Provisioner: "x"}, ""},
		"exec":          {enroll.Config{Method: "exec", Command: []string{"/bin/sign", "a b"}, Roots: "r"}, ""},
		"factory":       {enroll.Config{Method: "none", Factory: &enroll.Source{Method: "est", URL: "https://est.example", Roots: "r"}}, ""},
		"proxy":         {enroll.Config{Method: "none", Proxy: "http://u:p@proxy.example:3128"}, ""},
		"environment":   {enroll.Config{Method: "none", Proxy: "env"}, ""},
		"method":        {enroll.Config{Method: "scep"}, "enroll.method"},
		"http":          {enroll.Config{Method: "est", URL: "http://est.example", Roots: "r"}, "enroll.url"},
		"user in url":   {enroll.Config{Method: "est", URL: "https://u:secret@est.example", Roots: "r"}, "enroll.url"},
		"query":         {enroll.Config{Method: "step", URL: "https://ca.example?x=1", Roots: "r"}, "enroll.url"},
		"no url":        {enroll.Config{Method: "step", Roots: "r"}, "enroll.url"},
		"bad url":       {enroll.Config{Method: "step", URL: "https://u:secret@ca.example:port", Roots: "r"}, "enroll.url"},
		"no roots":      {enroll.Config{Method: "est", URL: "https://est.example"}, "enroll.roots"},
		"no command":    {enroll.Config{Method: "exec", Roots: "r"}, "enroll.command"},
		"short command": {enroll.Config{Method: "exec", Command: []string{"sign"}, Roots: "r"}, "enroll.command"},
		"device":        {enroll.Config{Method: "none", Device: "../x"}, "enroll.device"},
		"too soon":      {enroll.Config{Method: "none", RenewAt: 0.1}, "enroll.renew_at"},
		"too late":      {enroll.Config{Method: "none", RenewAt: 1}, "enroll.renew_at"},
		"timeout":       {enroll.Config{Method: "none", Timeout: quantity.Duration(time.Millisecond)}, "enroll.timeout"},
		"bad proxy":     {enroll.Config{Method: "none", Proxy: "socks5://u:secret@x"}, "enroll.proxy"},
		"TLS proxy":     {enroll.Config{Method: "none", Proxy: "https://proxy.example"}, "enroll.proxy"},
		"bad factory":   {enroll.Config{Method: "none", Factory: &enroll.Source{Method: "est", Roots: "r"}}, "enroll.factory.url"},
	} {
		err := test.config.Validate()
		switch {
		case test.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says) || hint.Of(err) == ""):
			t.Errorf("%s: %v (hint %q)", name, err, hint.Of(err))
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: a password is in the error: %v", name, err)
		}
	}
	if err := (enroll.Config{Method: "none", RenewAt: 1, Device: "/"}).Validate(); !strings.Contains(err.Error(), "renew_at") || !strings.Contains(err.Error(), "device") {
		t.Errorf("both mistakes: %v", err)
	}
}

func TestForFactory(t *testing.T) {
	c := enroll.Config{Method: "step", URL: "https://ca.example", Roots: "a", Provisioner: "x", Device: "gw-1"}
	if got := c.ForFactory(); got.URL != c.URL || got.Method != c.Method {
		t.Errorf("%+v", got)
	}
	c.Factory = &enroll.Source{Method: "est", URL: "https://est.example", Roots: "b"}
	got := c.ForFactory()
	if got.Method != "est" || got.URL != "https://est.example" || got.Roots != "b" || got.Provisioner != "" || got.Device != "gw-1" || got.Factory != nil {
		t.Errorf("%+v", got)
	}
}

func TestValidDevice(t *testing.T) {
	for id, want := range map[string]bool{
		"gw-1": true, "0": true, "A.b_c-9": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "-a": false, ".": false, "_x": false, "a/b": false, "a b": false, "a\x00": false, "é": false, "a#": false,
	} {
		if enroll.ValidDevice(id) != want {
			t.Errorf("%q: %t", id, !want)
		}
	}
}

// A fleet whose certificates were issued in one second renews evenly over a tenth of their life,
// each device always at the same time.
func TestDueIsEvenAndStable(t *testing.T) {
	const fleet, buckets = 10000, 100
	c, issued := enroll.Default(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	life := 90 * 24 * time.Hour
	first, last := issued.Add(time.Duration(0.56*float64(life))), issued.Add(time.Duration(0.66*float64(life)))
	var counts [buckets]int
	for i := range fleet {
		leaf := &x509.Certificate{NotBefore: issued, NotAfter: issued.Add(life), Raw: binary.BigEndian.AppendUint32(nil, uint32(i))}
		due := c.Due(leaf)
		if !due.Equal(c.Due(leaf)) || due.Before(first) || due.After(last) {
			t.Fatalf("due at %v; want %v to %v", due, first, last)
		}
		counts[min(int(due.Sub(first)*buckets/last.Sub(first)), buckets-1)]++
	}
	for i, n := range counts {
		if n > fleet/buckets*3/2 || n < fleet/buckets/2 {
			t.Errorf("bucket %d has %d of %d", i, n, fleet)
		}
	}
}

func TestDueOfOddCertificates(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, leaf := range map[string]*x509.Certificate{
		"no life":     {NotBefore: now, NotAfter: now},
		"backwards":   {NotBefore: now, NotAfter: now.Add(-time.Hour)},
		"for ever":    {NotBefore: now, NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		"from year 1": {NotBefore: time.Time{}, NotAfter: now},
	} {
		due := (enroll.Config{}).Due(leaf)
		if due.Before(leaf.NotBefore) || due.After(leaf.NotAfter) && leaf.NotAfter.After(leaf.NotBefore) {
			t.Errorf("%s: due at %v", name, due)
		}
	}
}

// The way through a proxy: TLS from end to end, and what does not believe the service's
// certificate says so.
func TestProxy(t *testing.T) {
	f, d := newFake(t), &device{t: t}
	proxy := startProxy(t)
	f.config.Proxy = proxy.url
	if _, err := enroll.Enroll(t.Context(), f.config, d.request()); err != nil {
		t.Fatal(err)
	}
	if proxy.tunnels.Load() == 0 {
		t.Error("nothing went through the proxy")
	}
	proxy.status.Store(http.StatusProxyAuthRequired)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // no use in all attempts
	defer cancel()
	if _, err := enroll.Enroll(ctx, f.config, d.request()); err == nil || hint.Of(err) == "" {
		t.Errorf("a proxy that refuses: %v", err)
	}
}
