package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"ferrule/agent/agenttest"
)

// listener shows what the broker receives, as it does.
type listener struct {
	screen      *screen
	world       *world
	signsBefore *atomic.Int64 // TPM signatures before the agent was started
}

func (l listener) entry(a arrival, again bool, waited time.Duration) {
	text := fmt.Sprintf("%s  %s  no answer", a.unit, l.screen.paint(dim, fmt.Sprintf("seq %d", a.seq)))
	if a.count > 0 {
		text = fmt.Sprintf("%s  #%-4d %5.1f V  %5.2f A  %6.1f W  %8.4f kWh  %s", a.unit, a.count,
			a.values.voltage, a.values.current, a.values.power, a.values.energy, l.screen.paint(dim, fmt.Sprintf("seq %d", a.seq)))
	}
	if waited > time.Second {
		text += l.screen.paint(act, fmt.Sprintf("  waited %.1f s", waited.Seconds()))
	}
	if again {
		text += l.screen.paint(dim, "  again")
	}
	l.screen.event(normal, "%s", text)
}

func (l listener) connection(c agenttest.Connection) {
	handshake := "full handshake"
	if c.Resumed {
		handshake = "resumed"
	}
	text := fmt.Sprintf("session  CN=%s, %s, mutual, %s", c.CommonName, c.TLSVersion, handshake)
	if !l.world.weak() {
		text += fmt.Sprintf("; TPM Sign since the agent's start: %d", l.world.signs.Load()-l.signsBefore.Load())
	}
	l.screen.event(good, "%s", text)
}

func (l listener) online(yes bool) {
	word := "offline"
	if yes {
		word = "online"
	}
	l.screen.event(dim, "status   %s is %s", device, word)
}
