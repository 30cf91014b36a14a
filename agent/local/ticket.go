package local

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"sync"
	"time"
)

const (
	// ticketLife is from a page's asking to its opening of /ws.
	ticketLife = 30 * time.Second
	// maxTickets and maxTicketsEach bound those that wait, in all and of one name.
	maxTickets     = 64
	maxTicketsEach = 8
	ticketBytes    = 32
)

// tickets let a page that showed a certificate open /ws, where browsers show none. A ticket is
// good once.
type tickets struct {
	mu      sync.Mutex
	waiting map[[sha256.Size]byte]ticket // by the digest, so that looking up takes the same time for all
}

type ticket struct {
	peer   peer
	issued time.Time // with its monotonic part: no change of the clock lengthens it
}

// issue returns a new ticket for p, "" where too many wait.
func (t *tickets) issue(p *peer) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	same := 0
	for digest, other := range t.waiting {
		if time.Since(other.issued) > ticketLife {
			delete(t.waiting, digest)
		} else if other.peer.Name == p.Name {
			same++
		}
	}
	if len(t.waiting) >= maxTickets || same >= maxTicketsEach {
		return ""
	}
	if t.waiting == nil {
		t.waiting = make(map[[sha256.Size]byte]ticket)
	}
	var secret [ticketBytes]byte
	_, _ = rand.Read(secret[:]) // never fails (crypto/rand)
	text := base64.RawURLEncoding.EncodeToString(secret[:])
	t.waiting[sha256.Sum256([]byte(text))] = ticket{peer: *p, issued: time.Now()}
	return text
}

// redeem ends a ticket and returns for whom it was issued, nil where it is none.
func (t *tickets) redeem(text string) *peer {
	digest := sha256.Sum256([]byte(text))
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.waiting[digest]
	delete(t.waiting, digest)
	if !ok || time.Since(found.issued) > ticketLife {
		return nil
	}
	return &found.peer
}

// ticketAnswer is what POST /ticket answers.
type ticketAnswer struct {
	Ticket string `json:"ticket"`
	// ExpiresIn is in seconds.
	ExpiresIn int `json:"expires_in"`
}

func (s *Server) serveTicket(w http.ResponseWriter, r *http.Request) {
	text := s.tickets.issue(peerOf(r))
	if text == "" {
		writeJSON(w, http.StatusServiceUnavailable, Error{Text: "too many tickets wait to be used", Code: "busy"})
		return
	}
	writeJSON(w, http.StatusOK, ticketAnswer{Ticket: text, ExpiresIn: int(ticketLife / time.Second)})
}
