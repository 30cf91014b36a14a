package trust

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

const (
	// fetchTimeout bounds one fetch, whatever the other end does: 4 MiB take 35 s at 1 Mbit/s.
	fetchTimeout = time.Minute
	// fileEvery is how soon a changed file is noticed.
	fileEvery = time.Minute
	// The pause after a failure doubles from the first to the last, or to Refresh if that is
	// shorter; half of it is drawn.
	firstPause, lastPause = time.Minute, time.Hour
)

// source is where lists come from, a file or an URL, and what came.
type source struct {
	o    Options
	name string
	url  bool
	path string // of the cache

	// kept were believed, now or when they were stored; fresh came since, and were not
	// believed yet: a list that somebody slips in is not to replace one.
	kept, fresh []*list
	text        []byte // what fresh was read from, until it is stored
	dirty       bool   // text is to be stored

	tag      string // of the answer (HTTP)
	next     string // the tag of fresh, until it is believed
	seen     os.FileInfo
	looked   time.Time
	due      time.Time // monotonic
	failures int
	err      error
}

func newSource(name string, o Options) *source {
	s := &source{o: o, name: name, url: strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://")}
	if !s.url {
		return s
	}
	s.path = filepath.Join(o.StateDir, "revocation", digest([]byte(name))[:32]+".crl")
	text, err := disk.ReadFile(o.FS, s.path, maxList)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	if err == nil {
		s.kept, err = parseLists(text)
	}
	if err != nil {
		o.event(slog.LevelWarn, "stored revocation list not usable", slog.String("source", name), slog.Any("err", err))
		_ = o.FS.Remove(s.path)
	}
	return s
}

// believed returns the lists that issuer signed, the newest ones.
func (s *source) believed(issuer *x509.Certificate) []*list {
	var lists []*list
	for _, l := range s.kept {
		if l.signedBy(issuer) == nil {
			lists = append(lists, l)
		}
	}
	fresh := s.fresh[:0]
	for _, l := range s.fresh {
		if !bytes.Equal(l.issuer, issuer.RawSubject) {
			fresh = append(fresh, l)
			continue
		}
		if err := l.signedBy(issuer); err != nil {
			s.err = fmt.Errorf("believing the list: %w", err)
			fresh = append(fresh, l) // another issuer of that name may have signed it
			continue
		}
		s.err, s.tag = nil, s.next
		lists = s.adopt(l, lists)
	}
	clear(s.fresh[len(fresh):])
	s.fresh = fresh
	return lists
}

// adopt takes a list whose signature is good in place of the one before, which is among those
// of the same signer. An older one is not taken: it would call good what was revoked since.
func (s *source) adopt(l *list, signers []*list) []*list {
	for i, k := range signers {
		if !l.sameScope(k) {
			continue
		}
		if l.older(k) {
			s.err, s.tag = errors.New("the list is older than the one that is held"), ""
		} else if k.older(l) || !bytes.Equal(k.data, l.data) {
			s.kept[slices.Index(s.kept, k)] = l
			signers[i], s.dirty = l, true
		}
		return signers
	}
	if len(s.kept) == maxLists {
		s.kept = slices.Delete(s.kept, 0, 1)
	}
	s.kept, s.dirty = append(s.kept, l), true
	return append(signers, l)
}

// status describes the source by its first list.
func (s *source) status() ListStatus {
	st := ListStatus{Source: s.name, Looked: s.looked, Failures: s.failures}
	if !s.due.IsZero() {
		st.NextLook = s.o.Clock.Now().Add(time.Until(s.due)).UTC()
	}
	if s.err != nil {
		st.Error = fmt.Sprintf("%.300q", s.err.Error())
	}
	for _, l := range slices.Concat(s.kept, s.fresh) {
		st.Issuer, st.Entries, st.ThisUpdate, st.NextUpdate = issuerName(l.issuer), len(l.at), l.this, l.next
		st.Believed = l.signed == nil
		break
	}
	return st
}

// Run fetches the lists before they run out, and asks for another look at the connections when
// a list has changed or a proof has ended. It ends with ctx.
func (v *Revocation) Run(ctx context.Context) error {
	for {
		changed := false
		for _, s := range v.sources {
			if ctx.Err() == nil && v.isDue(s) {
				v.look(ctx, s)
			}
			changed = v.settle(s) || changed
		}
		if ended := v.ended(); (changed || ended) && ctx.Err() == nil {
			v.o.changed()
		}
		timer := time.NewTimer(v.pause())
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		case <-v.wake:
			timer.Stop()
		}
	}
}

