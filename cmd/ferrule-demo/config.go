package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// configure writes the agent's configuration: every key that is not a default.
func (w *world) configure() error {
	var text strings.Builder
	fmt.Fprintf(&text, `state_dir = %q

[identity]
tpm = %q
key = %q
allow_software_key = %t

[enroll]
method = "registrar"
url = "https://%s"
roots = %q

[session]
brokers = ["mqtts://%s"]
reconnect_spread = "1s"
roots = %[6]q

[outbox]
sync = %[8]q

[local]
socket = %[9]q

[[line]]
name = %[10]q
port = %[11]q
settings = %[12]q
protocol = "modbus-rtu"
`, w.path("state"), w.tpmPath(), w.keyRef(), w.weak(), w.registrar, w.path("ca", "root.crt"), w.broker.Address(),
		syncWithin.String(), w.path("agent.sock"), lineName, w.wire.Path(), lineSettings)
	for _, m := range w.meters {
		m.configure(&text)
	}
	if err := os.WriteFile(w.path("ferrule.toml"), []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// configure writes the meter's unit and its points.
func (m *meter) configure(text *strings.Builder) {
	fmt.Fprintf(text, `
[[line.unit]]
name = %q
address = %d
every = %q
timeout = "2s"
`, m.name, m.unit.Address(), m.every.String())
	for _, p := range []struct {
		name, kind, uom string
		at              int
	}{
		{"voltage", "float32", "V", voltageAt}, {"current", "float32", "A", currentAt}, {"power", "float32", "W", powerAt},
		{"energy", "float32", "kWh", energyAt}, {"count", "uint32", "", countAt},
	} {
		fmt.Fprintf(text, "[[line.unit.point]]\nname = %q\nat = \"input:%d\"\ntype = %q\nuom = %q\n", p.name, p.at, p.kind, p.uom)
	}
}

// path is a path in the demo's folder.
func (w *world) path(elements ...string) string {
	return filepath.Join(append([]string{w.dir}, elements...)...)
}

// tpmPath is the TPM as the agent is told of it: the socket on which its commands are counted.
func (w *world) tpmPath() string {
	if w.weak() {
		return "none"
	}
	return w.tap.Address()
}

func (w *world) keyRef() string {
	if w.weak() {
		return "file:device.pem"
	}
	return "tpm2:file=device.key"
}
