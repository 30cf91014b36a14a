package gateway

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// machine is one gateway: its disk, its TPM and its serial line outlive every power cut.
type machine struct {
	dir  string
	disk string // the image it boots from
	wire *hwtest.Wire
	unit *hwtest.Unit
	log  string // where writes are recorded, "": nowhere

	qemu, tpm *process
	powered   time.Time
	heard     int // lines of the console that next has seen
	from      int // lines of the witness at which this boot began
}

// newMachine flashes a gateway.
func newMachine(t *testing.T) *machine {
	t.Helper()
	tools(t)
	dir, err := os.MkdirTemp("", "gm") // a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &machine{dir: dir, disk: filepath.Join(dir, "disk.img"), unit: hwtest.NewUnit(1)}
	if err := os.Mkdir(filepath.Join(dir, "tpm"), 0o700); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "cp", "--sparse=always", filepath.Join(made.dir, "A", "ferrule-qemu-arm64.img"), m.disk)
	m.unit.Counter(modbus.InputRegisters, 0)
	// What arrives faster than a line carries it overruns the FIFO of QEMU's UART.
	if m.wire, err = hwtest.NewWire(hwtest.WireConfig{Baud: 115200, BitsPerChar: 10}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.wire.Close() })
	m.wire.Attach(m.unit)
	return m
}

// on switches the power on.
func (m *machine) on(t *testing.T) {
	t.Helper()
	socket := filepath.Join(m.dir, "tpm.sock")
	_ = os.Remove(socket)
	m.tpm = start(t, "swtpm", need(t, "swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(m.dir, "tpm"),
		"--ctrl", "type=unixio,path="+socket, "--terminate")
	waitFor(t, "the TPM's socket", func() bool { _, err := os.Stat(socket); return err == nil })
	words := bootWords(t, "-m", "320",
		"-chardev", "socket,id=tpm,path="+socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis-device,tpmdev=tpm0",
		"-chardev", "serial,id=line,path="+m.wire.Path(), "-device", "pci-serial,chardev=line",
		"-netdev", "user,id=n0", "-device", "virtio-net-device,netdev=n0")
	m.qemu = start(t, "the gateway", append(words, m.drive()...)...)
	m.powered, m.heard = time.Now(), 0
}

// drive is the disk, and the recorder before it where writes are recorded.
func (m *machine) drive() []string {
	if m.log == "" {
		return []string{"-blockdev", "driver=file,node-name=d0,filename=" + m.disk, "-device", "virtio-blk-device,drive=d0"}
	}
	return []string{"-blockdev", "driver=file,node-name=f0,filename=" + m.disk, "-blockdev", "driver=file,node-name=l0,filename=" + m.log,
		"-blockdev", "driver=blklogwrites,node-name=d0,file=f0,log=l0,log-sector-size=512", "-device", "virtio-blk-device,drive=d0"}
}

// cut is a power cut: QEMU and the TPM are gone in the middle of what they did.
func (m *machine) cut() {
	m.qemu.kill()
	m.tpm.kill()
}

// next waits for a line of the console that next has not returned yet and that holds one of texts.
func (m *machine) next(t *testing.T, texts ...string) line {
	t.Helper()
	l, n := m.qemu.wait(t, m.heard, texts...)
	m.heard = n + 1
	return l
}

// provision puts files into the machine's /etc/ferrule.
func (m *machine) provision(t *testing.T, files map[string]string) {
	t.Helper()
	words := []string{made.image, "provision", m.disk}
	for name, text := range files {
		path := filepath.Join(m.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		words = append(words, path)
	}
	mustRun(t, words...)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: waited %v", what, patience)
		}
	}
}

// seconds is how long after the power came on something happened.
func (m *machine) seconds(l line) string { return fmt.Sprintf("%.1f s", l.at.Sub(m.powered).Seconds()) }

// scramble fills the slot that does not run with what no release has: a gateway that was flashed with
// one slot alone, or had quite another release there.
func (m *machine) scramble(t *testing.T) {
	t.Helper()
	disk, err := os.OpenFile(m.disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := io.Copy(io.NewOffsetWriter(disk, slotBAt), io.LimitReader(rand.NewChaCha8([32]byte{1}), slotSize)); err != nil {
		t.Fatal(err)
	}
}

// forget wipes the agent's memory of updates, as a person with the card in a reader does.
func (m *machine) forget(t *testing.T) {
	t.Helper()
	data := filepath.Join(m.dir, "data")
	mustRun(t, "dd", "status=none", "conv=sparse", "bs=1M", "if="+m.disk, "of="+data, fmt.Sprintf("skip=%d", dataAt/mib), "count=64")
	// Power was cut, so the journal of the file system is replayed first; 1 says that it had to be.
	if out, err := exec.Command(need(t, "e2fsck"), "-fy", data).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Fatalf("checking the data partition: %v\n%s", err, out)
		}
	}
	forgotten := 0
	for _, name := range strings.Fields(mustRun(t, need(t, "debugfs"), "-R", "ls -p /lib/update", data)) {
		if fields := strings.Split(name, "/"); len(fields) > 5 && strings.HasPrefix(fields[2], "100") {
			mustRun(t, need(t, "debugfs"), "-w", "-R", "rm /lib/update/"+fields[5], data)
			forgotten++
		}
	}
	if forgotten == 0 {
		t.Error("there was nothing to forget")
	}
	mustRun(t, "dd", "status=none", "conv=notrunc", "bs=1M", "if="+data, "of="+m.disk, fmt.Sprintf("seek=%d", dataAt/mib))
}
