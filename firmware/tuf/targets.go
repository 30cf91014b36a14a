package tuf

import (
	"encoding/json"
	"time"
)

// Targets is what a repository offers, verified. It is made by Refresh only.
type Targets struct {
	list    []Target
	expires time.Time
}

// All lists the targets by path. The caller must not change the list.
func (t *Targets) All() []Target { return t.list }

// Expires is when the first of the four roles expires; after it, refresh before believing.
func (t *Targets) Expires() time.Time { return t.expires }

// Target describes one file of the repository, as the targets role has signed it.
type Target struct {
	path   string
	length int64
	sha256 [32]byte
	custom json.RawMessage
}

// Path is the name of the target: any string that was signed, also one that is no clean path.
func (t Target) Path() string { return t.path }

// Length is the size of the file in bytes.
func (t Target) Length() int64 { return t.length }

// SHA256 is the hash of the file.
func (t Target) SHA256() [32]byte { return t.sha256 }

// Custom is the object that the publisher added, or nil. It comes in one form, names sorted and
// no space between, because signatures cover neither space nor order: its bytes, and a hash of
// them, change only where its signer changed something.
func (t Target) Custom() json.RawMessage { return t.custom }
