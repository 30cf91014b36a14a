package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/command"
	"ferrule/agent/config"
	"ferrule/agent/config/trial"
	"ferrule/agent/session"
	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// A configuration on trial runs in the place of the old one, in the same process, and owns nothing
// that the old one needs: key, certificate, confirmed roots and the outbox's bounds stay as they were.
// So returning is nothing but starting the old parts again.

// desk is what Run keeps from one configuration to the next.
type desk struct {
	keeper *trial.Keeper // nil: the file is not known
	file   string        // of the configuration, symbolic links resolved
	state  string        // state_dir that the keeper's record lies in

	started string // differs from one start of the program to the next; made when it is needed
	updated bool   // updates were opened since that
	manager *notifier
}

// attempt is a configuration to be tried.
type attempt struct {
	config  *config.Config
	ends    time.Time // with its monotonic reading: a clock that is set moves no deadline
	confirm trial.Confirm
}

// running is what an agent knows of the trial that it is.
type running struct {
	attempt
	once      sync.Once
	cancelled chan struct{}
}

func (r *running) cancel() { r.once.Do(func() { close(r.cancelled) }) }

// errFileReplaced says that a decision of before a cut was carried out: there is a new file to read.
var errFileReplaced = errors.New("the configuration file was replaced")

// openTrial reads what is known of the last trial, once, under the lock of the state directory.
func (a *agent) openTrial(fsys disk.FS) error {
	if a.options.File == "" {
		return nil
	}
	if a.desk.keeper == nil || a.desk.state != a.config.StateDir {
		if err := a.openKeeper(fsys); err != nil {
			return err
		}
	}
	if a.desk.keeper != nil {
		a.digest = a.desk.keeper.Running()
	}
	return nil
}

func (a *agent) openKeeper(fsys disk.FS) error {
	file, err := filepath.EvalSymlinks(a.options.File)
	if err != nil {
		return nil //nolint:nilerr // it was read a moment ago; without it nothing is tried
	}
	if file, err = filepath.Abs(file); err != nil {
		return nil //nolint:nilerr // as above
	}
	machine, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	keeper, replaced := trial.Open(trial.Options{
		FS: fsys, Record: filepath.Join(a.config.StateDir, "trial.json"), File: file,
		Machine: string(bytes.TrimSpace(machine)), Now: time.Now, Log: a.log,
	})
	a.desk.keeper, a.desk.file, a.desk.state = keeper, file, a.config.StateDir
	if replaced {
		return errFileReplaced
	}
	return nil
}

// tellOutcome writes what became of a trial into log and audit log, once.
func (a *agent) tellOutcome(ctx context.Context) {
	if a.desk.keeper == nil || a.onTrial != nil {
		return
	}
	o, is := a.desk.keeper.News()
	if !is {
		return
	}
	attrs := []slog.Attr{slog.String("id", o.ID), slog.String("reason", string(o.Reason)), slog.String("detail", o.Detail), slog.String("sha256", o.SHA256)}
	a.log.LogAttrs(ctx, slog.LevelInfo, "configuration "+string(o.Outcome), attrs...)
	a.note(ctx, audit.Event{Name: "config." + string(o.Outcome), Attrs: attrs, Essential: true})
}

// provisional is next as it is tried: what the old one needs when it returns stays the old one's.
func provisional(old, next *config.Config) *config.Config {
	c := *next
	c.Outbox, c.ShutdownGrace = old.Outbox, old.ShutdownGrace
	c.Lines = slices.Clone(next.Lines)
	for i := range c.Lines {
		c.Lines[i].MaxAge = 0 // nothing is let go for a word that may not stand
	}
	return &c
}

