package port

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.bug.st/serial"
)

// Rows "SetMode 8E1" and "InitialStatusBits": a pseudo terminal forgets parity and data bits, so what
// is asked for is checked instead; modem lines are never set while opening, which fails on many ports.
func TestModeOf(t *testing.T) {
	for s, want := range map[string]serial.Mode{
		"19200 8E1": {BaudRate: 19200, DataBits: 8, Parity: serial.EvenParity, StopBits: serial.OneStopBit},
		"9600 7O2":  {BaudRate: 9600, DataBits: 7, Parity: serial.OddParity, StopBits: serial.TwoStopBits},
		"300 8N1":   {BaudRate: 300, DataBits: 8, Parity: serial.NoParity, StopBits: serial.OneStopBit},
		"300 8M1":   {BaudRate: 300, DataBits: 8, Parity: serial.MarkParity, StopBits: serial.OneStopBit},
		"300 8S1":   {BaudRate: 300, DataBits: 8, Parity: serial.SpaceParity, StopBits: serial.OneStopBit},
	} {
		settings, err := ParseSettings(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := modeOf(settings); !reflect.DeepEqual(*got, want) || got.InitialStatusBits != nil {
			t.Errorf("%s: %+v; want %+v", s, *got, want)
		}
	}
}

// tree makes files, and links where the content begins with "-> ".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := error(nil)
		if to, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const usb = "sys/devices/pci0/usb1/1-1"

// sysfs is a machine with an FTDI adapter, a CDC one, an UART, a place for another, and a console.
var sysfs = map[string]string{
	usb + "/idVendor": "0403\n", usb + "/idProduct": "6001\n", usb + "/serial": "A50285BI\n", usb + "/product": "FT232R USB UART\n",
	usb + "/1-1:1.0/bInterfaceNumber":                         "00\n",
	usb + "/1-1:1.0/driver":                                   "-> ../../../../../bus/usb/drivers/ftdi_sio",
	usb + "/1-1:1.0/ttyUSB10/driver":                          "-> ../../../../../../bus/usb-serial/drivers/ftdi_sio",
	usb + "/1-1:1.0/ttyUSB10/latency_timer":                   "16\n",
	usb + "/1-1:1.0/ttyUSB10/tty/ttyUSB10/device":             "-> ../../../ttyUSB10",
	"sys/class/tty/ttyUSB10":                                  "-> ../../devices/pci0/usb1/1-1/1-1:1.0/ttyUSB10/tty/ttyUSB10",
	"sys/devices/pci0/usb1/1-2/idVendor":                      "2341\n",
	"sys/devices/pci0/usb1/1-2/idProduct":                     "0043\n",
	"sys/devices/pci0/usb1/1-2/1-2:1.0/driver":                "-> ../../../../../bus/usb/drivers/cdc_acm",
	"sys/devices/pci0/usb1/1-2/1-2:1.0/tty/ttyACM0/device":    "-> ../../../1-2:1.0",
	"sys/class/tty/ttyACM0":                                   "-> ../../devices/pci0/usb1/1-2/1-2:1.0/tty/ttyACM0",
	"sys/devices/soc/uart/driver":                             "-> ../../../bus/platform/drivers/imx-uart",
	"sys/devices/soc/uart/uart:0/uart:0.0/driver":             "-> ../../../../../bus/serial-base/drivers/port",
	"sys/devices/soc/uart/uart:0/uart:0.0/tty/ttymxc2/device": "-> ../../../uart:0.0",
	"sys/devices/soc/uart/uart:0/uart:0.0/tty/ttymxc2/type":   "62\n",
	"sys/class/tty/ttymxc2":                                   "-> ../../devices/soc/uart/uart:0/uart:0.0/tty/ttymxc2",
	"sys/devices/platform/serial8250/tty/ttyS1/device":        "-> ../../../serial8250",
	"sys/devices/platform/serial8250/tty/ttyS1/type":          "0\n",
	"sys/class/tty/ttyS1":                                     "-> ../../devices/platform/serial8250/tty/ttyS1",
	"sys/devices/virtual/tty/tty0/dev":                        "4:0\n",
	"sys/class/tty/tty0":                                      "-> ../../devices/virtual/tty/tty0",
	"dev/serial/by-id/usb-FTDI_FT232R_A50285BI-if00-port0":    "-> ../../ttyUSB10",
	"dev/serial/by-path/pci-0-usb-0:1:1.0-port0":              "-> ../../ttyUSB10",
	"dev/serial/by-id/usb-Arduino-if00":                       "-> ../../ttyACM0",
}

func TestListFromSysfs(t *testing.T) {
	root := tree(t, sysfs)
	dev := filepath.Join(root, "dev")
	got, err := list(filepath.Join(root, "sys"), dev, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []Info{
		{Path: dev + "/ttyACM0", ByID: "by-id/usb-Arduino-if00", Driver: "cdc_acm", VID: "2341", PID: "0043"},
		{Path: dev + "/ttyUSB10", USB: "usb:0403:6001:A50285BI:0", ByID: "by-id/usb-FTDI_FT232R_A50285BI-if00-port0", ByPath: "by-path/pci-0-usb-0:1:1.0-port0",
			Driver: "ftdi_sio", VID: "0403", PID: "6001", Serial: "A50285BI", Interface: "00", Product: "FT232R USB UART"},
		{Path: dev + "/ttymxc2", Driver: "imx-uart"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, err := list(filepath.Join(root, "nowhere"), dev, ""); got != nil || err != nil {
		t.Errorf("no sysfs: %v, %v", got, err)
	}
	if path, err := (system{dev: dev}).resolve(address{link: want[1].ByID}); err != nil || path != filepath.Join(dev, "serial", want[1].ByID) {
		t.Errorf("listed name resolves to %q, %v", path, err)
	}
}

// This machine's own ports, whatever they are.
func TestListHere(t *testing.T) {
	if _, err := List(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ttyUSB9", "ttyUSB10"} {
		if c := compareNatural("/dev/"+name, "/dev/ttyUSB11"); c >= 0 {
			t.Errorf("%s is not before ttyUSB11", name)
		}
	}
}
