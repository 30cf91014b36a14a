package main

import (
	"regexp"
	"strings"
	"testing"

	"ferrule/hw/port"
)

func TestPrintPorts(t *testing.T) {
	var b strings.Builder
	err := printPorts(&b, []port.Info{
		{Path: "/dev/ttyUSB0", USB: "usb:0403:6001:A50285BI:0", ByID: "by-id/usb-FTDI-if00-port0", ByPath: "by-path/pci-0-port0", Driver: "ftdi_sio", Product: "FT232R\x1b[2J"},
		{Path: "/dev/ttymxc2", Driver: "imx-uart"},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `PORT          STABLE NAMES               DRIVER    PRODUCT
/dev/ttyUSB0  usb:0403:6001:A50285BI:0   ftdi_sio  FT232R?[2J
              by-id/usb-FTDI-if00-port0
              by-path/pci-0-port0
/dev/ttymxc2  -                          imx-uart
`
	if got := regexp.MustCompile(" +\n").ReplaceAllString(b.String(), "\n"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
