package tuf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// refresh is one run of the client workflow, at one fixed time (TUF 5.1).
type refresh struct {
	*Client
	ctx context.Context
	src Source
	now time.Time
}

// Refresh brings what is trusted up to what the repository offers, and returns its targets. What
// was verified on the way is kept also when a later step fails. Errors are refusals (ErrExpired
// and its neighbours), or of the source, the disk, or ctx; after any of them the same client may
// be asked again. One refresh runs at a time, others wait.
func (c *Client) Refresh(ctx context.Context, src Source) (*Targets, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.turn:
	}
	defer func() { c.turn <- struct{}{} }()
	now, trusted := c.o.Now()
	r := &refresh{Client: c, ctx: ctx, src: src, now: now}
	t, err := r.run()
	c.show(func(s *Status) {
		s.ClockTrusted = trusted
		if err == nil {
			s.Refreshed = now
		}
	})
	return t, err
}

func (r *refresh) run() (*Targets, error) {
	if err := r.updateRoot(); err != nil {
		return nil, err
	}
	if err := r.carry(); err != nil {
		return nil, err
	}
	if err := r.sweep(); err != nil {
		return nil, err
	}
	if err := r.updateTimestamp(); err != nil {
		return nil, err
	}
	if err := r.updateSnapshot(); err != nil {
		return nil, err
	}
	d, err := r.updateTargets()
	if err != nil {
		return nil, err
	}
	// The pinned root becomes a trusted copy once a repository has shown that it is its own; a
	// wrong one in the configuration does not outlive its correction.
	if r.floor.root == 0 {
		if err := r.persist(r.root); err != nil {
			return nil, err
		}
	}
	if err := r.sweep(); err != nil {
		return nil, err
	}
	r.damaged = nil
	t := &Targets{list: d.targets, expires: d.expires}
	for _, other := range [...]*document{r.root, r.timestamp, r.snapshot} {
		if other.expires.Before(t.expires) {
			t.expires = other.expires
		}
	}
	return t, nil
}

// get fetches a file of at most limit bytes.
func (r *refresh) get(name string, limit int64) ([]byte, error) {
	raw, err := r.src.Metadata(r.ctx, name, limit)
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", name, err)
	}
	if int64(len(raw)) > limit {
		return nil, refuse(ErrTooLarge, name, "more than %d bytes", limit)
	}
	return raw, nil
}

// believe checks the signatures of d by the keys of root.
func believe(root, d *document) error {
	if err := root.authority(d.role).verify(d); err != nil {
		return refuse(ErrSignature, d.String(), "%v by the keys of root version %d", err, root.version)
	}
	return nil
}

