package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// unlinked is what the device binary must not link, and why. A name stands for the package
// and everything below it.
var unlinked = map[string]string{
	"github.com/mochi-mqtt/server/v2": "a broker: the device is a client, and opens no MQTT port",
	"ferrule/agent/agenttest":         "the cloud in a box of tests and demo",
	"ferrule/agent/enroll/registrar":  "issues certificates: host side only",
	"ferrule/hw/hwtest":               "simulated sensors: a reading of theirs must never be taken for a real one",
	"github.com/creack/pty":           "the simulated wire",
	"ferrule/tpm/tpmtest":             "a TPM in software: a key in it is not protected",
	"ferrule/internal/disk/disktest":  "a disk that fails on purpose",
	"ferrule/firmware/bundle":         "writes and signs updates: host side only",
	"ferrule/firmware/slot/slottest":  "boot loaders of tests",
	"ferrule/firmware/slot/blocktest": "a disk that loses what was not flushed",
	"github.com/theupdateframework":   "the reference client of TUF, for the host side and for comparing ours with: 2.4 MB",
	"github.com/schollz/progressbar":  "draws for people at a desk",
	"github.com/godbus/dbus":          "RAUC is asked with the few messages that takes",
	"testing":                         "adds flags and code that only tests need",
	"go.etcd.io/bbolt":                "the peer of the outbox's benchmarks",
	"github.com/miekg/pkcs11":         "needs cgo; keys behind PKCS #11 are reached through a helper process",
	"rsc.io/qr":                       "labels are printed on the host",
	"net/http/pprof":                  "shows memory to whoever asks",
	"expvar":                          "registers itself with the default HTTP server",
	"runtime/cgo":                     "the binary is static and depends on no libc",
	"plugin":                          "loads code at run time",
}

// linked is the control: a list without these is not the list of this program.
var linked = []string{
	"ferrule/agent/session", "ferrule/agent/outbox", "ferrule/hw/modbus", "ferrule/tpm", "ferrule/firmware/tuf", "ferrule/firmware/patch", "crypto/tls",
}

func TestDeviceBinaryLinksNoHostSide(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatalf("listing what the binary links: %v", err)
	}
	packages := strings.Fields(string(out))
	for _, path := range linked {
		if !slices.Contains(packages, path) {
			t.Errorf("%s is not linked; this list is not the agent's", path)
		}
	}
	for _, path := range packages {
		for bad, why := range unlinked {
			if path == bad || strings.HasPrefix(path, bad+"/") {
				t.Errorf("the device binary links %s: %s", path, why)
			}
		}
	}
}
