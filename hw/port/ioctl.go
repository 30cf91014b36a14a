package port

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// system is the machine that ports are looked for on. Pseudo terminals have neither sysfs nor the
// calls of an UART, so tests put a tree of their own and scripted calls in their place.
type system struct {
	sys, dev string
	ioctl    func(fd uintptr, request uint, arg unsafe.Pointer) error
	uevents  func() (int, error) // opens a socket that tells of devices; an error: the scan alone tells
	trust    func(from unix.Sockaddr) bool
	scan     time.Duration // how often a device that is waited for is looked for
	slack    time.Duration // how much longer than the wire takes bytes may wait to be sent
}

func host() system {
	return system{sys: "/sys", dev: "/dev", ioctl: ioctl, uevents: openUevents, trust: fromKernel, scan: 500 * time.Millisecond, slack: 2 * time.Second}
}

func ioctl(fd uintptr, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// serialRS485 is struct serial_rs485 of linux/serial.h: 32 bytes everywhere.
type serialRS485 struct {
	flags       uint32
	delayBefore uint32 // milliseconds
	delayAfter  uint32
	_           [5]uint32
}

// Bits of serialRS485.flags.
const (
	rs485Enabled      = 1 << 0
	rs485RTSOnSend    = 1 << 1
	rs485RTSAfterSend = 1 << 2
	rs485RxDuringTx   = 1 << 4
	rs485Terminate    = 1 << 5
)

// serialCounters is struct serial_icounter_struct: 80 bytes everywhere.
type serialCounters struct {
	cts, dsr, rng, dcd, rx, tx                  int32
	frame, overrun, parity, brk, bufferOverruns int32
	_                                           [9]int32
}

// serialInfo is struct serial_struct: 72 bytes where pointers have 8, 60 where they have 4.
type serialInfo struct {
	kind, line            int32
	port                  uint32
	irq, flags, fifo      int32
	divisor, baudBase     int32
	closeDelay            uint16
	ioType, _             byte
	hub6                  int32
	closingWait, closing2 uint16
	memory                uintptr
	registerShift         uint16
	portHigh              uint32
	mapBase               uintptr
}

// asyncLowLatency is ASYNC_LOW_LATENCY of linux/tty_flags.h. Everybody may set it, as it is in
// ASYNC_USR_MASK.
const asyncLowLatency = 1 << 13
