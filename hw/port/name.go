package port

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// ParseName tells whether name can be the name of a port, whatever is plugged in:
//
//	/dev/ttymxc2                 a path
//	by-id/NAME, by-path/NAME     below /dev/serial, as udev makes them
//	usb:VID:PID:SERIAL:INTERFACE as sysfs gives them; SERIAL may be empty
//	tcp://HOST:PORT              a serial server that passes bytes as they are (RTU over TCP)
//
// Its errors carry a hint.
func ParseName(name string) error {
	_, err := parseName(name)
	return err
}

// IsNetwork tells whether name is that of a serial server: no speed, no silences and no modem lines
// of its line can be known.
func IsNetwork(name string) bool {
	a, err := parseName(name)
	return err == nil && a.server != ""
}

// address is a parsed name. One of its parts is set.
type address struct {
	name   string
	path   string // a path, absolute
	link   string // by-id/NAME or by-path/NAME
	usb    *usbName
	server string // host:port
}

type usbName struct {
	vid, pid uint16
	serial   string
	number   uint8 // of the interface
}

func (u usbName) String() string {
	return fmt.Sprintf("usb:%04x:%04x:%s:%x", u.vid, u.pid, u.serial, u.number)
}

func parseName(name string) (address, error) {
	a := address{name: name}
	dir, rest, _ := strings.Cut(name, "/")
	usb, isUSB := strings.CutPrefix(name, "usb:")
	server, isServer := strings.CutPrefix(name, "tcp://")
	switch {
	case strings.ContainsRune(name, 0):
	case isUSB:
		u, ok := parseUSB(usb)
		if !ok {
			return a, hint.With(fmt.Errorf("reading port name %q: not usb:VID:PID:SERIAL:INTERFACE", name),
				`write it as listed by: ferrule ports, as in "usb:0403:6001:A50285BI:0"; the serial number may be empty`)
		}
		a.usb = &u
		return a, nil
	case isServer:
		host, port, err := net.SplitHostPort(server)
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || host == "" || bad != nil || n == 0 {
			return a, hint.With(fmt.Errorf("reading port name %q: not tcp://host:port", name),
				`write host and port of the serial server, as in "tcp://192.168.1.20:4001"`)
		}
		a.server = server
		return a, nil
	case filepath.IsAbs(name):
		a.path = name
		return a, nil
	case (dir == "by-id" || dir == "by-path") && rest != "" && filepath.IsLocal(rest):
		a.link = name
		return a, nil
	}
	return a, hint.With(fmt.Errorf("reading port name %q: not a name of a serial port", name),
		"write a path such as /dev/ttyUSB0, a name listed by: ferrule ports, or tcp://host:port")
}

// parseUSB reads VID:PID:SERIAL:INTERFACE. The serial number may itself have colons.
func parseUSB(s string) (u usbName, ok bool) {
	vid, rest, _ := strings.Cut(s, ":")
	pid, rest, ok := strings.Cut(rest, ":")
	last := strings.LastIndexByte(rest, ':')
	if !ok || last < 0 || len(vid) > 4 || len(pid) > 4 || len(rest)-last-1 > 2 {
		return u, false
	}
	v, err1 := strconv.ParseUint(vid, 16, 16)
	p, err2 := strconv.ParseUint(pid, 16, 16)
	n, err3 := strconv.ParseUint(rest[last+1:], 16, 8)
	u = usbName{vid: uint16(v), pid: uint16(p), serial: rest[:last], number: uint8(n)}
	return u, err1 == nil && err2 == nil && err3 == nil
}

// same tells whether both mean one interface. Some programs write serial numbers in capitals.
func (u usbName) same(other usbName) bool {
	return u.vid == other.vid && u.pid == other.pid && u.number == other.number && strings.EqualFold(u.serial, other.serial)
}

// resolve finds the path of a port that is no server. The device need not be there, but for a USB
// name it must.
func (sys system) resolve(a address) (string, error) {
	switch {
	case a.path != "":
		return a.path, nil
	case a.link != "":
		return filepath.Join(sys.dev, "serial", a.link), nil
	}
	infos, err := list(sys.sys, sys.dev, "/usb")
	if err != nil {
		return "", err
	}
	var found []string
	for _, i := range infos {
		if u, ok := i.usbName(); ok && u.same(*a.usb) {
			found = append(found, i.Path)
		}
	}
	switch len(found) {
	case 0:
		return "", hint.With(fmt.Errorf("%w: no USB device with that name", ErrNotFound), "list the ports with: ferrule ports")
	case 1:
		return found[0], nil
	}
	return "", hint.With(fmt.Errorf("%s are all called so", strings.Join(found, " and ")),
		"adapters without serial numbers of their own are told apart by socket: use the by-path name listed by: ferrule ports")
}

// presence is how much of a port is there.
type presence int

const (
	absent presence = iota
	denied          // udev gives the rights a moment after the kernel makes the node, or nobody does
	ready
)

// look tells whether opening a is worth trying. It opens nothing, and so knows nothing of servers.
func (sys system) look(a address) presence {
	if a.server != "" {
		return ready
	}
	path, err := sys.resolve(a)
	if err != nil {
		if errors.Is(err, ErrNotFound) {
			return absent
		}
		return ready // to fail: Open says why
	}
	if s, err := os.Stat(path); errors.Is(err, fs.ErrPermission) {
		return denied
	} else if err != nil || s.Mode()&fs.ModeCharDevice == 0 {
		return absent
	}
	if unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK, unix.AT_EACCESS) != nil {
		return denied
	}
	return ready
}
