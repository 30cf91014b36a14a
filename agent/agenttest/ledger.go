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
// before it is acknowledged; without, it outlives the broker but not the machine.
func OpenLedger(name string, fsync bool) (*Ledger, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger: %w", err)
	}
	return &Ledger{fsync: fsync, file: file}, nil
}

// Append writes m with one call, so that whoever kills this process leaves whole lines. It is
// what BrokerConfig.Ledger wants.
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
