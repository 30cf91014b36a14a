package tuf_test

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/tuf"
)

// What needs no key, or a key and a wrong order of versions.

var rollbacks = []attack{
	{name: "timestamp goes back", kind: tuf.ErrRollback, reason: "timestamp version 1: older than what is trusted: version 2", trust: nothing, do: func(w *world) {
		w.repo.timestamp.Signed.Version = 1
		w.repo.write(timestamp)
	}},
	{name: "snapshot goes back in a new timestamp", kind: tuf.ErrRollback, reason: "timestamp version 3: older than what is trusted: it goes back to snapshot version 1, and 2 is", trust: nothing, do: func(w *world) {
		w.repo.snapshot.Signed.Version = 1
		w.repo.write(snapshot)
		w.repo.publish(timestamp)
	}},
	{name: "snapshot goes back, with hashes", hashes: true, kind: tuf.ErrRollback, reason: "back to snapshot version 1", trust: nothing, do: func(w *world) {
		w.repo.snapshot.Signed.Version = 1
		w.repo.write(snapshot)
		w.repo.publish(timestamp)
	}},
	{name: "targets go back in a new snapshot", kind: tuf.ErrRollback, reason: "snapshot version 3: older than what is trusted: it goes back to targets version 1, and 2 is", trust: newTimestamp, do: func(w *world) {
		w.repo.targets.Signed.Version = 1
		w.repo.write(targets)
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "targets go back, with hashes", hashes: true, kind: tuf.ErrRollback, reason: "back to targets version 1", trust: newTimestamp, do: func(w *world) {
		w.repo.targets.Signed.Version = 1
		w.repo.write(targets)
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "another role goes back in a new snapshot", kind: tuf.ErrRollback, reason: `it goes back to version 4 of "more.json", and 5 is`, trust: [4]int64{1, 4, 3, 3},
		mend: func(good *sim) { good.snapshot.Signed.Meta["more.json"] = metadata.MetaFile(5) },
		do: func(w *world) {
			w.repo.snapshot.Signed.Meta["more.json"] = metadata.MetaFile(5)
			w.repo.publish(targets, snapshot, timestamp)
			w.accept()
			w.repo.snapshot.Signed.Meta["more.json"] = metadata.MetaFile(4)
			w.repo.publish(snapshot, timestamp)
		}},
	{name: "an old root under the next name", kind: tuf.ErrRollback, reason: "root version 1: older than what is trusted: version 2 must follow", trust: nothing, do: func(w *world) {
		w.repo.files["2.root.json"] = w.repo.files["1.root.json"]
	}},
	{name: "a root is left out", kind: tuf.ErrMismatch, reason: "root version 3: not what was vouched for: version 2 must follow", trust: nothing, do: func(w *world) {
		w.repo.publish(root, root)
		w.repo.files["2.root.json"] = w.repo.files["3.root.json"]
	}},
	{name: "all files are old ones", kind: tuf.ErrRollback, reason: "timestamp version 1", trust: nothing, do: func(w *world) {
		w.repo = newSim(w.t)
	}},
}

var freezes = []attack{
	{name: "root expired", kind: tuf.ErrExpired, reason: "root version 2: expired: on 2031-05-01T11:59:59Z, and it is 2031-05-01T12:00:00Z", trust: newRoot, do: func(w *world) {
		w.repo.root.Signed.Expires = today.Add(-1e9)
		w.repo.publish(allRoles...)
	}},
	{name: "timestamp expired", kind: tuf.ErrExpired, reason: "timestamp version 3: expired", trust: nothing, do: func(w *world) {
		w.repo.timestamp.Signed.Expires = today.Add(-1e9)
		w.repo.publish(timestamp)
	}},
	{name: "snapshot expired", kind: tuf.ErrExpired, reason: "snapshot version 3: expired", trust: newTimestamp, do: func(w *world) {
		w.repo.snapshot.Signed.Expires = today.Add(-1e9)
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "targets expired", kind: tuf.ErrExpired, reason: "targets version 3: expired", trust: newSnapshot, do: func(w *world) {
		w.repo.targets.Signed.Expires = today.Add(-1e9)
		w.repo.publish(targets, snapshot, timestamp)
	}},
	{name: "nothing new until it expires", kind: tuf.ErrExpired, reason: "root version 1: expired", trust: nothing, do: func(w *world) { w.now = later.Add(1e9) }},
	{name: "the same timestamp until it expires", kind: tuf.ErrExpired, reason: "timestamp version 3: expired", trust: newTimestamp, do: func(w *world) {
		w.repo.timestamp.Signed.Expires = today.Add(3600e9)
		w.repo.publish(timestamp)
		w.accept()
		w.now = today.Add(3601e9)
	}},
	{name: "the same snapshot and targets until they expire", kind: tuf.ErrExpired, reason: "snapshot version 3: expired", trust: [4]int64{1, 4, 3, 3}, do: func(w *world) {
		w.repo.snapshot.Signed.Expires, w.repo.targets.Signed.Expires = today.Add(3600e9), today.Add(3600e9)
		w.repo.publish(targets, snapshot, timestamp)
		w.accept()
		w.now = today.Add(3601e9)
		w.repo.publish(timestamp)
	}},
	{name: "the same targets until they expire", kind: tuf.ErrExpired, reason: "targets version 3: expired", trust: [4]int64{1, 4, 4, 3}, do: func(w *world) {
		w.repo.targets.Signed.Expires = today.Add(3600e9)
		w.repo.publish(targets, snapshot, timestamp)
		w.accept()
		w.now = today.Add(3601e9)
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "expires at this very moment", kind: tuf.ErrExpired, reason: "timestamp version 3: expired", trust: nothing,
		accepts: "TUF 5.4.4 wants the expiration higher than the time of the update; go-tuf takes an equal one",
		do: func(w *world) {
			w.repo.timestamp.Signed.Expires = today
			w.repo.publish(timestamp)
		}},
}

var mixtures = []attack{
	{name: "snapshot hash", hashes: true, kind: tuf.ErrMismatch, reason: "snapshot version 3: not what was vouched for: its SHA-256", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot)
		w.repo.timestamp.Signed.Meta["snapshot.json"].Hashes["sha256"] = make([]byte, 32)
		w.repo.publish(timestamp)
	}},
	{name: "snapshot's other hash", hashes: true, kind: tuf.ErrMismatch, reason: "snapshot version 3: not what was vouched for: its SHA-512", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot)
		w.repo.timestamp.Signed.Meta["snapshot.json"].Hashes["sha512"] = make([]byte, 64)
		w.repo.publish(timestamp)
	}},
	{name: "snapshot shorter than announced", kind: tuf.ErrMismatch, reason: " bytes, and 20000 were announced", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot)
		w.repo.timestamp.Signed.Meta["snapshot.json"].Length = 20000
		w.repo.publish(timestamp)
	}},
	{name: "snapshot longer than announced", kind: tuf.ErrTooLarge, reason: "3.snapshot.json: larger than allowed: more than 100 bytes", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot)
		w.repo.timestamp.Signed.Meta["snapshot.json"].Length = 100
		w.repo.publish(timestamp)
	}},
	{name: "snapshot of another version than announced", kind: tuf.ErrMismatch, reason: "snapshot version 2: not what was vouched for: version 3 was announced", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot, timestamp)
		w.repo.files["3.snapshot.json"] = w.repo.files["2.snapshot.json"]
	}},
	{name: "a snapshot from the future", kind: tuf.ErrMismatch, reason: "snapshot version 4: not what was vouched for: version 3 was announced", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot, timestamp)
		w.repo.snapshot.Signed.Version = 4
		w.repo.files["3.snapshot.json"] = seal(w.repo, w.repo.snapshot, w.repo.signers[snapshot])
	}},
	{name: "targets hash", hashes: true, kind: tuf.ErrMismatch, reason: "targets version 3: not what was vouched for: its SHA-256", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets)
		w.repo.snapshot.Signed.Meta["targets.json"].Hashes["sha256"] = make([]byte, 32)
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "targets shorter than announced", kind: tuf.ErrMismatch, reason: " bytes, and 20000 were announced", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets)
		w.repo.snapshot.Signed.Meta["targets.json"].Length = 20000
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "targets longer than announced", kind: tuf.ErrTooLarge, reason: "3.targets.json: larger than allowed: more than 100 bytes", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets)
		w.repo.snapshot.Signed.Meta["targets.json"].Length = 100
		w.repo.publish(snapshot, timestamp)
	}},
	{name: "targets of another release", kind: tuf.ErrMismatch, reason: "targets version 2: not what was vouched for: version 3 was announced", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.files["3.targets.json"] = w.repo.files["2.targets.json"]
	}},
	{name: "targets of another release, by hash", hashes: true, kind: tuf.ErrMismatch, reason: "targets version 3: not what was vouched for: ", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.files["3.targets.json"] = w.repo.files["2.targets.json"]
	}},
	{name: "targets with a space more than was hashed", hashes: true, kind: tuf.ErrTooLarge, reason: "more than", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.files["3.targets.json"] = append(w.repo.files["3.targets.json"], ' ')
	}},
}

