package outbox

import "time"

// entry is an Entry with what the outbox knows of it.
type entry struct {
	boot, seq   uint64
	line, topic string
	payload     []byte
	policy      *policy
	taken       time.Time // by this process; zero: read from the log
	stamp       uint64    // what the log says of that; see stampFrom
	id          uint64    // given when it is handed out; 0: not yet
	seg         *segment  // nil: not on disk
	off         int64     // where its record starts in seg
	size        int       // of its record
	sent        bool      // handed out before
}

// queue is a ring of entries.
type queue struct {
	ring []entry
	head int
	n    int
}

func (q *queue) at(i int) *entry { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue) push(e entry) *entry {
	if q.n == len(q.ring) {
		q.resize(max(16, 2*q.n))
	}
	q.n++
	slot := q.at(q.n - 1)
	*slot = e
	return slot
}

func (q *queue) pop() entry {
	slot := q.at(0)
	e := *slot
	*slot = entry{} // the payload may go
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
	if q.n == 0 && len(q.ring) > 1024 {
		*q = queue{} // a burst must not keep its memory
	}
	return e
}

// remove takes out the entry at i.
func (q *queue) remove(i int) entry {
	e := *q.at(i)
	for ; i < q.n-1; i++ {
		*q.at(i) = *q.at(i + 1)
	}
	*q.at(q.n - 1) = entry{}
	q.n--
	return e
}

func (q *queue) resize(size int) {
	ring := make([]entry, size) // a power of two
	for i := range q.n {
		ring[i] = *q.at(i)
	}
	q.ring, q.head = ring, 0
}

// filter keeps the entries that keep says, in order.
func (q *queue) filter(keep func(*entry) bool) {
	kept := 0
	for i := range q.n {
		if e := q.at(i); keep(e) {
			if kept != i {
				*q.at(kept) = *e
			}
			kept++
		}
	}
	for i := kept; i < q.n; i++ {
		*q.at(i) = entry{}
	}
	q.n = kept
}
