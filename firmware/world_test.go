package firmware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/slot"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/quantity"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a device and all around it, in memory: a disk with the boot loader's environment,
// two slots and the state directory; a repository; a cloud; a TPM. A device starts again and again.
type world struct {
	t         testing.TB
	repo      *bundletest.Repository
	images    map[string][]byte // by version
	handler   http.Handler      // of the repository; nil: it is out
	asked     *atomic.Int64     // requests
	harness   slottest.Harness
	disk      *disktest.Disk
	config    firmware.Config
	chip      *chip
	health    func(version string) firmware.Health
	hangs     map[string]bool // versions whose kernel hangs
	refuses   bool            // the cloud acknowledges nothing
	deaf      bool            // nobody restarts the device
	open      func(s slot.Slot, part string, write bool) (slot.Device, error)
	content   func(s slot.Slot) []byte // of a slot, where open is not nil
	installer *installer
	command   func(ctx context.Context, argv []string) error
	log       *slog.Logger

	mu      *sync.Mutex
	reports []firmware.Report // while a machine runs, see told
	boots   int
	cuts    int
	born    time.Time // when epoch was
	epoch   time.Time
	vouched *atomic.Bool // for the clock
	broken  map[slot.Slot]bool
	tried   map[string]int // boots of each version
	asks    bool           // the restart is to try the slot (tryboot)
	again   bool           // the agent reads its configuration again instead of starting
}

const (
	rootDir  = "/state/update"
	slotSize = 8 << 10
)

// chip is the TPM's counter.
type chip struct {
	value  uint64
	fail   error
	raised func(to uint64)
}

func (c *chip) Read(context.Context) (uint64, string, error) { return c.value, "", c.fail }

func (c *chip) Raise(_ context.Context, to uint64) error {
	if c.fail != nil {
		return c.fail
	}
	c.value = max(c.value, to)
	if c.raised != nil {
		c.raised(to)
	}
	return nil
}

func image(seed byte, n int) []byte {
	data := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	return data
}

// newWorld is a device whose slot a has version 1.0.0, and a repository that has it too.
func newWorld(t testing.TB, harness slottest.Harness) *world {
	t.Helper()
	w := &world{
		t: t, harness: harness, images: map[string][]byte{"1.0.0": image(1, 5000)}, chip: &chip{},
		hangs: map[string]bool{}, tried: map[string]int{}, log: slog.New(slog.DiscardHandler),
		born: time.Now(), epoch: time.Now(), vouched: new(atomic.Bool), asked: new(atomic.Int64), mu: new(sync.Mutex), broken: map[slot.Slot]bool{},
	}
	w.vouched.Store(true)
	w.health = func(string) firmware.Health { return well() }
	repo, err := bundletest.New(path.Join(t.TempDir(), "repository"), time.Now, bundletest.Of("1.0.0", w.images["1.0.0"]))
	if err != nil {
		t.Fatal(err)
	}
	w.repo, w.handler = repo, repo.Handler()
	w.config = firmware.Default()
	w.config.Repository, w.config.Product, w.config.Boot = "http://updates.example", "gw", firmware.BootUBoot
	w.config.CheckEvery = quantity.Duration(time.Hour)
	w.disk = harness.Disk()
	for name, content := range map[string][]byte{"a": w.images["1.0.0"], "b": image(99, 100)} {
		w.put("/slots/"+name+"/rootfs", append(bytes.Clone(content), make([]byte, slotSize-len(content))...))
	}
	if err := disk.MakeFolder(w.disk, rootDir); err != nil {
		t.Fatal(err)
	}
	w.disk = w.disk.Kill()
	return w
}

func well() firmware.Health {
	return firmware.Health{Session: true, Reported: true, Lines: []firmware.LineHealth{{Name: "rs485-1/meter-a", OK: true}}}
}

