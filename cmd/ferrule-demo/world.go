package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/hw/hwtest"
	"ferrule/internal/disk"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

const (
	device       = "gw-demo"
	lineName     = "rs485-1"
	lineSettings = "19200 8E1"
	baud         = 19200
	bitsPerChar  = 11
	// syncWithin is the outbox's default: what a crash may cost at most.
	syncWithin = time.Second
)

// world is everything around the agent, all of it on loopback and in one temporary folder.
type world struct {
	dir       string
	keep      bool
	wire      *hwtest.Wire
	meters    []*meter
	ca        *ca.CA
	records   *records.Book
	broker    *agenttest.Broker
	ledger    *ledger
	registrar string         // host:port
	maker     *tpmtest.Maker // of the TPM
	tpm       *tpmtest.Swtpm
	tap       *tpmtest.Proxy // before the TPM, counts what is asked of it
	commands  atomic.Int64
	signs     atomic.Int64

	end     context.CancelFunc // of the registrar
	serving sync.WaitGroup
}

// build makes a world; polls are every so often. What was made before an error is gone again.
func build(ctx context.Context, every time.Duration, keep bool) (w *world, err error) {
	w = &world{meters: meters(every), ledger: newLedger(), keep: keep}
	defer func() {
		if err != nil {
			_ = w.close()
		}
	}()
	if w.dir, err = tempDir(); err != nil {
		return w, fmt.Errorf("making a temporary folder: %w", err)
	}
	for _, step := range []func(context.Context) error{w.startWire, w.startTPM, w.startCA, w.startRegistrar, w.startBroker} {
		if err := step(ctx); err != nil {
			return w, err
		}
	}
	return w, w.configure()
}

// tempDir makes the folder, in /tmp where the usual place is too long: the agent's socket lies
// in it, whose path holds 107 bytes.
func tempDir() (string, error) {
	const longest = 80
	parent := ""
	if len(os.TempDir()) > longest {
		parent = "/tmp"
	}
	return os.MkdirTemp(parent, "ferrule-demo-")
}

// startWire is first, and closed last: its goroutine ends with its thread, and a thread that
// had started a child would take the child with it (prctl(2), PR_SET_PDEATHSIG).
func (w *world) startWire(context.Context) (err error) {
	if w.wire, err = hwtest.NewWire(hwtest.WireConfig{Baud: baud, BitsPerChar: bitsPerChar}); err != nil {
		return err
	}
	for _, m := range w.meters {
		w.wire.Attach(m.unit)
	}
	return nil
}

func (w *world) startCA(context.Context) (err error) {
	if w.ca, err = ca.Init(disk.OS(), w.path("ca"), "Ferrule demo"); err != nil {
		return err
	}
	if w.records, err = records.Open(disk.OS(), w.path("ca")); err != nil {
		return err
	}
	for _, server := range []string{"broker", "registrar"} {
		if err := w.ca.Server(server, []string{"127.0.0.1"}); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) startRegistrar(ctx context.Context) error {
	makers := x509.NewCertPool()
	if w.maker != nil {
		for _, root := range w.maker.Roots() {
			makers.AddCert(root)
		}
	}
	r := registrar.New(registrar.Config{
		CA: w.ca, Records: w.records, Life: 90 * 24 * time.Hour,
		TPMs: attest.Verifier{Roots: makers}, AllowSoftwareKeys: w.weak(),
	}, slog.New(slog.DiscardHandler))
	listener, err := r.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.registrar = listener.Addr().(*net.TCPAddr).String()
	ctx, w.end = context.WithCancel(context.WithoutCancel(ctx))
	w.serving.Go(func() { _ = r.Serve(ctx, listener) }) // ends with w.end
	return nil
}

func (w *world) startBroker(context.Context) error {
	certificate, err := tls.LoadX509KeyPair(w.path("ca", "broker.crt"), w.path("ca", "broker.key"))
	if err != nil {
		return fmt.Errorf("reading the broker's certificate: %w", err)
	}
	root, err := os.ReadFile(w.path("ca", "root.crt"))
	if err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(root)
	w.broker, err = agenttest.StartBroker(agenttest.BrokerConfig{
		Address: "127.0.0.1:0",
		TLS: &tls.Config{
			Certificates: []tls.Certificate{certificate}, ClientCAs: clients, VerifyConnection: w.ledger.handshake,
		},
		Ledger:    w.ledger.take,
		OnConnect: w.ledger.connect,
	})
	return err
}

// startTPM makes a TPM that its maker has certified, starts it, and a tap before it. Without
// swtpm on this machine the world has no TPM; a swtpm that is there and does not start is an error.
func (w *world) startTPM(ctx context.Context) (err error) {
	for _, folder := range []string{"maker", "tpm"} {
		if err := os.Mkdir(w.path(folder), 0o700); err != nil {
			return fmt.Errorf("making the TPM's folder: %w", err)
		}
	}
	if w.maker, err = tpmtest.NewMaker(w.path("maker")); err == nil {
		err = w.maker.Make(ctx, w.path("tpm"))
	}
	if err == nil {
		w.tpm, err = tpmtest.StartSwtpm(ctx, w.path("tpm"))
	}
	if errors.Is(err, tpmtest.ErrNotInstalled) {
		return nil
	}
	if err != nil {
		return err
	}
	if w.tap, err = tpmtest.StartProxy(w.tpm.Address()); err != nil {
		return err
	}
	const sign = 0x15D // TPM_CC_Sign (TPM 2.0 Part 2, 6.5.2)
	w.tap.Inject(func(code uint32) tpmtest.Fault {
		w.commands.Add(1)
		if code == sign {
			w.signs.Add(1)
		}
		return tpmtest.Fault{}
	})
	return nil
}

// weak tells that there is no TPM.
func (w *world) weak() bool { return w.tap == nil }

// polls is what the meters answered so far.
func (w *world) polls() []poll {
	var list []poll
	for _, m := range w.meters {
		list = append(list, m.polls()...)
	}
	return list
}

// expected is what a meter measured at its poll number count.
func (w *world) expected(unit string, count uint32) values {
	for _, m := range w.meters {
		if m.name == unit {
			return m.at(count)
		}
	}
	return values{}
}

// close ends everything, the last first, and removes the folder unless it is to be kept.
func (w *world) close() error {
	var errs []error
	if w.tap != nil {
		errs = append(errs, w.tap.Close())
	}
	if w.tpm != nil {
		errs = append(errs, w.tpm.Stop())
	}
	if w.broker != nil {
		errs = append(errs, w.broker.Close())
	}
	if w.end != nil {
		w.end()
		w.serving.Wait()
	}
	if w.wire != nil {
		errs = append(errs, w.wire.Close())
	}
	if w.dir != "" && !w.keep {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}
