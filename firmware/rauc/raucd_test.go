package rauc_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

// errDied is the end of the process in the middle of an installation.
var errDied = errors.New("it died")

const installer = "de.pengutronix.rauc.Installer"

// newBus starts a bus of this test's own and returns its address.
func newBus(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Fatal("dbus-daemon is missing; run: make deps")
	}
	dir, err := os.MkdirTemp("", "bus") // a socket's path may have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "bus.conf")
	text := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=` + dir + `/s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the bus did not start: %v", err)
	}
	return strings.TrimSpace(address)
}

// raucd is a RAUC with the boot loader of its device, as far as its interface shows them: a foreign
// D-Bus library answers, so that what we write by hand is read by others.
type raucd struct {
	conn  *dbus.Conn
	props *prop.Properties
	work  sync.WaitGroup // the installations under way

	mu      sync.Mutex
	primary string
	booted  string
	bad     map[string]bool
	tries   int
	marks   []string
	sources []string
	// install is what happens in an installation; its error is LastError.
	install func(d *raucd, source string) error
	lie     bool // Mark answers, and does nothing
}

func newRAUC(t *testing.T, address string) *raucd {
	t.Helper()
	d := &raucd{primary: "rootfs.0", booted: "rootfs.0", bad: map[string]bool{}}
	d.install = func(d *raucd, source string) error {
		for _, step := range []struct {
			percent int32
			text    string
		}{{0, "Installing"}, {40, "Checking bundle done."}, {100, "Installing done."}} {
			d.progress(step.percent, step.text)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.primary, d.tries = other(d.booted), 3
		delete(d.bad, d.primary)
		return nil
	}
	var err error
	if d.conn, err = dbus.Connect(address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.work.Wait(); _ = d.conn.Close() })
	if err := d.conn.Export(d, "/", installer); err != nil {
		t.Fatal(err)
	}
	d.props, err = prop.Export(d.conn, "/", prop.Map{installer: {
		"Operation": {Value: "idle", Emit: prop.EmitTrue},
		"LastError": {Value: "", Emit: prop.EmitTrue},
		"Progress":  {Value: progress{0, "", 0}, Emit: prop.EmitTrue},
		"BootSlot":  {Value: "system0", Emit: prop.EmitTrue},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := d.conn.RequestName("de.pengutronix.rauc", dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("RAUC's name: %v, %v", reply, err)
	}
	return d
}

type progress struct {
	Percent int32
	Message string
	Depth   int32
}

func other(name string) string {
	if name == "rootfs.0" {
		return "rootfs.1"
	}
	return "rootfs.0"
}

func (d *raucd) progress(percent int32, text string) {
	d.props.SetMust(installer, "Progress", progress{percent, text, 1})
}

// InstallBundle is the method of the interface.
func (d *raucd) InstallBundle(source string, args map[string]dbus.Variant) *dbus.Error {
	if d.props.GetMust(installer, "Operation") != "idle" {
		return dbus.NewError("org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code30", []any{"Already processing a different method"})
	}
	d.mu.Lock()
	d.sources = append(d.sources, source)
	d.mu.Unlock()
	d.begin(source)
	return nil
}

// installing sets what happens in the installations from now on.
func (d *raucd) installing(install func(d *raucd, source string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.install = install
}

func (d *raucd) begin(source string) {
	d.props.SetMust(installer, "Operation", "installing")
	d.work.Go(func() { // ends with the installation
		result := int32(0)
		d.mu.Lock()
		install := d.install
		d.mu.Unlock()
		err := install(d, source)
		if errors.Is(err, errDied) {
			_ = d.conn.Close()
			return
		}
		if err != nil {
			result = 1
			d.props.SetMust(installer, "LastError", err.Error())
		}
		_ = d.conn.Emit("/", installer+".Completed", result)
		d.props.SetMust(installer, "Operation", "idle")
	})
}

// Mark is the method of the interface.
func (d *raucd) Mark(state, id string) (name, message string, err *dbus.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name = id
	switch id {
	case "booted":
		name = d.booted
	case "other":
		name = other(d.booted)
	}
	if name != "rootfs.0" && name != "rootfs.1" {
		return "", "", dbus.NewError("de.pengutronix.rauc.Error", []any{"No slot with class and name " + id})
	}
	d.marks = append(d.marks, state+" "+name)
	if d.lie {
		return name, "marked", nil
	}
	switch state {
	case "good":
		delete(d.bad, name)
		d.tries = 3
	case "bad":
		d.bad[name] = true
		if d.primary == name {
			d.primary = other(name)
		}
	case "active":
		delete(d.bad, name)
		d.primary, d.tries = name, 3
	default:
		return "", "", dbus.NewError("de.pengutronix.rauc.Error", []any{"unknown subcommand " + state})
	}
	return name, fmt.Sprintf("marked slot %s as %s", name, state), nil
}

// GetPrimary is the method of the interface.
func (d *raucd) GetPrimary() (string, *dbus.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.primary, nil
}

type slotStatus struct {
	Name   string
	Status map[string]dbus.Variant
}

// GetSlotStatus is the method of the interface.
func (d *raucd) GetSlotStatus() ([]slotStatus, *dbus.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := []slotStatus{{"data.0", map[string]dbus.Variant{"class": dbus.MakeVariant("data"), "size": dbus.MakeVariant(uint64(7))}}}
	for i, name := range []string{"rootfs.1", "rootfs.0"} {
		status := map[string]string{"class": "rootfs", "bootname": fmt.Sprint("system", 1-i), "state": "inactive", "boot-status": "good", "device": "/dev/" + name}
		if name == d.booted {
			status["state"] = "booted"
		}
		if d.bad[name] {
			status["boot-status"] = "bad"
		}
		variants := map[string]dbus.Variant{}
		for key, value := range maps.All(status) {
			variants[key] = dbus.MakeVariant(value)
		}
		list = append(list, slotStatus{name, variants})
	}
	return list, nil
}

// reboot is what the boot loader does: the primary slot, as long as it has tries left.
func (d *raucd) reboot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tries--; d.tries < 0 {
		d.bad[d.primary] = true
		d.primary, d.tries = other(d.primary), 3
	}
	d.booted = d.primary
}