func (w *world) put(name string, content []byte) {
	w.t.Helper()
	if err := disk.MakeFolder(w.disk, path.Dir(name)); err != nil {
		w.t.Fatal(err)
	}
	f, err := w.disk.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(content)
		f.Close()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// publish publishes a version; edit may be nil.
func (w *world) publish(version string, content []byte, edit func(*bundletest.Release)) {
	w.t.Helper()
	w.images[version] = content
	release := bundletest.Release{Version: version}
	if edit != nil {
		edit(&release)
	}
	if _, err := w.repo.Publish(release, bundletest.Part{Image: content}); err != nil {
		w.t.Fatal(err)
	}
}

// RoundTrip asks the repository without a network.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.asked.Add(1)
	if w.handler == nil {
		return nil, errors.New("dial tcp: network is unreachable")
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	answer := httptest.NewRecorder()
	w.handler.ServeHTTP(answer, r)
	return answer.Result(), nil
}

// device is a file of a slot.
type device struct{ disk.File }

func (d *device) Size() int64 { return slotSize }

func (w *world) openSlot(s slot.Slot, part string, write bool) (slot.Device, error) {
	if w.open != nil {
		return w.open(s, part, write)
	}
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := w.disk.OpenFile("/slots/"+string(s)+"/"+part, flag, 0)
	if err != nil {
		return nil, err
	}
	return &device{f}, nil
}

// versionIn is the version whose image a slot holds, or "".
func (w *world) versionIn(s slot.Slot) string {
	content, _ := w.disk.Content("/slots/" + string(s) + "/rootfs")
	if w.content != nil {
		content = w.content(s)
	}
	for version, image := range w.images {
		if bytes.HasPrefix(content, image) {
			return version
		}
	}
	return ""
}

// env is the environment as a system that runs from a slot sees it.
func (w *world) env(running slot.Slot) slot.Boot {
	c := w.harness.Config
	c.Running, c.BootID, c.FS = &running, fmt.Sprintf("boot-%d", w.boots), w.harness.FS(w.disk)
	boot, err := slot.Open(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return boot
}

// power boots the device. It must come up with a whole image.
func (w *world) power() (slot.Slot, string) {
	w.t.Helper()
	s := w.harness.Boot(w.harness.FS(w.disk), slottest.Power{Asked: w.asks, Broken: w.broken})
	w.asks = false
	w.boots++
	version := w.versionIn(s)
	if version == "" {
		w.t.Fatalf("BRICK: boot %d: slot %q, which is no whole image, boots", w.boots, s)
	}
	w.tried[version]++
	return s, version
}

// machine is one start of the system and its agent.
type machine struct {
	*world
	engine  *firmware.Engine
	version string
	slot    slot.Slot
	restart chan slot.Slot
	cancel  context.CancelFunc
	ended   chan struct{}
}

func (w *world) start(s slot.Slot, version string) *machine {
	w.t.Helper()
	m := &machine{world: w, version: version, slot: s, restart: make(chan slot.Slot, 1), ended: make(chan struct{})}
	o := firmware.Options{
		FS: w.disk, Dir: rootDir, Config: w.config, Root: w.repo.Root, Device: "gw-0001", Version: version, Agent: "1.0.0",
		BootID: fmt.Sprintf("boot-%d", w.boots), Again: w.again, HTTP: w, Boot: w.env(s), Open: w.openSlot, Floor: w.chip, Command: w.command, Log: w.log,
		Now:    func() (time.Time, bool) { return w.epoch.Add(time.Since(w.born)), w.vouched.Load() },
		Health: func(context.Context) firmware.Health { return w.health(version) },
		Report: func(_ context.Context, r firmware.Report) error {
			if w.refuses {
				return errors.New("the broker is away")
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports = append(w.reports, r)
			w.disk.Mark(r)
			return nil
		},
		Reboot: func(_ context.Context, to slot.Slot) error {
			if w.deaf {
				return nil
			}
			select {
			case m.restart <- to:
			default:
			}
			return nil
		},
	}
	if w.installer != nil {
		o.Installer = w.installer
	}
	if w.chip == nil {
		o.Floor = nil
	}
	engine, err := firmware.Open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	m.engine = engine
	ctx, cancel := context.WithCancel(w.t.Context())
	m.cancel = cancel
	go func() { defer close(m.ended); _ = engine.Run(ctx) }()
	return m
}

func (m *machine) stop() {
	m.cancel()
	<-m.ended
}

// second is how often a machine is looked at.
const second = time.Second

// until waits until done, or the machine restarts, for at most so long.
func (m *machine) until(most time.Duration, done func(s firmware.Status) bool) (restarted bool) {
	m.t.Helper()
	for start := time.Now(); ; {
		select {
		case to := <-m.restart:
			m.asks = to != "" && m.slot != to
			return true
		case <-time.After(min(second<<min(time.Since(start)/time.Hour, 6), time.Minute)):
		}
		if s := m.engine.Status(); done(s) {
			return false
		} else if time.Since(start) > most {
			m.t.Fatalf("after %v: %+v", most, s)
		}
	}
}

// quiet: nothing is under way, and nothing is to be told.
func quiet(s firmware.Status) bool { return s.State == firmware.Idle && s.Unreported == 0 }

// bootsMax is what no device needs.
const bootsMax = 16

// live starts the device as often as it restarts, until done, and returns the last machine, stopped.
func (w *world) live(most time.Duration, done func(m *machine, s firmware.Status) bool) *machine {
	w.t.Helper()
	for range bootsMax {
		s, version := w.power()
		if w.hangs[version] {
			continue // the watchdog resets it
		}
		m := w.start(s, version)
		restarted := m.until(most, func(st firmware.Status) bool { return done(m, st) })
		m.stop()
		if !restarted {
			return m
		}
	}
	w.t.Fatalf("LOOP: %d boots, %v", w.boots, w.tried)
	return nil
}

// settled: nothing is under way after a whole round of checks.
func settled(w *world) func(m *machine, s firmware.Status) bool {
	return func(m *machine, s firmware.Status) bool { return quiet(s) && !s.LastCheck.IsZero() }
}

// told is what the cloud has been told so far.
func (w *world) told() []firmware.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.reports)
}

func reportsOf(reports []firmware.Report) (text []string) {
	for _, r := range reports {
		text = append(text, r.Version+" "+r.Outcome)
	}
	return text
}

var _ io.Closer = (*device)(nil)
