package mbus

import (
	"context"
	"errors"
	"fmt"
)

// Found is one unit that a scan met, or a place where units speak at once.
type Found struct {
	Address Address // what to write into the configuration
	Header  Header
	Err     error // why there is no Header: ErrChecksum or ErrGarbage where units collide
}

// Scan says what a scan is to look for and to whom it tells what it finds. Found and Progress are
// called on the goroutine that scans; Progress may be nil.
type Scan struct {
	Found func(Found)
	// Progress tells which part of the scan is done, from 0 to 1, and what is asked next.
	Progress func(done float64, next Address)
}

func (s *Scan) progress(done float64, next Address) {
	if s.Progress != nil {
		s.Progress(done, next)
	}
}

// ScanPrimary asks every primary address from first to last, MaxAddress at most, whether a unit is
// there. It ends early when ctx does, or the port fails.
func (m *Master) ScanPrimary(ctx context.Context, first, last byte, s Scan) error {
	last = min(last, MaxAddress)
	for a := int(first); a <= int(last); a++ {
		address := Primary(byte(a))
		s.progress(float64(a-int(first))/float64(int(last)-int(first)+1), address)
		err := m.reset(ctx, byte(a))
		if errors.Is(err, ErrTimeout) {
			continue
		}
		if err != nil && !heard(err) {
			return fmt.Errorf("scanning: %w", err)
		}
		found := Found{Address: address}
		found.Header, found.Err = m.identify(ctx, address)
		if found.Err != nil && !heard(found.Err) {
			return fmt.Errorf("scanning: %w", found.Err)
		}
		s.Found(found)
	}
	s.progress(1, Address{})
	return nil
}

// heard reports whether err comes from the line, and not from the context or the port.
func heard(err error) bool {
	for _, e := range [...]error{ErrTimeout, ErrChecksum, ErrGarbage, ErrMismatch, ErrFormat, ErrEncrypted, ErrUnsupported} {
		if errors.Is(err, e) {
			return true
		}
	}
	_, refused := errors.AsType[ApplicationError](err)
	return refused
}

// identify asks a unit, which is reset or selected, for one telegram, twice if need be.
func (m *Master) identify(ctx context.Context, a Address) (h Header, err error) {
	u := unit{fcb: true}
	for range 2 {
		var raw []byte
		m.ends = m.ends[:0]
		if raw, err = m.request(ctx, a, &u, false); err == nil {
			f := parse(raw)
			if h, _, err = parseHeader(&f); errors.Is(err, ErrEncrypted) {
				err = nil
			}
			return h, err
		}
	}
	return h, err
}

// ScanSecondary looks for all units whose secondary address fits mask, as Everybody does: digit by
// digit of the identification, deeper wherever more than one answers (EN 13757-7, 8.5). Addresses are
// found complete, with manufacturer, version and medium.
func (m *Master) ScanSecondary(ctx context.Context, mask Address, s Scan) error {
	if !mask.secondary {
		return fmt.Errorf("scanning: %w: %s is no secondary address", ErrFormat, mask)
	}
	if _, err := m.search(ctx, mask, 0, 1, &s); err != nil {
		return fmt.Errorf("scanning: %w", err)
	}
	if err := m.Deselect(ctx); err != nil && !heard(err) {
		return fmt.Errorf("scanning: %w", err)
	}
	s.progress(1, mask)
	return nil
}

// search asks for mask, which is share of the whole scan from done on. It reports how many units, or
// collisions, it told of.
func (m *Master) search(ctx context.Context, mask Address, done, share float64, s *Scan) (told int, err error) {
	s.progress(done, mask)
	h, err := m.probe(ctx, mask)
	switch {
	case err == nil:
		s.Found(Found{Address: AddressOf(&h), Header: h})
		return 1, nil
	case err == errNobody:
		return 0, nil
	case !heard(err):
		return 0, err
	}
	digit := mask.open()
	for n := 0; n < 10 && digit >= 0; n++ {
		next := mask
		next.setDigit(digit, byte(n))
		more, err := m.search(ctx, next, done+share*float64(n)/10, share/10, s)
		if err != nil {
			return told, err
		}
		told += more
	}
	if told == 0 {
		s.Found(Found{Address: mask, Err: err})
		told = 1
	}
	return told, nil
}

// errNobody says that no unit has a secondary address.
var errNobody = errors.New("nobody")

// probe returns the header of the one unit that fits mask, errNobody, or whatever shows that there are
// several.
func (m *Master) probe(ctx context.Context, mask Address) (Header, error) {
	if err := m.choose(ctx, mask); errors.Is(err, ErrTimeout) {
		return Header{}, errNobody
	} else if err != nil && !heard(err) {
		return Header{}, err
	} // units that do not acknowledge in the same instant make noise, and are selected all the same
	return m.identify(ctx, mask)
}

// open returns which digit of the identification is the first that is open; -1 if none is.
func (a *Address) open() int {
	for i := range 8 {
		b := a.mask[3-i/2]
		if i%2 == 0 && b>>4 == 0xF || i%2 == 1 && b&0xF == 0xF {
			return i
		}
	}
	return -1
}

// AddressOf returns the complete secondary address of the unit whose header h is. Where the header says
// no more than the identification, the rest is open.
func AddressOf(h *Header) Address {
	a := Everybody()
	for i := range 4 {
		a.mask[i] = byte(h.ID >> (8 * i))
	}
	if !h.Fixed {
		a.mask[4], a.mask[5], a.mask[6], a.mask[7] = byte(h.Manufacturer), byte(h.Manufacturer>>8), h.Version, h.Medium
	}
	return a
}
