package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"ferrule/agent/encode"
	"ferrule/agent/identity"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
	"ferrule/hw"
	"ferrule/hw/point"
)

// Target of the wire: what a poll of a meter with ten registers costs in batches of wireBatch with
// zstd, beside one JSON message for each poll.
const (
	wireBatch  = 60
	wireShrink = 9
	wirePolls  = 20 * wireBatch
	// wirePace stands for the second between two polls; a batch gathers for wireBatch of them.
	wirePace = 5 * time.Millisecond
	// ipOverhead is IPv4's and TCP's headers, with the timestamps that Linux has in every segment.
	ipOverhead = 20 + 20 + 12
)

// wireCases are what is sent, and how. The first is what the others are beside.
var wireCases = []struct {
	name, format, compress string
	batch                  bool
}{
	{"JSON, one per message", encode.JSON, "none", false},
	{"JSON, batches of 60", encode.JSON, "none", true},
	{"JSON, batches of 60, zstd", encode.JSON, "zstd", true},
	{"CBOR, batches of 60, zstd", encode.CBOR, "zstd", true},
	{"SenML CBOR, batches of 60, zstd", encode.SenMLCBOR, "zstd", true},
}

// wires measures bytes on the wire and CPU for each poll.
func wires(ctx context.Context, o options) ([]row, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	counted, err := newCounter(w)
	if err != nil {
		return nil, err
	}
	bytes, cpu := make([]spread, len(wireCases)), make([]spread, len(wireCases))
	for rep := range o.reps {
		for i, c := range wireCases {
			got, err := wireRun(ctx, w, counted, fmt.Sprintf("wire%d-%d", rep, i), c.format, c.compress, c.batch)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			say("wire: rep %d: %-34s %.1f bytes, %.1f µs of CPU a poll", rep+1, c.name, got.bytes, got.cpu)
			bytes[i], cpu[i] = append(bytes[i], got.bytes), append(cpu[i], got.cpu)
		}
	}
	rows := []row{{what: "wire: a meter of ten registers at 1 Hz, bytes and µs of CPU for each poll"}}
	for i, c := range wireCases {
		rows = append(rows, row{what: "  " + c.name, ours: bytes[i].text("%.1f", " B") + ", " + cpu[i].text("%.1f", " µs")})
	}
	shrunk, spared := bytes[0].median()/bytes[2].median(), cpu[0].median()/cpu[2].median()
	return append(rows,
		row{"  batches with zstd beside one per message, bytes", fmt.Sprintf("1/%.1f", shrunk), "", fmt.Sprintf("≤ 1/%d", wireShrink), shrunk >= wireShrink},
		row{"  batches with zstd beside one per message, CPU", fmt.Sprintf("1/%.1f", spared), "", fmt.Sprintf("≤ 1/%d", wireShrink), spared >= wireShrink},
	), nil
}

// counter is an independent subscriber that counts entries, where they are JSON.
type counter struct {
	mu      sync.Mutex
	decoder *zstd.Decoder
	entries int
}

func newCounter(w *world) (*counter, error) {
	c := &counter{}
	var err error
	if c.decoder, err = zstd.NewReader(nil); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, c.decoder.Close)
	client, err := w.client("counter")
	if err != nil {
		return nil, fmt.Errorf("connecting the counter: %w", err)
	}
	return c, wait(client.Subscribe("wire/#", 1, c.take))
}

func (c *counter) take(_ mqtt.Client, m mqtt.Message) {
	payload := m.Payload()
	c.mu.Lock()
	defer c.mu.Unlock()
	if plain, err := c.decoder.DecodeAll(payload, nil); err == nil {
		payload = plain
	}
	c.entries += strings.Count(string(payload), `"seq":`)
}

// wireCost is one run, for each poll.
type wireCost struct{ bytes, cpu float64 }

