package firmware

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/internal/disk"
	"ferrule/internal/record"
)

// Bounds of the journal.
const (
	journalMax    = 64 << 10 // bytes of one of its two files
	entryMax      = 24 << 10 // bytes of one entry
	textMax       = 400      // bytes of any text in it that comes from elsewhere
	quarantineMax = 16
	reportsMax    = 4
	schema        = 1
)

// saved is what the engine knows, whole, in every entry of the journal: the last sound one is
// all there is to read. Later schemas may add members, never change the meaning of these, since
// after a rollback an older agent reads what a newer one wrote.
type saved struct {
	Schema     int                     `json:"schema"`
	N          uint64                  `json:"n"` // rises by one with every entry
	State      State                   `json:"state"`
	Update     *update                 `json:"update,omitempty"` // under way, or the last one
	Slots      map[slot.Slot]installed `json:"slots,omitempty"`
	Reports    []Report                `json:"reports,omitempty"`
	Quarantine []quarantined           `json:"quarantine,omitempty"`
	// Floor is what the engine last knew of it; FloorDue is what a commit still has to raise it to.
	Floor    uint64 `json:"floor,omitempty"`
	FloorDue uint64 `json:"floor_due,omitempty"`
}

// installed is what the engine has put into a slot and committed.
type installed struct {
	Version string `json:"version"`
	Release uint64 `json:"release"`
	Edition string `json:"edition"`
}

type quarantined struct {
	Quarantined
	Edition string `json:"edition"`
}

// update is one on its way.
type update struct {
	Manifest string    `json:"manifest"` // its id; "" where a slot runs on trial that the journal knows nothing of
	Edition  string    `json:"edition"`
	Version  string    `json:"version"`
	Release  uint64    `json:"release"`
	Security uint64    `json:"security_version"`
	Target   slot.Slot `json:"target"`
	From     string    `json:"from"`
	Request  Request   `json:"request"`
	Reason   string    `json:"reason,omitempty"`
	// Give says that this edition is not to be tried again.
	Give bool `json:"give,omitempty"`

	Steps    int `json:"steps"`    // of restarts and trials: what breaks loops
	Attempts int `json:"attempts"` // of fetching, in a row
	Rewrites int `json:"rewrites"` // because the slot did not keep what was written

	// OneShot is a boot loader that forgets a trial as soon as it has booted it, so the engine counts
	// what is left of its tries.
	OneShot bool   `json:"one_shot,omitempty"`
	Tries   int    `json:"tries,omitempty"`
	BootID  string `json:"boot_id,omitempty"` // of the boot that asked for the restart
	// Restarts led back into the old slot.
	Restarts int `json:"restarts,omitempty"`

	Health  Policy        `json:"health"`
	Boots   int           `json:"boots,omitempty"`         // of the trial
	Starts  int           `json:"starts,omitempty"`        // of the agent, since all was well but the network
	Within  time.Duration `json:"within,omitempty"`        // that it was unhealthy, the network aside
	Network time.Duration `json:"network_grace,omitempty"` // that only the network was out
	Last    string        `json:"last_problem,omitempty"`  // what was not healthy, for the reason of a rollback
}

// Policy is manifest.Health as the journal keeps it.
type Policy struct {
	Session bool          `json:"session"`
	Lines   bool          `json:"lines"`
	Within  time.Duration `json:"within"`
	Grace   time.Duration `json:"grace"`
}

func policy(h manifest.Health) Policy {
	return Policy{Session: h.Session, Lines: h.Lines, Within: h.Within, Grace: h.NetworkGrace}
}

// journal is two files that are written in turn. Each begins with its number, from which its
// records are seeded, and holds entries up to journalMax; then, or when writing to it went wrong,
// the other one is made anew. The file with the higher number that holds a sound entry counts.
type journal struct {
	fs     disk.FS
	dir    string
	number uint64    // of the newest file
	which  int       // of the two it is
	file   disk.File // nil: the next entry goes into the other file
	size   int64
}

// journalMagic begins a file; eight bytes of its number follow.
const journalMagic = "FRLJRNL1"

const journalHead = int64(len(journalMagic)) + 8

func (j *journal) name(which int) string {
	return filepath.Join(j.dir, fmt.Sprintf("journal.%d", which))
}

// errUnread: a file of the journal could not be read, and may be sound.
var errUnread = errors.New("reading the journal of updates")

// openJournal reads what is there. problem is what could not be used; the journal can be written
// nevertheless, but where it Is errUnread that would lose what is there. What was read is never
// appended to, since a torn tail would hide what follows.
func openJournal(fsys disk.FS, dir string) (j *journal, s saved, problem error) {
	j = &journal{fs: fsys, dir: dir, which: 1}
	var last []byte
	var problems []error
	for which := range 2 {
		data, err := disk.ReadFile(fsys, j.name(which), journalMax)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			if !errors.Is(err, disk.ErrTooLarge) {
				err = fmt.Errorf("%w: %w", errUnread, err)
			}
			problems = append(problems, err)
			continue
		}
		// Damage alone is no problem to tell: a power cut leaves it.
		if number, entry := replay(data); entry != nil && number > j.number {
			j.number, j.which, last = number, which, entry
		}
	}
	s, err := decode(last)
	return j, s, errors.Join(append(problems, err)...)
}

