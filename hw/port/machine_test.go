package port

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second // before a test gives an event up

var usual = Settings{Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1}

// machine is a sysfs, a folder of devices and a kernel's events, all of a test's own making. Its
// ttys are pseudo terminals.
type machine struct {
	t    *testing.T
	root string
	sys  system

	mu   sync.Mutex
	ends []int // of the sockets that watches listen on
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, root: t.TempDir(), sys: host()}
	m.sys.sys, m.sys.dev = filepath.Join(m.root, "sys"), filepath.Join(m.root, "dev")
	m.sys.uevents = m.socket
	m.sys.trust = func(unix.Sockaddr) bool { return true }
	t.Cleanup(func() { m.hangUpSockets() })
	return m
}

// deaf makes the machine one whose kernel tells nothing.
func (m *machine) deaf() *machine {
	m.sys.uevents = func() (int, error) { return -1, unix.EAFNOSUPPORT }
	return m
}

func (m *machine) socket() (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends = append(m.ends, pair[0])
	return pair[1], nil
}

// tell sends a message to every watch there is.
func (m *machine) tell(message string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, fd := range m.ends {
		_ = unix.Sendto(fd, []byte(message), unix.MSG_NOSIGNAL, nil) // the watch may have ended
	}
}

func (m *machine) hangUpSockets() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, fd := range m.ends {
		unix.Close(fd)
	}
	m.ends = nil
}

func uevent(action, tty string, rdev uint64) string {
	path := "/devices/pci0/usb1/1-1/1-1:1.0/" + tty + "/tty/" + tty
	return strings.Join([]string{action + "@" + path, "ACTION=" + action, "DEVPATH=" + path, "SUBSYSTEM=tty",
		fmt.Sprintf("MAJOR=%d", unix.Major(rdev)), fmt.Sprintf("MINOR=%d", unix.Minor(rdev)), "DEVNAME=" + tty, "SEQNUM=4711", ""}, "\x00")
}

// adapter is a USB serial adapter that is plugged in.
type adapter struct {
	m    *machine
	tty  string
	far  *os.File // the line behind it
	rdev uint64
	made []string // links to take away again
}

const byID = "by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0"

// newLine makes the far end of a line and the path of its tty.
func newLine(t *testing.T) (far *os.File, path string) {
	t.Helper()
	far, near, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	t.Cleanup(func() { far.Close() })
	return far, near.Name()
}

// plug makes an adapter with the given number known to sysfs, then to the folder of devices, as
// the kernel does; the stable name comes last, as udev makes it.
func (m *machine) plug(tty string) *adapter {
	m.t.Helper()
	far, path := newLine(m.t)
	a := m.plugInto(tty, far, path)
	a.link("dev/serial/"+byID, "../../"+tty)
	return a
}

func (m *machine) plugInto(tty string, far *os.File, path string) *adapter {
	m.t.Helper()
	a := &adapter{m: m, tty: tty, far: far}
	var err error
	if a.rdev, err = deviceNumber(path); err != nil {
		m.t.Fatal(err)
	}
	dir := usb + "/1-1:1.0/" + tty
	for name, text := range map[string]string{
		usb + "/idVendor": "0403\n", usb + "/idProduct": "6001\n", usb + "/serial": "A50285BI\n", usb + "/product": "FT232R USB UART\n",
		usb + "/1-1:1.0/bInterfaceNumber": "00\n",
		dir + "/latency_timer":            "16\n",
	} {
		m.write(name, text)
	}
	a.link(dir+"/tty/"+tty+"/device", "../../../"+tty)
	a.link("sys/class/tty/"+tty, "../../devices/pci0/usb1/1-1/1-1:1.0/"+tty+"/tty/"+tty)
	a.link(fmt.Sprintf("sys/dev/char/%d:%d", unix.Major(a.rdev), unix.Minor(a.rdev)), filepath.Join(m.root, dir, "tty", tty))
	a.link("dev/"+tty, path)
	m.tell(uevent("add", tty, a.rdev))
	return a
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

func (a *adapter) link(name, to string) {
	a.m.t.Helper()
	path := filepath.Join(a.m.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(to, path)); err != nil {
		a.m.t.Fatal(err)
	}
	a.made = append(a.made, path)
}

// forget takes the adapter out of sysfs and the folder of devices. Its line stays.
func (a *adapter) forget() {
	a.m.t.Helper()
	for _, path := range a.made {
		if err := os.Remove(path); err != nil {
			a.m.t.Fatal(err)
		}
	}
}

func (a *adapter) unplug() {
	a.far.Close()
	a.forget()
	a.m.tell(uevent("remove", a.tty, a.rdev))
}

func (a *adapter) timer() string {
	return filepath.Join(a.m.root, usb, "1-1:1.0", a.tty, "latency_timer")
}

func (m *machine) open(name string, o Options) Port {
	m.t.Helper()
	if o.Settings == (Settings{}) {
		o.Settings = usual
	}
	p, err := m.sys.open(m.t.Context(), name, o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { p.Close() })
	return p
}

func within(t *testing.T, what string, happens <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-happens:
	case <-ctx.Done():
		t.Fatalf("%s: not within %s", what, patience)
	}
}

// inherited is the descriptors that a child of ours has.
func inherited(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "for f in /proc/$$/fd/*; do echo ${f##*/}; done").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
