package session

import (
	"slices"
	"sync"

	"ferrule/agent/outbox"
)

// strikes is how many connections an entry, or a message of the broker's, may end.
const strikes = 3

// mostSuspects bounds how many entries are watched at one time.
const mostSuspects = 8

// entryKey names an entry, whatever number it is handed out under.
type entryKey struct{ boot, seq uint64 }

func keyOf(e outbox.Entry) entryKey { return entryKey{e.Boot, e.Seq} }

// suspect finds the entry that makes the broker close the connection: one that is too large
// for it, or forbidden. When two connections end with the same entry at the head and it was not
// acknowledged in between, what was in flight is sent one by one, each after a ping was
// answered, so that neither the link nor another message can be to blame. An entry that ends
// three connections so is guilty. Before the third time the connection is watched for a while
// without it: one that ends by itself proves nothing.
type suspect struct {
	mu    sync.Mutex
	heads []head // the one that was at the head last is the last
	left  int    // so many entries are still to be sent one by one
}

// head is an entry that was the first in flight when the broker closed a connection.
type head struct {
	entryKey
	seen  int // connections that ended so
	alone int // of these, those on which nothing else was in flight
}

// caution says whether entries are to be sent one by one, and whether the next may be convicted.
func (s *suspect) caution() (single, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.heads {
		last = last || h.alone >= strikes-1
	}
	return s.left > 0, last
}

// watched returns which of entries were at the head of a connection that ended.
func (s *suspect) watched(entries []outbox.Entry) (keys []entryKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.heads {
		if slices.ContainsFunc(entries, func(e outbox.Entry) bool { return keyOf(e) == h.entryKey }) {
			keys = append(keys, h.entryKey)
		}
	}
	return keys
}

// acked is told that the broker acknowledged n entries, or that they were set aside, and which of
// these were watched.
func (s *suspect) acked(n int, keys []entryKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = max(s.left-n, 0)
	s.heads = slices.DeleteFunc(s.heads, func(h head) bool { return slices.Contains(keys, h.entryKey) })
}

// lost is told what was in flight when the broker closed a connection. again says that the entry
// at the head was there before, and guilty that it is to be set aside.
func (s *suspect) lost(o owed) (again, guilty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.messages == 0 {
		return false, false
	}
	h := head{entryKey: o.head}
	if i := slices.IndexFunc(s.heads, func(h head) bool { return h.entryKey == o.head }); i >= 0 {
		h = s.heads[i]
		s.heads = slices.Delete(s.heads, i, i+1)
	}
	h.seen++
	if s.left > 0 && o.entries == 1 {
		h.alone++
	}
	if h.seen >= 2 {
		s.left = max(s.left, o.entries)
	}
	if len(s.heads) == mostSuspects {
		s.heads = s.heads[1:]
	}
	s.heads = append(s.heads, h)
	return h.seen >= 2, h.alone >= strikes
}