func (v *Revocation) isDue(s *source) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !time.Now().Before(s.due)
}

// ended says, once, that the proof of the last connection has ended.
func (v *Revocation) ended() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.recheck.IsZero() || time.Now().Before(v.recheck) {
		return false
	}
	v.recheck = time.Time{}
	return true
}

// pause is how long there is nothing to do.
func (v *Revocation) pause() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	pause := 24 * time.Hour
	for _, s := range v.sources {
		pause = min(pause, time.Until(s.due))
	}
	if !v.recheck.IsZero() {
		pause = min(pause, time.Until(v.recheck))
	}
	return max(pause, 0)
}

// look reads a source once.
func (v *Revocation) look(ctx context.Context, s *source) {
	var lists []*list
	v.mu.Lock()
	tag := s.tag
	v.mu.Unlock()
	text, tag, err := s.read(ctx, v.fetch, tag)
	same := errors.Is(err, ErrNotModified)
	if err == nil {
		lists, err = parseLists(text)
	}
	if ctx.Err() != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s.looked = v.o.Clock.Now().UTC()
	if err == nil {
		s.fresh, s.text, s.next = lists, text, tag
	}
	if err == nil || same {
		err = v.ranOut(s)
	} else {
		s.seen = nil
	}
	if s.err = err; err == nil {
		s.failures = 0
	} else if s.failures++; s.failures == 1 {
		v.o.event(slog.LevelWarn, "revocation list not to be had", slog.String("source", s.name), slog.Any("err", err))
	}
	s.due = time.Now().Add(v.delay(s))
}

// ranOut says that a source gives what has run out. It is asked again as one that fails.
func (v *Revocation) ranOut(s *source) error {
	for _, l := range slices.Concat(s.fresh, s.kept) {
		if _, why := v.fresh(l.this, l.next); why == "" {
			return nil
		}
	}
	return errors.New("the list has run out")
}

// read gets the text, or ErrNotModified. Only Run calls it.
func (s *source) read(ctx context.Context, fetch Fetch, old string) (text []byte, tag string, err error) {
	if s.url {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		return fetch(ctx, s.name, old)
	}
	f, err := s.o.FS.OpenFile(s.name, os.O_RDONLY, 0)
	if err != nil {
		return nil, "", err
	}
	info, err := f.Stat()
	_ = f.Close()
	if err == nil && s.seen != nil && info.Size() == s.seen.Size() && info.ModTime().Equal(s.seen.ModTime()) {
		return nil, "", ErrNotModified
	}
	if text, err = disk.ReadFile(s.o.FS, s.name, maxList); err == nil {
		s.seen = info
	}
	return text, "", err
}

// settle tries what came with every issuer that is known, and stores what is believed. It says
// whether something is believed that was not before.
func (v *Revocation) settle(s *source) bool {
	v.mu.Lock()
	for _, issuer := range v.issuers {
		if len(s.fresh) > 0 {
			s.believed(issuer)
		}
	}
	changed, text := s.dirty, s.text
	s.dirty = false
	if changed {
		s.due = time.Now().Add(v.delay(s))
	}
	if len(s.fresh) == 0 {
		s.text = nil
	}
	v.mu.Unlock()
	if changed && s.url && text != nil {
		err := disk.MakeFolder(s.o.FS, filepath.Dir(s.path))
		if err == nil {
			err = atomicfile.Write(s.o.FS, s.path, text, 0o600)
		}
		if err != nil {
			v.o.event(slog.LevelWarn, "storing a revocation list", slog.String("source", s.name), slog.Any("err", err))
		}
	}
	return changed
}

// delay is how long a source is left alone.
func (v *Revocation) delay(s *source) time.Duration {
	refresh := v.config.Refresh.Std()
	if s.failures > 0 {
		pause := min(firstPause<<min(s.failures-1, 10), lastPause, refresh)
		return pause/2 + jitter(pause/2)
	}
	if !s.url {
		return min(fileEvery, refresh)
	}
	now := v.o.Clock.Now()
	for _, l := range slices.Concat(s.kept, s.fresh) {
		if left := l.next.Sub(now); !l.next.IsZero() && left < refresh*4/3 {
			refresh = max(left*3/4, firstPause)
		}
	}
	return refresh - jitter(refresh/10)
}

// jitter is evenly drawn from 0 to d.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
