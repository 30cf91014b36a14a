package blocktest

import (
	"io"
	"slices"
)

// State is one disk that a power cut may leave: the disk before the log, and over it what
// reached the medium. Reading it copies nothing but what is read.
type State struct {
	log     *Log
	o       Options
	cut     int
	what    string
	durable []int32
	pieces  []piece
	marks   []any
}

var (
	_ io.ReaderAt = (*State)(nil)
	_ io.WriterTo = (*State)(nil)
)

// String says where the power was cut and what was written.
func (s *State) String() string { return s.what }

// Cut is the last request before the cut, -1 before the first.
func (s *State) Cut() int { return s.cut }

// Marks is what had been noted before the cut, and is promised therefore.
func (s *State) Marks() []any { return s.marks }

// Size of the disk in bytes.
func (s *State) Size() int64 { return s.o.Size }

// Keep makes a state that is good for as long as its log is.
func (s *State) Keep() *State {
	kept := *s
	kept.durable, kept.pieces, kept.marks = slices.Clone(s.durable), slices.Clone(s.pieces), slices.Clone(s.marks)
	return &kept
}

// ReaderAt is the state itself, as the io package calls it.
func (s *State) ReaderAt() *io.SectionReader { return io.NewSectionReader(s, 0, s.o.Size) }

// ReadAt implements io.ReaderAt.
func (s *State) ReadAt(p []byte, off int64) (int, error) {
	short := error(nil)
	if off >= s.o.Size {
		return 0, io.EOF
	}
	if room := s.o.Size - off; int64(len(p)) > room {
		p, short = p[:room], io.EOF
	}
	first := off / Sector
	owners := s.owners(first, (off+int64(len(p))+Sector-1)/Sector)
	for done := 0; done < len(p); {
		at := off + int64(done)
		owner := owners[at/Sector-first]
		end := at/Sector + 1
		for end-first < int64(len(owners)) && owners[end-first] == owner {
			end++
		}
		run := p[done:min(int64(len(p)), int64(done)+end*Sector-at)]
		if err := s.read(owner, run, at); err != nil {
			return done, err
		}
		done += len(run)
	}
	return len(p), short
}

// owners says of each sector which request wrote it, counted from 1; 0: none.
func (s *State) owners(from, to int64) []int32 {
	owners := slices.Clone(s.durable[from:to])
	for _, p := range s.pieces {
		overlay(owners, from, p)
	}
	return owners
}

func (s *State) read(owner int32, p []byte, off int64) error {
	if owner == 0 {
		return readBase(s.o.Base, p, off)
	}
	e := s.log.entries[owner-1]
	switch off -= e.sector * Sector; {
	case e.zero:
		clear(p)
		return nil
	case e.data != nil:
		copy(p, e.data[off:])
		return nil
	default:
		return readFull(s.log.src, p, e.off+off)
	}
}

// readBase reads what was there before the log; an image that is shorter than its disk goes on in zeros.
func readBase(base io.ReaderAt, p []byte, off int64) error {
	n := 0
	if base != nil {
		var err error
		if n, err = base.ReadAt(p, off); err != nil && err != io.EOF {
			return err
		}
	}
	clear(p[n:])
	return nil
}

// Changed calls visit with every run of bytes that the log may have changed, in order.
func (s *State) Changed(visit func(off, n int64) error) error {
	owners := s.owners(0, int64(len(s.durable)))
	for from := 0; from < len(owners); {
		to := from + 1
		for to < len(owners) && (owners[to] != 0) == (owners[from] != 0) {
			to++
		}
		if owners[from] != 0 {
			off := int64(from) * Sector
			if err := visit(off, min(int64(to)*Sector, s.o.Size)-off); err != nil {
				return err
			}
		}
		from = to
	}
	return nil
}

// Patch makes a copy of the base the state: it writes only what the log changed.
func (s *State) Patch(w io.WriterAt) error {
	return s.Changed(func(off, n int64) error {
		_, err := io.Copy(io.NewOffsetWriter(w, off), io.NewSectionReader(s, off, n))
		return err
	})
}

// WriteTo writes the whole disk.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, io.NewSectionReader(s, 0, s.o.Size))
}

// Disk is a disk in memory that begins with the state, and shares nothing with it.
func (s *State) Disk() (*Disk, error) {
	image := make([]byte, s.o.Size)
	if _, err := s.ReadAt(image, 0); err != nil {
		return nil, err
	}
	return From(image), nil
}
