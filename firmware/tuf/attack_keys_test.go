package tuf_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/tuf"
)

var wrongKeys = append([]attack{
	{name: "root signed by the new keys only", kind: tuf.ErrSignature, reason: "root version 2: not signed as required: 0 of 1 signatures needed by the keys of root version 1", trust: nothing, do: func(w *world) {
		w.repo.rotate(root)
		w.repo.publish(root)
	}},
	{name: "root signed by the old keys only", kind: tuf.ErrSignature, reason: "root version 2: not signed as required: 0 of 1 signatures needed by the keys of root version 2", trust: nothing, do: func(w *world) {
		old := w.repo.signers[root]
		w.repo.rotate(root)
		w.repo.signers[root] = old
		w.repo.publish(root)
	}},
	{name: "a file of another role", kind: tuf.ErrFormat, reason: `it says that it is a "snapshot"`, trust: newRoot, do: func(w *world) {
		// Signed by the timestamp's key, with what a timestamp has, but of the wrong type.
		w.repo.trust(snapshot, w.repo.signers[timestamp][0])
		w.repo.signers[snapshot] = append(w.repo.signers[snapshot], w.repo.signers[timestamp]...)
		w.repo.publish(root)
		w.repo.snapshot.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": metadata.MetaFile(1)}
		w.repo.snapshot.Signed.Version = 3
		w.repo.files["timestamp.json"] = seal(w.repo, w.repo.snapshot, w.repo.signers[snapshot])
	}},
}, perRole()...)

// perRole signs each role wrongly in every way that needs none of its keys.
func perRole() (rows []attack) {
	trust := map[string][4]int64{root: nothing, timestamp: nothing, snapshot: newTimestamp, targets: newSnapshot}
	name := map[string]string{root: "2.root.json", timestamp: "timestamp.json", snapshot: "3.snapshot.json", targets: "3.targets.json"}
	version := map[string]int{root: 2, timestamp: 3, snapshot: 3, targets: 3}
	for _, role := range allRoles {
		publish := func(w *world) {
			if role == root {
				w.repo.publish(root)
			} else {
				w.repo.publish(targets, snapshot, timestamp)
			}
		}
		row := func(name string, do func(w *world)) {
			rows = append(rows, attack{name: role + " " + name, kind: tuf.ErrSignature, trust: trust[role], do: do,
				reason: fmt.Sprintf("%s version %d: not signed as required: 0 of 1 signatures", role, version[role])})
		}
		row("signed by a stranger", func(w *world) {
			w.repo.signers[role] = []*signer{w.repo.newSigner()}
			publish(w)
		})
		row("signed by a stranger in the name of its key", func(w *world) {
			stranger := w.repo.newSigner()
			stranger.id = w.repo.signers[role][0].id
			w.repo.signers[role] = []*signer{stranger}
			publish(w)
		})
		row("signed by another role", func(w *world) {
			other := root
			if role == root {
				other = targets
			}
			w.repo.signers[role] = w.repo.signers[other]
			publish(w)
		})
		row("not signed", func(w *world) {
			publish(w)
			w.repo.edit(name[role], func(file map[string]any) { file["signatures"] = []any{} })
		})
		row("changed after signing", func(w *world) {
			publish(w)
			w.repo.edit(name[role], func(file map[string]any) {
				file["signed"].(map[string]any)["expires"] = "2041-05-01T12:00:00Z"
			})
		})
		row("with a member added after signing", func(w *world) {
			publish(w)
			w.repo.edit(name[role], func(file map[string]any) { file["signed"].(map[string]any)["x"] = "" })
		})
		row("with a bit of the signature changed", func(w *world) {
			publish(w)
			w.repo.edit(name[role], func(file map[string]any) {
				signature := file["signatures"].([]any)[0].(map[string]any)
				sig := must(hex.DecodeString(signature["sig"].(string)))
				sig[len(sig)-1] ^= 1
				signature["sig"] = hex.EncodeToString(sig)
			})
		})
	}
	return rows
}

