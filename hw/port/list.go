package port

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Info is what sysfs knows of a serial port.
type Info struct {
	Path      string `json:"path"`                // /dev/ttyUSB0; another one after the next replug
	USB       string `json:"usb,omitempty"`       // usb:VID:PID:SERIAL:INTERFACE: stable, follows the adapter; "" where it would mean several
	ByID      string `json:"by_id,omitempty"`     // by-id/NAME: stable, follows the adapter
	ByPath    string `json:"by_path,omitempty"`   // by-path/NAME: stable, follows the socket
	Driver    string `json:"driver,omitempty"`    // of the kernel
	VID       string `json:"vid,omitempty"`       // USB vendor, four hexadecimal digits
	PID       string `json:"pid,omitempty"`       // USB product
	Serial    string `json:"serial,omitempty"`    // USB serial number
	Interface string `json:"interface,omitempty"` // USB interface number, two hexadecimal digits
	Product   string `json:"product,omitempty"`   // USB product name
}

// List lists the serial ports by what sysfs says. It opens none of them: opening alone moves
// modem lines, and some equipment restarts at that.
func List() ([]Info, error) {
	sys := host()
	return list(sys.sys, sys.dev, "")
}

// list lists the ports whose place in sysfs contains within.
func list(sys, dev, within string) ([]Info, error) {
	class := filepath.Join(sys, "class/tty")
	entries, err := os.ReadDir(class)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing serial ports: %w", err)
	}
	byID, byPath := links(dev, "by-id"), links(dev, "by-path")
	var infos []Info
	for _, e := range entries {
		// One call instead of dozens for each of the many consoles.
		if to, err := os.Readlink(filepath.Join(class, e.Name())); err == nil && (strings.Contains(to, "/virtual/") || !strings.Contains(to, within)) {
			continue
		}
		device, err := filepath.EvalSymlinks(filepath.Join(class, e.Name(), "device"))
		if err != nil {
			continue // a console or pseudo terminal: no hardware behind it
		}
		if attribute(filepath.Join(class, e.Name()), "type") == "0" {
			continue // a place kept for an UART that is not there
		}
		i := Info{Path: filepath.Join(dev, e.Name()), ByID: byID[e.Name()], ByPath: byPath[e.Name()]}
		i.describe(sys, device)
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b Info) int { return compareNatural(a.Path, b.Path) })
	nameUSB(infos)
	return infos, nil
}

// nameUSB gives the ports their USB names, but for those that share one: cheap adapters have no
// serial number, and some put several ports on one interface.
func nameUSB(infos []Info) {
	count := make(map[string]int)
	for _, i := range infos {
		if u, ok := i.usbName(); ok {
			count[strings.ToLower(u.String())]++
		}
	}
	for n := range infos {
		if u, ok := infos[n].usbName(); ok && count[strings.ToLower(u.String())] == 1 && printable(u.serial) {
			infos[n].USB = u.String()
		}
	}
}

// usbName is the port's USB name, if it is a USB device.
func (i Info) usbName() (usbName, bool) {
	if i.VID == "" {
		return usbName{}, false
	}
	return parseUSB(i.VID + ":" + i.PID + ":" + i.Serial + ":" + i.Interface)
}

// printable tells whether a device's own words can be written into a configuration as they are.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == '"' || r == '\\' })
}

// describe walks from the port's device up to the USB device, if there is one.
func (i *Info) describe(sys, device string) {
	for dir := device; len(dir) > len(sys); dir = filepath.Dir(dir) {
		driver, err := os.Readlink(filepath.Join(dir, "driver"))
		// "port" and "ctrl" are the serial core's own; the real driver sits above them.
		if name := filepath.Base(driver); err == nil && i.Driver == "" && name != "port" && name != "ctrl" {
			i.Driver = name
		}
		if n := attribute(dir, "bInterfaceNumber"); n != "" && i.Interface == "" {
			i.Interface = n
		}
		if vid := attribute(dir, "idVendor"); vid != "" {
			i.VID, i.PID = vid, attribute(dir, "idProduct")
			i.Serial, i.Product = attribute(dir, "serial"), attribute(dir, "product")
			return
		}
	}
}

// links maps kernel names such as ttyUSB0 to their stable names in dir; of several, the shortest
// ("usb-0:1" before "usbv2-0:1").
func links(dev, dir string) map[string]string {
	entries, err := os.ReadDir(filepath.Join(dev, "serial", dir))
	if err != nil {
		return nil // absent where no udev runs
	}
	names := make(map[string]string)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dev, "serial", dir, e.Name()))
		if err != nil {
			continue
		}
		name, port := dir+"/"+e.Name(), filepath.Base(to)
		if known, ok := names[port]; !ok || len(name) < len(known) {
			names[port] = name
		}
	}
	return names
}

func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// compareNatural puts ttyUSB2 before ttyUSB10.
func compareNatural(a, b string) int {
	stem := func(s string) string { return strings.TrimRight(s, "0123456789") }
	if c := strings.Compare(stem(a), stem(b)); c != 0 {
		return c
	}
	if c := len(a) - len(b); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
