package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// keyOptions are the flags about keys.
type keyOptions struct {
	keys, root list
	kind       string
	quorums    perRole[bundle.Quorum]
	expires    perRole[time.Duration]
	deltas     int
	role       string
	drop       list
	to         string
}

func initFlags(e *env) {
	e.keys.quorums.parse, e.keys.expires.parse = quorum, duration
	e.Flags.Var(&e.keys.keys, "keys", "the `folder` for the keys of targets, snapshot and timestamp")
	e.Flags.Var(&e.keys.root, "root", "the `folder` for the root's keys: on a medium that is kept offline")
	e.Flags.StringVar(&e.keys.kind, "kind", bundle.Ed25519, "the keys' `kind`: ed25519 or p256")
	e.Flags.Var(&e.keys.quorums, "threshold", "`ROLE=N` for N keys that all sign, ROLE=N/M for N of M; may be repeated (default 1)")
	e.Flags.Var(&e.keys.expires, "expires", "`ROLE=TIME` a signature holds; may be repeated (default root=1095d targets=365d snapshot=30d timestamp=14d)")
	e.Flags.IntVar(&e.keys.deltas, "deltas", 3, "to how many older releases a bundle makes deltas")
	jsonFlag(e)
}

func runKeysInit(_ context.Context, e *env) error {
	dir := e.Flags.Arg(0)
	if len(e.keys.keys) != 1 || len(e.keys.root) != 1 {
		return hint.With(fmt.Errorf("%w: --keys and --root are needed, once each", cli.ErrUsage), "ferrule-release keys init REPO --keys KEYS --root /media/stick/root")
	}
	if err := checkKind(e.keys.kind); err != nil {
		return err
	}
	unlock, err := bundle.Lock(dir)
	if err != nil {
		return err
	}
	_, err = bundle.Init(bundle.Options{FS: disk.OS(), Dir: dir, Now: e.now}, bundle.Setup{
		Keys: e.keys.keys[0], Root: e.keys.root[0], Kind: e.keys.kind,
		Quorums: e.keys.quorums.values, Expires: e.keys.expires.values, Deltas: e.keys.deltas,
	})
	if err := errors.Join(err, unlock()); err != nil {
		return err
	}
	root := filepath.Join(dir, "metadata", "1.root.json")
	if e.json {
		return e.printJSON(map[string]any{"repository": dir, "root": root, "keys": e.keys.keys[0], "root_keys": e.keys.root[0]})
	}
	fmt.Fprintf(e.Stdout, `repository ready in %s
  %s  give it to devices as the root they trust
  %s  signs releases: keep it with whoever releases
  %s  signs other keys: copy it, take it offline, and bring it back for keys rotate
`, dir, root, e.keys.keys[0], e.keys.root[0])
	return nil
}

func checkKind(kind string) error {
	if kind != bundle.Ed25519 && kind != bundle.P256 {
		return fmt.Errorf("%w: --kind %q is neither ed25519 nor p256", cli.ErrUsage, kind)
	}
	return nil
}

func rotateFlags(e *env) {
	e.keys.quorums.parse = quorum
	keysFlag(e)
	e.Flags.Var(&e.keys.root, "root", "a `path` of a root key, or their folder; may be repeated")
	e.Flags.StringVar(&e.keys.role, "role", "", "the `role` whose keys are replaced: root, targets, snapshot, timestamp (default none: the root is signed anew for its time)")
	e.Flags.Var(&e.keys.drop, "drop", "only the key whose `id` begins so; may be repeated (default all of the role)")
	e.Flags.StringVar(&e.keys.to, "to", "", "the `folder` for the new keys (default where the old ones are, if that is one folder)")
	e.Flags.StringVar(&e.keys.kind, "kind", bundle.Ed25519, "the new keys' `kind`: ed25519 or p256")
	e.Flags.Var(&e.keys.quorums, "threshold", "`ROLE=N` or ROLE=N/M from now on (default as before)")
	jsonFlag(e)
}

func runKeysRotate(_ context.Context, e *env) error {
	if err := checkKind(e.keys.kind); err != nil {
		return err
	}
	if len(e.keys.root) == 0 {
		return hint.With(fmt.Errorf("%w: --root is needed", cli.ErrUsage), "the root's keys sign which keys are good: --root FOLDER")
	}
	to, err := e.newKeys()
	if err != nil {
		return err
	}
	keys, err := e.loadKeys()
	if err != nil {
		return err
	}
	r, release, err := e.repository(true)
	if err != nil {
		return err
	}
	done, err := r.Rotate(bundle.Rotation{
		Role: e.keys.role, Drop: e.keys.drop, Kind: e.keys.kind, Folder: to, Quorum: e.keys.quorums.values[e.keys.role], Keys: keys,
	})
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	return e.printRotated(done)
}

// newKeys is the folder for new keys.
func (e *env) newKeys() (string, error) {
	for role := range e.keys.quorums.values {
		if role != e.keys.role {
			return "", fmt.Errorf("%w: --threshold %s goes with --role %s", cli.ErrUsage, role, role)
		}
	}
	if e.keys.to != "" || e.keys.role == "" {
		return e.keys.to, nil
	}
	old := e.keys.keys
	if e.keys.role == "root" {
		old = e.keys.root
	}
	if len(old) != 1 || strings.HasSuffix(old[0], ".pem") {
		return "", hint.With(fmt.Errorf("%w: it is not clear where the new keys go", cli.ErrUsage), "--to FOLDER")
	}
	return old[0], nil
}

func (e *env) printRotated(done *bundle.Rotated) error {
	added := []string{}
	for _, k := range done.Added {
		added = append(added, k.File)
	}
	if e.json {
		return e.printJSON(map[string]any{"root_version": done.Version, "added": added, "dropped": append([]string{}, done.Dropped...), "finished": done.Finished})
	}
	if done.Finished {
		fmt.Fprintf(e.Stdout, "a rotation that had been cut is finished: root version %d\n", done.Version)
		return nil
	}
	fmt.Fprintf(e.Stdout, "root version %d is signed\n", done.Version)
	for _, file := range added {
		fmt.Fprintf(e.Stdout, "  %s  new\n", file)
	}
	for _, id := range done.Dropped {
		fmt.Fprintf(e.Stdout, "  %.16s…  signs no more: destroy it\n", id)
	}
	fmt.Fprintln(e.Stdout, "upload the repository")
	return nil
}
