package dial

import (
	"net"
	"sync/atomic"
)

// wire is a TCP connection that counts its bytes.
type wire struct {
	net.Conn
	sent, received atomic.Uint64
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.received.Add(uint64(n))
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.sent.Add(uint64(n))
	return n, err
}
