// Package trial keeps the durable side of a configuration on trial: what is tried until when, and
// what became of it. The trap is that two files change, the record and the configuration, and the
// power may go between: so the record decides, in one rename each, and what it decided is carried out
// again at the next start until it is done.
//
//	          Begin                       Keep
//	(nothing) ─────► trying ────────────────────────────► keeping ─► FILE.previous ─► FILE ─► kept
//	                   │ Return; or another start found it
//	                   └──────────────────────────────────────────────────────────────► returned
//
// The configuration file is untouched while trying: whatever dies, what starts next reads the old one.
package trial

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// MaxText is the longest configuration that is tried, in bytes.
const MaxText = 128 << 10

// Previous ends the name of the file that was replaced last.
const Previous = ".previous"

// Confirm says who keeps a configuration.
type Confirm string

// The ways to keep a configuration. With both it is kept only if the session answers.
const (
	ConfirmAuto    Confirm = "auto"    // the answering session is enough
	ConfirmCommand Confirm = "command" // the cloud has to say so, by a command over the new session
)

// Result is what became of a configuration.
type Result string

// The results.
const (
	Trying   Result = "trying"
	Kept     Result = "kept"
	Returned Result = "returned" // the old configuration runs
	Unknown  Result = "unknown"  // the record was damaged; what the file says runs
)

// Reason is the word for why; docs/remote-configuration.md has the list.
type Reason string

// The reasons.
const (
	Answered     Reason = "answered"      // kept
	Confirmed    Reason = "confirmed"     // kept
	NotOpened    Reason = "not-opened"    // a part of the new configuration did not open
	NoSession    Reason = "no-session"    // until the deadline: no CONNACK
	NoCommands   Reason = "no-commands"   // … the subscription to commands was not granted
	NoAnswer     Reason = "no-answer"     // … nothing that was published was acknowledged
	Unstable     Reason = "unstable"      // … connections were lost again
	NotConfirmed Reason = "not-confirmed" // … it answered, and the cloud did not confirm
	Cancelled    Reason = "cancelled"     // by command
	Reloaded     Reason = "reloaded"      // SIGHUP
	Stopped      Reason = "stopped"       // SIGTERM
	Restarted    Reason = "restarted"     // command restart
	Crash        Reason = "crash"         // the process died or was killed
	PowerCut     Reason = "power-cut"     // the machine started again
	FileChanged  Reason = "file-changed"  // somebody else changed the file meanwhile
	NotStored    Reason = "not-stored"    // the file could not be replaced
	Damaged      Reason = "damaged"       // the record could not be read
)

// Trial is a configuration on trial.
type Trial struct {
	// ID is that of the command.
	ID string `json:"id"`
	// SHA256 of the new file, in hex.
	SHA256   string    `json:"sha256"`
	Began    time.Time `json:"began"`
	Deadline time.Time `json:"deadline"`
	Confirm  Confirm   `json:"confirm"`
	// Confirmed says that the command has come.
	Confirmed bool `json:"confirmed,omitempty"`
}

// Line is how a line was when it was decided.
type Line struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// Outcome is what became of a trial.
type Outcome struct {
	ID      string `json:"id"`
	Outcome Result `json:"outcome"`
	Reason  Reason `json:"reason"`
	// Detail is for people.
	Detail string    `json:"detail,omitempty"`
	At     time.Time `json:"at"`
	// SHA256 of the configuration that was tried, in hex.
	SHA256 string `json:"sha256,omitempty"`
	Lines  []Line `json:"lines,omitempty"`
}

// Options is what a Keeper needs.
type Options struct {
	FS disk.FS
	// Record is the path of our own file, File that of the configuration.
	Record, File string
	// Machine names the run of the machine: another one after every power cut. Empty: not known.
	Machine string
	Now     func() time.Time
	Log     *slog.Logger
}

