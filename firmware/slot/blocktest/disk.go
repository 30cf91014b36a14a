package blocktest

import (
	"bytes"
	"io"
	"slices"
	"sync"
	"syscall"

	"ferrule/firmware/slot"
)

// Op is one call as Fail sees it: "read", "write" or "sync", in bytes.
type Op struct {
	Kind string
	Off  int64
	Size int
}

// ShortWrite lets a failing write leave its first N bytes.
type ShortWrite struct {
	N   int
	Err error
}

func (s *ShortWrite) Error() string { return s.Err.Error() }
func (s *ShortWrite) Unwrap() error { return s.Err }

// Disk is a slot.Device in memory whose cache loses what was not synced. It is safe for
// concurrent use.
type Disk struct {
	mu   sync.Mutex
	base []byte // as it was made
	live []byte
	log  Log
	fail func(Op) error
}

var _ slot.Device = (*Disk)(nil)

// New returns a disk of zeros, of size bytes rounded up to sectors.
func New(size int64) *Disk { return From(make([]byte, (size+Sector-1)/Sector*Sector)) }

// From returns a disk that begins as image, which it takes over.
func From(image []byte) *Disk {
	if rest := len(image) % Sector; rest != 0 {
		image = append(image, make([]byte, Sector-rest)...)
	}
	return &Disk{base: image, live: slices.Clone(image)}
}

// Fail makes a call fail before it does anything, with the error match returns; nil lets it pass,
// a *ShortWrite lets part of a write pass. A nil match ends the failures. What was written
// before a Sync that failed is never vouched for by a later one.
func (d *Disk) Fail(match func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = match
}

// Mark notes that the test has come so far: what it was promised holds in every later state.
func (d *Disk) Mark(m any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.entries = append(d.log.entries, &entry{mark: m})
}

// Log is what was done since the disk was made.
func (d *Disk) Log() *Log {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Log{entries: slices.Clone(d.log.entries)}
}

// States is every disk that a power cut since the disk was made may leave.
func (d *Disk) States(o Options) func(yield func(*State) bool) {
	o.Base, o.Size = bytes.NewReader(d.base), int64(len(d.base))
	return d.Log().States(o)
}

// Kill is the disk as a killed process leaves it: everything written, nothing recorded.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return From(slices.Clone(d.live))
}

// Spoil changes bytes behind everyone's back, as failing flash does.
func (d *Disk) Spoil(off int64, with []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.record(off, with, true)
}

func (d *Disk) begin(op Op) error {
	d.mu.Lock()
	fail := d.fail
	d.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(op)
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.begin(Op{Kind: "read", Off: off, Size: len(p)}); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.NewReader(d.live).ReadAt(p, off)
}

// WriteAt implements io.WriterAt. What does not fit is refused with ENOSPC, as Linux does.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	failed := d.begin(Op{Kind: "write", Off: off, Size: len(p)})
	if short, ok := failed.(*ShortWrite); ok {
		p = p[:min(short.N, len(p))]
	} else if failed != nil {
		return 0, failed
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 {
		return 0, syscall.EINVAL
	}
	if room := max(0, int64(len(d.live))-off); int64(len(p)) > room {
		p, failed = p[:room], syscall.ENOSPC
	}
	d.record(off, p, false)
	return len(p), failed
}

// record writes in whole sectors, as the cache does.
func (d *Disk) record(off int64, p []byte, durable bool) {
	if len(p) == 0 {
		return
	}
	copy(d.live[off:], p)
	first, end := off/Sector, (off+int64(len(p))+Sector-1)/Sector
	d.log.entries = append(d.log.entries, &entry{
		sector: first, sectors: end - first, fua: durable,
		data: slices.Clone(d.live[first*Sector : end*Sector]),
	})
}

// Sync implements slot.Device.
func (d *Disk) Sync() error {
	if err := d.begin(Op{Kind: "sync"}); err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i, e := range d.log.entries {
			waits := !e.fua && e.sectors > 0
			for _, later := range d.log.entries[i+1:] {
				waits = waits && !later.flush
			}
			e.lost = e.lost || waits
		}
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.entries = append(d.log.entries, &entry{flush: true})
	return nil
}

// Size implements slot.Device.
func (d *Disk) Size() int64 { return int64(len(d.base)) }

// Close implements slot.Device; the disk can be used on.
func (d *Disk) Close() error { return nil }

var _ io.WriterTo = (*Disk)(nil)

// WriteTo writes what a killed process leaves.
func (d *Disk) WriteTo(w io.Writer) (int64, error) {
	d.mu.Lock()
	image := slices.Clone(d.live)
	d.mu.Unlock()
	return bytes.NewReader(image).WriteTo(w)
}
