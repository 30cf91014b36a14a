package tuf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The trusted copies in Dir are the files as they came:
//
//	5.root.json
//	17.timestamp-TAG.json  12.snapshot-TAG.json  12.targets-TAG.json
//
// The name carries the version, so that a file whose content is damaged still says what nothing
// may fall below: content is fetched again, from a repository that is not older. TAG is a hash of
// the keyids of timestamp and snapshot, and tells damage from the recovery of TUF 5.3.11: a copy
// with the present tag that does not verify is damaged, and its version holds; one with another
// tag was believed under earlier keys, and where the present ones did not sign it, a thief may
// have pushed its version to the sky, so it is forgotten. Nothing is deleted for that to happen:
// it comes about in the one rename that makes the new root trusted, and a power cut cannot part
// the two.
//
// So a damaged file may cost a download, and a lost one (or all of Dir) costs the memory of its
// role; the TPM's counter still holds then.

const permissions = 0o644 // nothing here is secret

// floors are the versions that names in Dir bear.
type floors struct{ root, timestamp, snapshot, targets int64 }

// of returns the floor of a role.
func (f *floors) of(role string) *int64 {
	switch role {
	case roleRoot:
		return &f.root
	case roleTimestamp:
		return &f.timestamp
	case roleSnapshot:
		return &f.snapshot
	}
	return &f.targets
}

func limit(role string) int64 {
	switch role {
	case roleRoot:
		return RootLimit
	case roleTimestamp:
		return TimestampLimit
	case roleSnapshot:
		return SnapshotLimit
	}
	return TargetsLimit
}

// copyName is a parsed name of Dir.
type copyName struct {
	name, role, tag string
	version         int64
}

func parseName(name string) (n copyName, ok bool) {
	digits, rest, _ := strings.Cut(name, ".")
	rest, ok = strings.CutSuffix(rest, ".json")
	n.name = name
	n.version, _ = strconv.ParseInt(digits, 10, 64)
	n.role, n.tag, _ = strings.Cut(rest, "-")
	known := n.role == roleRoot || n.role == roleTimestamp || n.role == roleSnapshot || n.role == roleTargets
	return n, ok && known && n.version > 0 && (n.role == roleRoot) == (n.tag == "") && strconv.FormatInt(n.version, 10) == digits
}

func (c *Client) path(role string, version int64) string {
	suffix := ""
	if role != roleRoot {
		suffix = "-" + c.tag
	}
	return filepath.Join(c.o.Dir, strconv.FormatInt(version, 10)+"."+role+suffix+".json")
}

// keysTag names the keys that timestamp and snapshot are believed by.
func keysTag(root *document) string {
	var ids []byte
	for _, role := range [...]string{roleTimestamp, roleSnapshot} {
		last := ""
		for _, id := range root.authority(role).keyids { // sorted
			if id != last {
				ids = append(append(ids, id...), '\n')
			}
			last = id
		}
		ids = append(ids, '\n')
	}
	sum := sha256.Sum256(ids)
	return hex.EncodeToString(sum[:8])
}

// copies lists what Dir holds of a role, the highest version first.
func (c *Client) copies(role string) ([]copyName, error) {
	entries, err := c.o.FS.ReadDir(c.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("listing the trusted metadata: %w", err)
	}
	var found []copyName
	for _, e := range entries {
		n, ok := parseName(e.Name())
		if !ok || n.role != role {
			continue
		}
		found = append(found, n)
		for i := len(found) - 1; i > 0 && found[i-1].version < n.version; i-- {
			found[i-1], found[i] = found[i], found[i-1]
		}
	}
	return found, nil
}

// loadRoot makes the highest sound root of Dir the trusted one, or else the pinned one.
func (c *Client) loadRoot() error {
	found, err := c.copies(roleRoot)
	if err != nil {
		return err
	}
	for _, n := range found {
		c.floor.root = max(c.floor.root, n.version)
		d, err := c.read(n, nil)
		if err == nil {
			c.root, c.tag = d, keysTag(d)
			return nil
		}
		c.damage(n, err)
	}
	switch {
	case len(c.o.Root) > 0:
	case len(found) > 0:
		return hint.With(fmt.Errorf("opening %s: %w", filepath.Join(c.o.Dir, found[0].name), ErrCorrupt),
			"pin the repository's root.json in the configuration, or copy it to that name")
	default:
		return hint.With(fmt.Errorf("opening %s: %w", c.o.Dir, ErrNoRoot), "pin the repository's root.json in the configuration")
	}
	d, err := parse(roleRoot, c.o.Root)
	if err == nil {
		err = believe(d, d)
	}
	if err != nil {
		return fmt.Errorf("reading the pinned root: %w", err)
	}
	c.root, c.tag = d, keysTag(d)
	return nil
}

