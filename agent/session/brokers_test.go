package session

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// The whole way to mosquitto, with an independent program that counts.
func TestMosquitto(t *testing.T) {
	w := newWorld(t)
	m := w.startMosquitto()
	sub := w.subscribe(m, "#", "%t %p")
	w.fill(300, 100, "a", "b", "c")
	s := w.session(m.address, joining, commands(func(c Command) (string, []byte) {
		return "c1", append([]byte("reply to "), c.Payload...)
	}))
	stop := w.run(s)
	w.fill(300, 100, "a", "b", "c")
	until(t, "the outbox to drain", w.drained)
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	w.publish(m, "ferrule/device-1/command/read", "x")
	until(t, "the reply", func() bool { return sub.ends("ferrule/device-1/reply/c1 reply to x\n") })
	stop()
	until(t, "the last status", func() bool { return sub.ends("ferrule/device-1/status " + string(s.offline)) })
	for _, unit := range []string{"a", "b", "c"} {
		var payloads []string
		for line := range strings.Lines(sub.output()) {
			if strings.HasPrefix(line, "readings/"+unit) {
				payloads = append(payloads, line)
			}
		}
		got := seqs(t, payloads)
		if !slices.IsSorted(got) || len(got) != 200 {
			t.Errorf("unit %s: %d entries, in order: %t", unit, len(got), slices.IsSorted(got))
		}
		if len(payloads) >= 200 {
			t.Errorf("unit %s: %d messages for 200 entries that waited", unit, len(payloads))
		}
	}
	if strings.Contains(m.log.String(), "error") {
		t.Errorf("mosquitto: %s", m.log)
	}
}

// publish sends a command with mosquitto_pub.
func (w *world) publish(m *mosquitto, topic, payload string) {
	w.t.Helper()
	_, port, _ := strings.Cut(m.address, ":")
	out, err := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "--cafile", m.file("ca.crt"),
		"--cert", m.file("sub.crt"), "--key", m.file("sub.key"), "-i", "publisher", "-q", "1", "-t", topic, "-m", payload).CombinedOutput()
	if err != nil {
		w.t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
}

// When the link is cut without DISCONNECT the will tells.
func TestWillAtMosquitto(t *testing.T) {
	w := newWorld(t)
	m := w.startMosquitto()
	sub := w.subscribe(m, "#", "%t %p")
	f := startRogueRelay(t, m.address)
	s := w.session(f.address)
	s.tries = newTries(10*time.Minute, 1)
	s.random = func() float64 { return 1 }
	w.run(s)
	until(t, "the status", func() bool { return sub.ends(`{"online":true}`) })
	f.drop()
	until(t, "the will", func() bool { return sub.ends("ferrule/device-1/status " + string(s.offline)) })
}

// startRogueRelay is a link that can be cut.
func startRogueRelay(t *testing.T, target string) *rogue {
	return newFreezer().start(t, target)
}

// Nothing that a broker acknowledged is missing from its ledger, and nothing that it did not
// acknowledge is lost with it.
func TestBrokerKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	self := must[string](t)(os.Executable())
	for name, data := range map[string][]byte{"server.crt": w.server.ChainPEM, "server.key": w.server.KeyPEM} {
		w.write(name, data)
	}
	files := agenttest.BrokerFiles{
		Address: freeAddress(t), Certificate: filepath.Join(w.dir, "server.crt"), Key: filepath.Join(w.dir, "server.key"),
		ClientCAs: filepath.Join(w.dir, "roots.pem"), Ledger: filepath.Join(w.dir, "ledger"),
	}
	s := w.session(files.Address, joining)
	w.run(s)
	total := 0
	for range 5 {
		b := must[*agenttest.BrokerProcess](t)(files.Start(self))
		acked := w.outbox.Status().Acked
		until(t, "something to be acknowledged", func() bool {
			if w.outbox.Status().Depth < 2000 {
				w.fill(20, 100)
				total += 20
			}
			return w.outbox.Status().Acked > acked+100
		})
		b.Kill()
	}
	b := must[*agenttest.BrokerProcess](t)(files.Start(self))
	defer b.Kill()
	until(t, "the outbox to drain", w.drained)
	messages, err := agenttest.ReadLedger(files.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	var payloads []string
	for _, m := range messages {
		if strings.HasPrefix(m.Topic, "readings/") {
			payloads = append(payloads, string(m.Payload))
		}
	}
	duplicates := checkSeqs(t, seqs(t, payloads), total)
	t.Logf("%d entries over 5 kills, %d came twice", total, duplicates)
}

// The key in a TPM: one signature for the first handshake, none for a resumed one.
func TestKeyInTPM(t *testing.T) {
	chip := tpmtest.Start(t)
	w := &world{t: t, dir: t.TempDir(), ca: must[*agenttest.CA](t)(agenttest.NewCA("test")), log: &testLog{}}
	w.server = must[*agenttest.Issued](t)(w.ca.Server())
	w.write("roots.pem", w.ca.RootPEM())
	w.write("device.crt", w.certifyKeyInTPM(chip.Address()))
	w.identity = w.open(identity.Config{TPM: chip.Address(), Key: "tpm2:file=device.key", Certificate: "device.crt"})
	w.withOutbox()
	b, got := w.broker()
	s := w.session(b.Address())
	w.run(s)
	w.fill(50, 100)
	until(t, "the outbox to drain", w.drained)
	b.Cut()
	b.Mend()
	w.fill(50, 100)
	until(t, "the outbox to drain", w.drained)
	checkSeqs(t, seqs(t, got.of("readings/")), 100)
	connections := b.Connections()
	if len(connections) != 2 || connections[0].Resumed || !connections[1].Resumed || s.Status().Resumed != 1 {
		t.Errorf("connections: %+v", connections)
	}
}

// certifyKeyInTPM makes the device's key in the TPM at path and has it certified.
func (w *world) certifyKeyInTPM(path string) (chain []byte) {
	w.t.Helper()
	ctx := context.Background()
	device := must[*tpm.Device](w.t)(tpm.Open(ctx, tpm.Options{Path: path, Log: w.log.logger()}))
	defer device.Close()
	key := must[tpm.DeviceKey](w.t)(tpm.CreateKeyAt(ctx, "tpm2:file=device.key", tpm.KeySpec{}, tpm.KeyOptions{
		FS: disk.OS(), StateDir: w.dir, Log: w.log.logger(),
		Device: func(context.Context) (*tpm.Device, error) { return device, nil },
	}))
	defer key.Close()
	return must[*agenttest.Issued](w.t)(w.ca.Issue(agenttest.Leaf{CommonName: "device-1", Key: key.Public()})).ChainPEM
}
