package firmware

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"
	"ferrule/firmware/slot"
	"ferrule/internal/hint"
)

const (
	syncEvery = 4         // segments
	headChunk = 64 << 10  // bytes of an object that are asked for to see its table
	mergeGap  = 128 << 10 // bytes that are read and thrown away rather than asked around
)

// fetch is the step of fetching. The target slot is the only cache there is: segments that lie in
// it as the manifest has them are not fetched, whether a former attempt or a former version
// has left them there.
func (e *Engine) fetch(ctx context.Context) (State, error) {
	if err := e.awaitWindow(ctx); err != nil {
		return Fetching, err
	}
	e.countAttempt()
	if !e.fresh {
		if err := e.chooseAgain(ctx); err != nil {
			return Fetching, err
		}
	}
	u := e.saved.Update
	m, err := e.manifestOf()
	if err != nil {
		return Fetching, err
	}
	if err := e.checkSizes(m, u.Target); err != nil {
		return Fetching, err
	}
	if err := e.freeTarget(u.Target); err != nil {
		return Fetching, err
	}
	e.beginProgress(m)
	for _, part := range m.Parts() {
		if err := e.fetchPart(ctx, u.Target, part); err != nil {
			return Fetching, fmt.Errorf("part %s: %w", part.Name, err)
		}
	}
	return Verifying, nil
}

// countAttempt is durable with whatever is journalled next.
func (e *Engine) countAttempt() {
	e.mu.Lock()
	e.saved.Update.Attempts++
	e.mu.Unlock()
}

// chooseAgain asks the repository, after a start, whether the update still is what this device is to
// have: it may have been paused, or there may be a newer one.
func (e *Engine) chooseAgain(ctx context.Context) error {
	before := *e.saved.Update
	for try := 0; ; try++ {
		err := e.look(ctx, before.Request)
		switch {
		case err == nil && e.saved.Update.Manifest != before.Manifest:
			e.log.Info("another manifest takes the place of the one under way", slog.String("version", e.saved.Update.Version))
			return e.write()
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrNothing), errors.Is(err, ErrRefused):
			return fmt.Errorf("it is not for this device any more: %w", err)
		case try >= attempts:
			return err
		}
		e.setWaits(fmt.Sprintf("asking the repository again: %v", err))
		e.pause(ctx, retryFirst<<try)
	}
}

// checkSizes refuses an update that does not fit before anything is written.
func (e *Engine) checkSizes(m *manifest.Manifest, target slot.Slot) error {
	for _, part := range m.Parts() {
		dev, err := e.o.Open(target, part.Name, true)
		if err != nil {
			return fmt.Errorf("opening part %s of slot %s: %w", part.Name, target, err)
		}
		size := dev.Size()
		if err := dev.Close(); err != nil {
			return fmt.Errorf("opening part %s of slot %s: %w", part.Name, target, err)
		}
		if size > 0 && part.Size > size {
			return hint.With(fmt.Errorf("part %s has %d bytes, and slot %s has room for %d", part.Name, part.Size, target, size),
				"publish a smaller image for this hardware")
		}
	}
	return nil
}

// freeTarget makes sure that nothing boots the target while it is written.
func (e *Engine) freeTarget(target slot.Slot) error {
	env, err := e.o.Boot.State()
	if err != nil {
		return err
	}
	if env.Running == target {
		return fmt.Errorf("slot %s runs and is not written", target)
	}
	if env.Active == target {
		// The active slot did not boot, or this one would not run: it is the one that is known to work.
		err = e.o.Boot.Commit(env.Running)
	} else {
		err = e.o.Boot.Cancel()
	}
	if err != nil {
		return fmt.Errorf("ending the trial of slot %s before it is written: %w", target, err)
	}
	return e.lookAtBoot()
}

// lookAtBoot keeps what Status shows of the environment true.
func (e *Engine) lookAtBoot() error {
	env, err := e.o.Boot.State()
	if err == nil {
		e.mu.Lock()
		e.env = env
		e.mu.Unlock()
	}
	return err
}

// truncater is a device that is a file.
type truncater interface{ Truncate(size int64) error }

// way is an object that makes a part, and what it is made of.
type way struct {
	object manifest.Object
	want   patch.Want
	delta  bool
}

