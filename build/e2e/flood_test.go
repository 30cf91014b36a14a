package e2e

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The largest PUBLISH that MQTT knows, 256 MiB: refused by its length, named in the status, and
// the agent's memory grows by less than 16 MiB.
func TestHugePublish(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 4})
	s.run(t)
	waitFor(t, "readings", func() bool { return len(s.messages(t)) > 3 })
	before := peakMemory(t, s.agent.Process.Pid)
	s.process.Kill()
	sent := floodFrom(t, s)
	waitFor(t, "the flood", func() bool { return len(sent) > 0 })
	waitFor(t, "the cause", func() bool { return field(s.status(t), "session", "last_failure", "cause") == "too-large" })
	grown := peakMemory(t, s.agent.Process.Pid) - before
	if grown >= 16<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
	t.Logf("memory grew by %d KiB; %d bytes of the message left before the connection ended", grown>>10, <-sent)
	s.stop(t)
}

// floodFrom takes the broker's place, and answers every SUBSCRIBE with a message of 256 MiB. It
// tells for each how much of it could be sent.
func floodFrom(t *testing.T, s *site) (sent chan int64) {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(s.ca, "broker.crt"), filepath.Join(s.ca, "broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", s.broker, &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	sent = make(chan int64, 1024)
	accepting := make(chan struct{})
	t.Cleanup(func() { _ = listener.Close(); <-accepting })
	go func() { // ends with the listener
		defer close(accepting)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			sent <- flood(conn)
			_ = conn.Close()
		}
	}()
	return sent
}

// flood is a broker up to the first SUBSCRIBE.
func flood(conn net.Conn) int64 {
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	for r := bufio.NewReader(conn); ; {
		kind, err := r.ReadByte()
		if err != nil {
			return 0
		}
		body, err := readBody(r)
		if err != nil {
			return 0
		}
		const connect, subscribe = 1, 8
		switch kind >> 4 {
		case connect:
			_, err = conn.Write([]byte{0x20, 2, 0, 0})
		case subscribe:
			// SUBACK, then PUBLISH with the remaining length 268,435,455 (MQTT 3.1.1, 2.2.3).
			_, err = conn.Write([]byte{0x90, 3, body[0], body[1], 1, 0x30, 0xFF, 0xFF, 0xFF, 0x7F})
			if err == nil {
				n, _ := io.Copy(conn, io.LimitReader(zeros{}, 256<<20-1))
				return n
			}
		}
		if err != nil {
			return 0
		}
	}
}

func readBody(r *bufio.Reader) ([]byte, error) {
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		length |= int(b&0x7F) << shift
		if b < 0x80 {
			break
		}
	}
	body := make([]byte, length)
	_, err := io.ReadFull(r, body)
	return body, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// peakMemory is the largest resident set that a process ever had, in bytes (proc(5), VmHWM).
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
