package session

import "sync"

// strikes is how many connections an entry may end.
const strikes = 3

// suspect finds the entry that makes the broker close the connection: one that is too large
// for it, or forbidden. When two connections end with the same entry at the head and nothing
// acknowledged in between, the next ones send it alone, after a ping was answered, so that
// neither the link nor another message can be to blame. It is guilty when three connections
// ended so.
type suspect struct {
	mu    sync.Mutex
	entry uint64
	seen  int // connections that ended with entry at the head
	alone int // of these, those in which nothing else was sent
}

// caution says whether entries are to be sent one by one.
func (s *suspect) caution() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen >= 2
}

// clear is told that the broker acknowledged something.
func (s *suspect) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entry, s.seen, s.alone = 0, 0, 0
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
	if s.seen >= 2 && o.messages == 1 {
		s.alone++
	}
	s.seen++
	return s.alone >= strikes
}
