package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// story runs in the container as a service and writes what it sees to /story.log, a line for each
// question. It ends with the agent's user asking for a restart of the machine.
const story = `#!/bin/sh
exec >/story.log 2>&1
show() { systemctl show --property="$1" --value "${2:-ferrule.service}"; }
until_is() { # PROPERTY VALUE: within a minute
	n=0
	while [ "$(show "$1")" != "$2" ] && [ $n -lt 300 ]; do sleep 0.2; n=$((n + 1)); done
	[ $n -lt 300 ] || { echo "TIMEOUT $1 is $(show "$1"), not $2"; journalctl --no-pager -u 'ferrule*' | tail -n 40; }
}
until_is ActiveState active
pid=$(show MainPID)
echo "program $(tr '\0' ' ' <"/proc/$pid/cmdline")"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' "/proc/$pid/status" | tr -s '\t' ' '
echo "status $(runuser -u ferrule -- /usr/bin/ferrule status | head -n 1)"
systemctl reload ferrule.service && echo reloaded
runuser -u ferrule -- sh -c 'echo x >/etc/ferrule/mine' && echo "the configuration's folder can be written"
until_is SubState running

kill -STOP "$pid"
until_is NRestarts 1
until_is ActiveState active
echo "the watchdog has it started again"

echo 'FERRULE_OPTIONS="--no-such-option"' >/etc/default/ferrule
systemctl restart --no-block ferrule.service
until_is ActiveState failed
echo "it has failed for good"
echo 'FERRULE_OPTIONS=""' >/etc/default/ferrule
until_is ActiveState active
echo "and was started again"

printf '#!/bin/sh\nif [ "$1" = version ]; then echo 1; else exit 78; fi\n' >/usr/bin/cloned
chmod 755 /usr/bin/cloned
echo FERRULE_PACKAGED=/usr/bin/cloned >/etc/default/ferrule
systemctl restart --no-block ferrule.service
until_is ActiveState failed
until_is NRestarts 0
n=0
while [ "$(show SubState ferrule-revert.service)" != dead ] && [ $n -lt 300 ]; do sleep 0.2; n=$((n + 1)); done
sleep 3
echo "a cloned disk is $(show ActiveState), status $(show ExecMainStatus)"

runuser -u ferrule -- sh -c 'echo "rm -rf /" >/run/ferrule/reboot'
n=0
while [ -e /run/ferrule/reboot ] && [ $n -lt 300 ]; do sleep 0.2; n=$((n + 1)); done
echo "another wish $(show Result ferrule-reboot.service)"
while [ "$(show SubState ferrule-reboot.service)" = start ]; do sleep 0.2; done
sync
runuser -u ferrule -- sh -c 'printf "0 tryboot" >/run/ferrule/reboot'
`

// A device that is told to restart ends the container with this.
const rebooted = 133

// boots starts the system in the folder as a container with a systemd of its own: the agent runs under its
// unit, with everything that it is shut out from.
func (d *debian) boots(t *testing.T) {
	t.Helper()
	d.identity(t)
	d.script(t, "usr/bin/story", story)
	for name, text := range map[string]string{
		"etc/systemd/system/story.service":                      "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/usr/bin/story\n",
		"etc/systemd/system/ferrule.service.d/soon.conf":        "[Unit]\nStartLimitBurst=3\n[Service]\nWatchdogSec=3s\nRestartSec=100ms\n",
		"etc/systemd/system/ferrule-revert.service.d/soon.conf": "[Service]\nExecStartPost=\nExecStartPost=+/usr/lib/ferrule/ferrule-again 1\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(d.root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		d.script(t, name, text)
	}
	d.do(t, "ln", "-s", "/etc/systemd/system/story.service", "/etc/systemd/system/multi-user.target.wants/story.service")

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	container := exec.CommandContext(ctx, need(t, "systemd-nspawn"), "--quiet", "--directory="+d.root, "--boot", "--register=no",
		"--keep-unit", "--private-network", "--console=pipe", "--machine=ferrule-e2e")
	out, _ := container.CombinedOutput()
	log, err := os.ReadFile(filepath.Join(d.root, "story.log"))
	if err != nil {
		t.Fatalf("the container did not come up: %v\n%s", err, out)
	}
	if code := container.ProcessState.ExitCode(); code != rebooted {
		t.Errorf("the container ended with %d, not by a reboot:\n%s", code, out)
	}
	for _, want := range []string{
		"program /usr/bin/ferrule run \n", "CapEff: 0000000000000000\n", "CapBnd: 0000000000000000\n", "NoNewPrivs: 1\n", "Seccomp: 2\n",
		"status device        gw-1\n", "\nreloaded\n", "can be written\n", "the watchdog has it started again\n",
		"it has failed for good\n", "and was started again\n", "a cloned disk is failed, status 78\n", "another wish exit-code\n",
	} {
		if !strings.Contains(string(log), want) {
			t.Errorf("missing: %q", want)
		}
	}
	if strings.Contains(string(log), "TIMEOUT") || t.Failed() {
		t.Errorf("the story:\n%s", log)
	}
	for _, name := range []string{"etc/systemd/system/ferrule.service.d", "etc/systemd/system/ferrule-revert.service.d", "etc/systemd/system/multi-user.target.wants/story.service", "etc/ferrule/mine"} {
		if err := os.RemoveAll(filepath.Join(d.root, name)); err != nil {
			t.Error(err)
		}
	}
	mustRun(t, "", "dpkg-deb", "--extract", filepath.Join(d.root, "tmp/ferrule.deb"), filepath.Join(d.root, "tmp/new"))
	mustRun(t, "", "cp", filepath.Join(d.root, "tmp/new/etc/default/ferrule"), filepath.Join(d.root, "etc/default/ferrule"))
}

// script writes a file that anybody may read and run.
func (d *debian) script(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.root, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// identity gives the device a key and a certificate, which no broker here knows.
func (d *debian) identity(t *testing.T) {
	t.Helper()
	state := filepath.Join(d.root, "var/lib/ferrule")
	mustRun(t, "", need(t, "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", state+"/device.key", "-out", state+"/device.crt", "-subj", "/CN=gw-1", "-days", "30")
	d.script(t, "etc/ferrule/ferrule.toml", `state_dir = "/var/lib/ferrule"
[identity]
tpm = "none"
key = "file:device.key"
allow_software_key = true
[session]
brokers = ["mqtts://127.0.0.1:8883"]
[[line]]
name = "rs485-1"
port = "/dev/ttyUSB0"
settings = "19200 8E1"
[[line.unit]]
name = "meter-a"
address = 1
[[line.unit.point]]
name = "power"
at = "input:12"
type = "float32"
`)
	d.do(t, "chown", "-R", "ferrule:ferrule", "/var/lib/ferrule")
	d.do(t, "chmod", "600", "/var/lib/ferrule/device.key")
}
