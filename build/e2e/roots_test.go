package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/agent/agenttest"
)

// newBrokerCA makes another CA for brokers and returns its folder.
func (s *site) newBrokerCA(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(s.dir, name)
	mustRun(t, "", with(s.factory, "ca", "init", "--host", "127.0.0.1", "--name", name, dir)...)
	return dir
}

// roots is ferrule roots, which has to be taken.
func (s *site) roots(t *testing.T, words ...string) (status map[string]any) {
	t.Helper()
	out := mustRun(t, "", with(s.ferrule, append([]string{"roots", "--json", "--config", s.config}, words...)...)...)
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("roots said %q", out)
	}
	return status
}

// notYet checks that the roots cannot be confirmed, and that the session does not mind.
func (s *site) notYet(t *testing.T) {
	t.Helper()
	_, stderr, code := run(t, "", with(s.ferrule, "roots", "confirm", "--config", s.config)...)
	if code != 12 || !strings.Contains(stderr, "no connection was verified by the staged roots alone yet") || !strings.Contains(stderr, "hint:") {
		t.Errorf("confirming too early: exit code %d\n%s", code, stderr)
	}
	if stage := field(s.status(t), "session", "stage"); stage != "up" {
		t.Errorf("the session is %v after that", stage)
	}
}

// cutPower kills the agent and starts it again.
func (s *site) cutPower(t *testing.T) {
	t.Helper()
	s.agent.kill()
	s.run(t)
}

// The broker moves to a new CA, with the power cut after every step: old and new are believed
// until the new one is confirmed, which is refused before a session was verified by it; then
// the old one counts for nothing.
func TestBrokerMovesToANewCA(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	clients := readFile(t, filepath.Join(s.ca, "root.crt"))
	old, next := filepath.Join(s.ca, "broker"), s.newBrokerCA(t, "next-ca")
	broker := s.watched(t, old, clients)
	s.run(t)
	s.waitUp(t)
	staged := s.roots(t, "stage", filepath.Join(next, "root.crt"))
	if seen := field(staged, "staged", "seen"); seen != false {
		t.Errorf("staged roots were seen: %v", seen)
	}
	s.notYet(t)
	s.cutPower(t)
	s.waitUp(t)
	s.notYet(t)

	move := func(name string) {
		t.Helper()
		broker.end()
		broker = s.watched(t, name, clients)
	}
	move(filepath.Join(next, "broker"))
	waitFor(t, "a session by the new CA", func() bool { return field(s.status(t), "trust", "broker", "staged", "confirmable") == true })
	s.cutPower(t)
	waitFor(t, "another one", func() bool { return field(s.status(t), "trust", "broker", "staged", "in_use") == true })
	if status := s.roots(t, "confirm"); status["source"] != "confirmed" || status["staged"] != nil {
		t.Errorf("confirmed: %v", status)
	}
	s.cutPower(t)
	s.waitUp(t)

	move(old)
	s.waitRefused(t, "broker-unknown-ca")
	if n := len(broker.Connections()); n != 0 {
		t.Errorf("%d CONNECTs reached a broker of the old CA", n)
	}
	move(filepath.Join(next, "broker"))
	s.waitUp(t)
	s.stop(t)
}

func (s *site) waitRefused(t *testing.T, cause string) {
	t.Helper()
	waitFor(t, cause, func() bool { return field(s.status(t), "session", "last_failure", "cause") == cause })
}

