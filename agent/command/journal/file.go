package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"syscall"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/record"
)

// The file is a log of records (internal/record), whose payload begins with a kind, the length of the
// id, and the id:
//
//	begun     1: a command that acts is about to be executed
//	answered  2: the reply follows
//	forgotten 3: answered, by a reply that is not kept
//
// It grows by appending, and is written anew when most of it is of no more use, or when it can no
// longer be trusted.
const (
	kindBegun     = 1
	kindAnswered  = 2
	kindForgotten = 3

	maxPayload = 2 + maxID + MaxReply
	// slack is what the file may hold beside twice what it held when it was written anew, in bytes.
	slack = 64 << 10
	// maxBad is the longest damaged file that is kept, in bytes.
	maxBad = 1 << 20
	// badSuffix ends the name of the copy of a damaged file; there is one.
	badSuffix = ".bad"
)

var seed = record.NewSeed(0x6a6f75726e616c) // "journal"

func appendCommand(dst []byte, c *command) []byte {
	start := len(dst)
	kind := byte(kindBegun)
	if c.state == Answered {
		if kind = kindAnswered; c.reply == nil {
			kind = kindForgotten
		}
	}
	dst = append(record.Begin(dst), kind, byte(len(c.id)))
	dst = append(append(dst, c.id...), c.reply...)
	seed.Seal(dst, start)
	return dst
}

// parseCommand decodes a record. A command that was begun and has no later record was interrupted.
func parseCommand(payload []byte) (*command, bool) {
	if len(payload) < 2 || len(payload) < 2+int(payload[1]) {
		return nil, false
	}
	c := &command{id: string(payload[2 : 2+payload[1]])}
	switch payload[0] {
	case kindBegun:
		c.state, c.acts = Interrupted, true
	case kindAnswered:
		c.state, c.reply = Answered, append([]byte{}, payload[2+payload[1]:]...)
	case kindForgotten:
		c.state = Answered
	default:
		return nil, false
	}
	return c, validID(c.id) && len(c.reply) <= MaxReply
}

// read takes over what the file holds. A damaged file is copied aside and written anew.
func (j *Journal) read() {
	f, err := j.fsys.OpenFile(j.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		f, err = j.fsys.OpenFile(j.path, os.O_RDONLY, 0)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		j.spoilt(1, err)
		return
	}
	j.file = f
	info, err := f.Stat()
	if err != nil {
		j.spoilt(1, err)
		return
	}
	j.size, j.settled = info.Size(), info.Size()
	r := record.NewReader(f, 0, j.size, seed, maxPayload)
	stretches := 0
	for {
		rec, err := r.Next()
		if rec.Damaged > 0 {
			stretches++
		}
		switch {
		case errors.Is(err, io.EOF):
			if stretches > 0 {
				j.spoilt(stretches, nil)
			}
			return
		case err != nil:
			j.spoilt(stretches+1, err)
			return
		}
		if c, ok := parseCommand(rec.Payload); ok {
			j.replay(c)
		} else {
			stretches++
		}
	}
}

// replay takes over one record.
func (j *Journal) replay(c *command) {
	old, ok := j.known[c.id]
	switch {
	case !ok:
		j.remember(c)
	case old.state == Answered:
		return // what was answered stays answered
	default:
		old.state, old.reply = c.state, c.reply
	}
	j.replies += len(c.reply)
	j.forgetReplies()
}

// spoilt sets a damaged file aside. What could be read of it is written anew at once, so that what
// is appended does not follow rubbish.
func (j *Journal) spoilt(stretches int, cause error) {
	j.damaged += stretches
	j.log.LogAttrs(context.Background(), slog.LevelWarn, "part of the journal of commands cannot be read",
		slog.String("file", j.path), slog.Int("stretches", stretches), slog.Any("err", cause))
	if data, err := disk.ReadFile(j.fsys, j.path, maxBad); err == nil {
		_ = atomicfile.Write(j.fsys, j.path+badSuffix, data, 0o600) // for whoever looks into it; nothing hangs on it
	}
	_ = j.rewrite() // Status tells
}

// store makes the change of one command durable, if it acts; what does not act may be executed
// again after a power cut, and costs no sync.
func (j *Journal) store(c *command) error {
	if j.file == nil || j.unstored || j.size > 2*j.settled+slack {
		return j.rewrite()
	}
	data := appendCommand(nil, c)
	_, err := j.file.WriteAt(data, j.size)
	if err == nil && c.acts {
		err = j.file.Sync()
	}
	if err != nil {
		// Nobody knows what of this file is on disk now: the next is written from memory.
		j.note(err)
		return j.rewrite()
	}
	j.size += int64(len(data))
	return nil
}

// rewrite replaces the file by what is in memory.
func (j *Journal) rewrite() error {
	_ = j.closeFile()
	var data []byte
	for _, c := range j.order {
		if c.acts || c.state == Answered {
			data = appendCommand(data, c)
		}
	}
	err := atomicfile.Write(j.fsys, j.path, data, 0o600)
	if err == nil {
		j.size, j.settled = int64(len(data)), int64(len(data))
		if j.file, err = j.fsys.OpenFile(j.path, os.O_RDWR, 0); err != nil {
			j.file, err = nil, nil // all is stored; the next change tries again
		}
	}
	j.unstored = err != nil
	j.note(err)
	return err
}

// note remembers the disk's trouble, or its end, and logs the change.
func (j *Journal) note(err error) {
	switch was := j.problem; {
	case err == nil && was != nil:
		j.log.LogAttrs(context.Background(), slog.LevelInfo, "journal of commands recovered")
	case err != nil && was == nil:
		j.log.LogAttrs(context.Background(), slog.LevelError, "journal of commands cannot be written",
			slog.Any("err", err))
	}
	if j.problem = err; err != nil {
		j.problem = fmt.Errorf("writing the journal of commands: %w", err)
	}
}

func (j *Journal) closeFile() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
