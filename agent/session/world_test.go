package session

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"go.uber.org/goleak"

	"ferrule/agent/agenttest"
	"ferrule/agent/encode"
	"ferrule/agent/identity"
	"ferrule/agent/outbox"
	"ferrule/internal/disk"
	"ferrule/internal/quantity"
)

func TestMain(m *testing.M) {
	agenttest.RunBroker()
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen; far longer than it takes, even
// under an emulator.
const patience = time.Minute

// until waits for done.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	limit, tick := time.After(patience), time.NewTicker(2*time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// world is a device with its CA, identity and outbox.
type world struct {
	t        testing.TB
	dir      string
	ca       *agenttest.CA
	server   *agenttest.Issued
	device   *agenttest.Issued
	identity *identity.Identity
	outbox   *outbox.Outbox
	log      *testLog
}

// newWorld makes a device called device-1 with a software key.
func newWorld(t testing.TB) *world {
	t.Helper()
	ca := must[*agenttest.CA](t)(agenttest.NewCA("test"))
	return newWorldOf(t, ca, must[*agenttest.Issued](t)(ca.Device("device-1")))
}

func newWorldOf(t testing.TB, ca *agenttest.CA, device *agenttest.Issued) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), ca: ca, device: device, log: &testLog{}}
	w.server = must[*agenttest.Issued](t)(ca.Server())
	w.write("roots.pem", ca.RootPEM())
	w.write("device.crt", device.ChainPEM)
	w.write("device.pem", device.KeyPEM)
	w.identity = w.open(identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true})
	return w.withOutbox()
}

func (w *world) open(c identity.Config) *identity.Identity {
	w.t.Helper()
	id := must[*identity.Identity](w.t)(identity.Open(context.Background(), c,
		identity.Options{StateDir: w.dir, FS: disk.OS(), Clock: identity.TrustedClock(time.Now), Log: w.log.logger()}))
	w.t.Cleanup(func() { _ = id.Close() })
	return id
}

func (w *world) withOutbox() *world {
	w.outbox = must[*outbox.Outbox](w.t)(outbox.Open(outbox.Options{
		FS: disk.OS(), Dir: filepath.Join(w.dir, "outbox"), Config: outbox.Default(), Log: w.log.logger()}))
	w.t.Cleanup(func() { _ = w.outbox.Close() })
	return w
}

func (w *world) write(name string, data []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// broker starts agenttest's broker. Its messages go to the returned ledger.
func (w *world) broker(change ...func(*agenttest.BrokerConfig)) (*agenttest.Broker, *ledger) {
	w.t.Helper()
	l := &ledger{}
	c := agenttest.BrokerConfig{Address: "127.0.0.1:0", TLS: w.server.ServerTLS(w.ca), Ledger: l.append}
	for _, f := range change {
		f(&c)
	}
	b := must[*agenttest.Broker](w.t)(agenttest.StartBroker(c))
	w.t.Cleanup(func() { _ = b.Close() })
	return b, l
}

// session makes a session with timeouts that suit a test.
func (w *world) session(address string, change ...func(*Options)) *Session {
	w.t.Helper()
	o := Options{Config: Default(), Identity: w.identity, Source: w.outbox, Log: w.log.logger(), ShutdownGrace: time.Second}
	o.Brokers = []string{"mqtts://" + address}
	o.ReconnectSpread = quantity.Duration(40 * time.Millisecond)
	o.Config.Roots = filepath.Join(w.dir, "roots.pem")
	o.Online = func() []byte { return []byte(`{"online":true}`) }
	for _, f := range change {
		f(&o)
	}
	s := must[*Session](w.t)(New(o))
	s.timeouts.alone, s.timeouts.quiet = 100*time.Millisecond, 3*time.Second
	return s
}

// run runs s until the test ends, or the returned function is called.
func (w *world) run(s *Session) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx)
	}()
	stop = func() { cancel(); <-ended }
	w.t.Cleanup(stop)
	return stop
}

