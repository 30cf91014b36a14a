package modbus_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
	"ferrule/hw/port"
)

// line is a client on a simulated wire with one unit, address 3, of 200 input registers that hold
// their own addresses.
func line(t testing.TB, baud int) (*modbus.Client, *hwtest.Wire, *hwtest.Unit) {
	t.Helper()
	w, err := hwtest.NewWire(hwtest.WireConfig{Baud: baud})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	u := hwtest.NewUnit(3)
	for i := range uint16(200) {
		u.Set(modbus.InputRegisters, i, i)
		u.Set(modbus.HoldingRegisters, i, i)
		u.Set(modbus.Coils, i, i%3&1)
		u.Set(modbus.DiscreteInputs, i, i%5&1)
	}
	w.Attach(u)
	return clientOn(t, w.Path(), baud), w, u
}

func clientOn(t testing.TB, path string, baud int) *modbus.Client {
	t.Helper()
	s := port.Settings{Baud: max(baud, 9600), DataBits: 8, Parity: 'E', StopBits: 1}
	p, err := port.Open(context.Background(), path, port.Options{Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return modbus.NewClient(p, modbus.ClientConfig{Timing: modbus.TimingOf(baud, 11), Timeout: 200 * time.Millisecond})
}

// openPort opens a pseudo terminal as a line opens its port; speed and parity mean nothing there.
func openPort(t testing.TB, path string) port.Port {
	t.Helper()
	s := port.Settings{Baud: 9600, DataBits: 8, Parity: 'E', StopBits: 1}
	p, err := port.Open(context.Background(), path, port.Options{Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

const wireBaud = "FERRULE_TEST_WIRE_BAUD"

// TestMain is the simulated wire when it was started as one, until its input ends.
func TestMain(m *testing.M) {
	baud, err := strconv.Atoi(os.Getenv(wireBaud))
	if err != nil {
		os.Exit(m.Run())
	}
	w, err := hwtest.NewWire(hwtest.WireConfig{Baud: baud})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	u := hwtest.NewUnit(3)
	u.Set(modbus.InputRegisters, 0, make([]uint16, 125)...)
	w.Attach(u)
	fmt.Println(w.Path())
	io.Copy(io.Discard, os.Stdin)
	json.NewEncoder(os.Stdout).Encode(w.Stats())
	w.Close()
}

// wireApart starts a wire in a process of its own; stats ends it and tells what it saw.
func wireApart(b *testing.B, baud int) (path string, stats func() hwtest.WireStats) {
	b.Helper()
	words := append(strings.Fields(os.Getenv("FERRULE_EXEC")), os.Args[0])
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), wireBaud+"="+strconv.Itoa(baud))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	read := bufio.NewReader(out)
	path, err = read.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(path), func() (s hwtest.WireStats) {
		in.Close()
		if err := json.NewDecoder(read).Decode(&s); err != nil {
			b.Fatal(err)
		}
		return s
	}
}

// BenchmarkUnpaced polls a line where bytes take no time, so that what is left is the cost of the
// stack itself: ours, and then libmodbus in C, by turns in one run.
func BenchmarkUnpaced(b *testing.B) {
	master := filepath.Join(b.TempDir(), "client")
	if out, err := exec.Command("cc", "-O2", "-o", master, "testdata/client.c", "-I/usr/include/modbus", "-lmodbus").CombinedOutput(); err != nil {
		b.Fatalf("a C compiler or libmodbus-dev is missing; run: make deps\n%v\n%s", err, out)
	}
	const polls, n = 2000, 10
	path, stats := wireApart(b, 0)
	client := clientOn(b, path, 0)
	at, buf := modbus.Address{Table: modbus.InputRegisters}, make([]byte, 0, 256)
	var ours, theirs []float64
	b.ReportAllocs()
	for b.Loop() {
		spent := cpu()
		for range polls {
			if _, err := client.Read(b.Context(), 3, at, n, buf); err != nil {
				b.Fatal(err)
			}
		}
		ours = append(ours, float64((cpu()-spent).Nanoseconds())/1e3/polls)
		b.StopTimer()
		out, err := exec.Command(master, path, "3", strconv.Itoa(n), strconv.Itoa(polls)).CombinedOutput()
		var spentC, tookC float64
		if _, e := fmt.Sscan(string(out), &spentC, &tookC); err != nil || e != nil {
			b.Fatalf("libmodbus: %v\n%s", err, out)
		}
		theirs = append(theirs, spentC)
		b.StartTimer()
	}
	stats()
	slices.Sort(ours)
	slices.Sort(theirs)
	a, c := ours[len(ours)/2], theirs[len(theirs)/2]
	b.ReportMetric(a, "cpu_us/poll")
	b.ReportMetric(c, "libmodbus_cpu_us/poll")
	b.ReportMetric(a/c, "times_libmodbus")
}

// BenchmarkPoll polls registers at the speed of the wire. The limit is that of the line: both frames
// and two silences of t3.5. The wire is simulated by another
// process, so that allocations and processor time are the client's.
func BenchmarkPoll(b *testing.B) {
	for _, c := range []struct {
		baud int
		n    uint16
	}{{9600, 10}, {9600, 60}, {19200, 10}, {19200, 60}, {115200, 10}, {115200, 60}} {
		b.Run(fmt.Sprintf("%dbaud/%dregisters", c.baud, c.n), func(b *testing.B) { poll(b, c.baud, c.n) })
	}
}

func poll(b *testing.B, baud int, n uint16) {
	path, stats := wireApart(b, baud)
	client := clientOn(b, path, baud)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	buf := make([]byte, 0, 256)
	at := modbus.Address{Table: modbus.InputRegisters}
	if _, err := client.Read(ctx, 3, at, n, buf); err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, 0, 1<<20)
	b.ReportAllocs()
	b.ResetTimer()
	spent := cpu()
	last := time.Now()
	for b.Loop() {
		if _, err := client.Read(ctx, 3, at, n, buf); err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		took = append(took, now.Sub(last))
		last = now
	}
	spent = cpu() - spent
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(spent.Microseconds())/float64(len(took)), "cpu_us/poll")
	t := modbus.TimingOf(baud, 11)
	limit := t.Chars(13+2*int(n)) + 2*t.T35
	b.ReportMetric(float64(took[len(took)/2])/float64(limit), "p50/limit")
	b.ReportMetric(float64(limit.Microseconds()), "limit_us")
	b.ReportMetric(float64(stats().Violations), "t3.5_violations")
}

// BenchmarkSniffer is what a line costs that is listened to: bytes per second, of traffic and of noise.
func BenchmarkSniffer(b *testing.B) {
	r := modbus.Request{Unit: 3, Function: 4, Count: 60}
	traffic := append(r.Append(nil), modbus.Response{Unit: 3, Function: 4, Data: make([]byte, 120)}.Append(nil)...)
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	for name, stream := range map[string][]byte{"traffic": traffic, "noise": noise} {
		b.Run(name, func(b *testing.B) {
			s := modbus.NewSniffer(modbus.SnifferConfig{}, func(modbus.Transaction) {})
			at := time.Unix(0, 0)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				for p := stream; len(p) > 0; p = p[min(8, len(p)):] {
					s.Feed(p[:min(8, len(p))], at)
				}
			}
		})
	}
}
