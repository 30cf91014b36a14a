package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Commands as the cloud sends them: a foreign client publishes, the unit's own output shows
// what reached it, and the witness sees the replies.
func TestCommandsOverTheBroker(t *testing.T) {
	ferrule := build(t, "ferrule", native)
	w := newWorld(t)
	port := w.startUnit(t)
	config := w.configure(t, "gw-1", port)
	mustRun(t, w.token(t, "gw-1"), with(ferrule, "enroll", "--config", config, "--token", "-")...)
	witness := w.subscriber(t)
	start(t, "ferrule run", with(ferrule, "run", "--config", config)...)
	witness.waitLine(t, "/readings/rs485-1/meter-a")

	write := fmt.Sprintf(`{"id":"w1","expires":%q,"args":{"line":"rs485-1","unit":"meter-a","point":"limit","value":12.5}}`, soon())
	w.publish(t, "ferrule/gw-1/command/write", write)
	first := witness.waitLine(t, "ferrule/gw-1/reply/w1")
	if !strings.Contains(first, `"ok":true`) {
		t.Errorf("reply to write: %s", first)
	}
	witness.waitLine(t, `"limit":12.5`)
	w.publish(t, "ferrule/gw-1/command/write", write)
	if again := witness.waitLine(t, "ferrule/gw-1/reply/w1"); again != first {
		t.Errorf("the same id again was answered %s, first %s", again, first)
	}
	if n := strings.Count(w.unit.output(), "write 100 1"); n != 1 {
		t.Errorf("the unit was written to %d times", n)
	}

	w.publish(t, "ferrule/gw-1/command/write", strings.Replace(write, `"w1"`, `"w2"`, 1)+" ", "-r")
	if reply := witness.waitLine(t, "ferrule/gw-1/reply/w2"); !strings.Contains(reply, `"ok":true`) {
		// To a subscription that stands, a broker passes it on as any other (MQTT 3.1.1, 3.3.1.3).
		t.Errorf("a command published with retain while the session is up: %s", reply)
	}
	w.publish(t, "ferrule/gw-1/command/write", `{"id":"w3","expires":"2020-01-01T00:00:00Z","args":{}}`)
	if reply := witness.waitLine(t, "ferrule/gw-1/reply/w3"); !strings.Contains(reply, `"expired"`) {
		t.Errorf("an expired command: %s", reply)
	}
	w.publish(t, "ferrule/gw-1/command/read", `{"id":"r1","args":{"line":"rs485-1","unit":"meter-a","at":"input:5","type":"uint16"}}`)
	if reply := witness.waitLine(t, "ferrule/gw-1/reply/r1"); !strings.Contains(reply, `"value":38`) {
		t.Errorf("read: %s", reply)
	}
	w.publish(t, "ferrule/gw-1/command/restart", fmt.Sprintf(`{"id":"b1","expires":%q}`, soon()))
	witness.waitLine(t, "ferrule/gw-1/reply/b1")
	witness.waitLine(t, `"online":false`)
	w.checkRetainedAfterRestart(t, witness)
}

// checkRetainedAfterRestart meets the retained command of before at a new subscription: it is
// delivered as retained now, and refused.
func (w *world) checkRetainedAfterRestart(t *testing.T, witness *process) {
	t.Helper()
	var online, refused bool // in either order
	for !online || !refused {
		line := witness.waitLine(t, "ferrule/gw-1/")
		online = online || strings.Contains(line, `"online":true`)
		if strings.HasPrefix(line, "ferrule/gw-1/reply/w2") {
			refused = true
			if !strings.Contains(line, `"retained"`) {
				t.Errorf("a retained command at a new subscription: %s", line)
			}
		}
	}
	if n := strings.Count(w.unit.output(), "write 100 1"); n != 2 {
		t.Errorf("the unit was written to %d times; want one for w1 and one for w2, live", n)
	}
}

func soon() string { return time.Now().Add(5 * time.Minute).UTC().Format(time.RFC3339) }

// publish has mosquitto_pub send one message, with a certificate of its own. One message is
// what it can be trusted with.
func (w *world) publish(t *testing.T, topic, payload string, flags ...string) {
	t.Helper()
	if w.operator.cert == "" {
		w.operator.cert, w.operator.key = w.clientCertificate(t, "operator")
	}
	host, port, _ := net.SplitHostPort(w.broker)
	argv := []string{need(t, "mosquitto_pub"), "-h", host, "-p", port, "-q", "1", "-t", topic, "-m", payload,
		"--cafile", filepath.Join(w.ca, "root.crt"), "--cert", w.operator.cert, "--key", w.operator.key}
	mustRun(t, "", append(argv, flags...)...)
}
