package session

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// quickAck makes the kernel acknowledge at once what was read. Brokers that leave Nagle's
// algorithm on (mosquitto does) hold all PUBACKs but the first of a burst back until the first
// is acknowledged, and the kernel would wait up to 40 ms for data of ours to carry that: with a
// full window there is none. The option does not last (tcp(7)), so it is set after every read.
type quickAck struct {
	raw syscall.RawConn
	set func(fd uintptr)
}

func newQuickAck(c net.Conn) quickAck {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return quickAck{}
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return quickAck{}
	}
	return quickAck{raw: raw, set: func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) // a matter of speed only
	}}
}

func (q quickAck) now() {
	if q.raw != nil {
		_ = q.raw.Control(q.set)
	}
}
