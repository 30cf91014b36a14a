package session

import "sync"

// strikes is how many connections an entry may end.
const strikes = 3

// suspect finds the entry that makes the broker close the connection: one that is too large
// for it, or forbidden. When two connections end with the same entry at the head and nothing
// acknowledged in between, what was in flight is sent one by one, each after a ping was
// answered, so that neither the link nor another message can be to blame. An entry that ends
// three connections so is guilty.
type suspect struct {
	mu    sync.Mutex
	entry uint64 // at the head when a connection ended
	seen  int    // connections that ended so
	alone int    // of these, those on which nothing else was in flight
	until uint64 // entries up to this one are sent one by one; 0: none
}

// caution says whether entries are to be sent one by one.
func (s *suspect) caution() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until > 0
}

// acked is told that the broker acknowledged everything up to id, or that it was set aside.
func (s *suspect) acked(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entry, s.seen, s.alone = 0, 0, 0
	if id >= s.until {
		s.until = 0
	}
}

// lost is told what was in flight when the broker closed a connection, and says whether the
// entry at the head is to be set aside.
func (s *suspect) lost(o owed) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.messages == 0 {
		return false
	}
	if s.entry != o.first {
		s.entry, s.seen, s.alone = o.first, 0, 0
	}
	s.seen++
	if s.until > 0 && o.messages == 1 {
		s.alone++
	}
	if s.seen >= 2 {
		s.until = max(s.until, o.last)
	}
	return s.alone >= strikes
}
