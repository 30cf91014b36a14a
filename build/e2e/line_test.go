package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gateway is an enrolled device whose lines are what a test is about. Its key is a file, since
// the TPM has tests of its own.
type gateway struct {
	*world
	ferrule []string
	config  string
	witness *process
	agent   *process
	last    map[string]string // of each topic, what the witness saw last
}

// newGateway starts everything around a gateway that has these lines, and enrolls it.
func newGateway(t *testing.T, lines string) *gateway {
	t.Helper()
	g := &gateway{world: newWorld(t), ferrule: build(t, "ferrule", native), last: make(map[string]string)}
	g.config = g.file(t, "ferrule.toml", fmt.Sprintf(`state_dir = %q
profile_dir = %q
[identity]
tpm = "none"
key = "file:device.pem"
allow_software_key = true
[enroll]
method = "registrar"
url = %q
roots = %q
[session]
brokers = ["mqtts://%s"]
reconnect_spread = "200ms"
roots = %[4]q
[local]
socket = %[6]q
`, filepath.Join(g.dir, "state"), profiles(t), g.registrar, filepath.Join(g.ca, "root.crt"), g.broker, filepath.Join(g.dir, "f.sock"))+lines)
	mustRun(t, g.token(t, "gw-1"), with(g.ferrule, "enroll", "--config", g.config, "--token", "-")...)
	g.witness = g.subscriber(t)
	return g
}

// profiles is the directory of profiles of our own.
func profiles(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("testdata/profiles")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// run starts the agent.
func (g *gateway) run(t *testing.T) {
	t.Helper()
	g.agent = start(t, "ferrule run", with(g.ferrule, "run", "--config", g.config)...)
}

// told is one entry of a message with readings.
type told struct {
	Line, Unit string
	Readings   map[string]any
	Bad        map[string]string
}

// hear takes what the witness sees, entry by entry, until done says so. missing tells what
// there is still to wait for.
func (g *gateway) hear(t *testing.T, what string, done func(told) bool, missing ...func() string) {
	t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		select {
		case line := <-g.witness.lines:
			topic, payload, _ := strings.Cut(line, " ")
			g.last[topic] = payload
			if slices.ContainsFunc(entries(t, topic, payload), done) {
				return
			}
		case <-g.agent.ended:
			t.Fatalf("waiting for %s: the agent ended", what)
		case <-timeout:
			for topic, payload := range g.last {
				t.Logf("%s said last: %s", topic, payload)
			}
			for _, f := range missing {
				t.Log(f())
			}
			t.Fatalf("the witness never saw %s", what)
		}
	}
}

// entries takes a message apart: one entry, or several that waited together.
func entries(t *testing.T, topic, payload string) (all []told) {
	t.Helper()
	if !strings.Contains(topic, "/readings/") {
		return nil
	}
	if !strings.HasPrefix(payload, "[") {
		payload = "[" + payload + "]"
	}
	if err := json.Unmarshal([]byte(payload), &all); err != nil {
		t.Fatalf("%s %s: %v", topic, payload, err)
	}
	return all
}

// status asks the agent by the command line.
func (g *gateway) status(t *testing.T) map[string]any {
	t.Helper()
	return (&site{world: g.world, ferrule: g.ferrule, config: g.config}).status(t)
}

// line is the status of one line.
func (g *gateway) line(t *testing.T, name string) map[string]any {
	t.Helper()
	lines, _ := g.status(t)["lines"].([]any)
	for _, l := range lines {
		if m, ok := l.(map[string]any); ok && m["name"] == name {
			return m
		}
	}
	return nil
}

// terminal is a pseudo terminal: the gateway has its path, and what stands at the other end of
// the cable has the file.
type terminal struct {
	*os.File
	path string
	keep *os.File // keeps the path's end open, so that the gateway may come and go
}

// newTerminal makes a pseudo terminal that carries bytes as they are.
func newTerminal(t *testing.T) *terminal {
	t.Helper()
	// Non-blocking, so that Close frees a Read and a Write.
	file, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &terminal{File: file}
	t.Cleanup(p.unplug)
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	problem := raw.Control(func(fd uintptr) {
		if number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	})
	if err != nil || problem != nil {
		t.Fatal(err, problem)
	}
	p.path = fmt.Sprintf("/dev/pts/%d", number)
	if p.keep, err = os.OpenFile(p.path, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	mode, err := unix.IoctlGetTermios(int(p.keep.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(int(p.keep.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return p
}

// unplug takes the terminal away, as a USB adapter goes.
func (p *terminal) unplug() {
	if p.keep != nil {
		_ = p.keep.Close()
	}
	_ = p.Close()
}

// talk says the same again and again until the terminal is gone.
func (p *terminal) talk(t *testing.T, every time.Duration, words []byte) {
	ended := make(chan struct{})
	t.Cleanup(func() { _ = p.Close(); <-ended })
	tick := time.NewTicker(every)
	go func() { // ends with the terminal
		defer close(ended)
		defer tick.Stop()
		for range tick.C {
			if _, err := p.Write(words); err != nil {
				return
			}
		}
	}()
}

// answer gives what f makes of the bytes that came, until the terminal is gone. f returns how
// many of the bytes it has dealt with.
func (p *terminal) answer(t *testing.T, f func(asked []byte) (n int, answer []byte)) {
	ended := make(chan struct{})
	t.Cleanup(func() { _ = p.Close(); <-ended })
	go func() { // ends with the terminal
		defer close(ended)
		var asked []byte
		buf := make([]byte, 256)
		for {
			n, err := p.Read(buf)
			if err != nil {
				return
			}
			asked = append(asked, buf[:n]...)
			for {
				n, answer := f(asked)
				if n == 0 {
					break
				}
				asked = asked[n:]
				if _, err := p.Write(answer); err != nil {
					return
				}
			}
		}
	}()
}
