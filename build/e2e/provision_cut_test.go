package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ferrule/tpm/tpmtest"
)

// cutting is one enrollment that is cut at a chosen step, and the one after it.
type cutting struct {
	*enrollee
	w     *world
	token string
}

func newCutting(t *testing.T, p plan) *cutting {
	t.Helper()
	w := newAttested(t)
	p.name = "gw-1"
	return &cutting{enrollee: w.gateway(t, p), w: w}
}

// argv is the enrollment; the token is always the same, as build/provision.sh has it.
func (c *cutting) argv(t *testing.T) []string {
	t.Helper()
	if c.token == "" {
		c.token = c.w.token(t, c.name)
	}
	return c.enrollee.argv("enroll", "--token", c.token)
}

// power cuts the TPM's: what it did not keep in NV memory is gone.
func (c *cutting) power(t *testing.T) {
	t.Helper()
	if err := c.tpm.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// finish enrolls once more and checks that it was as if nothing had happened.
func (c *cutting) finish(t *testing.T) {
	t.Helper()
	mustRun(t, "", c.argv(t)...)
	if out := mustRun(t, "", c.enrollee.argv("enroll")...); !strings.Contains(out, "gw-1 is already enrolled") {
		t.Errorf("enroll said %q", out)
	}
	keys, _ := filepath.Glob(filepath.Join(c.state, "*.key*"))
	certificates, _ := filepath.Glob(filepath.Join(c.state, "*.crt*"))
	if len(keys) != 1 || len(certificates) != 1 {
		t.Errorf("keys %v, certificates %v", keys, certificates)
	}
	if left, _ := filepath.Glob(filepath.Join(c.state, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	record := c.w.record(t, c.name)
	if len(record.Certificates) != 1 || record.FirstUse || record.EK == "" {
		t.Errorf("record %+v", record)
	}
	c.checkChain(t, c.certificate(), filepath.Join(c.state, "device.key"), c.w.root())
	if print := fingerprintOf(t, c.certificate()); print != record.Certificates[0].Fingerprint {
		t.Errorf("the gateway has %s, on record is %+v", print, record.Certificates)
	}
}

// killable is a process that is killed from elsewhere, once.
type killable struct {
	*exec.Cmd
	started chan struct{}
}

// run runs argv to its end; strike, called from another goroutine, ends it.
func (k *killable) run(t *testing.T) (cut bool) {
	t.Helper()
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	close(k.started)
	return k.Wait() != nil
}

func (k *killable) strike() {
	<-k.started
	_ = k.Process.Kill()
}

func newKillable(argv []string) *killable {
	return &killable{Cmd: exec.Command(argv[0], argv[1:]...), started: make(chan struct{})}
}

// The process dies at every command that it sends to its TPM, and the TPM loses its power:
// before it has executed the command, and behind that, when nobody is there to hear the answer.
func TestCutAtEveryTPMCommand(t *testing.T) {
	for name, fault := range map[string]tpmtest.Fault{"before": {Drop: true}, "behind": {}} {
		t.Run(name, func(t *testing.T) {
			all := cutAtTPM(t, 0, fault)
			if all < 15 {
				t.Fatalf("an enrollment takes %d commands: does it prove anything?", all)
			}
			for n := range all {
				t.Run(fmt.Sprint(n+1), func(t *testing.T) { t.Parallel(); cutAtTPM(t, n+1, fault) })
			}
			t.Logf("%d commands", all)
		})
	}
}

// cutAtTPM cuts at command n, 0 for none, and returns how many there were.
func cutAtTPM(t *testing.T, n int, fault tpmtest.Fault) (commands int) {
	chip := tpmtest.Certified(t)
	proxy, err := tpmtest.StartProxy(chip.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	c := newCutting(t, plan{tpm: chip, at: proxy.Address()})
	first := newKillable(c.argv(t))
	proxy.Inject(func(uint32) tpmtest.Fault {
		if commands++; commands != n {
			return tpmtest.Fault{}
		}
		first.strike()
		return fault
	})
	cut := first.run(t)
	proxy.Inject(nil)
	if cut != (n > 0) {
		t.Errorf("the enrollment was cut: %t", cut)
	}
	c.power(t)
	c.finish(t)
	return commands
}

// changes are the system calls by which a process changes what a disk holds.
const changes = "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,chmod,fchmod,fchmodat,ftruncate,flock,close"

// traced finds the path in a line of strace: as an argument, or behind a descriptor.
var traced = regexp.MustCompile(`^\d+ +(\w+)\((?:.*?)[<"]([^>"]+)[>"]`)

// The process dies before every system call by which it changes its state directory, which
// is behind the one before it.
func TestCutAtEveryWrite(t *testing.T) {
	c := newCutting(t, plan{})
	calls := c.traceWrites(t)
	c.finish(t)
	if len(calls) < 20 || !slices.ContainsFunc(calls, func(w diskCall) bool { return w.call == "fsync" }) {
		t.Fatalf("the trace shows %d calls: %v", len(calls), calls)
	}
	var cut atomic.Int32
	t.Run("calls", func(t *testing.T) {
		for _, at := range calls {
			t.Run(strings.ReplaceAll(fmt.Sprint(at), "/", "|"), func(t *testing.T) {
				t.Parallel()
				if cutAtWrite(t, at) {
					cut.Add(1)
				}
			})
		}
	})
	// strace counts the calls of each thread apart, so that a call that the runtime moved to another
	// thread is missed.
	t.Logf("%d calls, of them %d cut", len(calls), cut.Load())
	if int(cut.Load()) < len(calls)*3/4 {
		t.Errorf("only %d of %d calls were cut", cut.Load(), len(calls))
	}
}

func cutAtWrite(t *testing.T, at diskCall) (cut bool) {
	c := newCutting(t, plan{})
	path := filepath.Join(c.state, at.below)
	_, _, code := run(t, "", append([]string{need(t, "strace"), "-f", "-o", "/dev/null", "-P", path, "-e", "trace=" + at.call,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", at.call, at.n)}, c.argv(t)...)...)
	c.power(t)
	c.finish(t)
	return code != 0
}

// diskCall is the nth call of a kind on a path below the state directory.
type diskCall struct {
	call, below string
	n           int
}

// traceWrites enrolls under strace, and lists what it did to its state directory.
func (c *cutting) traceWrites(t *testing.T) (calls []diskCall) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	mustRun(t, "", append([]string{need(t, "strace"), "-f", "-y", "-o", log, "-e", "trace=" + changes}, c.argv(t)...)...)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[diskCall]int)
	for line := range strings.Lines(string(text)) {
		found := traced.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		// The first path below the state directory: that of openat comes behind its folder's.
		at := strings.Index(line, c.state+"/")
		if folder := strings.Index(line, c.state+">"); at < 0 {
			at = folder
		}
		if at < 0 || strings.Contains(line, "O_RDONLY") && !strings.Contains(line, "O_CREAT") {
			continue
		}
		path := line[at:]
		path = path[:strings.IndexAny(path, `>"`)]
		d := diskCall{call: found[1], below: strings.TrimPrefix(path, c.state)}
		seen[d]++
		d.n = seen[diskCall{call: d.call, below: d.below}]
		calls = append(calls, d)
	}
	return calls
}

// The process dies whenever something comes or goes over the network: before it goes on, and
// behind that.
func TestCutAtEveryPacket(t *testing.T) {
	for name, pass := range map[string]bool{"before": false, "behind": true} {
		t.Run(name, func(t *testing.T) {
			all := cutAtPacket(t, 0, pass)
			if all < 6 {
				t.Fatalf("an enrollment takes %d packets", all)
			}
			for n := range all {
				t.Run(fmt.Sprint(n+1), func(t *testing.T) { t.Parallel(); cutAtPacket(t, n+1, pass) })
			}
			t.Logf("%d packets", all)
		})
	}
}

// cutAtPacket cuts at packet n, 0 for none, and returns how many there were.
func cutAtPacket(t *testing.T, n int, pass bool) int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newCutting(t, plan{via: "https://" + listener.Addr().String()})
	first := newKillable(c.argv(t))
	wire := &cuttingWire{upstream: strings.TrimPrefix(c.w.registrar, "https://"), at: n, pass: pass, strike: first.strike}
	served := make(chan struct{})
	go func() { // ends with the listener
		defer close(served)
		wire.serve(listener)
	}()
	t.Cleanup(func() { _ = listener.Close(); <-served })
	first.run(t) // the answer may have been the last that it needed
	wire.mend()
	c.power(t)
	c.finish(t)
	return wire.packets()
}

// cuttingWire carries connections and strikes at one packet.
type cuttingWire struct {
	upstream string
	at       int
	pass     bool // the packet arrives all the same
	strike   func()

	mu     sync.Mutex
	count  int
	mended bool
}

func (w *cuttingWire) mend()        { w.mu.Lock(); w.mended = true; w.mu.Unlock() }
func (w *cuttingWire) packets() int { w.mu.Lock(); defer w.mu.Unlock(); return w.count }

func (w *cuttingWire) serve(listener net.Listener) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		all.Go(func() { w.carry(client, server) })
		all.Go(func() { w.carry(server, client) })
	}
}

// carry ends with either connection, and ends both.
func (w *cuttingWire) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	for buffer := make([]byte, 64<<10); ; {
		n, err := from.Read(buffer)
		if err != nil || !w.packet() {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// packet counts, strikes where it is time, and says whether the packet goes on.
func (w *cuttingWire) packet() bool {
	w.mu.Lock()
	if w.mended {
		w.mu.Unlock()
		return true
	}
	w.count++
	now := w.count == w.at
	w.mu.Unlock()
	if now {
		w.strike()
	}
	return !now || w.pass
}
