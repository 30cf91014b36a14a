package rauc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// Boot is RAUC as the choice between two slots. How often a slot may be tried is a matter of the boot
// loader and of RAUC's system.conf; RAUC tells neither that, nor whether the slot that runs was ever found
// good. So which slot was committed last is kept in a file of ours; without it, it is the one that
// runs. The trap: rauc-mark-good.service would find every slot good as soon as it has started.
type Boot struct {
	client *Client
	fs     disk.FS
	file   string
}

// NewBoot returns RAUC as a boot loader. file, of which the folder is there, keeps which slot was
// committed last.
func NewBoot(c *Client, fsys disk.FS, file string) *Boot {
	return &Boot{client: c, fs: fsys, file: file}
}

var _ slot.Boot = (*Boot)(nil)

// pair is RAUC's two slots that boot, ordered by their names: slot a is rootfs.0.
type pair [2]Slot

func (p pair) name(s slot.Slot) string {
	if s == slot.B {
		return p[1].Name
	}
	return p[0].Name
}

// of is which slot has the name, which may be that of the boot loader; "" for neither.
func (p pair) of(name string) slot.Slot {
	for i, s := range []slot.Slot{slot.A, slot.B} {
		if name != "" && (p[i].Name == name || p[i].Bootname == name) {
			return s
		}
	}
	return ""
}

func (b *Boot) pair(ctx context.Context) (p pair, running slot.Slot, err error) {
	slots, err := b.client.Slots(ctx)
	if err != nil {
		return p, "", err
	}
	slots = slices.DeleteFunc(slots, func(s Slot) bool { return s.Bootname == "" })
	if len(slots) != 2 {
		return p, "", fmt.Errorf("%w: RAUC has %d slots with a bootname, and two are needed", slot.ErrEnvironment, len(slots))
	}
	slices.SortFunc(slots, func(a, b Slot) int { return cmp.Compare(a.Name, b.Name) })
	p = pair(slots)
	for i, s := range []slot.Slot{slot.A, slot.B} {
		if p[i].State == "booted" {
			return p, s, nil
		}
	}
	return p, "", fmt.Errorf("%w: RAUC does not know which slot was booted", slot.ErrEnvironment)
}

// State asks RAUC. Where a slot is on trial, Tries is 1: RAUC does not tell how many are left.
func (b *Boot) State() (slot.State, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*answerWithin)
	defer cancel()
	_, s, err := b.state(ctx)
	return s, err
}

func (b *Boot) state(ctx context.Context) (pair, slot.State, error) {
	p, running, err := b.pair(ctx)
	if err != nil {
		return p, slot.State{}, err
	}
	next, err := b.client.Primary(ctx)
	if err != nil {
		return p, slot.State{}, err
	}
	s := slot.State{Running: running, Active: running}
	if committed := b.committed(ctx, p); committed != "" {
		s.Active = committed
	}
	if primary := p.of(next); primary != "" && primary != s.Active {
		s.Trial, s.Tries = primary, 1
	}
	return p, s, nil
}

// committed is the slot of the file; "" where there is none, or nothing that can be used.
func (b *Boot) committed(ctx context.Context, p pair) slot.Slot {
	text, err := disk.ReadFile(b.fs, b.file, 256)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			b.client.o.Log.LogAttrs(ctx, slog.LevelWarn, "reading which slot was committed", slog.Any("err", err))
		}
		return ""
	}
	return p.of(strings.TrimSuffix(string(text), "\n"))
}

// keep remembers which slot is committed, and reads it back.
func (b *Boot) keep(ctx context.Context, p pair, s slot.Slot) error {
	if b.committed(ctx, p) == s {
		return nil
	}
	if err := atomicfile.Write(b.fs, b.file, []byte(p.name(s)+"\n"), 0o600); err != nil {
		return fmt.Errorf("remembering which slot is committed: %w", err)
	}
	if b.committed(ctx, p) != s {
		return fmt.Errorf("%w: %s does not say what was written to it", slot.ErrEnvironment, b.file)
	}
	return nil
}