var thresholds = []attack{
	{name: "two signatures of three", kind: tuf.ErrSignature, reason: "snapshot version 3: not signed as required: 2 of 3 signatures needed by the keys of root version 2", trust: [4]int64{2, 3, 0, 0}, do: func(w *world) {
		w.repo.rotate(snapshot)
		w.repo.addKey(snapshot)
		w.repo.addKey(snapshot)
		w.repo.root.Signed.Roles[snapshot].Threshold = 3
		w.repo.signers[snapshot] = w.repo.signers[snapshot][:2]
		w.repo.publish(allRoles...)
	}},
	{name: "more signatures needed than there are keys", kind: tuf.ErrSignature, reason: "5 of 6 signatures", trust: [4]int64{2, 3, 0, 0}, do: func(w *world) {
		for range 4 {
			w.repo.addKey(snapshot)
		}
		w.repo.root.Signed.Roles[snapshot].Threshold = 6
		w.repo.publish(allRoles...)
	}},
	{name: "one key listed nine times", kind: tuf.ErrSignature, reason: "2 of 6 signatures", trust: [4]int64{2, 3, 0, 0}, do: func(w *world) {
		k := w.repo.addKey(snapshot)
		for range 8 {
			w.repo.trust(snapshot, k)
		}
		w.repo.root.Signed.Roles[snapshot].Threshold = 6
		w.repo.publish(allRoles...)
	}},
	{name: "one key listed nine times, signing nine times", kind: tuf.ErrFormat, reason: "two signatures of key", trust: [4]int64{2, 3, 0, 0}, do: func(w *world) {
		k := w.repo.addKey(snapshot)
		for range 8 {
			w.repo.trust(snapshot, k)
			w.repo.signers[snapshot] = append(w.repo.signers[snapshot], k)
		}
		w.repo.root.Signed.Roles[snapshot].Threshold = 6
		w.repo.publish(allRoles...)
	}},
	{name: "a signature repeated", kind: tuf.ErrFormat, reason: "two signatures of key", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot, timestamp)
		w.repo.edit("3.snapshot.json", func(file map[string]any) {
			list := file["signatures"].([]any)
			file["signatures"] = append(list, list[0])
		})
	}},
	{name: "one key under two ids", kind: tuf.ErrSignature, reason: "1 of 2 signatures", trust: [4]int64{2, 3, 0, 0}, do: func(w *world) {
		w.repo.rotate(snapshot)
		twin := *w.repo.signers[snapshot][0]
		twin.key = must(metadata.KeyFromPublicKey(must(twin.key.ToPublicKey())))
		twin.key.UnrecognizedFields = map[string]any{"comment": "another"}
		twin.id = must(twin.key.ID())
		w.repo.trust(snapshot, &twin)
		w.repo.signers[snapshot] = append(w.repo.signers[snapshot], &twin)
		w.repo.root.Signed.Roles[snapshot].Threshold = 2
		w.repo.publish(allRoles...)
	}},
	{name: "no signature needed", stuck: "go-tuf trusts such a root before it sees that nothing can follow", kind: tuf.ErrFormat, reason: "role timestamp: its threshold is not a number above 0", trust: nothing, do: func(w *world) {
		w.repo.root.Signed.Roles[timestamp].Threshold = 0
		w.repo.signers[timestamp] = nil
		w.repo.publish(allRoles...)
	}},
	{name: "fewer than no signature needed", kind: tuf.ErrFormat, reason: "role root: its threshold is not a number above 0", trust: nothing, do: func(w *world) {
		w.repo.root.Signed.Roles[root].Threshold = -1
		w.repo.publish(root)
	}},
	{name: "a key in the name of another", kind: tuf.ErrFormat, reason: "the hash of it", trust: nothing,
		accepts: "TUF 4.2: clients MUST calculate each KEYID; go-tuf believes the name",
		do: func(w *world) {
			k := w.repo.newSigner()
			k.id = strings.Repeat("ab", 32)
			w.repo.trust(timestamp, k)
			w.repo.publish(allRoles...)
		}},
}

// forgeAll publishes new versions and then changes what a role has signed, with its own key.
func forgeAll(role string, change func(signed map[string]any)) func(w *world) {
	return func(w *world) {
		if role == root {
			w.repo.publish(root)
			w.repo.forge("2.root.json", root, change)
			return
		}
		w.repo.publish(targets, snapshot, timestamp)
		name := map[string]string{timestamp: "timestamp.json", snapshot: "3.snapshot.json", targets: "3.targets.json"}[role]
		w.repo.forge(name, role, change)
	}
}

// set changes one member, or removes it where to is nil.
func set(to any, path ...string) func(signed map[string]any) {
	return func(m map[string]any) {
		for _, name := range path[:len(path)-1] {
			m = m[name].(map[string]any)
		}
		m[path[len(path)-1]] = to
		if to == nil {
			delete(m, path[len(path)-1])
		}
	}
}

const lax = "its types take what the specification's do not"

