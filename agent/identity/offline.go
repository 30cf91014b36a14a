package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"ferrule/agent/enroll"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/attest"
)

// An enrollment without a network between device and registrar is three files: an order goes in,
// what was collected comes out, a delivery goes in.

// collectedFile keeps what was collected: the delivery is sealed for it, byte by byte.
const collectedFile = "collected.json"

// Bounds of the nonce of an order, in bytes (attest.Claim).
const minNonce, maxNonce = 16, 64

// Collect answers an order (wire.Order) with the evidence of this device's TPM (wire.Collected),
// all in JSON. The key is durable before it returns, and so is what it returns: the same order
// gets the same answer.
func Collect(ctx context.Context, c Config, o Options, order []byte) ([]byte, error) {
	var in wire.Order
	if err := decode(order, &in); err != nil {
		return nil, fmt.Errorf("reading the order: %w", err)
	}
	if err := checkOrder(in); err != nil {
		return nil, fmt.Errorf("reading the order: %w", err)
	}
	if err := finishReset(ctx, c, o); err != nil {
		return nil, err
	}
	i := newIdentity(c, o)
	defer func() { _ = i.Close() }()
	past, err := readRecord(o)
	if err != nil {
		return nil, err
	}
	key, err := i.openOrCreateKey(ctx, past, false)
	if err != nil {
		return nil, err
	}
	defer key.Close()
	if known, text, err := i.collected(); err == nil && sameOrder(known.Order, in) && i.collectedFor(known, key) {
		return text, nil
	}
	out, err := collect(ctx, in, key)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(out)
	if err == nil {
		err = atomicfile.Write(o.FS, i.collectedPath(), text, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("keeping what was collected: %w", err)
	}
	return text, nil
}

func checkOrder(in wire.Order) error {
	switch {
	case in.Version != wire.Version:
		return fmt.Errorf("it is version %d; this device speaks %d", in.Version, wire.Version)
	case len(in.Nonce) < minNonce || len(in.Nonce) > maxNonce:
		return fmt.Errorf("its nonce has %d bytes; 16 to 64 are wanted", len(in.Nonce))
	case !enroll.ValidDevice(in.Device):
		return fmt.Errorf("%q is no id of a device", in.Device)
	}
	return nil
}

func collect(ctx context.Context, in wire.Order, key tpm.DeviceKey) (wire.Collected, error) {
	out := wire.Collected{Order: in}
	prover := attesterOf(key)
	if prover == nil {
		return out, hint.With(fmt.Errorf("collecting evidence: key %s lies in no TPM, so nothing could be sealed for it", key.Ref()),
			"set identity.key to tpm2:file=device.key, or enroll over the network")
	}
	csr, err := request(key, in.Device)
	if err != nil {
		return out, fmt.Errorf("collecting evidence: %w", err)
	}
	evidence, err := prover.Evidence(ctx, in.Nonce, in.Device, csr)
	if err != nil {
		return out, fmt.Errorf("collecting evidence: %w", err)
	}
	out.Evidence = []wire.Item{{Kind: wire.KindCSR, Data: csr}, {Kind: wire.KindTPM, Data: evidence}}
	return out, nil
}

// Deliver takes the certificate out of a delivery (wire.Delivery, JSON), which only the TPM that
// gave the evidence can open, checks it against e's roots and puts it in place. Doing it again
// does nothing.
func Deliver(ctx context.Context, c Config, o Options, e enroll.Config, delivery []byte) (Result, error) {
	var in wire.Delivery
	if err := decode(delivery, &in); err != nil {
		return Result{}, fmt.Errorf("reading the delivery: %w", err)
	}
	if in.Version != wire.Version || in.Challenge.Kind != wire.KindCredential {
		return Result{}, fmt.Errorf("reading the delivery: version %d with a challenge of kind %q is not understood", in.Version, in.Challenge.Kind)
	}
	if err := finishReset(ctx, c, o); err != nil {
		return Result{}, err
	}
	if result, done, err := delivered(ctx, c, o, in); done || err != nil {
		return result, err
	}
	i := newIdentity(c, o)
	defer func() { _ = i.Close() }()
	past, err := readRecord(o)
	if err != nil {
		return Result{}, err
	}
	key, err := tpm.OpenKey(ctx, c.Key, i.keyOptions(past))
	if err != nil {
		return Result{}, i.explain(ctx, past, err)
	}
	defer key.Close()
	chain, err := i.unseal(ctx, in, key)
	if err != nil {
		return Result{}, err
	}
	fresh, err := i.accept(e, order{device: in.Device, key: key}, enroll.Result{Device: in.Device, Chain: chain})
	if err != nil {
		return Result{}, err
	}
	result, err := i.store(ctx, fresh, EventEnrolled)
	if err == nil {
		_ = o.FS.Remove(i.collectedPath()) // it is of no more use, and no secret
	}
	return result, err
}

// delivered reports whether the certificate of a delivery is in place.
func delivered(ctx context.Context, c Config, o Options, in wire.Delivery) (Result, bool, error) {
	result, done, err := alreadyEnrolled(ctx, c, o)
	if err != nil && !errors.Is(err, ErrMismatch) && !errors.Is(err, ErrCleared) {
		return Result{}, false, err
	}
	chain, _, err := readChain(o, c.Certificate)
	if err != nil || !done || chain[0].SerialNumber.Text(16) != in.Serial || result.Device != in.Device {
		return Result{}, false, nil
	}
	return result, true, nil
}

// unseal opens the seal by the evidence that was collected.
func (i *Identity) unseal(ctx context.Context, in wire.Delivery, key tpm.DeviceKey) ([]byte, error) {
	known, _, err := i.collected()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint.With(errors.New("opening the delivery: nothing was collected here that it could answer"),
			"run: ferrule enroll --collect ORDER, and have a delivery made for what it gives")
	}
	if err != nil {
		return nil, err
	}
	if known.Device != in.Device {
		return nil, fmt.Errorf("opening the delivery: it is for %q, and the evidence was collected for %q", in.Device, known.Device)
	}
	csr, evidence := itemOf(known.Evidence, wire.KindCSR), itemOf(known.Evidence, wire.KindTPM)
	prover, ok := key.(tpm.Attester)
	if !ok || evidence == nil {
		return nil, errors.New("opening the delivery: the key lies in no TPM")
	}
	a := &attester{key: prover, evidence: evidence, claim: attest.Claim{Nonce: known.Nonce, Device: known.Device, CSR: csr}}
	secret, err := a.activate(ctx, in.Challenge.Data)
	if err == nil {
		var chain []byte
		if chain, err = a.claim.Unseal(secret, evidence, in.Challenge.Data, in.Sealed); err == nil {
			return chain, nil
		}
	}
	return nil, hint.With(fmt.Errorf("opening the delivery: %w", err),
		"it is for another device, or for evidence that was collected before: have it made for the latest")
}

