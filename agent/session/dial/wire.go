package dial

import (
	"net"
	"sync/atomic"
)

// counts are the bytes of one connection, or of all.
type counts struct {
	sent, received atomic.Uint64
}

// wire is a TCP connection that counts its bytes.
type wire struct {
	net.Conn
	counts
	all *counts // counts them, too; nil: they are none of TCP's
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.received.Add(uint64(n))
	if w.all != nil {
		w.all.received.Add(uint64(n))
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.sent.Add(uint64(n))
	if w.all != nil {
		w.all.sent.Add(uint64(n))
	}
	return n, err
}
