// Package firmware carries an update from a signed manifest to a committed slot. It is one state
// machine with one journal, and every step can be done again after a power cut. The trap: what
// boots is decided by the boot loader's environment alone; where the journal disagrees, the
// journal yields.
package firmware

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/internal/disk"
)

// Options is what an Engine is made of.
type Options struct {
	FS     disk.FS
	Dir    string // of the journal, the trusted metadata and the file floor; made if it is not there
	Config Config
	Root   []byte // the pinned root.json
	Device string // the device's id: the rollout is decided by its hash
	// Version is what runs before the engine has installed anything; afterwards the journal knows.
	Version string
	// Agent is the version of this program, which a manifest may demand a least one of; where it is
	// no version (a build of somebody's own) it is taken for the newest.
	Agent string
	// BootID differs from one start of the system to the next (/proc/sys/kernel/random/boot_id);
	// "" where every start of this program is one: the directory backend.
	BootID string
	// Again says that this process has had an engine before: its configuration was read again, and
	// nothing has died.
	Again bool
	HTTP  http.RoundTripper // with the device's identity; nil: http.DefaultTransport
	Boot  slot.Boot
	// Open opens one part of one slot. write is never asked for the slot that runs. A device that is
	// a file may have a method Truncate(size int64) error, which is then called before it is written.
	Open func(s slot.Slot, part string, write bool) (slot.Device, error)
	// Installer installs what has been written by Open; nil: nothing is to be done.
	Installer Installer
	// Floor is the TPM's; nil: there is none, and the file alone counts.
	Floor  Floor
	Health func(ctx context.Context) Health
	// Report tells the cloud what came of an update; nil only once the cloud has acknowledged it. It
	// ends with ctx.
	Report func(ctx context.Context, r Report) error
	// Reboot asks for a restart into s and returns; the process is ended by others.
	Reboot func(ctx context.Context, s slot.Slot) error
	// Command runs update.health_command; an error tells why it is not content. It ends with ctx.
	// nil: os/exec.
	Command func(ctx context.Context, argv []string) error
	// Now is the time, and whether anybody vouches for it. nil: time.Now, trusted.
	Now func() (now time.Time, trusted bool)
	// Passed is a time that has certainly passed: what is signed is judged by it while nobody
	// vouches for Now, which may lie years ahead. nil: Now.
	Passed func() time.Time
	Log    *slog.Logger
}

// Installer is a system that owns the slots and installs bundles of its own (RAUC). The bundle is
// a part like any other: it was fetched, checked and written by Open before Install is called.
// Install may be called again for the same manifest after a power cut.
type Installer interface {
	Install(ctx context.Context, m *manifest.Manifest, progress func(done, total int64)) error
}

// Floor remembers the least security version that may be installed. It never falls.
type Floor interface {
	// Read returns the floor; weak says why it could be lowered by an attacker, "" where it could not.
	Read(ctx context.Context) (value uint64, weak string, err error)
	// Raise makes the floor at least to. Power cuts may leave it anywhere between.
	Raise(ctx context.Context, to uint64) error
}

// Health is what the agent knows of itself while a slot is on trial.
type Health struct {
	Session  bool // one stands
	Reported bool // the broker has acknowledged the status of this boot
	// Network is the reason why the network itself is out (the stage that fails, and why); "" where
	// it is not, or is not known to be.
	Network string
	Lines   []LineHealth
}

// LineHealth is one unit of one line.
type LineHealth struct {
	Name string // unique: line/unit
	OK   bool   // it answered lately
	Why  string // it does not
}

// Request asks for an update.
type Request struct {
	// Version that is wanted, also one older than what runs, as long as the floor allows it; it need
	// not have been rolled out to this device yet, but must not be paused. "": what is newest for this
	// device.
	Version string `json:"version,omitempty"`
	// Now ignores the window.
	Now bool `json:"now,omitempty"`
	// By says who asked, for the log and the report.
	By string `json:"by,omitempty"`
}

// The outcomes of a Report.
const (
	OutcomeCommitted  = "committed"
	OutcomeRolledBack = "rolled-back"
	OutcomeFailed     = "failed"
)

// Report is what the cloud is told of one update.
type Report struct {
	ID       string    `json:"id"` // unique to this report: a consumer may get it twice
	Outcome  string    `json:"outcome"`
	Manifest string    `json:"manifest"`
	Version  string    `json:"version"` // that was to be installed
	From     string    `json:"from"`    // that ran before
	Slot     string    `json:"slot"`    // that it was written to
	Reason   string    `json:"reason,omitempty"`
	By       string    `json:"by,omitempty"`
	Time     time.Time `json:"time"`
}