var endlessData = []attack{
	{name: "endless root", kind: tuf.ErrTooLarge, reason: "2.root.json: larger than allowed: more than 262144 bytes", trust: nothing, do: func(w *world) {
		w.repo.files["2.root.json"] = []byte(endless)
	}},
	{name: "endless timestamp", kind: tuf.ErrTooLarge, reason: "timestamp.json: larger than allowed: more than 16384 bytes", trust: nothing, do: func(w *world) {
		w.repo.files["timestamp.json"] = []byte(endless)
	}},
	{name: "endless snapshot", kind: tuf.ErrTooLarge, reason: "3.snapshot.json: larger than allowed: more than 262144 bytes", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot, timestamp)
		w.repo.files["3.snapshot.json"] = []byte(endless)
	}},
	{name: "endless targets", kind: tuf.ErrTooLarge, reason: "3.targets.json: larger than allowed: more than 8388608 bytes", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.files["3.targets.json"] = []byte(endless)
	}},
	{name: "a snapshot announced to be huge", kind: tuf.ErrTooLarge, reason: "1099511627776 bytes announced, and 262144 are allowed", trust: newTimestamp, do: func(w *world) {
		w.repo.publish(snapshot)
		w.repo.timestamp.Signed.Meta["snapshot.json"].Length = 1 << 40
		w.repo.publish(timestamp)
		w.repo.files["3.snapshot.json"] = bytes.Repeat([]byte(" "), 1<<20)
	}},
	{name: "targets announced to be huge", kind: tuf.ErrTooLarge, reason: "1099511627776 bytes announced, and 8388608 are allowed", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets)
		w.repo.snapshot.Signed.Meta["targets.json"].Length = 1 << 40
		w.repo.publish(snapshot, timestamp)
		delete(w.repo.files, "3.targets.json")
	}},
	{name: "values without end", kind: tuf.ErrFormat, reason: "more values than allowed", trust: newSnapshot, do: func(w *world) {
		w.repo.publish(targets, snapshot, timestamp)
		w.repo.files["3.targets.json"] = []byte("[" + strings.Repeat("0,", 1<<18) + "0]")
	}},
	{name: "depth without end", kind: tuf.ErrFormat, reason: "nested deeper than allowed", trust: nothing, do: func(w *world) {
		w.repo.files["timestamp.json"] = []byte(strings.Repeat("[", 5000))
	}},
	{name: "signatures without end", kind: tuf.ErrFormat, reason: "more than 256 signatures", trust: nothing,
		accepts: "we bound the work before a signature is known to be good; go-tuf has no such bound",
		do: func(w *world) {
			w.repo.publish(timestamp)
			w.repo.edit("timestamp.json", func(file map[string]any) {
				list := file["signatures"].([]any)
				for i := range 256 {
					list = append(list, map[string]any{"keyid": fmt.Sprint(i), "sig": ""})
				}
				file["signatures"] = list
			})
		}},
}
