package e2e

import "testing"

// spoofed is a name that would forge a line of a log, or of a terminal.
const spoofed = "\x1b[31mgw\n time=now level=ERROR msg=\"owned\" \x00\u202e"

// What a broker can do to the agent, or somebody in its place.
func TestMemoryUnderHostileBrokers(t *testing.T) {
	t.Parallel()
	a := newSiege(t, false)
	a.strangeBrokers(t)
	a.hugePackets(t)
	a.deafBrokers(t)
	a.oddPackets(t)
	a.rivals(t)
	a.inventors(t)
}

// What stands between the agent and its broker, or below it.
func TestMemoryOnHostileWays(t *testing.T) {
	t.Parallel()
	a := newSiege(t, true)
	a.hostileWebSockets(t)
	a.hostileProxies(t)
	a.stalls(t)
	a.troubledTPM(t)
}

// What clients can do to the listener, before they are in and after.
func TestMemoryUnderHostileClients(t *testing.T) {
	t.Parallel()
	a := newSiege(t, false)
	a.handshakes(t)
	a.slowRequests(t)
	a.watchers(t)
	a.forgedNames(t)
}