var malformed = []attack{
	{name: "not JSON", kind: tuf.ErrFormat, reason: "timestamp: not valid metadata: not JSON", trust: nothing, do: func(w *world) {
		w.repo.files["timestamp.json"] = []byte("<html>sign in to the hotel's network</html>")
	}},
	{name: "empty", kind: tuf.ErrFormat, reason: "timestamp: not valid metadata: not JSON at byte 0", trust: nothing, do: func(w *world) {
		w.repo.files["timestamp.json"] = nil
		w.repo.files["timestamp.json"] = []byte{}
	}},
	{name: "truncated", kind: tuf.ErrFormat, reason: "targets: not valid metadata", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.files["3.targets.json"] = w.repo.files["3.targets.json"][:300]
	}},
	{name: "two documents", kind: tuf.ErrFormat, reason: "more than one document", trust: nothing, do: func(w *world) {
		w.repo.publish(timestamp)
		w.repo.files["timestamp.json"] = append(w.repo.files["timestamp.json"], "{}"...)
	}},
	{name: "a member twice", kind: tuf.ErrFormat, reason: `the name "version" comes twice`, trust: nothing,
		accepts: "encoding/json takes the last of two members, and another reader the first",
		do: func(w *world) {
			w.repo.publish(timestamp)
			w.repo.replace("timestamp.json", `"version":3}`, `"version":9,"version":3}`)
		}},
	{name: "a member twice in other letters", kind: tuf.ErrSignature, reason: "0 of 1 signatures", trust: nothing, do: func(w *world) {
		w.repo.publish(timestamp)
		w.repo.replace("timestamp.json", `"version":3}`, `"version":3,"VERSION":9}`)
	}},
	{name: "a member in other letters", kind: tuf.ErrFormat, reason: "its version is not a number above 0", trust: nothing, do: func(w *world) {
		w.repo.publish(timestamp)
		w.repo.forge("timestamp.json", timestamp, func(signed map[string]any) {
			signed["Version"] = signed["version"]
			delete(signed, "version")
		})
	}},
	{name: "not UTF-8", kind: tuf.ErrFormat, reason: "not UTF-8", trust: nothing,
		accepts: "encoding/json reads broken UTF-8 as U+FFFD, outside of what is signed",
		do: func(w *world) {
			w.repo.publish(timestamp)
			w.repo.edit("timestamp.json", func(file map[string]any) { file["comment"] = "here" })
			w.repo.replace("timestamp.json", "here", "\xff")
		}},
	{name: "version 0", kind: tuf.ErrFormat, reason: "its version is not a number above 0", trust: nothing, do: forgeAll(timestamp, set(0, "version"))},
	{name: "version is a string", kind: tuf.ErrFormat, reason: "its version is not a number above 0", trust: nothing, do: forgeAll(timestamp, set("3", "version"))},
	{name: "version is missing", kind: tuf.ErrFormat, reason: "its version is not a number above 0", trust: nothing, do: forgeAll(timestamp, set(nil, "version"))},
	{name: "version is fractional", kind: tuf.ErrFormat, reason: "no 64-bit integer", trust: nothing, do: func(w *world) {
		w.repo.publish(timestamp)
		w.repo.replace("timestamp.json", `"version":3}`, `"version":3.0}`)
	}},
	{name: "expires is missing", kind: tuf.ErrFormat, reason: "its expires is not a date", trust: nothing, do: forgeAll(timestamp, set(nil, "expires"))},
	{name: "expires is no date", kind: tuf.ErrFormat, reason: "its expires is not a date", trust: newSnapshot, do: forgeAll(targets, set("next year", "expires"))},
	{name: "snapshot vouches for no targets", kind: tuf.ErrFormat, reason: "it does not mention targets.json", trust: newTimestamp, do: forgeAll(snapshot, set(map[string]any{}, "meta"))},
	{name: "snapshot no longer lists a role", mend: func(good *sim) { good.snapshot.Signed.Meta["more.json"] = metadata.MetaFile(1) }, kind: tuf.ErrRollback, reason: `snapshot version 4: older than what is trusted: it no longer lists "more.json"`, trust: [4]int64{1, 4, 3, 3}, do: func(w *world) {
		w.repo.snapshot.Signed.Meta["more.json"] = metadata.MetaFile(1)
		w.repo.publish(targets, snapshot, timestamp)
		w.accept()
		delete(w.repo.snapshot.Signed.Meta, "more.json")
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "timestamp vouches for no snapshot", kind: tuf.ErrFormat, reason: "it does not mention snapshot.json", trust: nothing, do: func(w *world) {
		w.repo.publish(timestamp)
		w.repo.forge("timestamp.json", timestamp, set(map[string]any{}, "meta"))
		w.oracle = "" // go-tuf v2.4.2 dereferences nil here
	}},
	{name: "announced version 0", kind: tuf.ErrFormat, reason: `"targets.json": its version is not a number above 0`, trust: newTimestamp, do: forgeAll(snapshot, set(0, "meta", "targets.json", "version"))},
	{name: "announced length below 0", kind: tuf.ErrFormat, reason: `"targets.json": its length is not a number above 0`, trust: newTimestamp, do: forgeAll(snapshot, set(-1, "meta", "targets.json", "length"))},
	{name: "announced with unknown hashes only", kind: tuf.ErrFormat, reason: `"targets.json": its hashes are of kinds we do not know`, trust: newTimestamp, do: forgeAll(snapshot, set(map[string]any{"md5": "00"}, "meta", "targets.json", "hashes"))},
	{name: "announced with half a hash", kind: tuf.ErrFormat, reason: `"targets.json": its sha256 is not one`, trust: newTimestamp, do: forgeAll(snapshot, set(map[string]any{"sha256": "00"}, "meta", "targets.json", "hashes"))},
	{name: "a specification of the future", kind: tuf.ErrUnsupported, reason: `it is written to specification "2.0.0", this client to 1.0`, trust: nothing, accepts: "clients MUST verify that spec_version matches; go-tuf does not look", do: forgeAll(timestamp, set("2.0.0", "spec_version"))},
	{name: "no consistent snapshots", kind: tuf.ErrUnsupported, reason: "root version 2: asks for what this client does not do: its consistent_snapshot is not true", trust: newRoot,
		accepts: "without them a snapshot is replaced while a device reads it; we want them, go-tuf does both",
		do: func(w *world) {
			w.repo.root.Signed.ConsistentSnapshot = false
			w.repo.publish(root)
			w.repo.files["snapshot.json"], w.repo.files["targets.json"] = w.repo.files["2.snapshot.json"], w.repo.files["2.targets.json"]
		}},
	{name: "consistent snapshots in a string", kind: tuf.ErrUnsupported, reason: "its consistent_snapshot is not true", trust: newRoot, do: func(w *world) {
		w.repo.publish(root)
		w.repo.forge("2.root.json", root, set("true", "consistent_snapshot"))
	}},
	{name: "delegations", kind: tuf.ErrUnsupported, reason: "targets version 3: asks for what this client does not do: it delegates to further roles", trust: newSnapshot,
		accepts: "we have no use for delegated roles, and do not pretend to follow them",
		do: func(w *world) {
			k := w.repo.newSigner()
			w.repo.targets.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{k.id: k.key},
				Roles: []metadata.DelegatedRole{{Name: "../delegated", KeyIDs: []string{k.id}, Threshold: 1, Paths: []string{"*"}}}}
			w.repo.publish(targets, snapshot, timestamp)
		}},
	{name: "a role without a key list", kind: tuf.ErrFormat, reason: "role snapshot: it needs keyids", trust: nothing, do: forgeAll(root, set(nil, "roles", "snapshot", "keyids"))},
	{name: "a role is missing", stuck: "go-tuf trusts such a root before it sees that nothing can follow", kind: tuf.ErrFormat, reason: "role targets: its threshold", trust: nothing, do: forgeAll(root, set(nil, "roles", "targets"))},
	{name: "a target without sha256", kind: tuf.ErrFormat, reason: `target "gw/1.0": it has no sha256`, trust: newSnapshot, accepts: "it has any other hash, and " + lax,
		do: forgeAll(targets, set(map[string]any{"sha512": strings.Repeat("00", 64)}, "targets", "gw/1.0", "hashes"))},
	{name: "a target without hashes", kind: tuf.ErrFormat, reason: `target "gw/1.0": its hashes are not an object`, trust: newSnapshot, do: forgeAll(targets, set(nil, "targets", "gw/1.0", "hashes"))},
	{name: "a target of length below 0", kind: tuf.ErrFormat, reason: `target "gw/1.0": its length is not a number`, trust: newSnapshot, accepts: lax, do: forgeAll(targets, set(-1, "targets", "gw/1.0", "length"))},
	{name: "a target whose custom is no object", kind: tuf.ErrFormat, reason: `target "gw/1.0": its custom is not an object`, trust: newSnapshot, accepts: lax, do: forgeAll(targets, set("x", "targets", "gw/1.0", "custom"))},
	{name: "a target's custom with a fraction", kind: tuf.ErrFormat, reason: "no 64-bit integer", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.replace("3.targets.json", `"release":1`, `"release":1.5`)
	}},
}

var errServer = errors.New("503 Service Unavailable")

var missing = []attack{
	{name: "timestamp is missing", reason: "getting timestamp.json", trust: nothing, do: func(w *world) { delete(w.repo.files, "timestamp.json") }},
	{name: "snapshot is missing", reason: "getting 3.snapshot.json", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot, timestamp)
		delete(w.repo.files, "3.snapshot.json")
	}},
	{name: "targets are missing", reason: "getting 3.targets.json", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		delete(w.repo.files, "3.targets.json")
	}},
	// Not the same as "there is no further root": whoever breaks that answer would hold back a
	// revocation.
	{name: "the next root cannot be had", reason: "getting 2.root.json: 503", trust: nothing, do: func(w *world) {
		w.server.fail = map[string]error{"2.root.json": errServer}
	}},
}
