// Package tuf believes a repository of static files as The Update Framework says (specification
// 1.0, section 5): a pinned root, roles with thresholds, and four files that vouch for each other.
// The trap: a file that is well signed may still be old, or not belong to its neighbours, so the
// order of the checks is the protection; and what was believed once is kept, because an older
// one is refused for ever.
package tuf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Bounds of what is read from a repository, in bytes; whoever publishes keeps below them.
const (
	RootLimit      = 256 << 10
	TimestampLimit = 16 << 10
	SnapshotLimit  = 256 << 10
	TargetsLimit   = 8 << 20
	// maxRotations bounds the roots of one refresh; the next refresh goes on from there.
	maxRotations = 64
)

// The refusals of Open: without a root nothing can be believed.
var (
	ErrNoRoot  = errors.New("no trusted root")
	ErrCorrupt = errors.New("trusted root is damaged")
)

// The refusals of Refresh. Each error that is not the source's, the context's or the disk's
// wraps exactly one of them.
var (
	ErrFormat      = errors.New("not valid metadata")
	ErrUnsupported = errors.New("asks for what this client does not do")
	ErrSignature   = errors.New("not signed as required")
	ErrRollback    = errors.New("older than what is trusted")
	ErrMismatch    = errors.New("not what was vouched for")
	ErrExpired     = errors.New("expired")
	ErrTooLarge    = errors.New("larger than allowed")
)

// Options are what a Client needs.
type Options struct {
	FS disk.FS
	// Dir holds the trusted copies; see store.go for what lies there.
	Dir string
	// Root is the pinned root.json, used where Dir holds no sound one.
	Root []byte
	// Now is the time that expiry is judged by. While the clock is not trusted it is a time that
	// has certainly passed: what has expired by then has expired; what has not may have.
	Now func() (now time.Time, trusted bool)
	// Log gets what is newly trusted, and what was found damaged. It may be nil.
	Log *slog.Logger
}

// Source is where metadata comes from.
type Source interface {
	// Metadata returns a file such as "timestamp.json", "3.root.json" or "12.snapshot.json". It
	// reads no more than limit+1 bytes, so that the caller sees what is too large. A file that is
	// not there is an error that Is fs.ErrNotExist, and nothing else may be: after the last root
	// of a repository comes exactly that.
	Metadata(ctx context.Context, name string, limit int64) ([]byte, error)
}

// RoleStatus is the trusted file of one role; zero where there is none.
type RoleStatus struct {
	Version int64
	Expires time.Time
}

// Status is what is believed at the moment. The alarm for a repository that is kept from us is
// Timestamp.Expires: a healthy one moves it on long before.
type Status struct {
	Root, Timestamp, Snapshot, Targets RoleStatus
	// Refreshed is when Refresh last succeeded in this process.
	Refreshed time.Time
	// ClockTrusted says whether the last Refresh could judge expiry, or only a part of it.
	ClockTrusted bool
	// Damaged are the files of Dir that were not usable; the next Refresh replaces them.
	Damaged []string
}

// Client believes one repository. Its methods may be called from any goroutine.
type Client struct {
	o    Options
	turn chan struct{} // holds one value while nobody refreshes

	// What is trusted: the holder of turn reads and writes it.
	root, timestamp, snapshot *document
	targets                   RoleStatus
	tag                       string      // of the keys; see store.go
	strays                    []*document // trusted, but stored under another tag
	unsynced                  bool        // a stray's removal is not durable yet
	floor                     floors
	damaged                   []string

	mu     sync.Mutex
	status Status
}

// Open reads the trusted copies. It fails with ErrNoRoot where neither Dir nor Root has a root,
// with ErrCorrupt where that of Dir is damaged and Root is empty, and with a refusal of Refresh
// where Root is needed and is not a root. Damage beyond that costs a download.
func Open(o Options) (*Client, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{o: o, turn: make(chan struct{}, 1)}
	if err := disk.MakeFolder(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("making the folder of trusted metadata: %w", err)
	}
	// What a killed process renamed is made durable before it is believed.
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return nil, fmt.Errorf("syncing the folder of trusted metadata: %w", err)
	}
	if err := c.loadRoot(); err != nil {
		return nil, err
	}
	if err := c.loadRoles(); err != nil {
		return nil, err
	}
	c.show(nil)
	c.turn <- struct{}{}
	return c, nil
}

// Status tells what is believed.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Damaged = append([]string(nil), s.Damaged...)
	return s
}

// show lets Status see what is trusted now, and what edit adds.
func (c *Client) show(edit func(s *Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Root = c.root.status()
	c.status.Timestamp = c.timestamp.status()
	c.status.Snapshot = c.snapshot.status()
	c.status.Targets = c.targets
	c.status.Damaged = c.damaged
	if edit != nil {
		edit(&c.status)
	}
}

// refuse says which file is refused, for which of the reasons above, and what to do.
func refuse(kind error, what, format string, args ...any) error {
	return hint.With(fmt.Errorf("refusing the %s: %w: %s", what, kind, fmt.Sprintf(format, args...)), repair(kind))
}

func repair(kind error) string {
	switch kind {
	case ErrExpired:
		return "check the device's clock; if it is right, publish the repository again: its metadata must be renewed before it expires"
	case ErrSignature:
		return "the repository is not the one that the root was pinned for, or was not signed with its present keys; to believe another, pin its root and empty the folder of trusted metadata"
	case ErrRollback:
		return "a server or proxy serves an old copy of the repository; a repository restored from a backup must be published with higher versions"
	case ErrMismatch:
		return "upload the repository whole, timestamp.json last, and let no cache keep timestamp.json"
	}
	return "look at the repository with: ferrule-release verify"
}
