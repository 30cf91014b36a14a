// Command init is the first process of the appliance's image: it brings up disk, clock and
// network, and keeps the agent running until somebody wants a reboot. It decides nothing about
// slots: the boot loader chooses, the agent commits. The trap: a system on trial that stays up
// without its agent never comes back by itself, so here a reboot is the answer to every fault
// that lasts, and the boot loader counts.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Where things are, after the kernel has unpacked the initrd.
const (
	slotDir  = "/slot"            // the running slot, read-only
	dataDir  = "/data"            // the data partition
	stateDir = "/var/lib/ferrule" // DATA/lib
	confDir  = "/etc/ferrule"     // DATA/etc
	runDir   = "/run/ferrule"
	// firmwareDir is what the Raspberry Pi's firmware reads first, with its autoboot.txt.
	firmwareDir = "/boot/firmware"
	agent       = slotDir + "/usr/bin/ferrule"
	owner       = 990 // uid and gid of the agent
)

// What a part of the start may take before it counts as failed.
const (
	diskPatience = 20 * time.Second
	stopPatience = 20 * time.Second // of the agent, after SIGTERM; its shutdown_grace is 10s
)

func main() {
	log := slog.New(newConsole(os.Stdout))
	reason := run(log)
	log.Warn(reason.text)
	end(log, reason)
}

// ending is why and how the machine goes down.
type ending struct {
	text     string
	argument string // of the reboot; for the Raspberry Pi's firmware: "0 tryboot"
	off      bool
}

// run is the machine's life; it returns when it is to end.
func run(log *slog.Logger) ending {
	if err := mountKernel(); err != nil {
		return ending{text: err.Error()}
	}
	b, err := readCommandLine()
	if err != nil {
		return ending{text: err.Error()}
	}
	loadModules(log)
	if err := mountDisk(log, b); err != nil {
		return ending{text: err.Error()}
	}
	setClock(log)
	log.Info(fmt.Sprintf("slot %s, version %s", b.slot, version()), "trial", b.trial)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	parts := []func(context.Context){
		func(ctx context.Context) { feedWatchdog(ctx, log) },
		func(ctx context.Context) { runNetwork(ctx, log) },
	}
	done := make(chan struct{}, len(parts))
	for _, part := range parts {
		go func() { part(ctx); done <- struct{}{} }() // ends by cancel, and is waited for below
	}
	reason := supervise(ctx, log, b)
	cancel()
	for range parts {
		<-done
	}
	return reason
}

// supervise runs the agent until the reboot file, a signal, or an agent that fails on trial ends it.
func supervise(ctx context.Context, log *slog.Logger, b boot) ending {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2)
	wanted, err := watchReboot(ctx)
	if err != nil {
		return ending{text: err.Error()}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	given := make(chan ending, 1)
	go func() { given <- runAgent(ctx, log, b) }() // ends by cancel, and is waited for below
	select {
	case reason := <-given:
		return reason
	case argument := <-wanted:
		cancel()
		<-given
		return ending{text: "the agent wants a reboot", argument: argument}
	case s := <-signals:
		cancel()
		<-given
		return ending{text: "signal " + s.String(), off: s == syscall.SIGUSR2}
	}
}