// loadRoles reads what is trusted under the root's keys. Expiry does not matter here: what has
// expired still says what is older.
func (c *Client) loadRoles() error {
	c.timestamp, c.snapshot, c.targets, c.strays = nil, nil, RoleStatus{}, nil
	c.floor = floors{root: c.floor.root}
	timestamp, err := c.load(roleTimestamp)
	if err != nil {
		return err
	}
	snapshot, err := c.load(roleSnapshot)
	if err != nil {
		return err
	}
	targets, err := c.load(roleTargets)
	if err != nil {
		return err
	}
	// TUF 5.3.11: where the keys of timestamp or snapshot were rotated, the present ones have not
	// signed its stray. Then both are forgotten; and the targets, whose version a thief could push
	// through the snapshot.
	forget := timestamp.document == nil || snapshot.document == nil
	c.timestamp, c.snapshot = c.hold(timestamp, forget), c.hold(snapshot, forget)
	c.targets = c.hold(targets, forget).status()
	return nil
}

// loaded is the highest sound copy of a role.
type loaded struct {
	*document
	stray bool // stored under another tag than the present one
}

// load finds the highest sound copy of a role. A damaged one raises the floor.
func (c *Client) load(role string) (l loaded, err error) {
	found, err := c.copies(role)
	if err != nil {
		return l, err
	}
	floor := c.floor.of(role)
	for _, n := range found {
		l.document, err = c.read(n, c.root)
		l.stray = n.tag != c.tag
		switch {
		case err != nil && l.stray:
			continue
		case !l.stray:
			*floor = max(*floor, n.version)
		}
		if err == nil {
			return l, nil
		}
		c.damage(n, err)
	}
	return loaded{}, nil
}

// hold takes what was loaded for trusted, unless it is a stray that is to be forgotten.
func (c *Client) hold(l loaded, forget bool) *document {
	switch {
	case l.document == nil || l.stray && forget:
		return nil
	case l.stray:
		c.strays = append(c.strays, l.document)
		floor := c.floor.of(l.role)
		*floor = max(*floor, l.version)
	}
	return l.document
}

// carry stores under the present tag what is still trusted from under another.
func (c *Client) carry() error {
	for len(c.strays) > 0 {
		if err := c.persist(c.strays[0]); err != nil {
			return err
		}
		c.strays = c.strays[1:]
	}
	return nil
}

// read reads and checks one copy; a root that is nil means that the copy is one itself.
func (c *Client) read(n copyName, root *document) (*document, error) {
	raw, err := disk.ReadFile(c.o.FS, filepath.Join(c.o.Dir, n.name), limit(n.role))
	if err != nil {
		return nil, err
	}
	d, err := parse(n.role, raw)
	if err != nil {
		return nil, err
	}
	if root == nil {
		root = d
	}
	if err := believe(root, d); err != nil {
		return nil, err
	}
	if d.version != n.version {
		return nil, errors.New("its name bears another version")
	}
	d.signed = nil
	return d, nil
}

func (c *Client) damage(n copyName, err error) {
	known := false
	for _, name := range c.damaged {
		known = known || name == n.name
	}
	if !known {
		c.damaged = append(c.damaged[:len(c.damaged):len(c.damaged)], n.name)
	}
	c.o.Log.LogAttrs(context.Background(), slog.LevelWarn, "trusted metadata is damaged", slog.String("file", n.name), slog.Any("err", err))
}

// persist makes d durable. The older copy stays until sweep.
func (c *Client) persist(d *document) error {
	if err := atomicfile.Write(c.o.FS, c.path(d.role, d.version), d.raw, permissions); err != nil {
		return fmt.Errorf("storing the %s: %w", d, err)
	}
	d.signed = nil
	floor := c.floor.of(d.role)
	*floor = max(*floor, d.version)
	c.o.Log.LogAttrs(context.Background(), slog.LevelInfo, "metadata trusted",
		slog.String("role", d.role), slog.Int64("version", d.version), slog.Time("expires", d.expires))
	return nil
}

// sweep removes what is no longer needed: versions below the sound ones, and all that was
// believed under other keys. Of the latter nothing may come back by a power cut once anything new
// is stored beside it, so their removal is durable when sweep returns nil; any other removal that
// fails costs space only, and is tried again by the next refresh.
func (c *Client) sweep() error {
	entries, err := c.o.FS.ReadDir(c.o.Dir)
	if err != nil {
		return fmt.Errorf("listing the trusted metadata: %w", err)
	}
	sound := floors{root: c.root.version, timestamp: c.timestamp.status().Version, snapshot: c.snapshot.status().Version, targets: c.targets.Version}
	for _, e := range entries {
		name, temporary := strings.CutSuffix(e.Name(), atomicfile.Suffix)
		n, ok := parseName(name)
		stray := ok && !temporary && n.role != roleRoot && n.tag != c.tag
		if !ok || !stray && !temporary && n.version >= *sound.of(n.role) {
			continue
		}
		err := c.o.FS.Remove(filepath.Join(c.o.Dir, e.Name()))
		if err != nil && stray {
			return fmt.Errorf("removing what was believed under keys that are gone: %w", err)
		}
		c.unsynced = c.unsynced || stray
	}
	if !c.unsynced {
		return nil
	}
	if err := c.o.FS.SyncDir(c.o.Dir); err != nil {
		return fmt.Errorf("syncing the folder of trusted metadata: %w", err)
	}
	c.unsynced = false
	return nil
}
