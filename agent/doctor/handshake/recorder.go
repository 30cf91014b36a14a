package handshake

import (
	"net"
	"sync"
	"time"
)

// maxRecorded bounds what is kept of each direction, in bytes: a certificate message alone may have
// 256 KiB (crypto/tls), and no handshake of ours comes near.
const maxRecorded = 512 << 10

// Recorder keeps the bytes of one connection below TLS, both directions in the order they went. Its
// methods may be called from any goroutine.
type Recorder struct {
	mu      sync.Mutex
	start   time.Time
	chunks  []chunk
	size    [2]int
	stopped bool
}

// chunk is what one read or write moved.
type chunk struct {
	from Side
	at   time.Duration // since the recording began
	data []byte
}

// Wrap returns conn, recorded from now on.
func (r *Recorder) Wrap(conn net.Conn) net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.start.IsZero() {
		r.start = time.Now()
	}
	return &recorded{Conn: conn, recorder: r}
}

// Reset forgets what was recorded: TLS begins on a connection that carried something else before.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start, r.chunks, r.size, r.stopped = time.Now(), nil, [2]int{}, false
}

// Stop ends the recording: what follows is nobody's business.
func (r *Recorder) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
}

func (r *Recorder) add(from Side, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(data), maxRecorded-r.size[from])
	if r.stopped || n <= 0 {
		return
	}
	r.size[from] += n
	r.chunks = append(r.chunks, chunk{from: from, at: time.Since(r.start), data: append([]byte(nil), data[:n]...)})
}

func (r *Recorder) taken() []chunk {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]chunk(nil), r.chunks...)
}

// recorded is a connection that is recorded.
type recorded struct {
	net.Conn
	recorder *Recorder
}

func (c *recorded) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.recorder.add(Broker, p[:n])
	return n, err
}

func (c *recorded) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.recorder.add(Device, p[:n])
	return n, err
}

// NetConn returns the connection that is recorded.
func (c *recorded) NetConn() net.Conn { return c.Conn }
