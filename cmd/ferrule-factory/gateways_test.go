package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/wire"
	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"

	"github.com/rogpeppe/go-internal/testscript"
)

// gateways are the devices of the scripts, each with a TPM of one maker. Within a process there
// are two different chips: one called "two", and all others.
type gateways struct {
	t testing.TB

	mu sync.Mutex
	by map[string]*gateway
}

type gateway struct {
	chip     *tpmtest.Swtpm
	tpm      *tpm.Device
	key      tpm.DeviceKey
	claim    attest.Claim
	evidence []byte
}

func newGateways(t testing.TB) *gateways {
	g := &gateways{t: t, by: make(map[string]*gateway)}
	t.Cleanup(func() {
		for _, one := range g.by {
			_ = one.tpm.Close()
		}
	})
	return g
}

// powered is the gateway with the chip of a name, switched on.
func (g *gateways) powered(ctx context.Context, chip string) (*gateway, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if one, ok := g.by[chip]; ok {
		return one, nil
	}
	one := &gateway{}
	if chip == "two" {
		one.chip = tpmtest.Other(g.t)
	} else {
		one.chip = tpmtest.Certified(g.t)
	}
	var err error
	if one.tpm, err = tpm.Open(ctx, tpm.Options{Path: one.chip.Address()}); err != nil {
		return nil, err
	}
	g.by[chip] = one
	options := tpm.KeyOptions{StateDir: g.t.TempDir(), Device: func(context.Context) (*tpm.Device, error) { return one.tpm, nil }}
	one.key, err = tpm.CreateKeyAt(ctx, "tpm2:file=device.key", tpm.KeySpec{}, options)
	return one, err
}

// collect is what a gateway does with its order.
func (g *gateway) collect(ctx context.Context, order wire.Order) (wire.Collected, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: order.Device}}, g.key)
	if err != nil {
		return wire.Collected{}, err
	}
	g.claim = attest.Claim{Nonce: order.Nonce, Device: order.Device, CSR: csr}
	e, err := g.key.(tpm.Attester).Attest(ctx, g.claim.Qualify())
	if err != nil {
		return wire.Collected{}, err
	}
	g.evidence, err = json.Marshal(e)
	return wire.Collected{Order: order, Evidence: []wire.Item{{Kind: wire.KindCSR, Data: csr}, {Kind: wire.KindTPM, Data: g.evidence}}}, err
}

// unseal is what it does with its delivery.
func (g *gateway) unseal(ctx context.Context, d wire.Delivery) ([]byte, error) {
	c, err := attest.ParseChallenge(d.Challenge.Data)
	if err != nil {
		return nil, err
	}
	secret, err := g.key.(tpm.Attester).Activate(ctx, c)
	if err != nil {
		return nil, err
	}
	return g.claim.Unseal(secret, g.evidence, d.Challenge.Data, d.Sealed)
}

// makers writes the maker's certificates: makers FILE.
func (g *gateways) makers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: makers FILE")
	}
	one, err := g.powered(context.Background(), "one")
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), one.chip.RootsPEM(), 0o600))
}

// collects has the gateway with a chip answer the order of a device: collects DIR DEVICE CHIP.
func (g *gateways) collects(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: collects DIR DEVICE CHIP")
	}
	one, err := g.powered(context.Background(), args[2])
	ts.Check(err)
	order, err := registrar.ReadOrder(args[1], []byte(ts.ReadFile(filepath.Join(args[0], args[1]+orderFile))))
	ts.Check(err)
	collected, err := one.collect(context.Background(), order)
	ts.Check(err)
	text, err := json.Marshal(collected)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(ts.MkAbs(args[0]), args[1]+evidenceFile), text, 0o600))
}

// unseals has the gateway with a chip open the delivery of a device into a file, or fail to:
// unseals DIR DEVICE CHIP FILE.
func (g *gateways) unseals(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: unseals DIR DEVICE CHIP FILE")
	}
	one, err := g.powered(context.Background(), args[2])
	ts.Check(err)
	var d wire.Delivery
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(filepath.Join(args[0], args[1]+deliveryFile))), &d))
	chain, err := one.unseal(context.Background(), d)
	if neg {
		if err == nil {
			ts.Fatalf("the delivery of %s is open to another TPM", args[1])
		}
		return
	}
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), chain, 0o600))
	fmt.Fprintf(ts.Stdout(), "%s has its certificate\n", args[1])
}
