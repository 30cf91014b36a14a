package tuf_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// attack is one row: what the server, or a thief of keys, does to a good repository that the
// device has seen at versions 1, 2, 2, 2 (root, timestamp, snapshot, targets).
type attack struct {
	name   string
	do     func(w *world)
	kind   error  // nil: an error of the source
	reason string // in our text
	trust  [4]int64
	// accepts says why go-tuf v2.4.2 accepts what we refuse; "": it refuses too.
	accepts string
	// stuck says why go-tuf does not accept the good repository afterwards; "": it does.
	stuck  string
	hashes bool            // the repository vouches with length and hashes
	mend   func(good *sim) // what the owner must do beyond publishing again
}

// What is trusted after the attack: the roles before the one that is refused may be new.
var (
	nothing      = [4]int64{1, 2, 2, 2}
	newRoot      = [4]int64{2, 2, 2, 2}
	newTimestamp = [4]int64{1, 3, 2, 2}
	newSnapshot  = [4]int64{1, 3, 3, 2}
)

// TestAttacks is the table: each attack is refused for its own reason, in the same client twice,
// lowers nothing on disk, and leaves a client that accepts the good repository.
func TestAttacks(t *testing.T) {
	tables := [][]attack{rollbacks, freezes, mixtures, endlessData, wrongKeys, thresholds, malformed, missing}
	rows := 0
	for _, table := range tables {
		for _, a := range table {
			rows++
			t.Run(a.name, func(t *testing.T) { a.run(t) })
		}
	}
	t.Logf("%d attacks", rows)
}

func (a attack) run(t *testing.T) {
	repo := newSim(t)
	repo.hashes = a.hashes
	w := newWorld(t, repo)
	w.accept()
	repo.publish(targets, snapshot, timestamp)
	w.accept()
	w.expect(1, 2, 2, 2)
	good := repo.clone()

	a.do(w)
	for range 2 {
		ours, theirs := w.refresh()
		if a.kind != nil {
			checkRefusal(t, ours, a.kind, a.reason)
		} else if ours == nil || !strings.Contains(ours.Error(), a.reason) {
			t.Errorf("error %v, want one with %q", ours, a.reason)
		}
		if w.oracle != "" && (theirs == nil) != (a.accepts != "") {
			t.Errorf("go-tuf says %v; known difference: %q", theirs, a.accepts)
		}
		w.expect(a.trust[0], a.trust[1], a.trust[2], a.trust[3])
	}

	// The owner of the repository puts it right.
	if a.trust[0] > 1 { // the attacker's root is trusted; the owner's follows it
		good.root.Signed.Version = a.trust[0]
		good.publish(root)
	}
	if a.mend != nil {
		a.mend(good)
	}
	good.recover()
	w.repo, w.now = good, today
	w.server.fail = nil
	ours, theirs := w.refresh()
	if ours != nil {
		t.Errorf("afterwards the good repository is refused: %v", ours)
	}
	if theirs != nil && a.accepts == "" && a.stuck == "" {
		t.Errorf("afterwards go-tuf refuses the good repository: %v", theirs)
	}
	w.expect(good.root.Signed.Version, 13, 13, 13)
	w.open() // and after a restart
	if ours, _ = w.refresh(); ours != nil {
		t.Errorf("after a restart: %v", ours)
	}
}

// An error of the source is none of ours, and can be told apart.
func TestErrorsOfTheSourceAreHandedOn(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.server.fail = map[string]error{"2.root.json": errServer}
	if ours, _ := w.refresh(); !errors.Is(ours, errServer) {
		t.Errorf("error %v", ours)
	}
	w.server.fail = nil
	delete(w.repo.files, "timestamp.json")
	ours, _ := w.refresh()
	if !errors.Is(ours, fs.ErrNotExist) {
		t.Errorf("error %v", ours)
	}
	for _, kind := range kinds {
		if errors.Is(ours, kind) {
			t.Errorf("%v is %v", ours, kind)
		}
	}
}

// What custom says must not change with what nobody signed.
func TestCustomIsWhatWasSigned(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	first := w.last.All()[0].Custom()
	var parsed map[string]any
	if err := json.Unmarshal(first, &parsed); err != nil || parsed["notes"] != "a \"first\"\n<one> & only" {
		t.Errorf("custom %s: %v", first, err)
	}
	w = newWorld(t, newSim(t))
	w.repo.replace("1.targets.json", `"release":1`, "\n \"rel\\u0065ase\"  :  1")
	w.accept()
	if again := w.last.All()[0].Custom(); sha256.Sum256(again) != sha256.Sum256(first) {
		t.Errorf("custom changed to %s from %s without a key", again, first)
	}
}
