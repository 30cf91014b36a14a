package agenttest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Ledger is a file of messages, one JSON object a line.
type Ledger struct {
	fsync bool

	mu   sync.Mutex
	file *os.File
}

// OpenLedger opens the file name for appending, and makes it. With fsync a message is on disk
// before it is acknowledged; without, it outlives the broker but not the machine. A line that
// a killed broker left unfinished is cut off: its message had no PUBACK.
func OpenLedger(name string, fsync bool) (*Ledger, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger: %w", err)
	}
	if err := cutUnfinished(file); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("mending the ledger: %w", err)
	}
	return &Ledger{fsync: fsync, file: file}, nil
}

// cutUnfinished truncates file behind its last newline. SIGKILL can end a write(2) between two
// pages of the file, so even one call may leave half a line.
func cutUnfinished(file *os.File) error {
	r := bufio.NewReader(file)
	for whole := int64(0); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) > 0 {
			return file.Truncate(whole)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		whole += int64(len(line))
	}
}

// Append writes m with one call. It is what BrokerConfig.Ledger wants.
func (l *Ledger) Append(m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return err
	}
	if l.fsync {
		return l.file.Sync()
	}
	return nil
}

// Close closes the file.
func (l *Ledger) Close() error { return l.file.Close() }

// ReadLedger returns the messages of a ledger in the order in which they came.
func ReadLedger(name string) ([]Message, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var messages []Message
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return messages, nil // what stands behind the last newline had no PUBACK
		}
		if err != nil {
			return nil, err
		}
		var m Message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("reading line %d of the ledger: %w", len(messages)+1, err)
		}
		messages = append(messages, m)
	}
}