// replay returns the number of a journal's file and its last entry, nil where it has none that is
// sound. It stops at the first damage: what was written after it would be younger than what is
// missing.
func replay(data []byte) (number uint64, last []byte) {
	if int64(len(data)) < journalHead || string(data[:len(journalMagic)]) != journalMagic {
		return 0, nil
	}
	number = binary.LittleEndian.Uint64(data[len(journalMagic):])
	if number == 0 || number > 1<<62 { // the next one must be greater
		return 0, nil
	}
	r := record.NewReader(bytes.NewReader(data), journalHead, int64(len(data)), record.NewSeed(number), entryMax)
	for {
		entry, err := r.Next()
		if err != nil || entry.Damaged > 0 {
			return number, last
		}
		last = entry.Payload
	}
}

// errNewer: the journal is one that this agent cannot read.
var errNewer = errors.New("the journal of updates was written by a newer agent")

// decode reads an entry. One of a newer schema is read for what both know; the error then says so
// only where that is not enough.
func decode(entry []byte) (saved, error) {
	blank := saved{Schema: schema, State: Idle}
	if entry == nil {
		return blank, nil
	}
	var version struct {
		Schema int `json:"schema"`
	}
	err := json.Unmarshal(entry, &version)
	s := blank
	if err == nil {
		err = json.Unmarshal(entry, &s)
	}
	if err == nil {
		err = s.check()
	}
	if err != nil && version.Schema > schema {
		return blank, fmt.Errorf("%w (schema %d): %v", errNewer, version.Schema, err)
	}
	if err != nil {
		return blank, fmt.Errorf("the journal of updates cannot be used: %w", err)
	}
	s.Schema = schema
	return s, nil
}

// check refuses what the engine has not written.
func (s *saved) check() error {
	known := []State{Idle, Fetching, Verifying, Armed, Rebooting, Trial, Committed, RolledBack, Failed, Reporting}
	switch u := s.Update; {
	case !slices.Contains(known, s.State):
		return fmt.Errorf("the state %.20q is not known", s.State)
	case len(s.Reports) > reportsMax || len(s.Quarantine) > quarantineMax || len(s.Slots) > 2:
		return errors.New("it holds more than it may")
	case u == nil && s.State != Idle && s.State != Reporting:
		return fmt.Errorf("the state is %s, of no update", s.State)
	case u != nil && u.Target != slot.A && u.Target != slot.B:
		return fmt.Errorf("the slot %.20q is not known", u.Target)
	case u != nil && (u.Within < 0 || u.Network < 0 || u.Health.Within < 0 || u.Health.Grace < 0 || u.Tries < 0 || u.Steps < 0 || u.Attempts < 0):
		return errors.New("a number is negative")
	}
	return nil
}

// append makes s durable. After an error nothing more goes into the same file: a sync that failed
// once vouches for nothing.
func (j *journal) append(s *saved) error {
	s.Schema = schema
	s.N++
	payload, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing the journal of updates: %w", err)
	}
	if len(payload) > entryMax {
		return fmt.Errorf("writing the journal of updates: an entry of %d bytes is too long", len(payload))
	}
	if j.file != nil && j.size+record.HeaderSize+int64(len(payload)) > journalMax {
		j.close()
	}
	if err := j.write(payload); err != nil {
		j.close()
		return fmt.Errorf("writing the journal of updates: %w", err)
	}
	return nil
}

func (j *journal) write(payload []byte) error {
	if j.file == nil {
		return j.begin(payload)
	}
	entry := record.NewSeed(j.number).Append(nil, payload)
	if _, err := j.file.WriteAt(entry, j.size); err != nil {
		return err
	}
	j.size += int64(len(entry))
	return j.file.Sync()
}

// begin makes the other file anew with one entry. The newest stays as it is until that is durable.
func (j *journal) begin(payload []byte) error {
	number, which := j.number+1, 1-j.which
	data := binary.LittleEndian.AppendUint64([]byte(journalMagic), number)
	data = record.NewSeed(number).Append(data, payload)
	file, err := j.fs.OpenFile(j.name(which), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, 0)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = j.fs.SyncDir(j.dir)
	}
	if err != nil {
		file.Close()
		return err
	}
	j.file, j.number, j.which, j.size = file, number, which, int64(len(data))
	return nil
}

func (j *journal) close() {
	if j.file != nil {
		j.file.Close()
	}
	j.file = nil
}
