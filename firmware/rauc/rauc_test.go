package rauc_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"ferrule/firmware/rauc"
	"ferrule/firmware/slot"
	"ferrule/internal/disk/disktest"
)

func newClient(t *testing.T, address string) *rauc.Client {
	t.Helper()
	return rauc.New(rauc.Options{Address: address, Log: slog.New(slog.DiscardHandler)})
}

func TestInstall(t *testing.T) {
	address := newBus(t)
	d, c := newRAUC(t, address), newClient(t, address)
	var seen []rauc.Progress
	if err := c.Install(t.Context(), "/data/gw.raucb", func(p rauc.Progress) { seen = append(seen, p) }); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	want := []rauc.Progress{{Percent: 0, Message: "Installing"}, {Percent: 40, Message: "Checking bundle done."}, {Percent: 100, Message: "Installing done."}}
	if !slices.Equal(seen, want) || !slices.Equal(d.sources, []string{"/data/gw.raucb"}) {
		t.Errorf("progress %v, sources %q", seen, d.sources)
	}
}

func TestInstallIsRefusedWithRAUCsReason(t *testing.T) {
	address := newBus(t)
	d, c := newRAUC(t, address), newClient(t, address)
	d.installing(func(*raucd, string) error { return errors.New("signature verification failed: \x1b[31mself-signed") })
	err := c.Install(t.Context(), "/data/gw.raucb", nil)
	if !errors.Is(err, rauc.ErrRefused) || !strings.Contains(err.Error(), "signature verification failed") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%v", err)
	}
	// The next attempt works.
	d.installing(func(*raucd, string) error { return nil })
	if err := c.Install(t.Context(), "/data/gw.raucb", nil); err != nil {
		t.Error(err)
	}
}