// try runs a configuration on trial. It returns the one to run next, or nil and what Run returns.
func try(ctx context.Context, old *config.Config, t attempt, o Options, d *desk) (*config.Config, error) {
	reason, err := tryOut(ctx, provisional(old, t.config), &running{attempt: t, cancelled: make(chan struct{})}, o, d)
	switch reason {
	case trial.Stopped, trial.Restarted:
		return nil, err
	case trial.Answered, trial.Confirmed:
		if c, err := o.Load(); err == nil {
			return c, nil
		}
		return t.config, nil
	case trial.Reloaded, trial.FileChanged:
		if c, err := o.Load(); err == nil {
			return c, nil
		}
	}
	return old, nil
}

// tryOut runs the parts until it is decided, and stores what was decided.
func tryOut(ctx context.Context, c *config.Config, r *running, o Options, d *desk) (trial.Reason, error) {
	opening, cancel := context.WithDeadline(ctx, r.ends)
	defer cancel()
	a, err := open(opening, c, o, d, r)
	if err != nil && ctx.Err() != nil {
		d.keeper.Return(trial.Stopped, "", nil)
		return trial.Stopped, nil
	}
	if err != nil {
		detail := err.Error()
		if h := hint.Of(err); h != "" {
			detail += " (" + h + ")"
		}
		d.keeper.Return(trial.NotOpened, detail, nil)
		return trial.NotOpened, nil
	}
	defer a.close()
	parts := a.start(ctx)
	defer parts.stop()
	reason, detail, err := a.await(ctx, r)
	if reason == trial.Answered || reason == trial.Confirmed {
		return d.keeper.Keep(reason, a.lineStates()).Reason, nil
	}
	d.keeper.Return(reason, detail, a.lineStates())
	return reason, err
}

// await waits until it is decided whether the configuration is kept: Answered or Confirmed, then.
func (a *agent) await(ctx context.Context, r *running) (trial.Reason, string, error) {
	look := time.NewTicker(lookAtTrial)
	defer look.Stop()
	deadline := time.NewTimer(time.Until(r.ends))
	defer deadline.Stop()
	w := witness{commands: a.config.Session.Topics.Command != "", status: a.config.Session.Topics.Status != ""}
	for {
		select {
		case <-ctx.Done():
			return trial.Stopped, "the agent was told to stop", nil
		case <-a.restart:
			return trial.Restarted, "a restart was asked for", ErrRestart
		case <-a.options.Reload:
			return trial.Reloaded, "the agent was told to reload its file (SIGHUP)", nil
		case <-r.cancelled:
			return trial.Cancelled, "", nil
		case <-deadline.C:
			reason, detail := w.verdict(a.session.Status())
			return reason, detail, nil
		case now := <-look.C:
			answered := w.look(a.session.Status(), now, a.session.Announce)
			if answered && r.confirm != trial.ConfirmCommand {
				return trial.Answered, "", nil
			}
			if t, _ := a.desk.keeper.Status(); answered && t != nil && t.Confirmed {
				return trial.Confirmed, "", nil
			}
		}
	}
}

const (
	lookAtTrial = 100 * time.Millisecond
	// settle is how long a connection has to have stood: a broker that does not like a topic hangs up
	// only when something is published on it.
	settle = 2 * time.Second
)

// witness watches whether a session stands and answers: a connection got its CONNACK and, where
// commands are configured, its SUBACK; what was published after that was acknowledged on the same
// connection; and this connection stands for the time settle.
type witness struct {
	commands, status bool // whether these topics are configured

	connection uint64 // the one that is watched; 0: none
	since      time.Time
	acked      uint64
	answered   bool // once, whatever became of it
	lost       int
}

// look says whether the session stands and answers now. announce has the status published.
func (w *witness) look(st session.Status, now time.Time, announce func()) bool {
	if up := st.Stage == cause.StageUp && (st.Subscribed || !w.commands); !up {
		if w.connection != 0 {
			w.lost++
		}
		w.connection = 0
		return false
	}
	if w.connection != st.Connects {
		w.connection, w.since, w.acked = st.Connects, now, st.Acked
		announce()
		return false
	}
	// Without a status topic nothing may be there to publish; then the SUBACK was the answer.
	if st.Acked == w.acked && (w.status || !w.commands) || now.Sub(w.since) < settle {
		return false
	}
	w.answered = true
	return true
}

