package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// asleep fills the outbox while broker and services are away, and lets the certificate end before
// the agent starts again. Nothing that was read in this time may be lost.
func (s *site) asleep(t *testing.T, ends time.Time) {
	t.Helper()
	s.run(t)
	waitFor(t, "a backlog", func() bool { return count(s.status(t), "outbox", "depth") > 20 })
	s.stop(t)
	pause(t, time.Until(ends)+time.Second)
}

// cameBack checks that a device was let in again at the first attempt.
func (s *site) cameBack(t *testing.T, broker *watchedBroker, dead string) {
	t.Helper()
	began := time.Now()
	leaf := waitLeaf(t, broker, dead)
	took := time.Since(began)
	s.waitDrained(t)
	if got := field(s.status(t), "identity", "last_attempt"); fmt.Sprint(got) == "" || field(s.status(t), "identity", "last_attempt", "way") != "return" ||
		field(s.status(t), "identity", "last_attempt", "error") != nil {
		t.Errorf("the last attempt was %v; want one way back, and a good one", got)
	}
	if strings.Contains(s.agent.output(), "renewal failed") {
		t.Error("it took more than one attempt")
	}
	if got := s.leaf(t); got != leaf {
		t.Errorf("the disk holds %s; the broker saw %s", got, leaf)
	}
	s.settled(t)
	t.Logf("back after %s", took.Round(time.Millisecond))
}

// The certificate ends while the device is off: the factory certificate brings it back, at a real
// step-ca, as the same device. What was read without a broker arrives.
func TestExpiredWhileAsleepFactoryCertificate(t *testing.T) {
	t.Parallel()
	s, step := newStepSite(t, siteOptions{sync: "1s", every: 50 * time.Millisecond, points: 4}, time.Hour, 0.9)
	broker := s.watched(t, filepath.Join(s.ca, "broker"), string(step.RootPEM()))
	broker.Cut()
	step.Kill()
	ends := time.Now().Add(4 * time.Second)
	s.certify(t, s.stepAuthority(t, step), ends)
	dead := s.leaf(t)
	s.asleep(t, ends)
	stopped := s.stopped
	if err := broker.Mend(); err != nil {
		t.Fatal(err)
	}
	if err := step.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	s.cameBack(t, broker, dead)
	s.stop(t)
	s.judge(t, []time.Time{stopped}, promise{window: cutOff})
}

// stepAuthority is step-ca's issuing authority, by the files that it keeps.
func (s *site) stepAuthority(t *testing.T, step *agenttest.StepCA) authority {
	t.Helper()
	certificate, key := step.IssuingPEM()
	return authority{s.file(t, "issuing.crt", string(certificate)), s.file(t, "issuing.key", string(key))}
}

// The same without a factory certificate: the registrar knows the TPM.
func TestExpiredWhileAsleepEndorsementKey(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteOptions{sync: "1s", every: 50 * time.Millisecond, points: 4})
	broker := s.watched(t, filepath.Join(s.ca, "broker"), readFile(t, filepath.Join(s.ca, "root.crt")))
	broker.Cut()
	s.issuing.kill()
	ends := time.Now().Add(4 * time.Second)
	s.certify(t, s.deviceCA(), ends)
	dead := s.leaf(t)
	s.asleep(t, ends)
	stopped := s.stopped
	if err := broker.Mend(); err != nil {
		t.Fatal(err)
	}
	s.restartRegistrar(t, "--trust-ek-on-first-use")
	s.run(t)
	s.cameBack(t, broker, dead)
	s.stop(t)
	s.judge(t, []time.Time{stopped}, promise{window: cutOff})
}

// mosquitto refuses the certificate of a running agent, each time in its own words: the agent
// comes back with another one, for the same key.
func TestBrokerThatRefusesOurCertificate(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	s.process.Kill()
	s.mosquittoWithList(t, s.revocationList(t, "device-ca", 1))
	s.run(t)
	s.waitUp(t)

	s.refusedAndBack(t, "certificate-revoked", func() { // by a list of the broker's: the registrar knows of nothing
		s.revocationList(t, "device-ca", 2, filepath.Join(s.state, "device.crt"))
	})
	other := filepath.Join(s.dir, "other-ca")
	mustRun(t, "", with(s.factory, "ca", "init", other)...)
	s.refusedAndBack(t, "certificate-unknown-ca", func() {
		s.stop(t)
		s.certify(t, authority{filepath.Join(other, "device-ca.crt"), filepath.Join(other, "device-ca.key")}, time.Now().Add(time.Hour))
		s.run(t)
	})
	s.stop(t)
	s.settled(t)
}

// refusedAndBack makes the certificate one that mosquitto refuses, and waits for the way back.
func (s *site) refusedAndBack(t *testing.T, cause string, spoil func()) {
	t.Helper()
	s.mosquitto.stop(t)
	spoil()
	dead := s.leaf(t)
	s.mosquittoWithList(t, filepath.Join(s.dir, "device-ca.crl"))
	began := time.Now()
	waitFor(t, "another certificate", func() bool { return s.leaf(t) != dead })
	t.Logf("%s: back after %s", cause, time.Since(began).Round(time.Millisecond))
	s.waitUp(t)
	status := s.status(t)
	if way := field(status, "identity", "last_attempt", "way"); way != "return" || field(status, "identity", "alarm") != nil {
		t.Errorf("last attempt %v, alarm %v", field(status, "identity", "last_attempt"), field(status, "identity", "alarm"))
	}
	if !strings.Contains(s.agent.output(), cause) {
		t.Errorf("the log does not name %s", cause)
	}
}

// mosquittoWithList starts mosquitto with a list of certificates that were taken back.
func (s *site) mosquittoWithList(t *testing.T, list string) {
	t.Helper()
	_, port, _ := strings.Cut(s.broker, ":")
	path := s.file(t, "mosquitto.conf", fmt.Sprintf(`listener %s 127.0.0.1
cafile %s
certfile %s/broker.crt
keyfile %[3]s/broker.key
crlfile %s
require_certificate true
use_identity_as_username true
persistence false
user root
`, port, filepath.Join(s.ca, "root.crt"), s.ca, list))
	s.mosquitto = start(t, "mosquitto", need(t, "mosquitto"), "-c", path, "-v")
	s.waitPort(t, s.broker)
}
