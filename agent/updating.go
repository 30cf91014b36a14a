package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/config"
	"ferrule/agent/session/cause"
	"ferrule/firmware"
	"ferrule/firmware/slot"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// updates joins the engine of package firmware to the rest of the agent. Where updates are not
// configured, or cannot be, engine is nil.
type updates struct {
	a         *agent
	engine    *firmware.Engine
	problem   error // why there is no engine although a repository is configured
	transport *updateTransport

	announced atomic.Bool // the broker has acknowledged a status message of this start

	mu       sync.Mutex
	news     *firmware.Report         // that the status message carries
	acked    map[string]chan struct{} // closed when the broker has acknowledged the report of that id
	audited  string                   // id of the report that is in the audit log
	answered map[string]bool          // units that answered since the start
}

// updateDir is where everything about updates is kept, below state_dir.
const updateDir = "update"

// openUpdates opens the engine. That it cannot be opened keeps no reading from being sent: the status
// says so. While a configuration is on trial nothing is updated.
func (a *agent) openUpdates(ctx context.Context, fsys disk.FS) {
	a.updates = &updates{a: a, acked: make(map[string]chan struct{}), answered: make(map[string]bool)}
	if !a.config.Update.Enabled() || a.onTrial != nil {
		return
	}
	if err := a.updates.open(ctx, fsys); err != nil {
		a.updates.problem = err
		a.log.LogAttrs(ctx, slog.LevelError, "updates not usable", slog.Any("err", err), slog.String("hint", hint.Of(err)))
	}
}

func (u *updates) open(ctx context.Context, fsys disk.FS) error {
	a, c := u.a, u.a.config.Update
	root, err := PinRoot(fsys, a.config)
	if err != nil {
		return err
	}
	if u.transport, err = a.openUpdateTransport(); err != nil {
		return err
	}
	o := firmware.Options{
		FS: fsys, Dir: filepath.Join(a.config.StateDir, updateDir), Config: c, Root: root,
		Device: a.identity.Device(), Version: runningVersion(c, a.options.Version), Agent: a.options.Version,
		BootID: a.desk.bootID(c), Again: a.desk.updated, HTTP: u.transport,
		Health: u.health, Report: u.report, Reboot: u.reboot,
		Now:    func() (time.Time, bool) { return a.clock.Now(), a.clock.Trusted() },
		Passed: a.clock.Floor,
		Log:    a.log,
	}
	if err := openSlots(&o); err != nil {
		return err
	}
	if floor := a.openFloor(ctx, fsys); floor != nil {
		o.Floor = floor
	}
	if u.engine, err = firmware.Open(o); err == nil {
		a.desk.updated = true
	}
	return err
}

// close ends what open began.
func (u *updates) close() {
	if u != nil && u.transport != nil {
		u.transport.close()
	}
}

// pinned is the root of trust as it was when the device was enrolled.
const (
	pinnedRoot = "pinned-root.json"
	maxRoot    = 512 << 10
)

// PinRoot returns the first root of updates. The file that update.root names is copied into the
// state directory when the device is enrolled, or at the first start that finds none there; from
// then on it is the copy that counts, and later roots are believed by it.
func PinRoot(fsys disk.FS, c *config.Config) ([]byte, error) {
	dir := filepath.Join(c.StateDir, updateDir)
	copied := filepath.Join(dir, pinnedRoot)
	root, err := disk.ReadFile(fsys, copied, maxRoot)
	if err == nil {
		return root, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the root of updates: %w", err)
	}
	if root, err = disk.ReadFile(fsys, c.Update.Root, maxRoot); err != nil {
		return nil, hint.With(fmt.Errorf("reading the root of updates: %w", err),
			"put metadata/1.root.json of the repository where update.root says, by a way that you trust")
	}
	if !json.Valid(root) {
		return nil, fmt.Errorf("reading the root of updates: %s is no JSON", c.Update.Root)
	}
	if err := disk.MakeFolder(fsys, dir); err != nil {
		return nil, fmt.Errorf("keeping the root of updates: %w", err)
	}
	if err := atomicfile.Write(fsys, copied, root, 0o600); err != nil {
		return nil, fmt.Errorf("keeping the root of updates: %w", err)
	}
	return root, nil
}

