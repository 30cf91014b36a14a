package local_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/agent/local"
	"ferrule/agent/local/role"
)

func TestConfigurationOfTheListener(t *testing.T) {
	operator := []role.Rule{{Role: role.Operator, OU: "operators"}}
	for name, c := range map[string]struct {
		change func(*local.Config)
		want   string
	}{
		"good":              {func(c *local.Config) { c.Roles = operator }, ""},
		"off":               {func(c *local.Config) { *c = local.Default() }, ""},
		"no port":           {func(c *local.Config) { c.Listen = "127.0.0.1" }, "not an address with a port"},
		"port too large":    {func(c *local.Config) { c.Listen = ":65536" }, "not an address with a port"},
		"no roots":          {func(c *local.Config) { c.Roots = "" }, "roots is missing"},
		"mode":              {func(c *local.Config) { c.ClientAuth = "maybe" }, "not none, optional or required"},
		"mighty strangers":  {func(c *local.Config) { c.Anonymous = role.Operator }, "may be none or viewer"},
		"half a pair":       {func(c *local.Config) { c.Certificate = "a.crt" }, "belong together"},
		"bad rule":          {func(c *local.Config) { c.Roles = []role.Rule{{Role: role.Viewer}} }, "role 1"},
		"rule without a CA": {func(c *local.Config) { c.Roots, c.Roles = "", operator }, "role 1 has no roots"},
	} {
		config := local.Default()
		config.Listen, config.Roots = ":8443", "clients.pem"
		c.change(&config)
		err := config.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for want, change := range map[string]func(*local.Config){
		"refuses everybody":         func(c *local.Config) { c.ClientAuth = local.AuthNone },
		"browsers open WebSockets":  func(*local.Config) {},
		"cancels a WebSocket":       func(c *local.Config) { c.AskWebSocket = true },
		"every certificate":         func(*local.Config) {},
		"has no effect":             func(c *local.Config) { c.Anonymous = role.Viewer },
		"shows no certificate sees": func(c *local.Config) { c.Anonymous, c.ClientAuth = role.Viewer, local.AuthOptional },
		"self-made":                 func(*local.Config) {},
		"no [[local.role]] is ever": func(c *local.Config) { c.ClientAuth, c.Roles = local.AuthNone, operator },
	} {
		config := local.Default()
		config.Listen, config.Roots = ":8443", "clients.pem"
		change(&config)
		if all := strings.Join(config.Advice(), "\n"); !strings.Contains(all, want) {
			t.Errorf("no advice %q in:\n%s", want, all)
		}
	}
	if local.Default().Advice() != nil {
		t.Error("advice about a listener that is off")
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	c := local.Default()
	if err := c.Probe(dir); err != nil {
		t.Error(err)
	}
	c.Listen, c.Roots = ":8443", "clients.pem"
	if err := c.Probe(dir); err == nil || !strings.Contains(err.Error(), "reading the CA of local clients") {
		t.Errorf("%v", err)
	}
	for content, want := range map[string]string{
		"": "holds no certificate",
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n": `a block "PRIVATE KEY"`,
		"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": "x509",
	} {
		if err := os.WriteFile(filepath.Join(dir, "clients.pem"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.Probe(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}