// unexpired is the check against a freeze: expires MUST be higher than the time of the update.
func (r *refresh) unexpired(d *document) error {
	if !d.expires.After(r.now) {
		return refuse(ErrExpired, d.String(), "on %s, and it is %s", stamp(d.expires), stamp(r.now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// updateRoot follows the chain of roots (TUF 5.3): every one is signed as the one before it
// demands and as it demands itself, and none is left out.
func (r *refresh) updateRoot() error {
	for range maxRotations {
		raw, err := r.get(fmt.Sprintf("%d.root.json", r.root.version+1), RootLimit)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if err := r.nextRoot(raw); err != nil {
			return err
		}
	}
	if r.root.version < r.floor.root { // the trusted one was damaged, and what is here is not it
		return refuse(ErrRollback, r.root.String(), "version %d is trusted (its copy here is damaged), and the repository goes no further", r.floor.root)
	}
	if err := r.unexpired(r.root); err != nil {
		return err
	}
	if !r.root.consistent {
		return refuse(ErrUnsupported, r.root.String(), "its consistent_snapshot is not true")
	}
	if tag := keysTag(r.root); tag != r.tag { // TUF 5.3.11
		r.tag = tag
		return r.loadRoles()
	}
	return nil
}

func (r *refresh) nextRoot(raw []byte) error {
	d, err := parse(roleRoot, raw)
	if err != nil {
		return err
	}
	if err := believe(r.root, d); err != nil {
		return err
	}
	switch want := r.root.version + 1; {
	case d.version < want:
		return refuse(ErrRollback, d.String(), "version %d must follow", want)
	case d.version > want:
		return refuse(ErrMismatch, d.String(), "version %d must follow", want)
	}
	if err := believe(d, d); err != nil {
		return err
	}
	if err := r.persist(d); err != nil {
		return err
	}
	r.root = d
	return nil
}

// updateTimestamp gets the one file whose name never changes (TUF 5.4).
func (r *refresh) updateTimestamp() error {
	raw, err := r.get("timestamp.json", TimestampLimit)
	if err != nil {
		return err
	}
	d, err := parse(roleTimestamp, raw)
	if err != nil {
		return err
	}
	if err := believe(r.root, d); err != nil {
		return err
	}
	switch {
	case d.version < r.floor.timestamp:
		return refuse(ErrRollback, d.String(), "version %d is trusted", r.floor.timestamp)
	case r.timestamp != nil && d.version == r.timestamp.version:
		return r.unexpired(r.timestamp) // the one we have stands, whatever this one says
	}
	least := r.floor.snapshot
	if r.timestamp != nil {
		old, _ := r.timestamp.file("snapshot.json")
		least = max(least, old.version)
	}
	if now, _ := d.file("snapshot.json"); now.version < least {
		return refuse(ErrRollback, d.String(), "it goes back to snapshot version %d, and %d is trusted", now.version, least)
	}
	if err := r.unexpired(d); err != nil {
		return err
	}
	if err := r.persist(d); err != nil {
		return err
	}
	r.timestamp = d
	return nil
}

// updateSnapshot gets the snapshot that the timestamp vouches for (TUF 5.5).
func (r *refresh) updateSnapshot() error {
	want, _ := r.timestamp.file("snapshot.json")
	if d := r.snapshot; d != nil && d.version == want.version && want.match(d.raw) == nil {
		return r.unexpired(d)
	}
	d, err := r.vouched(roleSnapshot, want)
	if err != nil {
		return err
	}
	if err := r.rollback(d); err != nil {
		return err
	}
	if err := r.unexpired(d); err != nil {
		return err
	}
	if err := r.persist(d); err != nil {
		return err
	}
	r.snapshot = d
	return nil
}

// rollback compares what two snapshots list (TUF 5.5.5).
func (r *refresh) rollback(d *document) error {
	targets, _ := d.file("targets.json")
	if targets.version < r.floor.targets {
		return refuse(ErrRollback, d.String(), "it goes back to targets version %d, and %d is trusted", targets.version, r.floor.targets)
	}
	if r.snapshot == nil {
		return nil
	}
	for _, old := range r.snapshot.meta {
		switch now, ok := d.file(old.name); {
		case !ok:
			return refuse(ErrRollback, d.String(), "it no longer lists %.80q", old.name)
		case now.version < old.version:
			return refuse(ErrRollback, d.String(), "it goes back to version %d of %.80q, and %d is trusted", now.version, old.name, old.version)
		}
	}
	return nil
}

// updateTargets gets the targets that the snapshot vouches for (TUF 5.6), from Dir where it has
// just those.
func (r *refresh) updateTargets() (*document, error) {
	want, _ := r.snapshot.file("targets.json")
	l, err := r.load(roleTargets)
	if err != nil {
		return nil, err
	}
	d := l.document
	stored := d != nil && d.version == want.version && want.match(d.raw) == nil
	if !stored {
		if d, err = r.vouched(roleTargets, want); err != nil {
			return nil, err
		}
	}
	if d.delegates {
		return nil, refuse(ErrUnsupported, d.String(), "it delegates to further roles; sign all targets with the targets role")
	}
	if err := r.unexpired(d); err != nil {
		return nil, err
	}
	if !stored {
		if err := r.persist(d); err != nil {
			return nil, err
		}
	}
	r.targets = d.status()
	return d, nil
}

// vouched fetches the version of a role that another role vouches for. Its hash is checked
// first: it comes from a role that is verified, and spares the rest (TUF 5.5.2).
func (r *refresh) vouched(role string, want metaFile) (*document, error) {
	what := fmt.Sprintf("%s version %d", role, want.version)
	most := limit(role)
	if want.length > most {
		return nil, refuse(ErrTooLarge, what, "%d bytes announced, and %d are allowed", want.length, most)
	}
	if want.length > 0 {
		most = want.length
	}
	raw, err := r.get(fmt.Sprintf("%d.%s.json", want.version, role), most)
	if err != nil {
		return nil, err
	}
	if err := want.match(raw); err != nil {
		return nil, refuse(ErrMismatch, what, "%v", err)
	}
	d, err := parse(role, raw)
	if err != nil {
		return nil, err
	}
	if err := believe(r.root, d); err != nil {
		return nil, err
	}
	if d.version != want.version {
		return nil, refuse(ErrMismatch, d.String(), "version %d was announced", want.version)
	}
	return d, nil
}
