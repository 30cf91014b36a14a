package firmware

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

const (
	rewritesMax = 2               // times that a slot may not keep what was written
	rebootWait  = 5 * time.Minute // for those who restart the device
)

// errKept: the slot does not hold what was written.
var errKept = errors.New("the slot does not hold what was written to it")

// verify is the step of verifying: what the medium gives back is what counts.
func (e *Engine) verify(ctx context.Context) (State, error) {
	m, err := e.manifestOf()
	if err != nil {
		return Verifying, &toState{err, Fetching} // it is got again with the manifest
	}
	if err := e.readBack(ctx, m); err != nil {
		if u := e.saved.Update; errors.Is(err, errKept) && u.Rewrites < rewritesMax {
			e.mu.Lock()
			u.Rewrites++
			e.mu.Unlock()
			return Verifying, &toState{err, Fetching}
		}
		return Verifying, err
	}
	if e.o.Installer != nil {
		if err := e.o.Installer.Install(ctx, m, e.installed); err != nil {
			return Verifying, fmt.Errorf("installing: %w", err)
		}
	}
	e.verified = true
	return Armed, nil
}

// readBack compares every byte of the target slot with the manifest.
func (e *Engine) readBack(ctx context.Context, m *manifest.Manifest) error {
	target := e.saved.Update.Target
	for _, part := range m.Parts() {
		dev, err := e.o.Open(target, part.Name, true)
		if err != nil {
			return fmt.Errorf("opening part %s of slot %s: %w", part.Name, target, err)
		}
		err = dev.Sync() // so that the medium is read, and not the page cache
		if err == nil {
			err = readPart(ctx, dev, part)
		}
		if err = errors.Join(err, dev.Close()); err != nil {
			return fmt.Errorf("reading part %s of slot %s back: %w", part.Name, target, err)
		}
	}
	return nil
}

func readPart(ctx context.Context, dev slot.Device, part manifest.Part) error {
	whole := sha256.New()
	buf := make([]byte, min(manifest.SegmentSize, part.Size))
	for k, want := range part.Segments {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		off := int64(k) * manifest.SegmentSize
		b := buf[:min(manifest.SegmentSize, part.Size-off)]
		if _, err := readFull(dev, b, off); err != nil {
			return fmt.Errorf("%w: segment %d: %w", errKept, k, err)
		}
		if sha256.Sum256(b) != want {
			return fmt.Errorf("%w: segment %d differs", errKept, k)
		}
		whole.Write(b)
	}
	if manifest.Digest(whole.Sum(nil)) != part.SHA256 {
		return hint.With(errors.New("the segments are right and the whole is not: the manifest contradicts itself"), "publish it anew")
	}
	return nil
}

// arm is the step of armed. Once the boot loader knows of the trial a power cut begins it, so all
// that a trial is judged by is durable before.
func (e *Engine) arm(ctx context.Context) (State, error) {
	u := e.saved.Update
	if err := e.awaitWindow(ctx); err != nil {
		return Armed, err
	}
	if !e.verified {
		m, err := e.manifestOf()
		if err == nil {
			err = e.readBack(ctx, m)
		}
		if err != nil {
			return Armed, &toState{err, Fetching}
		}
		e.verified = true
	}
	if err := e.noteLines(ctx); err != nil {
		return Armed, err
	}
	if err := e.markTrial(u.Target); err != nil {
		return Armed, err
	}
	tries := max(e.o.Config.Tries, 1)
	if err := e.o.Boot.Try(u.Target, tries); err != nil {
		return Armed, fmt.Errorf("having the boot loader try slot %s: %w", u.Target, err)
	}
	if err := e.lookAtBoot(); err != nil {
		return Armed, err
	}
	e.mu.Lock()
	if u.OneShot {
		u.Tries--
	} else if tries > 1 && e.env.Tries <= 1 {
		u.OneShot, u.Tries = true, tries-1
	}
	u.BootID = e.o.BootID
	e.mu.Unlock()
	return Rebooting, nil
}

// reboot is the step of rebooting: it ends with the process, or when nobody ends it.
func (e *Engine) reboot(ctx context.Context) (State, error) {
	u := e.saved.Update
	if err := e.o.Reboot(ctx, u.Target); err != nil {
		return Rebooting, fmt.Errorf("asking for the restart: %w", err)
	}
	e.setWaits("the restart")
	e.pause(ctx, rebootWait)
	if ctx.Err() != nil {
		return Rebooting, ctx.Err()
	}
	return Rebooting, hint.With(fmt.Errorf("nobody restarted the device within %v", rebootWait),
		"see that ferrule-reboot.path is enabled and watches update.reboot")
}

func (e *Engine) linesName() string { return filepath.Join(e.o.Dir, "lines.json") }

func (e *Engine) markName() string { return filepath.Join(e.o.Dir, "trial") }

// markTrial says outside of the journal which slot is on trial, for whoever keeps the agent running: an
// agent that dies before it opens its engine, under a kernel that lives, uses up no try. Whoever
// cannot keep it up in that slot restarts the device.
func (e *Engine) markTrial(target slot.Slot) error {
	if err := atomicfile.Write(e.o.FS, e.markName(), []byte(string(target)+"\n"), 0o644); err != nil {
		return fmt.Errorf("marking the trial: %w", err)
	}
	return nil
}

// unmarkTrial may fail: the mark is of no slot but that one, and of no agent that starts.
func (e *Engine) unmarkTrial() {
	if err := e.o.FS.Remove(e.markName()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Debug("removing the mark of the trial", slog.Any("err", err))
	}
}

// noteLines remembers which units answer before the update: those must afterwards.
func (e *Engine) noteLines(ctx context.Context) error {
	var answered []string
	for _, line := range e.o.Health(ctx).Lines {
		if line.OK {
			answered = append(answered, line.Name)
		}
	}
	data, err := json.Marshal(answered)
	if err == nil {
		err = atomicfile.Write(e.o.FS, e.linesName(), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping which units answered: %w", err)
	}
	return nil
}

// answered reads what noteLines wrote. Without it no unit is missed.
func (e *Engine) answered() []string {
	var names []string
	data, err := disk.ReadFile(e.o.FS, e.linesName(), 1<<20)
	if err == nil {
		err = json.Unmarshal(data, &names)
	}
	if err != nil {
		e.log.Warn("nobody knows which units answered before the update", slog.Any("err", err))
		return nil
	}
	return names
}