// What was begun before the agent started anew is waited for, and its end is not taken for ours.
func TestInstallWaitsForAnother(t *testing.T) {
	address := newBus(t)
	d, c := newRAUC(t, address), newClient(t, address)
	first, ours := make(chan struct{}), make(chan struct{})
	d.installing(func(_ *raucd, source string) error {
		if source == "first" {
			<-first
			return errors.New("the first failed")
		}
		close(ours)
		return nil
	})
	d.begin("first")
	ended := make(chan error, 1)
	var heard sync.Once
	go func() {
		ended <- c.Install(t.Context(), "second", func(rauc.Progress) { heard.Do(func() { close(first) }) })
	}()
	for waiting := true; waiting; { // until it listens
		d.progress(1, "of the first")
		d.progress(2, "more")
		if err := d.conn.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
			t.Fatal(err)
		}
		select {
		case <-first:
			waiting = false
		default:
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-ours
}

func TestInstallEndsWithItsContext(t *testing.T) {
	address := newBus(t)
	d, c := newRAUC(t, address), newClient(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	d.installing(func(d *raucd, _ string) error {
		cancel()
		<-release
		return nil
	})
	if err := c.Install(ctx, "/x", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestRAUCThatDiesIsLost(t *testing.T) {
	address := newBus(t)
	d := newRAUC(t, address)
	c := rauc.NewImpatient(address)
	d.installing(func(*raucd, string) error { return errDied })
	err := c.Install(t.Context(), "/x", nil)
	if !errors.Is(err, rauc.ErrLost) && !errors.Is(err, rauc.ErrAbsent) {
		t.Errorf("%v", err)
	}
}

func TestNobodyIsRAUC(t *testing.T) {
	c := newClient(t, newBus(t))
	if err := c.Install(t.Context(), "/x", nil); !errors.Is(err, rauc.ErrAbsent) {
		t.Errorf("Install: %v", err)
	}
	if _, err := c.Slots(t.Context()); !errors.Is(err, rauc.ErrAbsent) {
		t.Errorf("Slots: %v", err)
	}
	if _, err := newClient(t, "unix:path=/nonexistent/bus").Slots(t.Context()); err == nil {
		t.Error("a bus that is not there answers")
	}
	if _, err := newClient(t, "tcp:host=localhost").Slots(t.Context()); err == nil {
		t.Error("a bus over TCP is asked")
	}
}

// Anybody on the bus can send signals: what a stranger says is no end of an installation.
func TestSignalsOfStrangers(t *testing.T) {
	address := newBus(t)
	d, c := newRAUC(t, address), newClient(t, address)
	stranger, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	d.installing(func(*raucd, string) error {
		var names []string
		if err := stranger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
			return err
		}
		for _, name := range names { // to everybody, by name
			stranger.Send(&dbus.Message{
				Type: dbus.TypeSignal,
				Headers: map[dbus.HeaderField]dbus.Variant{
					dbus.FieldDestination: dbus.MakeVariant(name), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/")),
					dbus.FieldInterface: dbus.MakeVariant(installer), dbus.FieldMember: dbus.MakeVariant("Completed"),
					dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(int32(0))),
				},
				Body: []any{int32(0)},
			}, nil)
		}
		if err := stranger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
			return err
		}
		return errors.New("no, it failed")
	})
	if err := c.Install(t.Context(), "/x", nil); !errors.Is(err, rauc.ErrRefused) {
		t.Errorf("%v", err)
	}
}

// world is a device with RAUC, and what the agent keeps on its disk.
type world struct {
	*raucd
	boot   *rauc.Boot
	bundle *rauc.Bundle
}

func newWorld(t *testing.T) *world {
	t.Helper()
	address := newBus(t)
	d, c, fsys := newRAUC(t, address), newClient(t, address), disktest.New()
	if err := fsys.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	boot := rauc.NewBoot(c, fsys, "/state/rauc")
	return &world{raucd: d, boot: boot, bundle: rauc.NewBundle(boot, "/data/gw.raucb")}
}

func (w *world) is(t *testing.T, want slot.State) {
	t.Helper()
	if got, err := w.boot.State(); err != nil || got != want {
		t.Fatalf("it is %+v, %v, want %+v", got, err, want)
	}
}

func TestAnUpdateIsCommitted(t *testing.T) {
	w := newWorld(t)
	w.is(t, slot.State{Running: slot.A, Active: slot.A})
	if err := w.bundle.Install(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.boot.Try(slot.B, 3); err != nil {
		t.Fatal(err)
	}
	w.is(t, slot.State{Running: slot.A, Active: slot.A, Trial: slot.B, Tries: 1})
	w.reboot()
	w.is(t, slot.State{Running: slot.B, Active: slot.A, Trial: slot.B, Tries: 1})
	for range 2 { // again after a power cut
		if err := w.boot.Commit(slot.B); err != nil {
			t.Fatal(err)
		}
		w.is(t, slot.State{Running: slot.B, Active: slot.B})
	}
	if err := w.boot.Commit(slot.A); !errors.Is(err, slot.ErrSlot) {
		t.Errorf("a slot that does not run is committed: %v", err)
	}
	if err := w.boot.Try(slot.B, 3); !errors.Is(err, slot.ErrSlot) {
		t.Errorf("the active slot is tried: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.marks, "good rootfs.1") {
		t.Errorf("marks: %q", w.marks)
	}
}

// The power goes after RAUC has activated what it installed, before anybody armed it.
func TestACutAfterInstallingIsATrial(t *testing.T) {
	w := newWorld(t)
	if err := w.bundle.Install(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	w.reboot()
	w.is(t, slot.State{Running: slot.B, Active: slot.A, Trial: slot.B, Tries: 1})
}

func TestATrialIsGivenUp(t *testing.T) {
	w := newWorld(t)
	if err := w.bundle.Install(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	w.reboot()
	for range 2 {
		if err := w.boot.Cancel(); err != nil {
			t.Fatal(err)
		}
		w.is(t, slot.State{Running: slot.B, Active: slot.A})
	}
	w.reboot()
	w.is(t, slot.State{Running: slot.A, Active: slot.A})
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.bad["rootfs.1"] {
		t.Error("the slot that was given up is still good")
	}
}

func TestABootLoaderGivesUpATrial(t *testing.T) {
	w := newWorld(t)
	if err := w.bundle.Install(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		w.reboot()
	}
	w.is(t, slot.State{Running: slot.A, Active: slot.A})
}

func TestAMarkThatDidNothingIsNoticed(t *testing.T) {
	w := newWorld(t)
	w.mu.Lock()
	w.lie = true
	w.mu.Unlock()
	if err := w.boot.Try(slot.B, 3); !errors.Is(err, slot.ErrEnvironment) {
		t.Errorf("%v", err)
	}
}