// State is where an update is.
type State string

// The states; see machine.go for what leads from one to the next.
const (
	Idle       State = "idle"
	Fetching   State = "fetching"
	Verifying  State = "verifying"
	Armed      State = "armed"
	Rebooting  State = "rebooting"
	Trial      State = "trial"
	Committed  State = "committed"
	RolledBack State = "rolled-back"
	Failed     State = "failed"
	Reporting  State = "reporting"
)

// Status is what people and programs are shown. All text in it is printable.
type Status struct {
	State State `json:"state"`
	// Version and Slot are what runs, Active the slot that boots by itself. Trial says that they
	// differ because the running one is on trial.
	Version string `json:"version"`
	Slot    string `json:"slot"`
	Active  string `json:"active"`
	// Target is the update under way, or the last one where State is idle.
	Target *TargetStatus `json:"target,omitempty"`
	// Reason is why the last update did not become, or why the present state waits.
	Reason string `json:"reason,omitempty"`
	// Advice is what to do about Reason.
	Advice string `json:"advice,omitempty"`
	// Refused is why this device may not install what the repository had for it when it was last asked.
	Refused string `json:"refused,omitempty"`
	// Unreported counts outcomes that the cloud has not acknowledged.
	Unreported  int           `json:"unreported,omitempty"`
	Quarantined []Quarantined `json:"quarantined,omitempty"`
	Floor       FloorStatus   `json:"floor"`
	Metadata    Metadata      `json:"metadata"`
	// LastCheck and NextCheck are those of the repository; zero where there was none or will be none
	// by itself.
	LastCheck time.Time    `json:"last_check,omitzero"`
	NextCheck time.Time    `json:"next_check,omitzero"`
	Window    WindowStatus `json:"window"`
	// Problem is what is wrong with the engine's own files; updates may be held because of it.
	Problem string `json:"problem,omitempty"`
}

// TargetStatus is how far one update has come.
type TargetStatus struct {
	Manifest        string  `json:"manifest"`
	Version         string  `json:"version"`
	Release         uint64  `json:"release"`
	SecurityVersion uint64  `json:"security_version"`
	From            string  `json:"from"`
	Slot            string  `json:"slot"`
	Part            string  `json:"part,omitempty"`
	Delta           bool    `json:"delta"`
	Segments        int     `json:"segments"`     // of all parts, that are in the slot
	SegmentsAll     int     `json:"segments_all"` //
	Bytes           int64   `json:"bytes"`        // downloaded since the agent started
	BytesAll        int64   `json:"bytes_all"`    // that the chosen objects have
	Trial           *Judged `json:"trial,omitempty"`
}

// Judged is how a trial stands.
type Judged struct {
	Boots    int      `json:"boots"`
	Missing  []string `json:"missing,omitempty"` // what is not healthy
	Within   float64  `json:"within_s"`          // what is left, while the network is not the reason
	Network  float64  `json:"network_grace_s"`   // what is left, while it is
	Deferred bool     `json:"deferred"`          // the network is the only reason
}

// Quarantined is an update that is not tried again.
type Quarantined struct {
	Manifest string    `json:"manifest"`
	Version  string    `json:"version"`
	Reason   string    `json:"reason"`
	Time     time.Time `json:"time"`
}

// FloorStatus is the least security version that may be installed.
type FloorStatus struct {
	Value uint64 `json:"value"`
	Weak  string `json:"weak,omitempty"` // why an attacker could lower it
}

// Metadata is how fresh the repository's signed files are.
type Metadata struct {
	Versions map[string]int64     `json:"versions,omitempty"` // of each role
	Expires  map[string]time.Time `json:"expires,omitempty"`
	// Refreshed is when they were last found to be the newest.
	Refreshed time.Time `json:"refreshed,omitzero"`
	// Alarm says that somebody may be holding newer ones back.
	Alarm string `json:"alarm,omitempty"`
}

// WindowStatus is the maintenance window.
type WindowStatus struct {
	Window string    `json:"window,omitempty"`
	Open   bool      `json:"open"`
	Opens  time.Time `json:"opens,omitzero"`
}

// What callers branch on.
var (
	// ErrBusy: an update is under way.
	ErrBusy = errors.New("an update is under way")
	// ErrNothing: there is nothing to install for this device.
	ErrNothing = errors.New("there is no update for this device")
	// ErrRefused: there is an update, which this device may not install.
	ErrRefused = errors.New("the update is refused")
	// ErrNoTrial: nothing is on trial.
	ErrNoTrial = errors.New("no update is on trial")
	// ErrOff: no repository is configured.
	ErrOff = errors.New("no update repository is configured")
)
