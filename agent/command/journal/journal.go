// Package journal remembers which commands were executed and what was answered, across power
// cuts, so that a command that comes twice acts once. The trap is between: a command that was begun
// and never finished may have acted, so it is neither executed again nor called done. What cannot
// be stored durably is refused before it acts.
package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"ferrule/internal/disk"
)

// State is what the journal knows of a command.
type State uint8

// The states of a command.
const (
	New         State = iota // never seen, or longer ago than Keep commands: Begin it
	Running                  // begun in this process and not finished: neither execute nor answer
	Answered                 // executed: send the reply again
	Interrupted              // begun before a restart and never finished: say so, do not execute
)

func (s State) String() string {
	return [...]string{"new", "running", "answered", "interrupted"}[s]
}

const (
	// Keep is how many commands are remembered.
	Keep = 1024
	// MaxReply is the longest reply that is kept, in bytes; of a longer one it is only known that it
	// was given.
	MaxReply = 16 << 10
	// maxReplies bounds all replies together, in bytes; the oldest go first, their ids stay.
	maxReplies = 2 << 20
	// maxID is the longest id, in characters.
	maxID = 64
)

var (
	// ErrID: the id is not of the form [A-Za-z0-9_-]{1,64}.
	ErrID = errors.New("command id is malformed")
	// ErrUnknown: the command was not begun.
	ErrUnknown = errors.New("command was not begun")
)

// Prior is what is known of a command. Reply is nil where it was longer than MaxReply or has been
// forgotten.
type Prior struct {
	State State
	Reply []byte
}

// command is what is remembered of one.
type command struct {
	id    string
	state State
	acts  bool
	reply []byte // nil: forgotten
}

// Journal is the store of commands. It is safe for concurrent use.
type Journal struct {
	fsys disk.FS
	path string
	log  *slog.Logger

	mu       sync.Mutex
	known    map[string]*command
	order    []*command // oldest first
	replies  int        // bytes of all replies
	file     disk.File  // nil: the next change writes all anew
	size     int64      // of the file
	settled  int64      // its size when it was written anew
	damaged  int
	problem  error
	unstored bool // something is in memory only
}

// Open reads the journal at path in whatever state it is. What cannot be read is set aside; nothing is
// written before the first command.
func Open(fsys disk.FS, path string, log *slog.Logger) (*Journal, error) {
	j := &Journal{fsys: fsys, path: path, log: log, known: map[string]*command{}}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.read()
	return j, nil
}

// Lookup says what is known of a command without beginning it.
func (j *Journal) Lookup(id string) Prior {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.prior(id)
}

func (j *Journal) prior(id string) Prior {
	if c, ok := j.known[id]; ok {
		return Prior{State: c.state, Reply: c.reply}
	}
	return Prior{}
}

// Begin notes that a command is about to be executed, if its State is New; any other is what it was
// before. For one that acts this is durable when Begin returns; after an error it must not be executed.
func (j *Journal) Begin(id string, acts bool) (Prior, error) {
	if !validID(id) {
		return Prior{}, fmt.Errorf("%w: %.80q", ErrID, id)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if p := j.prior(id); p.State != New {
		return p, nil
	}
	c := &command{id: id, state: Running, acts: acts}
	j.remember(c)
	if !acts {
		return Prior{}, nil
	}
	if err := j.store(c); err != nil {
		delete(j.known, id)
		j.order = slices.DeleteFunc(j.order, func(other *command) bool { return other == c })
		return Prior{}, fmt.Errorf("making the command durable: %w", err)
	}
	return Prior{}, nil
}

// Finish stores the reply of a command that was begun. For one that acts it is durable when Finish
// returns nil; after an error it is remembered until the process ends, and stored as soon as the disk
// takes it.
func (j *Journal) Finish(id string, reply []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	c, ok := j.known[id]
	if !ok || c.state == Answered {
		return fmt.Errorf("finishing command %.80q: %w", id, ErrUnknown)
	}
	c.state = Answered
	if len(reply) <= MaxReply {
		c.reply = append([]byte{}, reply...)
		j.replies += len(reply)
		j.forgetReplies()
	}
	if err := j.store(c); err != nil {
		return fmt.Errorf("storing the reply of command %s: %w", id, err)
	}
	return nil
}

// Close stores what the disk did not take before, and closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if j.unstored {
		err = j.rewrite()
	}
	return errors.Join(err, j.closeFile())
}

// Status is what the journal says of itself.
type Status struct {
	Commands int `json:"commands"`
	// Damaged counts stretches of the file that could not be read.
	Damaged int `json:"damaged"`
	// Problem is why the last change is in memory only, "" when all is well. Commands that act are refused
	// meanwhile.
	Problem string `json:"problem,omitempty"`
}

// Status returns the state of the journal.
func (j *Journal) Status() Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := Status{Commands: len(j.order), Damaged: j.damaged}
	if j.problem != nil {
		s.Problem = j.problem.Error()
	}
	return s
}

// remember adds a command and forgets the oldest beyond Keep, but none that is running.
func (j *Journal) remember(c *command) {
	j.known[c.id] = c
	j.order = append(j.order, c)
	for i := 0; len(j.order) > Keep && i < len(j.order); {
		old := j.order[i]
		if old.state == Running {
			i++
			continue
		}
		delete(j.known, old.id)
		j.replies -= len(old.reply)
		j.order = slices.Delete(j.order, i, i+1)
	}
}

// forgetReplies frees the oldest replies beyond maxReplies.
func (j *Journal) forgetReplies() {
	for i := 0; j.replies > maxReplies && i < len(j.order); i++ {
		j.replies -= len(j.order[i].reply)
		j.order[i].reply = nil
	}
}

func validID(id string) bool {
	for _, r := range []byte(id) {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
		default:
			return false
		}
	}
	return 0 < len(id) && len(id) <= maxID
}
