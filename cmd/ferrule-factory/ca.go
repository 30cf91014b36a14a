package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// caOptions are the flags of ca init and ca server.
type caOptions struct {
	name  string
	hosts hosts
}

// hosts collects --host, which may be given several times.
type hosts []string

func (h *hosts) String() string { return strings.Join(*h, ",") }

func (h *hosts) Set(host string) error {
	if host == "" {
		return errors.New("a host is empty")
	}
	*h = append(*h, host)
	return nil
}

func caFlags(e *env) {
	e.Flags.StringVar(&e.ca.name, "name", "Ferrule factory", "the `name` that the CA's certificates bear")
	e.Flags.Var(&e.ca.hosts, "host", "a DNS `name` or address of broker and registrar; may be repeated (default localhost and 127.0.0.1)")
	jsonFlag(e)
}

func serverFlags(e *env) {
	e.Flags.StringVar(&e.ca.name, "name", "", "the file `name`: NAME.crt and NAME.key")
	e.Flags.Var(&e.ca.hosts, "host", "a DNS `name` or address of the server; may be repeated")
	jsonFlag(e)
}

func runCAInit(_ context.Context, e *env) error {
	dir := e.Flags.Arg(0)
	authority, err := ca.Init(disk.OS(), dir, e.ca.name)
	if err != nil {
		return err
	}
	for _, server := range []string{"broker", "registrar"} {
		if err := authority.Server(server, e.ca.hosts); err != nil {
			return err
		}
	}
	if e.json {
		return e.printJSON(map[string]any{"dir": dir, "root": filepath.Join(dir, "root.crt"), "root_sha256": fingerprint(authority.Root())})
	}
	fmt.Fprintf(e.Stdout, `CA ready in %[1]s
  root.crt       give it to devices and brokers as the root they trust
  device-ca.crt  signs devices; brokers that do not follow chains need it too
  broker.crt     and broker.key, for the broker
Keep root.key and device-ca.key where nobody else reads them.
`, dir)
	return nil
}

func runCAServer(_ context.Context, e *env) error {
	if e.ca.name == "" || len(e.ca.hosts) == 0 {
		return hint.With(fmt.Errorf("%w: --name and --host are needed", cli.ErrUsage), "ferrule-factory ca server DIR --name broker2 --host broker2.example")
	}
	dir := e.Flags.Arg(0)
	authority, err := ca.Open(disk.OS(), dir)
	if err != nil {
		return err
	}
	if err := authority.Server(e.ca.name, e.ca.hosts); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"certificate": filepath.Join(dir, e.ca.name+".crt"), "key": filepath.Join(dir, e.ca.name+".key")})
	}
	return nil
}

// fingerprint is the SHA-256 of a certificate, hex.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