// change has RAUC mark slots, within the time that two answers may take each.
func (b *Boot) change(what func(ctx context.Context, p pair, s slot.State) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*answerWithin)
	defer cancel()
	p, s, err := b.state(ctx)
	if err != nil {
		return err
	}
	return what(ctx, p, s)
}

// activate has s boot next, and asks whether it will.
func (b *Boot) activate(ctx context.Context, p pair, s slot.Slot) error {
	if _, _, err := b.client.Mark(ctx, Active, p.name(s)); err != nil {
		return err
	}
	next, err := b.client.Primary(ctx)
	if err != nil {
		return err
	}
	if p.of(next) != s {
		return fmt.Errorf("%w: slot %s was made active, and %q would boot next", slot.ErrEnvironment, s, next)
	}
	return nil
}

// Try has s booted next. tries is the boot loader's affair, and not used.
func (b *Boot) Try(s slot.Slot, _ int) error {
	return b.change(func(ctx context.Context, p pair, now slot.State) error {
		if s != slot.A && s != slot.B || s == now.Active {
			return fmt.Errorf("%w: trying slot %q, and slot %s is active", slot.ErrSlot, s, now.Active)
		}
		// Before RAUC is told: without the file the slot on trial would be taken for committed.
		if err := b.keep(ctx, p, now.Active); err != nil {
			return err
		}
		return b.activate(ctx, p, s)
	})
}

// Commit finds s, which runs, good.
func (b *Boot) Commit(s slot.Slot) error {
	return b.change(func(ctx context.Context, p pair, now slot.State) error {
		if now.Running != s {
			return fmt.Errorf("%w: committing slot %q, and slot %s runs", slot.ErrSlot, s, now.Running)
		}
		if _, _, err := b.client.Mark(ctx, Good, Booted); err != nil {
			return err
		}
		if err := b.activate(ctx, p, s); err != nil {
			return err
		}
		return b.keep(ctx, p, s)
	})
}

// Cancel ends a trial: the slot on trial is bad, and the active one boots next.
func (b *Boot) Cancel() error {
	return b.change(func(ctx context.Context, p pair, now slot.State) error {
		if err := b.keep(ctx, p, now.Active); err != nil {
			return err
		}
		if err := b.activate(ctx, p, now.Active); err != nil {
			return err
		}
		if !now.OnTrial() && now.Trial == "" {
			return nil
		}
		_, _, err := b.client.Mark(ctx, Bad, p.name(now.Active.Other()))
		return err
	})
}

// Bundle installs the bundle that lies in a file, as the engine's Installer.
type Bundle struct {
	boot *Boot
	path string
}

// NewBundle returns the installer of the bundle at path, an absolute one that RAUC can read.
func NewBundle(b *Boot, path string) *Bundle { return &Bundle{boot: b, path: path} }

// Install has RAUC install the file. The manifest was checked, as was the file against it; RAUC
// checks the bundle's own signature besides. progress, which may be nil, gets per cent. It may take an
// hour, and says so by ErrLost.
func (b *Bundle) Install(ctx context.Context, _ *manifest.Manifest, progress func(done, total int64)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Hour, errors.New("RAUC took longer than an hour"))
	defer cancel()
	// RAUC activates what it has installed: without the file a power cut after that would leave a
	// trial that is taken for committed.
	err := b.boot.change(func(ctx context.Context, p pair, now slot.State) error { return b.boot.keep(ctx, p, now.Active) })
	if err != nil {
		return err
	}
	b.boot.client.o.Log.LogAttrs(ctx, slog.LevelInfo, "RAUC installs", slog.String("bundle", b.path))
	return b.boot.client.Install(ctx, b.path, func(p Progress) {
		if progress != nil {
			progress(int64(p.Percent), 100)
		}
	})
}
