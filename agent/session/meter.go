package session

import (
	"sync"

	"ferrule/agent/session/dial"
)

// Wire is what went over all TCP connections, TLS, WebSocket and proxy included; TCP and IP
// themselves are not.
type Wire struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// meter counts what goes over the wire, and charges it to the budget.
type meter struct {
	budget *budget

	mu     sync.Mutex
	totals Wire
	conn   *dial.Conn // counted up to
	at     Wire
}

// read counts what went over c since it was read last.
func (m *meter) read(c *dial.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != c {
		m.conn, m.at = c, Wire{}
	}
	sent, received := c.Wire()
	m.add(sent-m.at.Sent, received-m.at.Received)
	m.at = Wire{sent, received}
}

// once counts all that went over a connection that is not a link's.
func (m *meter) once(c *dial.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(c.Wire())
}

func (m *meter) add(sent, received uint64) {
	m.totals.Sent += sent
	m.totals.Received += received
	m.budget.spend(int64(sent + received))
}

func (m *meter) total() Wire {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.totals
}