// The same from afar, over the broker that is about to move.
func TestRootsByCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	clients := readFile(t, filepath.Join(s.ca, "root.crt"))
	next := s.newBrokerCA(t, "next-ca")
	broker := s.watched(t, filepath.Join(s.ca, "broker"), clients)
	s.run(t)
	s.waitUp(t)
	command := func(id, action, pem string) string {
		t.Helper()
		payload, err := json.Marshal(map[string]any{"id": id, "expires": soon(),
			"args": map[string]string{"for": "broker", "action": action, "pem": pem}})
		if err != nil {
			t.Fatal(err)
		}
		if err := broker.Publish("ferrule/gw-1/command/roots", payload, false); err != nil {
			t.Fatal(err)
		}
		return s.reply(t, id)
	}
	if reply := command("s1", "stage", readFile(t, filepath.Join(next, "root.crt"))); !strings.Contains(reply, `"ok":true`) {
		t.Errorf("stage: %s", reply)
	}
	if reply := command("s2", "stage", readFile(t, filepath.Join(next, "broker.crt"))); !strings.Contains(reply, `"ok":false`) {
		t.Errorf("staging what is no authority: %s", reply)
	}
	if reply := command("c1", "confirm", ""); !strings.Contains(reply, "alone yet") {
		t.Errorf("confirm too early: %s", reply)
	}
	broker.end()
	broker = s.watched(t, filepath.Join(next, "broker"), clients)
	waitFor(t, "a session by the new CA", func() bool { return field(s.status(t), "trust", "broker", "staged", "confirmable") == true })
	s.waitUp(t) // the new broker keeps nothing for a client that has not subscribed yet
	if reply := command("d1", "discard", ""); !strings.Contains(reply, `"ok":false`) {
		t.Errorf("discarding what is in use: %s", reply)
	}
	if reply := command("c2", "confirm", ""); !strings.Contains(reply, `"ok":true`) || !strings.Contains(reply, "confirmed") {
		t.Errorf("confirm: %s", reply)
	}
	s.stop(t)
}

// reply waits in the broker's ledger for the reply to a command.
func (s *site) reply(t *testing.T, id string) (payload string) {
	t.Helper()
	waitFor(t, "the reply to "+id, func() bool {
		ledger, err := agenttest.ReadLedger(s.ledger())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ledger {
			if m.Topic == fmt.Sprintf("ferrule/%s/reply/%s", siteDevice, id) {
				payload = string(m.Payload)
			}
		}
		return payload != ""
	})
	return payload
}

// The registrar moves to a server certificate of another CA, while devices go on being certified by
// the old one. Roots that know the registrar alone are not confirmed: no renewal would be taken any
// more. Both together are, once a renewal has shown that they suffice.
func TestRegistrarMovesToANewCA(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	next := s.newBrokerCA(t, "next-ca")
	broker := s.watched(t, filepath.Join(s.ca, "broker"), readFile(t, filepath.Join(s.ca, "root.crt")))
	s.run(t)
	leaves := []string{waitLeaf(t, broker)}
	renew := func() {
		t.Helper()
		mustRun(t, "", with(s.ferrule, "enroll", "--rekey", "--config", s.config)...)
		leaves = append(leaves, waitLeaf(t, broker, leaves...))
	}
	refused := func() {
		t.Helper()
		_, stderr, code := run(t, "", with(s.ferrule, "roots", "confirm", "--for", "registrar", "--config", s.config)...)
		if code != 12 || !strings.Contains(stderr, "alone yet") {
			t.Errorf("confirming roots that do not suffice: exit code %d\n%s", code, stderr)
		}
	}
	s.roots(t, "stage", "--for", "registrar", filepath.Join(next, "root.crt"))
	refused()
	s.replace(t, filepath.Join(s.ca, "registrar.crt"), filepath.Join(next, "registrar.crt"))
	s.replace(t, filepath.Join(s.ca, "registrar.key"), filepath.Join(next, "registrar.key"))
	s.restartRegistrar(t, "--trust-ek-on-first-use")
	renew()
	refused()

	both := s.file(t, "both.pem", readFile(t, filepath.Join(next, "root.crt"))+readFile(t, filepath.Join(s.ca, "root.crt")))
	s.roots(t, "stage", "--for", "registrar", both)
	renew()
	s.cutPower(t)
	s.waitUp(t)
	if status := s.roots(t, "confirm", "--for", "registrar"); status["source"] != "confirmed" {
		t.Errorf("confirmed: %v", status)
	}
	renew()
	s.stop(t)
	s.settled(t)
}