// Errors of Begin.
var (
	ErrBusy      = errors.New("another configuration is on trial")
	ErrUnchanged = errors.New("the configuration is the one that runs")
	ErrTooLarge  = fmt.Errorf("the configuration is longer than %d bytes", MaxText)
)

// Keeper keeps the record. Its methods may be called from any goroutine.
type Keeper struct {
	o Options

	mu    sync.Mutex
	saved saved
	news  *Outcome
}

// Digest is how configurations are named.
func Digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Begin makes a trial durable. Before that it makes sure that the file can be replaced later. topics are
// the templates under which entries lie when it is over, of the old configuration and the new one. The
// error says that nothing has begun.
func (k *Keeper) Begin(t Trial, text []byte, topics ...string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.saved.Trial != nil {
		return ErrBusy
	}
	if len(text) > MaxText {
		return ErrTooLarge
	}
	old, err := k.file()
	if err != nil {
		return err
	}
	t.SHA256 = Digest(text)
	if t.SHA256 == Digest(old) {
		return ErrUnchanged
	}
	if err := k.probe(len(text) + len(old)); err != nil {
		return err
	}
	next := saved{Trial: &t, Text: text, Replaces: Digest(old), Machine: k.o.Machine, Last: k.saved.Last, Topics: k.topics(topics)}
	if err := k.store(next); err != nil {
		// It may be there all the same, and must not be taken for a trial at the next start.
		if undo := k.store(k.saved); undo != nil {
			k.o.Log.Error("record of a trial that did not begin", slog.Any("err", undo))
		}
		return fmt.Errorf("storing the trial: %w", err)
	}
	k.saved = next
	return nil
}

// Topics returns the templates that Begin was given, of this trial and those before.
func (k *Keeper) Topics() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.saved.Topics)
}

// topics is what to remember: nothing while they never changed.
func (k *Keeper) topics(these []string) []string {
	var all []string
	for _, one := range slices.Concat(these, k.saved.Topics) {
		if !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	if len(all) < 2 {
		return nil
	}
	return all[:min(len(all), maxTopics)]
}

// Confirm notes that the cloud wants the configuration kept.
func (k *Keeper) Confirm(id string) error {
	return k.about(id, func(t *Trial) { t.Confirmed = true })
}

// About says whether id is on trial.
func (k *Keeper) About(id string) error { return k.about(id, func(*Trial) {}) }

func (k *Keeper) about(id string, change func(*Trial)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch t := k.saved.Trial; {
	case t == nil:
		return errors.New("no configuration is on trial")
	case t.ID != id:
		return fmt.Errorf("the configuration on trial is that of command %q", t.ID)
	default:
		change(t)
		return nil
	}
}

// Keep replaces the file by the configuration on trial, if that is still possible. What it returns is
// what became of it.
func (k *Keeper) Keep(reason Reason, lines []Line) Outcome {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.saved.Trial == nil {
		return Outcome{Outcome: Unknown, Reason: NotStored, At: k.o.Now().UTC()}
	}
	next := k.saved
	next.Keeping, next.Reason, next.Lines = true, reason, lines
	if err := k.store(next); err != nil {
		return k.end(Returned, NotStored, err.Error(), lines)
	}
	k.saved = next
	return k.finish()
}

// Return ends the trial: the old configuration is the one that counts. Without a trial it does nothing.
func (k *Keeper) Return(reason Reason, detail string, lines []Line) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.saved.Trial != nil {
		k.end(Returned, reason, detail, lines)
	}
}

// News returns an outcome that nobody was told yet, once.
func (k *Keeper) News() (o Outcome, is bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.news == nil {
		return Outcome{}, false
	}
	o, k.news = *k.news, nil
	return o, true
}

// Status returns the trial and the last outcome, where there are any.
func (k *Keeper) Status() (t *Trial, last *Outcome) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.saved.Trial != nil {
		copied := *k.saved.Trial
		t = &copied
	}
	if k.saved.Last != nil {
		copied := *k.saved.Last
		last = &copied
	}
	return t, last
}

