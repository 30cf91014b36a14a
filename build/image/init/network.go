package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"
)

const (
	dhcpPause = 2 * time.Second // after a failure; doubles
	dhcpMost  = time.Minute
	leastHold = 30 * time.Second // however short a lease is
)

// runNetwork brings up every interface that is a wire, by DHCP, and keeps its lease.
func runNetwork(ctx context.Context, log *slog.Logger) {
	if err := setUp("lo"); err != nil {
		log.Error("no loopback", "err", err)
	}
	names, _ := filepath.Glob("/sys/class/net/*/device") // the pattern is sound
	var all sync.WaitGroup
	for _, name := range names {
		wire := filepath.Base(filepath.Dir(name))
		all.Go(func() { keepLease(ctx, log, wire) }) // ends with ctx
	}
	all.Wait()
}

// keepLease gets an address and renews it, for ever.
func keepLease(ctx context.Context, log *slog.Logger, wire string) {
	pause := dhcpPause
	for ctx.Err() == nil {
		hold, err := lease(ctx, log, wire)
		if err != nil {
			log.Warn("no address", "interface", wire, "err", err)
			hold, pause = pause, min(2*pause, dhcpMost)
		} else {
			pause = dhcpPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(hold):
		}
	}
}

// lease gets one lease and configures the interface; the next one is due after hold. A new
// request and a renewal are the same to this machine, and the first needs no address to be kept.
func lease(ctx context.Context, log *slog.Logger, wire string) (hold time.Duration, err error) {
	if err := setUp(wire); err != nil {
		return 0, err
	}
	client, err := nclient4.New(wire, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(3))
	if err != nil {
		return 0, fmt.Errorf("opening DHCP: %w", err)
	}
	defer client.Close()
	granted, err := client.Request(ctx)
	if err != nil {
		return 0, fmt.Errorf("asking for a lease: %w", err)
	}
	ack := granted.ACK
	if err := configure(wire, ack); err != nil {
		return 0, err
	}
	if err := os.WriteFile("/etc/resolv.conf", resolvers(ack.DNS()), 0o644); err != nil {
		return 0, fmt.Errorf("writing /etc/resolv.conf: %w", err)
	}
	log.Info("network up", "interface", wire, "address", ack.YourIPAddr)
	return max(ack.IPAddressLeaseTime(time.Hour)/2, leastHold), nil
}

func resolvers(servers []net.IP) []byte {
	var text strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", server)
	}
	return []byte(text.String())
}

func configure(wire string, ack *dhcpv4.DHCPv4) error {
	address, mask := ack.YourIPAddr.To4(), ack.SubnetMask()
	if address == nil || len(mask) != net.IPv4len {
		return errors.New("configuring the interface: the DHCP server gave no address or no mask")
	}
	if err := set(wire, unix.SIOCSIFADDR, address); err != nil {
		return fmt.Errorf("setting the address: %w", err)
	}
	if err := set(wire, unix.SIOCSIFNETMASK, net.IP(mask)); err != nil {
		return fmt.Errorf("setting the mask: %w", err)
	}
	if routers := ack.Router(); len(routers) > 0 {
		if err := addRoute(routers[0]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("setting the route: %w", err)
		}
	}
	return nil
}

// withSocket runs f with a descriptor that interface calls take.
func withSocket(f func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

func setUp(wire string) error {
	request, err := unix.NewIfreq(wire)
	if err != nil {
		return err
	}
	return withSocket(func(fd int) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
			return fmt.Errorf("setting %s up: %w", wire, err)
		}
		request.SetUint16(request.Uint16() | unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
			return fmt.Errorf("setting %s up: %w", wire, err)
		}
		return nil
	})
}

func set(wire string, call uint, address net.IP) error {
	request, err := unix.NewIfreq(wire)
	if err != nil {
		return err
	}
	if err := request.SetInet4Addr(address); err != nil {
		return err
	}
	return withSocket(func(fd int) error { return unix.IoctlIfreq(fd, call, request) })
}

// rtentry is struct rtentry of <linux/route.h> on a 64-bit machine.
type rtentry struct {
	_                         uint64
	destination, gateway, net unix.RawSockaddrInet4
	flags                     uint16
	_                         [6]byte
	_                         [56]byte
}

// addRoute makes router the way to everywhere.
func addRoute(router net.IP) error {
	four := router.To4()
	if four == nil {
		return errors.New("the router's address is none")
	}
	entry := rtentry{flags: unix.RTF_UP | unix.RTF_GATEWAY}
	entry.destination.Family, entry.gateway.Family, entry.net.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	copy(entry.gateway.Addr[:], four)
	return withSocket(func(fd int) error {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&entry))); errno != 0 {
			return errno
		}
		return nil
	})
}