// wireRun has a process of ours send wirePolls polls through a relay that asks the kernel what went
// over its connection.
func wireRun(ctx context.Context, w *world, counted *counter, name, format, compress string, batch bool) (cost wireCost, err error) {
	relay, err := newRelay(w.address)
	if err != nil {
		return cost, err
	}
	defer relay.close()
	cert, key, err := w.issue(name)
	if err != nil {
		return cost, err
	}
	state := filepath.Join(w.dir, name)
	if err := os.Mkdir(state, 0o700); err != nil {
		return cost, err
	}
	self, err := os.Executable()
	if err != nil {
		return cost, err
	}
	begin := filepath.Join(state, "begin")
	p, err := start(name, self, "wire", "-state", state, "-broker", "mqtts://"+relay.address(), "-roots", w.ca("root.crt"), "-cert", cert,
		"-key", key, "-begin", begin, "-format", format, "-compress", compress, fmt.Sprintf("-batch=%v", batch))
	if err != nil {
		return cost, err
	}
	defer p.stop()
	if err := p.awaitOutput(ctx, "session up"); err != nil {
		return cost, err
	}
	counted.mu.Lock()
	before := counted.entries
	counted.mu.Unlock()
	bytes, err := relay.bytes()
	if err != nil {
		return cost, err
	}
	if err := os.WriteFile(begin, nil, 0o600); err != nil {
		return cost, err
	}
	if err := p.awaitOutput(ctx, "µs of CPU\n"); err != nil {
		return cost, err
	}
	after, err := relay.bytes()
	if err != nil {
		return cost, err
	}
	_, text, _ := strings.Cut(p.output(), "all acknowledged: ")
	var spent int64
	if _, err := fmt.Sscanf(text, "%d", &spent); err != nil {
		return cost, err
	}
	if format == encode.JSON {
		if err := p.await(ctx, "the subscriber", func() bool {
			counted.mu.Lock()
			defer counted.mu.Unlock()
			return counted.entries-before >= wirePolls
		}); err != nil {
			return cost, fmt.Errorf("%w: %w", errVoid, err)
		}
	}
	return wireCost{float64(after-bytes) / wirePolls, float64(spent) / wirePolls}, nil
}

// relay passes one connection on, and counts what IP carries of it.
type relay struct {
	listener net.Listener
	done     chan struct{}

	mu   sync.Mutex
	conn *net.TCPConn
}

func newRelay(target string) (*relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{listener: listener, done: make(chan struct{})}
	go func() { // ends with the listener, and its connection
		defer close(r.done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", target)
		if err != nil {
			_ = conn.Close()
			return
		}
		r.mu.Lock()
		r.conn, _ = conn.(*net.TCPConn)
		r.mu.Unlock()
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(up, conn); _ = up.Close() })
		both.Go(func() { _, _ = io.Copy(conn, up); _ = conn.Close() })
		both.Wait()
	}()
	return r, nil
}

func (r *relay) address() string { return r.listener.Addr().String() }

func (r *relay) close() {
	_ = r.listener.Close()
	r.mu.Lock()
	if r.conn != nil {
		_ = r.conn.Close()
	}
	r.mu.Unlock()
	<-r.done
}

// bytes returns what went over the connection in both directions: payload of TCP, and the headers of
// every segment, those that only acknowledge among them (tcp(7), TCP_INFO).
func (r *relay) bytes() (n uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return 0, errors.New("nobody connected to the relay")
	}
	raw, err := r.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	if control := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); control != nil || err != nil {
		return 0, errors.Join(control, err)
	}
	return info.Bytes_received + info.Bytes_sent + ipOverhead*uint64(info.Segs_in+info.Segs_out), nil
}