// Running returns the digest of the configuration that should be running: the one on trial, or the
// file's; empty where that cannot be read.
func (k *Keeper) Running() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := k.saved.Trial; t != nil {
		return t.SHA256
	}
	text, err := k.file()
	if err != nil {
		return ""
	}
	return Digest(text)
}

// finish carries out what the record has decided: the file becomes the new one.
func (k *Keeper) finish() Outcome {
	s := k.saved
	if Digest(s.Text) != s.Trial.SHA256 {
		return k.end(Returned, Damaged, "the record of the trial is damaged", s.Lines)
	}
	err := k.replace(s)
	if err != nil && !errors.Is(err, errFileChanged) {
		// After an error nobody knows which of the two a power cut would leave: once more, and then
		// back, and what the file says counts.
		if err = k.replace(s); err != nil {
			err = errors.Join(err, k.restore(s))
		}
	}
	switch text, readErr := k.file(); {
	case err == nil, readErr == nil && Digest(text) == s.Trial.SHA256:
		return k.end(Kept, s.Reason, "", s.Lines)
	case errors.Is(err, errFileChanged):
		return k.end(Returned, FileChanged, err.Error(), s.Lines)
	default:
		return k.end(Returned, NotStored, err.Error(), s.Lines)
	}
}

var errFileChanged = errors.New("the configuration file was changed by somebody else meanwhile, and stays")

// replace puts the new text into the file, and the old one beside it.
func (k *Keeper) replace(s saved) error {
	old, err := k.file()
	if err != nil {
		return err
	}
	switch Digest(old) {
	case s.Trial.SHA256: // done before, perhaps without its last sync
		return k.o.FS.SyncDir(filepath.Dir(k.o.File))
	case s.Replaces:
	default:
		return errFileChanged
	}
	perm := k.perm()
	if err := atomicfile.Write(k.o.FS, k.o.File+Previous, old, perm); err != nil {
		return err
	}
	return atomicfile.Write(k.o.FS, k.o.File, s.Text, perm)
}

// restore puts the old text back where the new one is there and would not become durable.
func (k *Keeper) restore(s saved) error {
	text, err := k.file()
	if err != nil || Digest(text) != s.Trial.SHA256 {
		return err
	}
	old, err := disk.ReadFile(k.o.FS, k.o.File+Previous, maxFile)
	if err != nil || Digest(old) != s.Replaces {
		return err
	}
	return atomicfile.Write(k.o.FS, k.o.File, old, k.perm())
}

// maxFile bounds what is read of a configuration file, in bytes.
const maxFile = 4 << 20

func (k *Keeper) file() ([]byte, error) {
	text, err := disk.ReadFile(k.o.FS, k.o.File, maxFile)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return text, nil
}

// perm is the file's mode, since it may hold a password.
func (k *Keeper) perm() fs.FileMode {
	const careful = 0o600
	f, err := k.o.FS.OpenFile(k.o.File, os.O_RDONLY, 0)
	if err != nil {
		return careful
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Mode().Perm() == 0 {
		return careful
	}
	return info.Mode().Perm()
}

// probe makes sure that size bytes can be written beside the file.
func (k *Keeper) probe(size int) error {
	name := k.o.File + atomicfile.Suffix
	_ = k.o.FS.Remove(name)
	f, err := k.o.FS.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(make([]byte, size))
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
		_ = k.o.FS.Remove(name)
	}
	if err == nil {
		return nil
	}
	folder := filepath.Dir(k.o.File)
	repair := "make room in " + folder
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		repair = "let the agent write to " + folder + " (its owner and mode, ReadWritePaths= of its systemd unit, a read-only mount), or change the file on the device"
	}
	return hint.With(fmt.Errorf("the configuration file could not be replaced: %w", err), repair)
}
