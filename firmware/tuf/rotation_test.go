package tuf_test

import (
	"fmt"
	"testing"

	"ferrule/firmware/tuf"
)

// rootVersion is one root of a chain: keys listed, signatures needed, keys that sign.
type rootVersion struct {
	keys      []int
	threshold int
	sigs      []int
}

// The cases of test_root_rotation in theupdateframework/tuf-conformance.
var rootRotations = []struct {
	name   string
	chain  []rootVersion
	reason string // why the last one is refused; "": it is accepted
}{
	{"1 of 1", []rootVersion{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{2, 1}}, {[]int{2}, 1, []int{2}}}, ""},
	{"1 of 1, unused signatures", []rootVersion{{[]int{1}, 1, []int{3, 1, 4}}, {[]int{2}, 1, []int{3, 2, 1, 4}}, {[]int{2}, 1, []int{3, 2, 4}}}, ""},
	{"3 of 5, different keys", []rootVersion{{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, {[]int{0, 1, 2, 3, 4}, 3, []int{0, 4, 1}}, {[]int{0, 1, 2, 3, 4}, 3, []int{0, 1, 3}}, {[]int{0, 1, 2, 3, 4}, 3, []int{0, 1, 3}}}, ""},
	{"3 of 5, one rotated", []rootVersion{{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 4, 1}}}, ""},
	{"3 of 5, one rotated in two steps", []rootVersion{{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 2, 4, 5}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 4, 5}}}, ""},
	{"3 of 5, all rotated in two steps", []rootVersion{{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, {[]int{5, 6, 7, 8, 9}, 3, []int{0, 2, 4, 5, 6, 7}}, {[]int{5, 6, 7, 8, 9}, 3, []int{5, 6, 7}}}, ""},
	{"1 of 3 to 2 of 3", []rootVersion{{[]int{1, 2, 3}, 1, []int{1}}, {[]int{1, 2, 3}, 2, []int{1, 2}}}, ""},
	{"2 of 3 to 1 of 3", []rootVersion{{[]int{1, 2, 3}, 2, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1}}}, ""},
	{"1 of 1 to 2 of 2", []rootVersion{{[]int{1}, 1, []int{1}}, {[]int{1, 2}, 2, []int{1, 2}}}, ""},
	{"1 of 1, not by the old key", []rootVersion{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{2, 3, 4}}}, "0 of 1 signatures needed by the keys of root version 1"},
	{"1 of 1, not by the new key", []rootVersion{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{1, 3, 4}}}, "0 of 1 signatures needed by the keys of root version 2"},
	{"3 of 5, not by 3 new keys", []rootVersion{{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 2, 4}}}, "2 of 3 signatures needed by the keys of root version 2"},
	{"3 of 5, not by 3 old keys", []rootVersion{{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 4, 5}}}, "2 of 3 signatures needed by the keys of root version 1"},
	{"1 of 3 to 2 of 3, by 1", []rootVersion{{[]int{1, 2, 3}, 1, []int{1}}, {[]int{1, 2, 3}, 2, []int{2}}}, "1 of 2 signatures needed by the keys of root version 2"},
	{"2 of 3 to 1 of 3, by 1", []rootVersion{{[]int{1, 2, 3}, 2, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1}}}, "1 of 2 signatures needed by the keys of root version 1"},
}

func TestRootRotation(t *testing.T) {
	for _, test := range rootRotations {
		t.Run(test.name, func(t *testing.T) {
			repo := newSim(t)
			repo.root.Signed.Version = 0
			for _, v := range test.chain {
				role := repo.root.Signed.Roles[root]
				role.KeyIDs, role.Threshold, repo.signers[root] = nil, v.threshold, nil
				for _, k := range v.keys {
					repo.trust(root, newSigner(t, 100+k))
				}
				for _, k := range v.sigs {
					repo.signers[root] = append(repo.signers[root], newSigner(t, 100+k))
				}
				repo.publish(root)
			}
			w := newWorld(t, repo)
			if test.reason == "" {
				w.accept()
				w.expect(int64(len(test.chain)), 1, 1, 1)
				return
			}
			w.reject(tuf.ErrSignature, test.reason)
			w.open()
			if got := w.client.Status().Root.Version; got != int64(len(test.chain)-1) {
				t.Errorf("root version %d is trusted", got)
			}
		})
	}
}

// The cases of test_non_root_rotations, for each role.
func TestRoleRotation(t *testing.T) {
	for _, role := range []string{timestamp, snapshot, targets} {
		for _, test := range []struct {
			name   string
			v      rootVersion
			reason string
		}{
			{"1 of 1", rootVersion{[]int{2}, 1, []int{2}}, ""},
			{"1 of 1, unused signatures", rootVersion{[]int{1}, 1, []int{3, 1, 4}}, ""},
			{"1 of 1, not by the new key", rootVersion{[]int{2}, 1, []int{1, 3, 4}}, "0 of 1"},
			{"3 of 5, a key that is gone", rootVersion{[]int{0, 1, 3, 4, 5}, 3, []int{0, 2, 4}}, "2 of 3"},
			{"3 of 5, too few", rootVersion{[]int{0, 1, 3, 4, 5}, 3, []int{0, 4}}, "2 of 3"},
			{"3 of 5 a", rootVersion{[]int{0, 1, 2, 3, 4}, 3, []int{0, 2, 4}}, ""},
			{"3 of 5 b", rootVersion{[]int{0, 1, 2, 3, 4}, 3, []int{0, 4, 1}}, ""},
			{"3 of 5 c", rootVersion{[]int{0, 1, 2, 3, 4}, 3, []int{0, 1, 3}}, ""},
			{"3 of 5 d", rootVersion{[]int{0, 1, 2, 3, 4}, 3, []int{1, 2, 3}}, ""},
			{"3 of 5 e", rootVersion{[]int{0, 1, 2, 3, 4}, 3, []int{2, 3, 4}}, ""},
		} {
			t.Run(role+" "+test.name, func(t *testing.T) {
				w := newWorld(t, newSim(t))
				w.accept()
				w.repo.root.Signed.Roles[role].KeyIDs, w.repo.root.Signed.Roles[role].Threshold, w.repo.signers[role] = nil, test.v.threshold, nil
				for _, k := range test.v.keys {
					w.repo.trust(role, newSigner(t, 100+k))
				}
				for _, k := range test.v.sigs {
					w.repo.signers[role] = append(w.repo.signers[role], newSigner(t, 100+k))
				}
				w.repo.publish(allRoles...)
				if test.reason != "" {
					w.reject(tuf.ErrSignature, fmt.Sprintf("refusing the %s version 2: not signed as required: %s", role, test.reason))
					return
				}
				w.accept()
				w.expect(2, 2, 2, 2)
				w.open()
				w.accept()
			})
		}
	}
}