// meterPoll is poll n of an imaginary meter with ten registers, a second after the one before: what
// it measures wanders a little.
func meterPoll(n int, random *rand.Rand) hw.Poll {
	p := hw.Poll{Line: "rs485-1", Unit: "meter-a", Time: time.Date(2026, 11, 21, 4, 0, n, 125e6, time.UTC)}
	for i, r := range []struct {
		name            string
		at, swing, step float64
	}{
		{"voltage_l1", 230, 3, 0.1}, {"voltage_l2", 231, 3, 0.1}, {"voltage_l3", 229, 3, 0.1},
		{"current_l1", 8, 2, 0.01}, {"current_l2", 7.5, 2, 0.01}, {"current_l3", 9, 2, 0.01},
		{"power_l1", 1840, 460, 0.1}, {"power_l2", 1732, 460, 0.1}, {"power_l3", 2061, 460, 0.1}, {"energy", 48213, 0, 0.01},
	} {
		value := r.at + r.swing*(math.Sin(float64(n)/60+float64(i))/2+random.Float64()/20)
		if r.swing == 0 {
			value += float64(n) * 0.0015
		}
		v, err := point.Float(math.Round(value/r.step) * r.step)
		if err != nil {
			v = point.Value{}
		}
		p.Readings = append(p.Readings, hw.Reading{Point: r.name, Value: v})
	}
	return p
}

// wireChild is what the child process of wireRun runs.
type wireChild struct {
	carrier
	format, compress string
	encoder          *encode.Encoder
}

// wire is the program of the child: it sends the polls, one by one or in batches, and says what CPU
// that took.
func wire(args []string) int {
	var c wireChild
	flags := flag.NewFlagSet("wire", flag.ContinueOnError)
	c.flags(flags)
	flags.StringVar(&c.format, "format", encode.JSON, "of messages")
	flags.StringVar(&c.compress, "compress", "none", "messages")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	return c.run(c.session, c.send)
}

// session makes the session, and the encoder of what it sends.
func (c *wireChild) session(id *identity.Identity, out *outbox.Outbox, log *slog.Logger) (*session.Session, error) {
	config := encode.Default()
	config.Format, config.Compress = c.format, c.compress
	o := session.Options{
		Config: session.Default(), Identity: id, Source: out, Log: log, ShutdownGrace: 5 * time.Second,
		Batch: session.Batch{MaxBytes: int(config.Batch.MaxBytes.Bytes())},
	}
	if c.batch {
		o.Batch.MaxAge = wireBatch * wirePace
	}
	var err error
	if c.encoder, err = encode.New(config, "wire/{device}/readings/{line}/{unit}", id.Device(), out.Boot()); err != nil {
		return nil, err
	}
	o.Format, o.Brokers, o.Config.Roots = c.encoder, []string{c.broker}, c.roots
	return session.New(o)
}

// send appends the polls at their pace, and says what CPU that took until all were acknowledged, less
// what waiting for so many paces costs by itself: a line does that anyway.
func (c *wireChild) send(ctx context.Context, out *outbox.Outbox) error {
	if err := until(ctx, func() bool { _, err := os.Stat(c.begin); return err == nil }); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	polls := make([]hw.Poll, wirePolls)
	for n := range polls {
		polls[n] = meterPoll(n, random)
	}
	idle, err := paced(ctx, polls, func(hw.Poll) error { return nil })
	if err != nil {
		return err
	}
	before := processCPU()
	if _, err := paced(ctx, polls, func(p hw.Poll) error {
		return out.Append(ctx, p.Line, func(dst []byte, seq uint64) (string, []byte) { return c.encoder.Entry(dst, seq, p, false) })
	}); err != nil {
		return err
	}
	if err := until(ctx, func() bool { return out.Status().Depth == 0 }); err != nil {
		return fmt.Errorf("waiting for acknowledgements: %w: %+v", err, out.Status())
	}
	fmt.Printf("all acknowledged: %d µs of CPU\n", (processCPU() - before - idle).Microseconds())
	<-ctx.Done()
	return nil
}

// paced calls do with one poll after the other, at wirePace, and returns what CPU that took.
func paced(ctx context.Context, polls []hw.Poll, do func(hw.Poll) error) (time.Duration, error) {
	before := processCPU()
	pace := time.NewTicker(wirePace)
	defer pace.Stop()
	for _, p := range polls {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if err := do(p); err != nil {
			return 0, err
		}
	}
	return processCPU() - before, nil
}

// processCPU is the processor time that this process has used.
func processCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
