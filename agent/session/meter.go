package session

import (
	"sync"

	"ferrule/agent/session/dial"
)

// Wire is what went over all TCP connections, TLS, WebSocket and proxy included; TCP and IP
// themselves are not. Connections that came to nothing count, too.
type Wire struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// meter charges what went over the wire to the budget.
type meter struct {
	dialer *dial.Dialer
	budget *budget

	mu      sync.Mutex
	charged uint64
}

// read charges what went over the wire since it was read last.
func (m *meter) read() Wire {
	m.mu.Lock()
	defer m.mu.Unlock()
	sent, received := m.dialer.Wire()
	m.budget.spend(int64(sent + received - m.charged))
	m.charged = sent + received
	return Wire{sent, received}
}