// fill appends n entries of size bytes on one topic per unit, and returns nothing: their
// payloads are {"seq":N,…}.
func (w *world) fill(n, size int, units ...string) {
	w.t.Helper()
	if len(units) == 0 {
		units = []string{"unit"}
	}
	for i := range n {
		unit := units[i%len(units)]
		err := w.outbox.Append(context.Background(), "line", func(dst []byte, seq uint64) (string, []byte) {
			return "readings/" + unit, appendEntry(dst, seq, size)
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// appendEntry appends an entry of size bytes or a little more.
func appendEntry(dst []byte, seq uint64, size int) []byte {
	start := len(dst)
	dst = fmt.Appendf(dst, `{"seq":%d,"pad":"`, seq)
	for len(dst)-start < size-2 {
		dst = append(dst, 'x')
	}
	return append(dst, `"}`...)
}

// drained says whether everything was acknowledged.
func (w *world) drained() bool { return w.outbox.Status().Depth == 0 }

// ledger keeps what a broker got.
type ledger struct {
	mu       sync.Mutex
	messages []agenttest.Message
	hook     func(agenttest.Message) error
}

func (l *ledger) append(m agenttest.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hook != nil {
		if err := l.hook(m); err != nil {
			return err
		}
	}
	l.messages = append(l.messages, m)
	return nil
}

// of returns the payloads that came on topics with prefix.
func (l *ledger) of(prefix string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var payloads []string
	for _, m := range l.messages {
		if strings.HasPrefix(m.Topic, prefix) {
			payloads = append(payloads, string(m.Payload))
		}
	}
	return payloads
}

// checkSeqs fails unless seqs holds 1 to n, the first time each in order, and returns the
// number of duplicates.
func checkSeqs(t testing.TB, seqs []uint64, n int) (duplicates int) {
	t.Helper()
	next := uint64(1)
	for i, seq := range seqs {
		switch {
		case seq == next:
			next++
		case seq < next:
			duplicates++
		default:
			t.Fatalf("entry %d is seq %d, and %d has not come yet", i, seq, next)
		}
	}
	if next != uint64(n)+1 {
		t.Fatalf("%d entries came, want %d", next-1, n)
	}
	return duplicates
}

// seqs returns the numbers of the entries in payloads, joined or not.
func seqs(t testing.TB, payloads []string) []uint64 {
	t.Helper()
	var all []uint64
	for _, p := range payloads {
		for rest := p; ; {
			_, after, found := strings.Cut(rest, `{"seq":`)
			if !found {
				break
			}
			var n uint64
			if _, err := fmt.Sscanf(after, "%d", &n); err != nil {
				t.Fatal(err)
			}
			all, rest = append(all, n), after
		}
	}
	return all
}

// joining makes a session join entries as the agent does.
func joining(o *Options) {
	e, err := encode.New(encode.Default(), "readings/{line}/{unit}", "device-1", 1)
	if err != nil {
		panic(err) // of a template that is ours
	}
	o.Format = e
}

// window sets the size of the window.
func windowOf(n int) func(*Options) { return func(o *Options) { o.Window = n } }

// writeTimeout sets the longest silence.
func writeTimeout(d time.Duration) func(*Options) {
	return func(o *Options) { o.WriteTimeout = quantity.Duration(d) }
}

// commands makes a session take commands.
func commands(handle func(c Command) (string, []byte)) func(*Options) {
	return func(o *Options) {
		o.Handle = func(_ context.Context, c Command) (string, []byte) {
			if handle == nil {
				return "", nil
			}
			return handle(c)
		}
	}
}

// received is a PUBLISH as agenttest's broker reports it.
func received(p *packets.PublishPacket) agenttest.Message {
	return agenttest.Message{Topic: p.TopicName, Payload: p.Payload, Dup: p.Dup, Retain: p.Retain}
}

// testLog keeps what was logged.
type testLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *testLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