func (e *Engine) fetchPart(ctx context.Context, target slot.Slot, part manifest.Part) (err error) {
	dev, err := e.o.Open(target, part.Name, true)
	if err != nil {
		return fmt.Errorf("opening it in slot %s: %w", target, err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	if file, ok := dev.(truncater); ok {
		if err := file.Truncate(part.Size); err != nil {
			return writeError(target, err)
		}
	}
	missing, err := e.missing(ctx, dev, part)
	if err != nil || !slices.Contains(missing, true) {
		return err
	}
	old, ways := e.ways(ctx, part)
	if old != nil {
		defer old.Close()
	}
	d := &download{e: e, dev: dev, target: target, part: part, missing: missing}
	for i, w := range ways {
		if w.delta {
			d.old = old
		} else {
			d.old = nil
		}
		err := d.by(ctx, w)
		if err == nil {
			return nil
		}
		if i == len(ways)-1 || !w.passesOn(err) {
			return err
		}
		e.forgetHashes()
		e.log.Warn("the delta did not make the part; the next larger object will", slog.String("part", part.Name), slog.Any("err", err))
	}
	return nil
}

// passesOn reports whether another object may do better.
func (w way) passesOn(err error) bool {
	return errors.Is(err, patch.ErrFormat) || errors.Is(err, patch.ErrOutput) || errors.Is(err, patch.ErrOld) || errors.Is(err, fs.ErrNotExist)
}

func writeError(target slot.Slot, err error) error {
	return fmt.Errorf("writing slot %s: %w", target, err)
}

// missing says which segments of a part are not in the slot. What cannot be read is written anew.
func (e *Engine) missing(ctx context.Context, dev slot.Device, part manifest.Part) ([]bool, error) {
	missing := make([]bool, len(part.Segments))
	buf := make([]byte, manifest.SegmentSize)
	for k, want := range part.Segments {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		off := int64(k) * manifest.SegmentSize
		b := buf[:min(manifest.SegmentSize, part.Size-off)]
		_, err := readFull(dev, b, off)
		if missing[k] = err != nil || sha256.Sum256(b) != want; !missing[k] {
			e.progress(1, 0)
		}
	}
	return missing, nil
}

func readFull(r io.ReaderAt, b []byte, off int64) (int, error) {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		err = nil
	}
	return n, err
}

// ways lists the objects that make a part, the smallest first, and opens what deltas need.
func (e *Engine) ways(ctx context.Context, part manifest.Part) (slot.Device, []way) {
	ways := []way{{object: part.Full, want: patch.OfFull(&part)}}
	if len(part.Deltas) == 0 || e.o.Installer != nil { // an installer's bundle is all there is: it has no slots
		return nil, ways
	}
	old, err := e.o.Open(e.env.Running, part.Name, false)
	if err != nil {
		return nil, ways
	}
	sums := e.hashes(ctx, old, part)
	for i := range part.Deltas {
		d := &part.Deltas[i]
		if sum, known := sums[d.FromSize]; known && sum == d.From && d.Object.Size < part.Full.Size {
			ways = append(ways, way{object: d.Object, want: patch.OfDelta(&part, d), delta: true})
			for k := len(ways) - 1; k > 0 && ways[k].object.Size < ways[k-1].object.Size; k-- {
				ways[k], ways[k-1] = ways[k-1], ways[k]
			}
		}
	}
	if len(ways) == 1 {
		old.Close()
		return nil, ways
	}
	return old, ways
}

// download writes the missing segments of one part.
type download struct {
	e       *Engine
	dev     slot.Device
	old     io.ReaderAt
	target  slot.Slot
	part    manifest.Part
	missing []bool
	body    []byte
	out     []byte
	unsaved int // segments since the last sync
}

// by gets what is missing from one object. What was damaged is asked for once more: it may have been
// on the way.
func (d *download) by(ctx context.Context, w way) error {
	d.e.choseObject(d.part.Name, w)
	for try := 0; ; try++ {
		err := d.once(ctx, w)
		if err == nil || try > 0 || !errors.Is(err, patch.ErrFormat) && !errors.Is(err, patch.ErrOutput) {
			return err
		}
	}
}

func (d *download) once(ctx context.Context, w way) error {
	head := &head{get: func(off, end int64) io.ReadCloser { return d.e.client.Span(ctx, w.object, off, end) }, size: w.object.Size}
	plan, err := patch.ReadHeader(head, w.want)
	if err != nil {
		return err
	}
	if d.body == nil {
		d.body, d.out = make([]byte, patch.BodyLimit), make([]byte, 0, patch.BodyLimit+patch.MapLimit)
	}
	for k := 0; k < len(d.missing); {
		if !d.missing[k] {
			k++
			continue
		}
		end := d.runEnd(plan, k)
		err := d.run(ctx, head, plan, k, end)
		if err != nil && !errors.Is(err, errWindow) {
			return errors.Join(err, d.sync())
		}
		if err := d.sync(); err != nil {
			return err
		}
		if err != nil {
			if err := d.e.awaitWindow(ctx); err != nil {
				return err
			}
			continue // from where the window closed
		}
		k = end
	}
	return d.sync()
}

// runEnd is the segment after those that are got in one go from k on: a small gap is read over, and
// any gap where the server has no ranges.
func (d *download) runEnd(plan *patch.Plan, k int) int {
	end := k + 1
	for next := end; next < len(d.missing); next++ {
		if d.missing[next] {
			end = next + 1
		} else if plan.Offset(next+1)-plan.Offset(end) > mergeGap && d.e.client.Ranges() {
			break
		}
	}
	return end
}

// errWindow: the window closed in the midst of a download.
var errWindow = errors.New("the window closed")

func (d *download) run(ctx context.Context, head *head, plan *patch.Plan, from, to int) error {
	r := head.span(plan.Offset(from), plan.Offset(to))
	defer r.Close()
	for k := from; k < to; k++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !d.e.windowOpen() {
			return errWindow
		}
		body := d.body[:plan.Body(k)]
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		if !d.missing[k] {
			continue
		}
		out, err := plan.Segment(k, body, d.old, d.out[:0])
		if err != nil {
			return err
		}
		if n, err := d.dev.WriteAt(out, int64(k)*manifest.SegmentSize); err != nil || n != len(out) {
			return writeError(d.target, cmp.Or(err, io.ErrShortWrite))
		}
		d.missing[k] = false
		d.e.progress(1, int64(len(body)))
		if d.unsaved++; d.unsaved >= syncEvery {
			if err := d.sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *download) sync() error {
	if d.unsaved == 0 {
		return nil
	}
	d.unsaved = 0
	if err := d.dev.Sync(); err != nil {
		return writeError(d.target, err)
	}
	return nil
}

// head is the beginning of an object, as far as it was read to see the table. What was read of
// the bodies with it is not fetched again.
type head struct {
	get  func(off, end int64) io.ReadCloser
	size int64
	data []byte
	at   int
}

// Read implements io.Reader.
func (h *head) Read(p []byte) (int, error) {
	if h.at == len(h.data) {
		if int64(h.at) >= min(h.size, patch.HeaderLimit) {
			return 0, io.EOF
		}
		r := h.get(int64(h.at), min(h.size, int64(h.at)+headChunk))
		more, err := io.ReadAll(r)
		r.Close()
		h.data = append(h.data, more...)
		if err != nil {
			return 0, err
		}
	}
	n := copy(p, h.data[h.at:])
	h.at += n
	return n, nil
}

// span reads bytes off to end of the object.
func (h *head) span(off, end int64) io.ReadCloser {
	have := int64(len(h.data))
	if off >= have {
		return h.get(off, end)
	}
	known := h.data[off:min(end, have)]
	if end <= have {
		return io.NopCloser(bytes.NewReader(known))
	}
	rest := h.get(have, end)
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(known), rest), rest}
}

// awaitWindow waits until the window is open, or is to be ignored.
func (e *Engine) awaitWindow(ctx context.Context) error {
	for !e.windowOpen() {
		now, trusted := e.o.Now()
		next := e.o.Config.Window.Next(now)
		e.setWaits(fmt.Sprintf("the window %v opens at %s", e.o.Config.Window, next.Format(time.RFC3339)))
		wait := min(time.Until(time.Now().Add(next.Sub(now))), time.Hour)
		if !trusted {
			e.setWaits(fmt.Sprintf("nobody vouches for the clock, so nobody knows whether it is %v", e.o.Config.Window))
			wait = time.Minute
		}
		e.pause(ctx, max(wait, time.Second))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	e.setWaits("")
	return nil
}

// windowOpen reports whether the update under way may disturb now.
func (e *Engine) windowOpen() bool {
	now, trusted := e.o.Now()
	w := e.o.Config.Window
	return !w.set || e.saved.Update.Request.Now || trusted && w.Open(now)
}
