package authorize

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/internal/record"
)

// The store of used tokens is a log of records (internal/record). Each begins with its kind:
//
//	used    1: expiry (8 bytes, milliseconds since 1970), digest of issuer's key and jti (32 bytes)
//	horizon 2: a time (8 bytes): tokens that expire at it or before may have been used and forgotten
//	fresh   3: a time (8 bytes): tokens issued at it or before may have been used and lost
//
// An entry lives until its token's expiry and the leeway are over; then the horizon takes its place, so that a
// clock that goes back revives nothing. Where records were lost, or the file is missing, everything issued before this
// start is refused. So single use rests on nothing but the order of what the issuer wrote into its tokens.
const (
	kindUsed    = 1
	kindHorizon = 2
	kindFresh   = 3

	// capacity is how many used tokens can wait for their expiry: 4 a second with tokens of 15 minutes.
	capacity   = 4096
	maxPayload = 1 + 8 + sha256.Size
	// slack is what the file may grow beyond twice what it held when it was written anew, in bytes.
	slack = 16 << 10
)

var (
	seed         = record.NewSeed(0x7370656e74) // "spent"
	errFull      = errors.New("as many tokens as can be remembered wait for their expiry")
	errUnchecked = errors.New("the token was not checked")
)

type digest [sha256.Size]byte

// identify names a token by who signed it and its jti: neither its bytes, since a signature has a twin, nor iss, which
// one key may write in many ways.
func identify(key, jti string) digest {
	return sha256.Sum256([]byte(key + "\x00" + jti))
}

// store remembers used tokens across power cuts.
type store struct {
	fsys   disk.FS
	path   string
	clock  Clock
	leeway time.Duration
	log    *slog.Logger
	opened time.Time // with the monotonic clock

	mu      sync.Mutex
	used    map[digest]int64 // expiry
	horizon int64
	fresh   int64
	lost    bool      // entries may be missing, and fresh does not cover them yet
	file    disk.File // nil: the next change writes all anew
	size    int64
	settled int64
	problem error
}

func openStore(fsys disk.FS, path string, clock Clock, leeway time.Duration, log *slog.Logger) *store {
	s := &store{fsys: fsys, path: path, clock: clock, leeway: leeway, log: log, opened: time.Now(), used: map[digest]int64{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.read()
	if err == nil {
		return s
	}
	s.lost = true
	_ = s.closeFile()
	if !errors.Is(err, fs.ErrNotExist) {
		log.LogAttrs(context.Background(), slog.LevelWarn, "part of the store of used authorisations cannot be read; tokens issued before now are refused",
			slog.String("file", path), slog.Any("err", err))
	}
	if clock.Trusted() {
		s.cover()
		_ = s.rewrite() // status tells
	}
	return s
}

// read takes over the file. Any damage is an error, and what could be read is kept all the same.
func (s *store) read() error {
	f, err := s.fsys.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s.file = f
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s.size, s.settled = info.Size(), info.Size()
	var damage error
	if s.size == 0 {
		damage = errors.New("it is empty")
	}
	r := record.NewReader(f, 0, s.size, seed, maxPayload)
	for {
		rec, err := r.Next()
		if rec.Damaged > 0 {
			damage = fmt.Errorf("%d bytes before offset %d are no record", rec.Damaged, rec.Offset)
		}
		if errors.Is(err, io.EOF) {
			return damage
		}
		if err != nil {
			return err
		}
		if !s.replay(rec.Payload) {
			damage = fmt.Errorf("the record at offset %d makes no sense", rec.Offset)
		}
	}
}

// replay takes over one record.
func (s *store) replay(payload []byte) bool {
	if len(payload) < 9 {
		return false
	}
	at := int64(binary.LittleEndian.Uint64(payload[1:]))
	if at < 0 || at > maxTime*1000 {
		return false
	}
	switch {
	case payload[0] == kindUsed && len(payload) == maxPayload && len(s.used) < 2*capacity:
		s.used[digest(payload[9:])] = at
	case payload[0] == kindHorizon && len(payload) == 9:
		s.horizon = max(s.horizon, at)
	case payload[0] == kindFresh && len(payload) == 9:
		s.fresh = max(s.fresh, at)
	default:
		return false
	}
	return true
}

// cover settles what lost entries mean, once the clock can be believed: whatever was used was used before this start,
// and had been issued by then.
func (s *store) cover() {
	if s.lost {
		start := s.clock.Now().Add(-time.Since(s.opened))
		s.fresh, s.lost = max(s.fresh, start.Add(s.leeway).UnixMilli()), false
	}
}

// look says whether a token can still be used. The clock is trusted.
func (s *store) look(id digest, issued, expires time.Time) *Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cover()
	if _, used := s.used[id]; used {
		return refuse(CodeReplayed, "the token was used before")
	}
	if expires.UnixMilli() <= s.horizon {
		return refuse(CodeExpired, "the token expired at %s, before others that were forgotten since", stamp(expires))
	}
	if issued.UnixMilli() <= s.fresh {
		return &Refusal{CodeStale, hint.With(fmt.Errorf("the token was issued at %s; which were used up to %s is not known", stamp(issued), stamp(time.UnixMilli(s.fresh))),
			"send a new token a minute later")}
	}
	return nil
}

// add makes the use of a token durable.
func (s *store) add(id digest, expires time.Time) *Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, used := s.used[id]; used {
		return refuse(CodeReplayed, "the token was used before")
	}
	if s.lost {
		return &Refusal{CodeStore, errUnchecked} // nothing is spent that was not looked at
	}
	if len(s.used) >= capacity {
		s.forget()
	}
	if len(s.used) >= capacity {
		return &Refusal{CodeStore, hint.With(errFull, "wait until tokens expire, or give them a shorter life")}
	}
	s.used[id] = expires.UnixMilli() // stays also after an error: it may be on the disk
	if err := s.append(id, expires.UnixMilli()); err != nil {
		return refuse(CodeStore, "making the use of the token durable: %w", err)
	}
	return nil
}

