package session

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/agent/agenttest"
)

// mosquitto is a real broker that requires client certificates.
type mosquitto struct {
	address string
	dir     string
	cmd     *exec.Cmd
	log     *testLog
}

// startMosquitto starts mosquitto for the devices of w; extra lines go to its configuration.
func (w *world) startMosquitto(extra ...string) *mosquitto {
	w.t.Helper()
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		if program = "/usr/sbin/mosquitto"; !exists(program) {
			w.t.Fatal("mosquitto is missing; run: make deps")
		}
	}
	m := &mosquitto{dir: w.t.TempDir(), log: &testLog{}, address: freeAddress(w.t)}
	_, port, _ := net.SplitHostPort(m.address)
	for name, data := range map[string][]byte{"server.crt": w.server.ChainPEM, "server.key": w.server.KeyPEM, "ca.crt": w.ca.RootPEM()} {
		if err := os.WriteFile(filepath.Join(m.dir, name), data, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	config := fmt.Sprintf("listener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\n"+
		"allow_anonymous true\npersistence false\nlog_dest stderr\nlog_type all\nuser root\n%s\n", port,
		m.file("ca.crt"), m.file("server.crt"), m.file("server.key"), strings.Join(extra, "\n"))
	if err := os.WriteFile(m.file("mosquitto.conf"), []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
	m.cmd = exec.Command(program, "-c", m.file("mosquitto.conf"))
	m.cmd.Stderr = m.log
	if err := m.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.stop)
	until(w.t, "mosquitto to listen", func() bool { return strings.Contains(m.log.String(), "running") })
	return m
}

func (m *mosquitto) file(name string) string { return filepath.Join(m.dir, name) }

// stop ends it properly.
func (m *mosquitto) stop() {
	if m.cmd.ProcessState == nil {
		_ = m.cmd.Process.Signal(os.Interrupt)
		_ = m.cmd.Wait()
	}
}

// subscriber is an independent program that receives what the broker got.
type subscriber struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  *os.File
	log  *testLog
	done chan struct{}
}

// output returns what was printed so far.
func (s *subscriber) output() string {
	s.t.Helper()
	text, err := os.ReadFile(s.out.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// ends says whether text is near the end of the output.
func (s *subscriber) ends(text string) bool {
	info, err := s.out.Stat()
	if err != nil {
		return false
	}
	tail := make([]byte, min(info.Size(), 64<<10))
	_, _ = s.out.ReadAt(tail, info.Size()-int64(len(tail)))
	return strings.Contains(string(tail), text)
}

// subscribe starts mosquitto_sub, which prints a line in its format for every message, and
// waits until it is subscribed.
func (w *world) subscribe(m *mosquitto, filter, format string) *subscriber {
	w.t.Helper()
	program, err := exec.LookPath("mosquitto_sub")
	if err != nil {
		w.t.Fatal("mosquitto_sub is missing; run: make deps")
	}
	device := must[*agenttest.Issued](w.t)(w.ca.Device("subscriber"))
	crt, key := m.file("sub.crt"), m.file("sub.key")
	_ = os.WriteFile(crt, device.ChainPEM, 0o600)
	_ = os.WriteFile(key, device.KeyPEM, 0o600)
	_, port, _ := net.SplitHostPort(m.address)
	out := must[*os.File](w.t)(os.Create(m.file("sub.out")))
	w.t.Cleanup(func() { _ = out.Close() })
	s := &subscriber{t: w.t, out: out, log: &testLog{}, done: make(chan struct{})}
	s.cmd = exec.Command(program, "-h", "127.0.0.1", "-p", port, "--cafile", m.file("ca.crt"), "--cert", crt, "--key", key,
		"-q", "1", "-t", filter, "-F", format, "-i", "subscriber")
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.log
	if err := s.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait()
	}()
	w.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
	})
	until(w.t, "mosquitto_sub to subscribe", func() bool { return strings.Contains(m.log.String(), "Sending SUBACK to subscriber") })
	return s
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// publishFile has mosquitto_pub publish a file at QoS 1, with the certificate that subscribe made.
func (m *mosquitto) publishFile(t testing.TB, topic, file string, retain bool) {
	t.Helper()
	_, port, _ := net.SplitHostPort(m.address)
	args := []string{"-h", "127.0.0.1", "-p", port, "--cafile", m.file("ca.crt"),
		"--cert", m.file("sub.crt"), "--key", m.file("sub.key"), "-i", "publisher", "-q", "1", "-t", topic, "-f", file}
	if retain {
		args = append(args, "-r")
	}
	if out, err := exec.Command("mosquitto_pub", args...).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
}
