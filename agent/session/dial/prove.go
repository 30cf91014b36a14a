package dial

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"ferrule/agent/session/cause"
)

// refusalGrace is the shortest silence after which a handshake counts as accepted.
const refusalGrace = 500 * time.Millisecond

// Prove waits whether the broker refuses the certificate after all. With TLS 1.2 the broker
// has judged it before the handshake ends, and before a WebSocket stands it has in any version.
// Else, with TLS 1.3, the client is done first, and hears a refusal at its first read: silence of
// half a second, and of twice the time that the handshake took, counts as acceptance. Nothing
// else may come before CONNECT.
func (c *Conn) Prove(ctx context.Context) error {
	if c.Path.WebSocket || c.TLS.ConnectionState().Version < tls.VersionTLS13 {
		return nil
	}
	silence := min(max(refusalGrace, 2*c.Took), 5*time.Second)
	_ = c.TLS.SetReadDeadline(time.Now().Add(silence))
	stop := context.AfterFunc(ctx, func() { _ = c.TLS.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	n, err := c.TLS.Read(b[:])
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case n > 0:
		return fmt.Errorf("%w: the broker spoke before CONNECT", cause.ErrProtocol)
	case cause.IsTimeout(err):
		return c.TLS.SetReadDeadline(time.Time{})
	}
	return c.Explain(err)
}