// verdict says what was missing when the time was over.
func (w *witness) verdict(st session.Status) (trial.Reason, string) {
	detail := ""
	if f := st.LastFailure; f != nil {
		detail = fmt.Sprintf("%s: %s", f.Stage, f.Text)
		if f.Hint != "" {
			detail += " (" + f.Hint + ")"
		}
	}
	switch {
	case st.Connects == 0:
		return trial.NoSession, detail
	case w.connection != 0 && w.answered:
		return trial.NotConfirmed, "the session answered, and no command confirmed the configuration"
	case w.connection != 0:
		return trial.NoAnswer, detail
	case !w.answered && w.lost == 0 && (st.Stage == cause.StageUp || st.Stage == cause.StageSuback):
		return trial.NoCommands, detail
	default:
		return trial.Unstable, detail
	}
}

// lineStates is how the lines are, for the outcome.
func (a *agent) lineStates() []trial.Line {
	lines := make([]trial.Line, 0, len(a.lines))
	for _, line := range a.lines {
		lines = append(lines, trial.Line{Name: line.Name(), State: string(line.Status().State)})
	}
	return lines
}

// ConfigStatus is what the status says of the configuration.
type ConfigStatus struct {
	// SHA256 of the configuration that runs, in hex, and the path of the file.
	SHA256 string `json:"sha256,omitempty"`
	Path   string `json:"path,omitempty"`
	// Trial is what is tried, Last what became of the last trial.
	Trial *trial.Trial   `json:"trial,omitempty"`
	Last  *trial.Outcome `json:"last,omitempty"`
}

func (a *agent) configStatus() ConfigStatus {
	s := ConfigStatus{SHA256: a.digest, Path: a.options.File}
	if a.desk.keeper != nil {
		s.Trial, s.Last = a.desk.keeper.Status()
	}
	return s
}

// configNews is what the status message says of the last configuration from afar: its outcome, or
// that it is on trial.
type configNews struct {
	trial.Outcome
	Deadline *time.Time    `json:"deadline,omitempty"`
	Confirm  trial.Confirm `json:"confirm,omitempty"`
}

func (a *agent) configNews() *configNews {
	if a.desk.keeper == nil {
		return nil
	}
	t, last := a.desk.keeper.Status()
	switch {
	case t != nil && a.onTrial != nil:
		return &configNews{Outcome: trial.Outcome{ID: t.ID, Outcome: trial.Trying, At: t.Began, SHA256: t.SHA256}, Deadline: &t.Deadline, Confirm: t.Confirm}
	case last != nil:
		return &configNews{Outcome: *last}
	}
	return nil
}

// held is a file system on which nothing can be changed. On trial, trust reads the roots that were
// confirmed and cannot drop them, whatever roots the new configuration names.
type held struct{ disk.FS }

func (h held) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND) != 0 {
		return nil, h.refuse("open", name)
	}
	return h.FS.OpenFile(name, flag, perm)
}

func (h held) Rename(from, _ string) error               { return h.refuse("rename", from) }
func (h held) Remove(name string) error                  { return h.refuse("remove", name) }
func (h held) MkdirAll(name string, _ fs.FileMode) error { return h.refuse("mkdir", name) }

func (held) refuse(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: errHeld}
}

// errHeld: see held.
var errHeld = fmt.Errorf("a configuration is on trial: %w", syscall.EROFS)

// mountPoint refuses a file that is mounted by itself, as containers do: it cannot be replaced.
func mountPoint(file string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil //nolint:nilerr // then nobody knows, and Keep would say so
	}
	escape := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`)
	for mount := range strings.Lines(string(mounts)) { // proc(5): the fifth field is the mount point
		if fields := strings.Fields(mount); len(fields) > 4 && fields[4] == escape.Replace(file) {
			return hint.With(command.Refuse("not-stored", "%s is mounted by itself, so it cannot be replaced", file), "mount its folder instead")
		}
	}
	return nil
}
