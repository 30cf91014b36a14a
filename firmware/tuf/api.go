package tuf

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"ferrule/internal/disk"
)

// The refusals. Every error of Refresh that is not the source's or the disk's wraps exactly one.
var (
	ErrNoRoot    = errors.New("no trusted root")
	ErrCorrupt   = errors.New("trusted copy is damaged")
	ErrFormat    = errors.New("not valid metadata")
	ErrSignature = errors.New("not enough valid signatures")
	ErrExpired   = errors.New("metadata has expired")
	ErrRollback  = errors.New("older than what is trusted")
	ErrMismatch  = errors.New("does not match what vouches for it")
	ErrTooLarge  = errors.New("larger than allowed")
)

// Options are what a Client needs.
type Options struct {
	FS   disk.FS
	Dir  string
	Root []byte
	Now  func() (now time.Time, trusted bool)
	Log  *slog.Logger
}

// Source is where metadata comes from.
type Source interface {
	Metadata(ctx context.Context, name string, limit int64) ([]byte, error)
}

// Client is the device's side of the repository.
type Client struct{}

// Open reads what is trusted.
func Open(o Options) (*Client, error) { return &Client{}, nil }

// Refresh is the whole client workflow.
func (c *Client) Refresh(ctx context.Context, src Source) (*Targets, error) { return nil, ErrNoRoot }

// Status tells versions and expiries.
func (c *Client) Status() Status { return Status{} }

// RoleStatus is the trusted file of one role.
type RoleStatus struct {
	Version int64
	Expires time.Time
}

// Status is the state of trust.
type Status struct {
	Root, Timestamp, Snapshot, Targets RoleStatus
	Refreshed                          time.Time
	ClockTrusted                       bool
}

// Targets is a verified targets role.
type Targets struct{}

// All lists the targets by path.
func (t *Targets) All() []Target { return nil }

// Expires is the earliest expiry.
func (t *Targets) Expires() time.Time { return time.Time{} }

// Target is one verified target.
type Target struct {
	path   string
	length int64
	sha256 [32]byte
	custom json.RawMessage
}

// Path is the target's path.
func (t Target) Path() string { return t.path }

// Length is in bytes.
func (t Target) Length() int64 { return t.length }

// SHA256 is of the target's file.
func (t Target) SHA256() [32]byte { return t.sha256 }

// Custom is the target's custom member as it was signed.
func (t Target) Custom() json.RawMessage { return t.custom }
