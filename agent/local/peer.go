package local

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"ferrule/agent/local/listener"
	"ferrule/agent/local/role"
)

// peer is the other end of one connection.
type peer struct {
	Caller
	socket    bool           // it came by the unix socket
	anonymous bool           // it showed neither a certificate nor a ticket
	conn      *listener.Conn // nil on the socket
	until     time.Time      // when its certificate ends; zero: never
}

type peerKey struct{}

func withPeer(ctx context.Context, p *peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// peerOf returns who sent a request; one of an unknown way may do nothing.
func peerOf(r *http.Request) *peer {
	if p, ok := r.Context().Value(peerKey{}).(*peer); ok {
		return p
	}
	return &peer{anonymous: true}
}

// socketPeer is who opened the unix socket: its file mode let them.
func socketPeer(ctx context.Context, conn net.Conn) context.Context {
	p := &peer{Caller: Caller{Role: role.Admin, Name: "socket"}, socket: true}
	if unix, ok := conn.(*net.UnixConn); ok {
		if raw, err := unix.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if who, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
					p.Name = fmt.Sprintf("socket:uid=%d", who.Uid)
				}
			})
		}
	}
	return withPeer(ctx, p)
}

// listenerPeer is who came by TLS: a certificate with a role, or anybody.
func (s *Server) listenerPeer(ctx context.Context, conn net.Conn) context.Context {
	c := listener.Of(conn)
	if c == nil {
		return ctx // nobody: may do nothing
	}
	p := &peer{conn: c, anonymous: true, Caller: Caller{Name: "anonymous", Source: c.Source()}}
	if grant := c.Grant(); grant.Role != role.None {
		p.Role, p.Name, p.anonymous, p.until = grant.Role, grant.Name, false, c.NotAfter()
	} else if s.config.ClientAuth != AuthRequired {
		p.Role = s.config.Anonymous
	}
	return withPeer(ctx, p)
}

// expired says whether the peer's certificate ended since it was shown.
func (p *peer) expired(now time.Time) bool { return !p.until.IsZero() && now.After(p.until) }
