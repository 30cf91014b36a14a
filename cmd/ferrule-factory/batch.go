package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The files of a batch, beside each other in one folder. Orders are the station's own and
// entitle to certificates; evidence comes from outside; deliveries go there.
const (
	orderFile    = ".order.json"
	evidenceFile = ".evidence.json"
	deliveryFile = ".delivery.json"
)

// The states of a device of a batch.
const (
	stateMade      = "made"      // by this run
	statePlanned   = "planned"   // there is an order
	stateCollected = "collected" // and evidence for it
	stateIssued    = "issued"    // and the delivery that answers it
	stateFailed    = "failed"
)

// batchLine is what is said of one device.
type batchLine struct {
	Device string `json:"device"`
	State  string `json:"state"`
	Serial string `json:"serial,omitempty"`
	Code   string `json:"code,omitempty"`
	Error  string `json:"error,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// batch is one folder.
type batch struct {
	fsys disk.FS
	dir  string
}

func (b batch) path(device, ending string) string { return filepath.Join(b.dir, device+ending) }

func (b batch) read(device, ending string) ([]byte, error) {
	return disk.ReadFile(b.fsys, b.path(device, ending), registrar.MaxCollected)
}

func (b batch) write(device, ending string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(b.fsys, b.path(device, ending), append(text, '\n'), 0o600)
}

// devices lists those that have an order.
func (b batch) devices() ([]string, error) {
	entries, err := b.fsys.ReadDir(b.dir)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading the batch: %w", err), "make one first: ferrule-factory batch plan DEVICES.csv DIR")
	}
	var devices []string
	for _, entry := range entries {
		if device, found := strings.CutSuffix(entry.Name(), orderFile); found {
			devices = append(devices, device)
		}
	}
	if len(devices) == 0 {
		return nil, hint.With(fmt.Errorf("%s holds no orders", b.dir), "make them first: ferrule-factory batch plan DEVICES.csv DIR")
	}
	return devices, nil
}

func (b batch) order(device string) (wire.Order, error) {
	text, err := b.read(device, orderFile)
	if err != nil {
		return wire.Order{}, err
	}
	order, err := registrar.ReadOrder(device, text)
	return order, hint.With(err, "move the file away, plan again, and have the device collect again")
}

// plan makes the order of a device where there is none: one that has left the station is never
// replaced.
func (b batch) plan(device string) (batchLine, error) {
	_, err := b.order(device)
	if err == nil {
		return batchLine{Device: device, State: statePlanned}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return batchLine{}, fmt.Errorf("%s: %w", device, err)
	}
	order, err := registrar.NewOrder(device)
	if err == nil {
		err = b.write(device, orderFile, order)
	}
	return batchLine{Device: device, State: stateMade}, err
}

// delivered returns the serial number of the delivery that answers this evidence, if it is there.
func (b batch) delivered(device string, evidence []byte) (string, bool) {
	text, err := b.read(device, deliveryFile)
	if err != nil {
		return "", false
	}
	var d wire.Delivery
	sum := sha256.Sum256(evidence)
	if json.Unmarshal(text, &d) != nil || d.Device != device || d.Version != wire.Version || !bytes.Equal(d.Evidence, sum[:]) {
		return "", false
	}
	return d.Serial, true
}

// look says how far a device has come.
func (b batch) look(device string) batchLine {
	if _, err := b.order(device); err != nil {
		return failed(device, err)
	}
	evidence, err := b.read(device, evidenceFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return batchLine{Device: device, State: statePlanned}
	case err != nil:
		return failed(device, err)
	}
	if serial, ok := b.delivered(device, evidence); ok {
		return batchLine{Device: device, State: stateIssued, Serial: serial}
	}
	return batchLine{Device: device, State: stateCollected}
}

// issue brings a device as far as it can be brought: evidence becomes a delivery.
func (b batch) issue(ctx context.Context, r *registrar.Registrar, device string) batchLine {
	line := b.look(device)
	if line.State != stateCollected {
		return line
	}
	order, err := b.order(device)
	if err != nil {
		return failed(device, err)
	}
	given, err := b.given(device)
	if err != nil {
		return failed(device, err)
	}
	evidence, err := b.read(device, evidenceFile)
	if err != nil {
		return failed(device, err)
	}
	delivery, err := r.Deliver(ctx, order, given, evidence)
	if err == nil {
		err = b.write(device, deliveryFile, delivery)
	}
	if err != nil {
		return failed(device, err)
	}
	return batchLine{Device: device, State: stateIssued, Serial: delivery.Serial}
}

// given is when an order was made: a device that was revoked since is not let in by it.
func (b batch) given(device string) (time.Time, error) {
	file, err := b.fsys.OpenFile(b.path(device, orderFile), os.O_RDONLY, 0)
	if err != nil {
		return time.Time{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

func failed(device string, err error) batchLine {
	line := batchLine{Device: device, State: stateFailed, Error: err.Error(), Hint: hint.Of(err)}
	if refused, ok := errors.AsType[*wire.Error](err); ok {
		// This is the log of the registrar too.
		line.Code, line.Error, line.Hint = refused.Code, refused.Logged().Error(), registrar.Repair(refused)
	}
	return line
}

func runBatchPlan(_ context.Context, e *env) error {
	devices, err := readDevices(e.Flags.Arg(0))
	if err != nil {
		return err
	}
	b := batch{fsys: disk.OS(), dir: e.Flags.Arg(1)}
	if err := disk.MakeFolder(b.fsys, b.dir); err != nil {
		return fmt.Errorf("making the folder of the batch: %w", err)
	}
	return eachDevice(e, devices, b.plan)
}

func runBatchIssue(ctx context.Context, e *env) error {
	config, err := e.issuing.open("ferrule-factory batch issue --ca CA DIR", e.Program)
	if err != nil {
		return err
	}
	b := batch{fsys: disk.OS(), dir: e.Flags.Arg(0)}
	devices, err := b.devices()
	if err != nil {
		return err
	}
	// What the log would say is in the lines.
	r := registrar.New(config, slog.New(slog.DiscardHandler))
	return eachDevice(e, devices, func(device string) (batchLine, error) {
		return b.issue(ctx, r, device), ctx.Err()
	})
}

func runBatchStatus(_ context.Context, e *env) error {
	b := batch{fsys: disk.OS(), dir: e.Flags.Arg(0)}
	devices, err := b.devices()
	if err != nil {
		return err
	}
	return eachDevice(e, devices, func(device string) (batchLine, error) { return b.look(device), nil })
}

// eachDevice does one thing for every device, shows how far it is, and prints what came of it:
// JSON lines at once, or a table at the end. One that fails does not stop the rest; the error
// is that there was one.
func eachDevice(e *env, devices []string, do func(device string) (batchLine, error)) error {
	shown := newProgress(e.Stderr, len(devices))
	counts := make(map[string]int)
	var lines []batchLine
	for _, device := range devices {
		line, err := do(device)
		if err != nil {
			shown.done()
			return err
		}
		counts[line.State]++
		if e.json {
			if err := e.printJSON(line); err != nil {
				return err
			}
		}
		lines = append(lines, line)
		shown.step()
	}
	shown.done()
	if !e.json {
		if err := printBatch(e, lines, counts); err != nil {
			return err
		}
	}
	if counts[stateFailed] > 0 {
		return hint.With(fmt.Errorf("%d of %d devices failed", counts[stateFailed], len(devices)), "mend what the lines say, then run the same command again: what is done stays done")
	}
	return nil
}

func printBatch(e *env, lines []batchLine, counts map[string]int) error {
	table := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tSTATE\tSERIAL\tREASON")
	for _, l := range lines {
		reason := l.Error
		if l.Hint != "" {
			reason += " (" + l.Hint + ")"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", l.Device, l.State, cmp.Or(l.Serial, "-"), cmp.Or(printable(reason), "-"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	var words []string
	for _, state := range []string{stateMade, statePlanned, stateCollected, stateIssued, stateFailed} {
		if counts[state] > 0 {
			words = append(words, fmt.Sprintf("%d %s", counts[state], state))
		}
	}
	_, err := fmt.Fprintf(e.Stdout, "%d devices: %s\n", len(lines), strings.Join(words, ", "))
	return err
}