// A thief of keys has pushed versions to the sky; the owner rotates them and begins below. Each
// is also done by a device that restarts in between (the root is trusted, nothing else yet).
func TestFastForwardRecovery(t *testing.T) {
	const sky = 1 << 40
	for _, test := range []struct {
		name    string
		forward []string // roles whose versions were pushed
		rotate  []string
		accepts bool
		differs string // why go-tuf does not recover
	}{
		{"timestamp", []string{timestamp}, []string{timestamp}, true, ""},
		{"snapshot", []string{snapshot, timestamp}, []string{snapshot, timestamp}, true, ""},
		{"targets", []string{targets, snapshot, timestamp}, []string{snapshot, timestamp}, true, ""},
		{"all", []string{targets, snapshot, timestamp}, []string{targets, snapshot, timestamp}, true, ""},
		{"snapshot by its own key", []string{snapshot}, []string{snapshot}, true, "TUF 5.3.11 deletes both files when the keys of one were rotated; go-tuf forgets those that no longer verify"},
		{"snapshot, and timestamp rotated", []string{snapshot}, []string{timestamp}, true, ""},
		{"targets by the key of snapshot", []string{targets}, []string{snapshot}, true, ""},
		{"timestamp without a rotation", []string{timestamp}, nil, false, ""},
		{"targets with targets' keys only", []string{targets}, []string{targets}, false, ""},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", test.name, restart), func(t *testing.T) {
				w := newWorld(t, newSim(t))
				for _, role := range test.forward {
					switch role {
					case timestamp:
						w.repo.timestamp.Signed.Version = sky
					case snapshot:
						w.repo.snapshot.Signed.Version = sky
					case targets:
						w.repo.targets.Signed.Version = sky
					}
				}
				w.repo.publish(targets, snapshot, timestamp)
				w.accept()
				w.repo.rotate(test.rotate...)
				w.repo.publish(root)
				for _, role := range test.forward {
					switch role {
					case timestamp:
						w.repo.timestamp.Signed.Version = 0
					case snapshot:
						w.repo.snapshot.Signed.Version = 0
					case targets:
						w.repo.targets.Signed.Version = 0
					}
				}
				w.repo.publish(targets, snapshot, timestamp)
				if restart {
					w.server.fail = map[string]error{"timestamp.json": errServer}
					w.refresh()
					w.server.fail = nil
					w.open()
				}
				if !test.accepts {
					w.reject(tuf.ErrRollback, "older than what is trusted")
					return
				}
				ours, theirs := w.refresh()
				if ours != nil || (theirs == nil) != (test.differs == "") {
					t.Fatalf("ours %v, go-tuf %v", ours, theirs)
				}
				s := w.repo
				w.expect(2, s.timestamp.Signed.Version, s.snapshot.Signed.Version, s.targets.Signed.Version)
			})
		}
	}
}

// Adding a key, or a higher threshold that is met, forgets nothing: an old file signed by a key
// that stays would otherwise be believed again.
func TestAddingAKeyForgetsNothing(t *testing.T) {
	w := newWorld(t, newSim(t))
	old := w.repo.clone()
	w.repo.publish(targets, snapshot, timestamp)
	w.accept()
	w.repo.addKey(timestamp)
	w.repo.addKey(snapshot)
	w.repo.publish(root)
	w.accept()
	w.expect(2, 2, 2, 2)
	next := w.repo.files["2.root.json"]
	good := w.repo
	w.repo = old
	w.repo.files["2.root.json"] = next
	w.reject(tuf.ErrRollback, "timestamp version 1: older than what is trusted: version 2")
	w.open()
	w.reject(tuf.ErrRollback, "timestamp version 1: older than what is trusted: version 2")
	w.repo = good
	w.accept()
}

// A long chain is followed in pieces; each refresh goes on where the last one ended.
func TestLongChainOfRoots(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.oracle = "" // goes 256 at a time
	for range 100 {
		w.repo.rotate(root)
		old := w.repo.signers[root]
		w.repo.signers[root] = append(old, newSigner(t, w.repo.keys-1))
		if w.repo.root.Signed.Version == 1 {
			w.repo.signers[root] = append(old, newSigner(t, 1))
		}
		w.repo.publish(root)
		w.repo.signers[root] = old
	}
	w.repo.rotate(timestamp)
	w.repo.publish(root, timestamp)
	w.reject(tuf.ErrSignature, "timestamp version 2: not signed as required: 0 of 1 signatures needed by the keys of root version 65")
	w.accept()
	w.expect(102, 2, 1, 1)
}