// bootID tells one start of what is updated from the next: of the machine, or of this program.
func (d *desk) bootID(c firmware.Config) string {
	if c.Boot != firmware.BootDirectory {
		id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
		return strings.TrimSpace(string(id))
	}
	if d.started == "" {
		d.started = rand.Text()
	}
	return d.started
}

// runningVersion is what runs before the engine has installed anything: the image's version, as
// os-release(5) has it, or the program's.
func runningVersion(c firmware.Config, program string) string {
	if c.Boot == firmware.BootDirectory {
		return program
	}
	text, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "IMAGE_VERSION="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return program
}

// report has the status message carry r until the broker has acknowledged one that does. Where
// there is no such message, a session that stands is all that can be had.
func (u *updates) report(ctx context.Context, r firmware.Report) error {
	u.note(ctx, r)
	if u.a.config.Session.Topics.Status == "" {
		return u.await(ctx)
	}
	u.mu.Lock()
	u.news = &r
	done, waiting := u.acked[r.ID]
	if !waiting {
		done = make(chan struct{})
		u.acked[r.ID] = done
	}
	u.mu.Unlock()
	u.a.session.Announce()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lookForSession is how often it is looked whether a session stands.
const lookForSession = time.Second

// await waits until the session stands.
func (u *updates) await(ctx context.Context) error {
	look := time.NewTicker(lookForSession)
	defer look.Stop()
	for {
		if u.a.session.Status().Stage == cause.StageUp {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// note writes what came of an update into the audit log, once.
func (u *updates) note(ctx context.Context, r firmware.Report) {
	u.mu.Lock()
	known := u.audited == r.ID
	u.audited = r.ID
	u.mu.Unlock()
	if known {
		return
	}
	u.a.note(ctx, audit.Event{Name: "update." + r.Outcome, Essential: true, Attrs: []slog.Attr{
		slog.String("id", r.ID), slog.String("version", r.Version), slog.String("from", r.From), slog.String("slot", r.Slot),
		slog.String("manifest", r.Manifest), slog.String("reason", r.Reason), slog.String("by", r.By),
	}})
}

// heard is told of every status message that the broker has acknowledged.
func (u *updates) heard(message []byte) {
	u.announced.Store(true)
	var said struct {
		Update struct {
			Report struct {
				ID string `json:"id"`
			} `json:"report"`
		} `json:"update"`
	}
	if json.Unmarshal(message, &said) != nil || said.Update.Report.ID == "" {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if done, waiting := u.acked[said.Update.Report.ID]; waiting {
		close(done)
		delete(u.acked, said.Update.Report.ID)
	}
}

// reboot asks for the other slot. An agent without privileges cannot restart the machine; the
// directory backend needs no more than the program's end.
func (u *updates) reboot(_ context.Context, s slot.Slot) error {
	c := u.a.config.Update
	u.a.log.LogAttrs(context.Background(), slog.LevelInfo, "restart into a slot", slog.String("slot", string(s)))
	if c.Boot == firmware.BootDirectory {
		u.a.restartOnce.Do(func() { close(u.a.restart) })
		return nil
	}
	if err := atomicfile.Write(disk.OS(), c.Reboot, []byte(rebootArgument(c)), 0o600); err != nil {
		return hint.With(fmt.Errorf("asking for a restart: %w", err),
			"ferrule-reboot.path must watch update.reboot, and the agent's user own its folder")
	}
	return nil
}

// rebootArgument is what reboot(8) is to be told: the firmware of a Raspberry Pi forgets its trial
// unless the restart asks for it.
func rebootArgument(c firmware.Config) string {
	if c.Boot == firmware.BootTryboot {
		return "0 tryboot\n"
	}
	return "\n"
}

// critical says that nothing else may change now, since it would be judged with the update or lost
// with it.
func (u *updates) critical() bool {
	if u.engine == nil {
		return false
	}
	switch u.engine.Status().State {
	case firmware.Armed, firmware.Rebooting, firmware.Trial:
		return true
	}
	return false
}