func (i *Identity) collectedPath() string { return filepath.Join(i.o.StateDir, collectedFile) }

func (i *Identity) collected() (wire.Collected, []byte, error) {
	var known wire.Collected
	text, err := disk.ReadFile(i.o.FS, i.collectedPath(), wire.MaxBody)
	if err == nil {
		err = decode(text, &known)
	}
	if err != nil {
		return known, nil, fmt.Errorf("reading what was collected: %w", err)
	}
	return known, text, nil
}

// collectedFor reports whether the evidence that was collected is of key.
func (i *Identity) collectedFor(known wire.Collected, key tpm.DeviceKey) bool {
	csr, err := parseRequest(itemOf(known.Evidence, wire.KindCSR))
	return err == nil && equalKeys(csr.PublicKey, key.Public())
}

func sameOrder(a, b wire.Order) bool {
	return a.Version == b.Version && a.Device == b.Device && bytes.Equal(a.Nonce, b.Nonce)
}

func itemOf(items []wire.Item, kind string) []byte {
	for _, item := range items {
		if item.Kind == kind {
			return item.Data
		}
	}
	return nil
}

// decode reads one JSON value of at most wire.MaxBody bytes into v, and nothing behind it.
func decode(text []byte, v any) error {
	if len(text) > wire.MaxBody {
		return fmt.Errorf("%d bytes are more than %d", len(text), wire.MaxBody)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}
