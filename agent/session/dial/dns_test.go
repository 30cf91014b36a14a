package dial

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
)

// dnsServer is a name server that answers with what find says, for a question of IPv6 or of
// IPv4. silent says which questions it swallows; nil: none.
func dnsServer(t testing.TB, silent func(name string, six bool) bool, find func(name string, six bool) []net.IP) *net.Resolver {
	t.Helper()
	c := must[net.PacketConn](t)(net.ListenPacket("udp", "127.0.0.1:0"))
	var ended sync.WaitGroup
	ended.Go(func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if answer := answerDNS(buffer[:n], silent, find); err == nil && answer != nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	})
	var mu sync.Mutex
	var asking []net.Conn
	over := false
	t.Cleanup(func() { // Go's resolver goes on asking when nobody waits for it any more
		_ = c.Close()
		mu.Lock()
		over = true
		for _, a := range asking {
			_ = a.Close()
		}
		mu.Unlock()
		ended.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		a, err := new(net.Dialer).DialContext(ctx, "udp", c.LocalAddr().String())
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			return nil, err
		}
		if over {
			_ = a.Close()
			return nil, net.ErrClosed
		}
		asking = append(asking, a)
		return a, nil
	}}
}

// answerDNS answers one question (RFC 1035, 4).
func answerDNS(query []byte, silent func(string, bool) bool, find func(string, bool) []net.IP) []byte {
	if len(query) < 17 {
		return nil
	}
	var labels []string
	at := 12
	for at < len(query) && query[at] != 0 {
		labels = append(labels, string(query[at+1:at+1+int(query[at])]))
		at += 1 + int(query[at])
	}
	name, kind := strings.Join(labels, "."), binary.BigEndian.Uint16(query[at+1:])
	six := kind == 28
	if silent != nil && silent(name, six) {
		return nil
	}
	var found []net.IP
	if kind == 1 || six {
		for _, ip := range find(name, six) {
			if (ip.To4() == nil) == six {
				found = append(found, ip)
			}
		}
	}
	answer := append([]byte{}, query[0], query[1], 0x81, 0x80, 0, 1, 0, byte(len(found)), 0, 0, 0, 0)
	answer = append(answer, query[12:at+5]...)
	for _, ip := range found {
		raw := ip.To16()
		if !six {
			raw = ip.To4()
		}
		answer = append(answer, 0xc0, 12, byte(kind>>8), byte(kind), 0, 1, 0, 0, 0, 1, 0, byte(len(raw)))
		answer = append(answer, raw...)
	}
	return answer
}
