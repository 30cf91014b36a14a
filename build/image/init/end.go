package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rebootFile is where the agent, which may not reboot, asks for one.
const rebootFile = runDir + "/reboot"

// watchReboot gives the content of the reboot file once it is there. Its goroutine ends with ctx or
// with what it gave.
func watchReboot(ctx context.Context) (<-chan string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", runDir, err)
	}
	if _, err := unix.InotifyAddWatch(fd, runDir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watching %s: %w", runDir, err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	wanted := make(chan string, 1)
	context.AfterFunc(ctx, func() { _ = file.Close() })
	go func() {
		buffer := make([]byte, 4096)
		for {
			if _, err := file.Read(buffer); err != nil {
				return
			}
			if argument, ok := readReboot(rebootFile); ok {
				wanted <- argument
				return
			}
		}
	}()
	return wanted, nil
}

// readReboot returns the reboot's argument. What is no plain word is left out: the reboot is what counts.
func readReboot(name string) (argument string, ok bool) {
	const longest = 64
	file, err := os.Open(name)
	if err != nil {
		return "", false
	}
	defer file.Close()
	text := make([]byte, longest+1)
	n, _ := file.Read(text) // an empty file asks for a plain reboot
	argument = strings.TrimSpace(string(text[:n]))
	plain := func(r rune) bool {
		return r == ' ' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z'
	}
	if n > longest || strings.ContainsFunc(argument, func(r rune) bool { return !plain(r) }) {
		return "", true
	}
	return argument, true
}

// end takes the machine down, and does not return: everything is on the disk, and the data
// partition is clean.
func end(log *slog.Logger, how ending) {
	keepClock()
	_ = unix.Kill(-1, unix.SIGTERM) // nobody but the agent was there, and it is gone
	unix.Sync()
	for _, at := range []string{stateDir, confDir, dataDir, firmwareDir} {
		if err := unix.Unmount(at, 0); err != nil {
			_ = unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // nothing more can be done
		}
	}
	word := "reboot"
	if how.off {
		word = "power off"
	}
	log.Info(word, "after", uptime().Round(10*time.Millisecond))
	unix.Sync()
	switch {
	case how.off:
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case how.argument != "":
		rebootWith(how.argument)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1) // the kernel panics, and reboots by panic=-1
}

// rebootWith hands an argument to the firmware, for which the library has no call.
func rebootWith(argument string) {
	text, err := syscall.BytePtrFromString(argument)
	if err != nil {
		return
	}
	_, _, _ = syscall.Syscall6(syscall.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2,
		unix.LINUX_REBOOT_CMD_RESTART2, uintptr(unsafe.Pointer(text)), 0, 0)
}
