package port

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

func TestParseName(t *testing.T) {
	for name, want := range map[string]string{
		"/dev/ttymxc2":                 "path /dev/ttymxc2",
		"by-id/usb-FTDI":               "link by-id/usb-FTDI",
		"by-path/pci-0:1.0-port0":      "link by-path/pci-0:1.0-port0",
		"usb:0403:6001:A50285BI:0":     "usb:0403:6001:A50285BI:0",
		"usb:403:6001:a50285bi:00":     "usb:0403:6001:a50285bi:0",
		"usb:1A86:7523::0":             "usb:1a86:7523::0",
		"usb:2341:0043:00:1B:FE:0a":    "usb:2341:0043:00:1B:FE:a",
		"usb:0403:6011:with blanks:03": "usb:0403:6011:with blanks:3",
		"tcp://10.0.0.5:4001":          "server 10.0.0.5:4001",
		"tcp://[fe80::1%eth0]:502":     "server [fe80::1%eth0]:502",
		"tcp://gateway.local:502":      "server gateway.local:502",
	} {
		a, err := parseName(name)
		got := "server " + a.server
		switch {
		case a.usb != nil:
			got = a.usb.String()
		case a.path != "":
			got = "path " + a.path
		case a.link != "":
			got = "link " + a.link
		}
		if err != nil || got != want || ParseName(name) != nil || IsNetwork(name) != strings.HasPrefix(name, "tcp://") {
			t.Errorf("%q: %s, %v; want %s", name, got, err, want)
		}
	}
	for _, name := range []string{"", "ttyUSB0", "dev/ttyUSB0", "by-id", "by-id/", "by-id/../../null", "by-path//etc/passwd", "by-uuid/x", "/dev/tty\x00S0",
		"usb:", "usb:0403:6001", "usb:0403:6001:A5", "usb:0403:6001:A5:", "usb:0403:6001:A5:100", "usb:00403:6001:A5:0", "usb:0x403:6001:A5:0", "usb:-403:6001:A5:0", "usb:0403:6001:A5:g",
		"tcp://", "tcp://host", "tcp://host:", "tcp://host:0", "tcp://host:65536", "tcp://:502", "tcp://host:502/", "tcp://host:http", "udp://host:502", "TCP://host:502"} {
		if err := ParseName(name); err == nil || hint.Of(err) == "" || IsNetwork(name) {
			t.Errorf("%q: %v; want an error with a hint", name, err)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, name := range []string{"/dev/ttyS0", "by-id/x", "usb:0403:6001:A5:0", "usb:1a86:7523::0", "tcp://h:1"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		a, err := parseName(name)
		if err != nil || a.usb == nil {
			return
		}
		if b, err := parseName(a.usb.String()); err != nil || *b.usb != *a.usb {
			t.Errorf("%q is written as %q, which is %+v, %v", name, a.usb, b.usb, err)
		}
	})
}

// Row "Enumeration": the library's own opens ports and sets 9600 8N1, which kills consoles and
// running lines. Ours opens nothing, not even the node, and leaves the mode alone.
func TestListOpensNothingAndChangesNothing(t *testing.T) {
	m := newMachine(t)
	a := m.plug("ttyUSB0")
	spy, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(spy)
	node, err := filepath.EvalSymlinks(filepath.Join(m.sys.dev, "ttyUSB0"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(spy, node, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	m.open(byID, Options{Settings: Settings{Baud: 300, DataBits: 7, Parity: 'O', StopBits: 2}})
	if n, err := unix.Read(spy, make([]byte, 4096)); n <= 0 || err != nil {
		t.Fatalf("the spy sleeps: %d, %v", n, err)
	}
	modes := func() unix.Termios {
		mode, err := unix.IoctlGetTermios(int(a.far.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *mode
	}
	before := modes()
	infos, err := list(m.sys.sys, m.sys.dev, "")
	if err != nil || len(infos) != 1 || infos[0].USB != "usb:0403:6001:A50285BI:0" {
		t.Fatalf("%+v, %v", infos, err)
	}
	m.sys.look(address{link: byID})
	if after := modes(); after != before {
		t.Errorf("the mode was %+v and is %+v", before, after)
	}
	if n, err := unix.Read(spy, make([]byte, 256)); err != unix.EAGAIN {
		t.Errorf("the port was opened: %d, %v", n, err)
	}
}

// A name finds its interface among several of one device, and one of several devices.
func TestResolveUSB(t *testing.T) {
	files := make(map[string]string)
	for n, tty := range []string{"ttyUSB0", "ttyUSB1", "ttyUSB2", "ttyUSB3"} {
		device := "sys/devices/pci0/usb1/1-1"
		if n >= 2 {
			device = "sys/devices/pci0/usb1/1-2"
		}
		number := string(rune('0' + n%2))
		files[device+"/idVendor"], files[device+"/idProduct"] = "0403\n", "6010\n"
		dir := device + "/i:1." + number + "/" + tty
		files[device+"/i:1."+number+"/bInterfaceNumber"] = "0" + number + "\n"
		files[dir+"/tty/"+tty+"/device"] = "-> ../../../" + tty
		files["sys/class/tty/"+tty] = "-> ../../" + strings.TrimPrefix(dir, "sys/") + "/tty/" + tty
	}
	files["sys/devices/pci0/usb1/1-1/serial"] = "FT1\n"
	root := tree(t, files)
	sys := system{sys: filepath.Join(root, "sys"), dev: "/dev"}
	for name, want := range map[string]string{
		"usb:0403:6010:FT1:0": "/dev/ttyUSB0", "usb:0403:6010:ft1:01": "/dev/ttyUSB1",
		"usb:0403:6010::0": "/dev/ttyUSB2", "usb:403:6010::1": "/dev/ttyUSB3",
		"usb:0403:6010:FT2:0": "", "usb:0403:6010:FT1:2": "", "usb:0403:6011:FT1:0": "",
	} {
		a, err := parseName(name)
		if err != nil {
			t.Fatal(err)
		}
		if path, err := sys.resolve(a); path != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, path, err, want)
		}
	}
	infos, err := list(sys.sys, sys.dev, "")
	var names []string
	for _, i := range infos {
		names = append(names, i.USB)
	}
	if want := []string{"usb:0403:6010:FT1:0", "usb:0403:6010:FT1:1", "usb:0403:6010::0", "usb:0403:6010::1"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v; want %q", names, err, want)
	}
}
