// Package tpm keeps the device key in a TPM 2.0 and hands it out as a crypto.Signer.
//
// The trap is the dictionary-attack lockout: every object that an unattended gateway uses
// must carry noDA, or three power cuts while it is in use lock it out of its own key, even
// where its authorisation value is empty (TPM 2.0 Part 1, 19.8). The second trap is the way
// to the chip: a signal, a busy answer or a hung bus must cost a bounded time and never
// leave the next command reading the answer of the last, hence a transport of our own.
package tpm

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

const (
	// defaultCommandTimeout bounds the wait for one answer. A P-256 signature takes 200 ms
	// at the median and 600 ms at the 95th percentile on real chips, key creation seconds.
	defaultCommandTimeout = 10 * time.Second
	// defaultRetryBudget bounds all repeats of one command and the reopening of the TPM;
	// together with the command timeout it stays below a TLS handshake's patience.
	defaultRetryBudget = 5 * time.Second
)

// Options say where the TPM is and how long to wait for it.
type Options struct {
	// Path is one of:
	//
	//	auto            /dev/tpmrm0, else /dev/tpm0 with a warning (also the meaning of "")
	//	none            no TPM: Open answers ErrNoDevice
	//	/dev/…          a character device of the kernel
	//	unix:PATH       a TPM simulator that takes bare commands on a unix socket
	//	tcp:HOST:PORT   the same over TCP
	Path string
	// CommandTimeout is the longest wait for the answer to one command; 0 means 10 s.
	CommandTimeout time.Duration
	// RetryBudget is the longest time spent on repeating one command that the TPM asks to
	// have repeated, and on reopening a lost TPM; 0 means 5 s.
	RetryBudget time.Duration
	// Log receives warnings; nil discards them.
	Log *slog.Logger
}

// Device is one open TPM. All methods may be called from any number of goroutines:
// commands go to the chip one at a time.
//
//	open ──exchange fails──► lost ──next command reopens──► open (generation + 1)
//	  └──Close──► closed
//
// A generation is the life of one descriptor. Transient handles belong to a generation,
// because a resource manager forgets them with the descriptor, and a restarted TPM forgets
// them all.
type Device struct {
	path           string // as opened: a device path, unix:… or tcp:…
	commandTimeout time.Duration
	retryBudget    time.Duration
	log            *slog.Logger
	dial           dialFunc

	busy     chan struct{} // holds one token while a command is under way
	conn     conn          // nil while lost; guarded by busy
	gen      uint64        // guarded by busy
	answered bool          // since it was opened; guarded by busy
	live     atomic.Uint64 // gen while the TPM is open, else 0
	astray   atomic.Bool   // a key was closed whose connection had been lost
	closed   bool          // guarded by busy
	dirty    bool          // objects or sessions of ours may lie in a TPM without resource manager; guarded by busy
	leftover []<-chan struct{}

	counters counters

	srkMu sync.Mutex
	srk   srkState

	keysMu sync.Mutex
	keys   map[*Key]struct{}
	uses   atomic.Uint64 // counts, so that keys know which of them was used last

	eksMu sync.Mutex
	eks   []endorsement     // of the last evidence
	odd   []tpm2.TPMTPublic // templates that the TPM's makers left in it
}

// Open opens the TPM. It sends no command. The error is ErrNoDevice, ErrPermission,
// ErrBusy, ErrTimeout or ErrUnsupported (a path of no known form), with a hint.
func Open(ctx context.Context, o Options) (*Device, error) {
	d := newDevice(o)
	var err error
	switch o.Path {
	case "", "auto":
		err = d.openAuto(ctx, "/dev")
	case "none":
		err = hint.With(ErrNoDevice, `the configuration says tpm = "none"; set it to "auto"`)
	default:
		err = d.openPath(ctx, o.Path)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

func newDevice(o Options) *Device {
	d := &Device{
		commandTimeout: o.CommandTimeout,
		retryBudget:    o.RetryBudget,
		log:            o.Log,
		busy:           make(chan struct{}, 1),
		keys:           make(map[*Key]struct{}),
	}
	if d.commandTimeout <= 0 {
		d.commandTimeout = defaultCommandTimeout
	}
	if d.retryBudget <= 0 {
		d.retryBudget = defaultRetryBudget
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// openAuto prefers the kernel's resource manager: the raw device is exclusive, and objects
// that a crashed process leaves in it stay until the next reset.
func (d *Device) openAuto(ctx context.Context, dir string) error {
	err := d.openPath(ctx, dir+"/tpmrm0")
	if !errors.Is(err, ErrNoDevice) {
		return err
	}
	if rawErr := d.openPath(ctx, dir+"/tpm0"); rawErr != nil {
		if errors.Is(rawErr, ErrNoDevice) {
			return err
		}
		return rawErr
	}
	d.log.LogAttrs(ctx, slog.LevelWarn, "tpm without resource manager",
		slog.String("path", d.path))
	return nil
}

func (d *Device) openPath(ctx context.Context, path string) error {
	dial, err := d.dialer(path)
	if err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return openError(path, err)
	}
	d.attach(path, dial, c)
	return nil
}

func (d *Device) attach(path string, dial dialFunc, c conn) {
	d.path, d.dial, d.conn, d.gen = path, dial, c, 1
	d.live.Store(1)
}

// Path tells what was opened: a device path, unix:… or tcp:….
func (d *Device) Path() string { return d.path }

// ResourceManager reports whether the kernel's resource manager lies in between: it frees
// what a process leaves behind and lets several share the TPM.
func (d *Device) ResourceManager() bool {
	return strings.HasPrefix(filepath.Base(d.path), "tpmrm")
}

// Close flushes the keys that are still loaded and closes the TPM, after the command that is
// under way. For one that was given up and still hangs in the kernel it waits at most the
// command timeout; the kernel's own clock ends it. Closing twice is harmless.
func (d *Device) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), d.commandTimeout)
	defer cancel()
	var errs []error
	for _, k := range d.loaded() {
		errs = append(errs, k.close(ctx))
	}
	d.busy <- struct{}{}
	d.leaveClean(ctx)
	d.drop()
	d.closed = true
	leftover := d.leftover
	<-d.busy
	for _, done := range leftover {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	return errors.Join(errs...)
}

func (d *Device) loaded() []*Key {
	d.keysMu.Lock()
	defer d.keysMu.Unlock()
	return slices.Collect(maps.Keys(d.keys))
}
