package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// notifier tells the service manager how the agent is, as sd_notify(3) has it. Where nobody
// listens, it does nothing. The manager's watchdog is fed only after every part has shown its
// status: a part that holds its lock for ever has the agent restarted.
type notifier struct {
	socket string        // ""; nobody listens
	every  time.Duration // 0: there is no watchdog
	log    *slog.Logger

	running atomic.Pointer[agent] // whose parts are asked
	once    sync.Once             // of READY
}

func newNotifier(log *slog.Logger, env func(string) string) *notifier {
	n := &notifier{socket: env("NOTIFY_SOCKET"), log: log}
	if us, err := strconv.ParseInt(env("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 && n.socket != "" {
		if pid := env("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
			n.every = time.Duration(us) * time.Microsecond / 3
		}
	}
	return n
}

// tell sends one state; a manager that does not listen is no fault of the agent's.
func (n *notifier) tell(state string) {
	if n == nil || n.socket == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		n.log.LogAttrs(context.Background(), slog.LevelDebug, "service manager not told", slog.String("state", state), slog.Any("err", err))
	}
}

// ready says that the agent is up, be it that it waits for its first certificate.
func (n *notifier) ready() {
	if n != nil {
		n.once.Do(func() { n.tell("READY=1") })
	}
}

// watch has the parts of a asked from now on, and says that the agent is up.
func (n *notifier) watch(a *agent) {
	if n != nil {
		n.running.Store(a)
		n.ready()
	}
}

// leave ends watch: the parts of a are being closed.
func (n *notifier) leave(a *agent) {
	if n != nil {
		n.running.CompareAndSwap(a, nil)
	}
}

// run feeds the watchdog until ctx ends.
func (n *notifier) run(ctx context.Context) {
	if n.every <= 0 {
		return
	}
	tick := time.NewTicker(n.every)
	defer tick.Stop()
	for {
		if a := n.running.Load(); a != nil {
			a.status()
		}
		n.tell("WATCHDOG=1")
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
