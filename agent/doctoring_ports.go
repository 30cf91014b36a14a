package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ferrule/agent/doctor"
	"ferrule/hw"
	"ferrule/hw/port"
)

// checkLines is the lines of the running agent.
func checkLines(all []hw.Status) doctor.Result {
	var r doctor.Result
	for _, s := range all {
		text := fmt.Sprintf("%s: %s, %s at %s, %d polls", s.Name, s.State, s.Protocol, s.Port, s.Polls)
		var silent []string
		for _, u := range s.Units {
			if u.State == hw.UnitDegraded {
				silent = append(silent, u.Name)
			}
		}
		r.Saw = append(r.Saw, text)
		if len(silent) > 0 {
			r.Warn(fmt.Sprintf("line %s: no answer from %s", s.Name, strings.Join(silent, ", ")),
				"check power, wiring and address of the unit; ferrule scan finds what answers, when the agent does not run")
		}
		switch {
		case s.State == hw.StateUp:
		case s.Problem == "" || r.State == doctor.Failed:
			r.Warn(fmt.Sprintf("line %s is %s: %s", s.Name, s.State, s.Problem), "look again in some seconds; ferrule ports lists what is plugged in")
		default:
			r = r.Fail("line-down", onDevice, fmt.Sprintf("line %s: %s", s.Name, s.Problem), "see that the adapter is plugged in and free: ferrule ports")
		}
	}
	return r
}

// checkPorts looks at the ports of lines that nobody runs, and opens none of them: that alone can
// restart what is behind.
func checkPorts(lines []hw.LineConfig) doctor.Result {
	var r doctor.Result
	infos, err := port.List()
	if err != nil {
		r.Warn(fmt.Sprintf("the serial ports cannot be listed: %v", err), "run: ferrule ports")
	}
	for _, line := range lines {
		path, problem := findPort(line.Port, infos)
		switch {
		case problem != "":
			r = worst(r, "port-missing", fmt.Sprintf("line %s: %s", line.Name, problem), "see that the adapter is plugged in, and what it is called: ferrule ports")
		case path == "":
			r.Saw = append(r.Saw, fmt.Sprintf("%s: %s is a serial server, which is not asked", line.Name, line.Port))
		case errors.Is(unix.Access(path, unix.R_OK|unix.W_OK), unix.EACCES):
			r = worst(r, "port-permission", fmt.Sprintf("line %s: this user may not open %s", line.Name, path), "add the service user to group dialout, then restart the service")
		default:
			text := fmt.Sprintf("%s: %s is there", line.Name, path)
			if holder := holderOf(path); holder != "" {
				r = worst(r, "port-busy", fmt.Sprintf("line %s: %s is open in %s", line.Name, path, holder), "stop that program, or give it a port of its own")
				continue
			}
			r.Saw = append(r.Saw, text+", and nobody has it open")
		}
	}
	return r
}

// worst keeps the first failure, and makes a warning of the others.
func worst(r doctor.Result, what, text, repair string) doctor.Result {
	if r.State == doctor.Failed {
		r.Warn(text, repair)
		return r
	}
	return r.Fail(what, onDevice, text, repair)
}

// findPort finds the device of a port by its configured name; "" for a serial server.
func findPort(name string, infos []port.Info) (path, problem string) {
	switch {
	case port.IsNetwork(name):
		return "", ""
	case strings.HasPrefix(name, "usb:"):
		i := slices.IndexFunc(infos, func(i port.Info) bool { return strings.EqualFold(i.USB, name) })
		if i < 0 {
			return "", "no USB device is called " + name
		}
		return infos[i].Path, ""
	case strings.HasPrefix(name, "by-"):
		path = filepath.Join("/dev/serial", name)
	default:
		path = name
	}
	device, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "there is no " + path
	} else if err != nil {
		return "", err.Error()
	}
	info, err := os.Stat(device)
	if err != nil {
		return "", err.Error()
	}
	if info.Mode()&fs.ModeCharDevice == 0 {
		return "", path + " is no serial port"
	}
	return device, ""
}

// mostProcesses bounds what is looked at in /proc.
const mostProcesses = 4096

// holderOf names a process that has path open, as far as this user may know.
func holderOf(path string) string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, e := range entries[:min(len(entries), mostProcesses)] {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		descriptors := filepath.Join("/proc", e.Name(), "fd")
		open, err := os.ReadDir(descriptors)
		if err != nil {
			continue
		}
		for _, d := range open {
			if to, err := os.Readlink(filepath.Join(descriptors, d.Name())); err == nil && to == path {
				name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
				return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), pid)
			}
		}
	}
	return ""
}