// forget drops entries whose tokens can no longer pass for good.
func (s *store) forget() {
	over := s.clock.Now().Add(-s.leeway).UnixMilli()
	for id, expires := range s.used {
		if expires < over {
			s.horizon = max(s.horizon, expires)
			delete(s.used, id)
		}
	}
}

func appendUsed(dst []byte, id digest, expires int64) []byte {
	start := len(dst)
	dst = append(binary.LittleEndian.AppendUint64(append(record.Begin(dst), kindUsed), uint64(expires)), id[:]...)
	seed.Seal(dst, start)
	return dst
}

func appendTime(dst []byte, kind byte, at int64) []byte {
	return seed.Append(dst, binary.LittleEndian.AppendUint64([]byte{kind}, uint64(at)))
}

func (s *store) append(id digest, expires int64) error {
	if s.file == nil || s.size > 2*s.settled+slack {
		s.forget()
		return s.rewrite()
	}
	data := appendUsed(nil, id, expires)
	_, err := s.file.WriteAt(data, s.size)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		return s.rewrite() // nobody knows what of this file is on disk now
	}
	s.size += int64(len(data))
	s.note(nil)
	return nil
}

// rewrite replaces the file by what is in memory.
func (s *store) rewrite() error {
	_ = s.closeFile()
	data := appendTime(nil, kindHorizon, s.horizon)
	data = appendTime(data, kindFresh, s.fresh)
	for id, expires := range s.used {
		data = appendUsed(data, id, expires)
	}
	err := atomicfile.Write(s.fsys, s.path, data, 0o600)
	if err == nil {
		s.size, s.settled = int64(len(data)), int64(len(data))
		if s.file, err = s.fsys.OpenFile(s.path, os.O_RDWR, 0); err != nil {
			s.file, err = nil, nil // all is stored; the next change tries again
		}
	}
	s.note(err)
	return err
}

// note remembers the disk's trouble, or its end, and logs the change.
func (s *store) note(err error) {
	if err != nil && s.problem == nil {
		s.log.LogAttrs(context.Background(), slog.LevelError, "store of used authorisations cannot be written", slog.Any("err", err))
	}
	s.problem = err
}

func (s *store) closeFile() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closeFile()
}

func (s *store) status() (waiting int, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.problem != nil:
		problem = s.problem.Error()
	case s.lost:
		problem = "which tokens were used is not known until the clock is synchronised"
	}
	return len(s.used), problem
}
