package port

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxUevent is the size in bytes of the buffer for one message; the kernel's own end at about 4 KiB.
const maxUevent = 8 << 10

// kernelEvents is the multicast group of the kernel; group 2 is udev's.
const kernelEvents = 1

// openUevents opens a socket on which the kernel tells what was plugged in and out. Nobody needs
// rights for it, but a sandbox may forbid it, and in a container it may stay silent.
func openUevents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fromKernel tells whether the kernel itself sent a message. Any process with the right to
// configure networks can send to the socket, too, and would unplug ports by that.
func fromKernel(from unix.Sockaddr) bool {
	a, ok := from.(*unix.SockaddrNetlink)
	return ok && a.Pid == 0
}

// event is what happened to some port, or to ours.
type event struct {
	hangup bool   // of our descriptor
	scan   bool   // time passed, or events were lost: look for yourself
	action string // of a tty: add, remove, change, …
	rdev   uint64 // the device number of that tty
}

// parseUevent reads a message of the kernel, "ACTION@DEVPATH\0KEY=VALUE\0…", and tells whether it is
// about a tty that has a device number. Linux, lib/kobject_uevent.c.
func parseUevent(b []byte) (e event, ok bool) {
	head, rest, ok := bytes.Cut(b, []byte{0})
	action, path, at := strings.Cut(string(head), "@")
	if !ok || !at || action == "" || !strings.HasPrefix(path, "/") {
		return event{}, false
	}
	var tty bool
	var major, minor uint64
	var numbers int
	for len(rest) > 0 {
		var field []byte
		if field, rest, ok = bytes.Cut(rest, []byte{0}); !ok {
			return event{}, false // cut short
		}
		key, value, _ := strings.Cut(string(field), "=")
		var err error
		switch key {
		case "ACTION":
			if value != action {
				return event{}, false
			}
		case "SUBSYSTEM":
			tty = value == "tty"
		case "MAJOR":
			major, err = strconv.ParseUint(value, 10, 12)
			numbers++
		case "MINOR":
			minor, err = strconv.ParseUint(value, 10, 20)
			numbers++
		}
		if err != nil {
			return event{}, false
		}
	}
	if !tty || numbers != 2 {
		return event{}, false
	}
	return event{action: action, rdev: unix.Mkdev(uint32(major), uint32(minor))}, true
}
