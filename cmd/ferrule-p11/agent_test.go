//go:build cgo

package main

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ferrule/agent/agenttest"
	"ferrule/tpm"
)

// The agent as it is released, without cgo, against a broker that requires certificates: its key
// is in a PKCS #11 token, each full handshake costs one signature there, and a helper that is
// killed costs it nothing but the wait.
func TestAgentWithAKeyInAToken(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	socket := h.file("s")
	helper := []string{"--module", h.faulty(), "--token", "gateway", "--pin-file", h.file("pin"), "--socket", socket, "--create"}
	p := startProgram(t, helper...)
	k, err := tpm.CreateKeyAt(t.Context(), uri(socket, "gw"), tpm.KeySpec{}, tpm.KeyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	broker, up := startBroker(t, ca)
	h.site(ca, k.Public().(*ecdsa.PublicKey), broker.Address(), uri(socket, "gw"))
	h.notes()
	agent := h.startAgent()
	<-up
	if n := h.calls("s"); n != 1 {
		t.Errorf("%d signatures for the first handshake", n)
	}
	for round := range 2 {
		p.end(syscall.SIGKILL)
		broker.Cut()
		if err := broker.Mend(); err != nil {
			t.Fatal(err)
		}
		p = startProgram(t, helper...)
		for <-up; len(broker.Connections()) < round+2; <-up {
		}
	}
	for _, c := range broker.Connections() {
		if c.CommonName != "gw-0001" || c.Resumed {
			t.Errorf("seen as %q, resumed %t", c.CommonName, c.Resumed)
		}
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := agent.Wait(); err != nil {
		t.Errorf("ferrule run: %v", err)
	}
}

// startBroker starts a broker that resumes no session. What it returns beside tells of each
// time that the agent says it is online.
func startBroker(t *testing.T, ca *agenttest.CA) (*agenttest.Broker, <-chan struct{}) {
	t.Helper()
	server, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config := server.ServerTLS(ca)
	config.SessionTicketsDisabled = true
	up := make(chan struct{}, 64)
	broker, err := agenttest.StartBroker(agenttest.BrokerConfig{
		Address: "127.0.0.1:0", TLS: config, Ledger: func(m agenttest.Message) error {
			if m.Topic == "ferrule/gw-0001/status" && bytes.Contains(m.Payload, []byte(`"online":true`)) {
				up <- struct{}{}
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	return broker, up
}

// site writes what a gateway needs: a certificate for the key and a configuration.
func (h *softhsm) site(ca *agenttest.CA, key *ecdsa.PublicKey, broker, uri string) {
	h.t.Helper()
	device, err := ca.Issue(agenttest.Leaf{CommonName: "gw-0001", Key: key})
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("device.crt", string(device.ChainPEM))
	h.write("root.crt", string(ca.RootPEM()))
	h.write("ferrule.toml", fmt.Sprintf(`state_dir = %[1]q
[identity]
key = %[2]q
[session]
brokers = ["mqtts://%[3]s"]
reconnect_spread = "200ms"
roots = %[4]q
[local]
socket = %[5]q
[[line]]
name = "line"
port = %[6]q
protocol = "nmea"
`, h.dir, uri, broker, h.file("root.crt"), h.file("l"), h.file("no-such-port")))
}

// startAgent builds and runs ferrule.
func (h *softhsm) startAgent() *exec.Cmd {
	h.t.Helper()
	build := exec.CommandContext(h.t.Context(), "go", "build", "-o", h.file("ferrule"), "ferrule/cmd/ferrule")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		h.t.Fatalf("building ferrule: %v\n%s", err, out)
	}
	var log strings.Builder
	agent := exec.Command(h.file("ferrule"), "run", "--config", filepath.Join(h.dir, "ferrule.toml"))
	agent.Stdout, agent.Stderr = &log, &log
	if err := agent.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if agent.ProcessState == nil {
			_ = agent.Process.Kill()
			_ = agent.Wait()
		}
		if h.t.Failed() {
			h.t.Logf("ferrule run:\n%s", log.String())
		}
	})
	return agent
}
