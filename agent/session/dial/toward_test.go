package dial

import (
	"context"
	"net"
)

// toward connects to address, whatever it is asked for.
func toward(address string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}
