package tuf_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

const (
	root      = metadata.ROOT
	timestamp = metadata.TIMESTAMP
	snapshot  = metadata.SNAPSHOT
	targets   = metadata.TARGETS
)

var (
	allRoles = []string{root, targets, snapshot, timestamp} // in the order of publishing
	today    = time.Date(2031, 5, 1, 12, 0, 0, 0, time.UTC)
	later    = today.AddDate(1, 0, 0)
)

// signer is a key, and the id it goes by: another one than its own in some attacks.
type signer struct {
	key  *metadata.Key
	id   string
	sign func(message []byte) []byte
}

// newSigner makes the n-th Ed25519 key, the same in every run.
func newSigner(t testing.TB, n int) *signer {
	seed := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	private := ed25519.NewKeyFromSeed(seed[:])
	return signerOf(t, private.Public(), func(m []byte) []byte { return ed25519.Sign(private, m) })
}

func signerOf(t testing.TB, public crypto.PublicKey, sign func([]byte) []byte) *signer {
	key, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key: key, id: must(key.ID()), sign: sign}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sim is a repository whose metadata go-tuf's own types write, and which an attacker may edit.
type sim struct {
	t         testing.TB
	root      *metadata.Metadata[metadata.RootType]
	timestamp *metadata.Metadata[metadata.TimestampType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	targets   *metadata.Metadata[metadata.TargetsType]
	signers   map[string][]*signer
	files     map[string][]byte // what the server has, by name
	hashes    bool              // timestamp and snapshot vouch with length and hashes
	indent    bool              // files are written with line breaks
	keys      int               // made so far
}

// newSim is a repository of one version of everything, with one key for each role.
func newSim(t testing.TB) *sim {
	s := &sim{
		t:         t,
		root:      metadata.Root(later),
		timestamp: metadata.Timestamp(later),
		snapshot:  metadata.Snapshot(later),
		targets:   metadata.Targets(later),
		signers:   make(map[string][]*signer),
		files:     make(map[string][]byte),
	}
	for _, role := range allRoles {
		s.addKey(role)
	}
	s.addTarget("gw/1.0", "the first release", `{"release":1,"notes":"a \"first\"\n<one> & only"}`)
	s.root.Signed.Version, s.targets.Signed.Version, s.snapshot.Signed.Version, s.timestamp.Signed.Version = 0, 0, 0, 0
	s.publish(allRoles...)
	return s
}

func (s *sim) newSigner() *signer {
	s.keys++
	return newSigner(s.t, s.keys)
}

// addKey lets one more key sign for a role.
func (s *sim) addKey(role string) *signer {
	k := s.newSigner()
	s.trust(role, k)
	s.signers[role] = append(s.signers[role], k)
	return k
}

// trust lists a key for a role.
func (s *sim) trust(role string, k *signer) {
	s.root.Signed.Keys[k.id] = k.key
	s.root.Signed.Roles[role].KeyIDs = append(s.root.Signed.Roles[role].KeyIDs, k.id)
}

// rotate gives a role another key.
func (s *sim) rotate(roles ...string) {
	for _, role := range roles {
		s.signers[role], s.root.Signed.Roles[role].KeyIDs = nil, nil
		s.addKey(role)
	}
}

func (s *sim) addTarget(path, content, custom string) {
	file := must(metadata.TargetFile().FromBytes(path, []byte(content), "sha256"))
	if custom != "" {
		raw := json.RawMessage(custom)
		file.Custom = &raw
	}
	s.targets.Signed.Targets[path] = file
}

// publish writes the next version of each role.
func (s *sim) publish(roles ...string) {
	for _, role := range roles {
		switch role {
		case root:
			s.root.Signed.Version++
		case targets:
			s.targets.Signed.Version++
		case snapshot:
			s.snapshot.Signed.Version++
		case timestamp:
			s.timestamp.Signed.Version++
		}
		s.write(role)
	}
}

// write signs a role as it is, and lets those above it vouch for it.
func (s *sim) write(role string) {
	var raw []byte
	switch role {
	case root:
		raw = seal(s, s.root, s.signers[role])
		s.files[fmt.Sprintf("%d.root.json", s.root.Signed.Version)] = raw
	case targets:
		raw = seal(s, s.targets, s.signers[role])
		s.files[fmt.Sprintf("%d.targets.json", s.targets.Signed.Version)] = raw
		s.snapshot.Signed.Meta["targets.json"] = s.metaFile(s.targets.Signed.Version, raw)
	case snapshot:
		raw = seal(s, s.snapshot, s.signers[role])
		s.files[fmt.Sprintf("%d.snapshot.json", s.snapshot.Signed.Version)] = raw
		s.timestamp.Signed.Meta["snapshot.json"] = s.metaFile(s.snapshot.Signed.Version, raw)
	case timestamp:
		s.files["timestamp.json"] = seal(s, s.timestamp, s.signers[role])
	}
}

func (s *sim) metaFile(version int64, raw []byte) *metadata.MetaFiles {
	m := metadata.MetaFile(version)
	if s.hashes {
		short, long := sha256.Sum256(raw), sha512.Sum512(raw)
		m.Length, m.Hashes = int64(len(raw)), metadata.Hashes{"sha256": short[:], "sha512": long[:]}
	}
	return m
}

// seal signs as go-tuf does, and lets go-tuf write the file.
func seal[T metadata.Roles](s *sim, m *metadata.Metadata[T], signers []*signer) []byte {
	payload := must(cjson.EncodeCanonical(m.Signed))
	m.ClearSignatures()
	for _, k := range signers {
		m.Signatures = append(m.Signatures, metadata.Signature{KeyID: k.id, Signature: k.sign(payload)})
	}
	return must(m.ToBytes(s.indent))
}

// edit changes a file on the server as an attacker does: without any key.
func (s *sim) edit(name string, change func(file map[string]any)) {
	file := s.read(name)
	change(file)
	s.files[name] = must(json.Marshal(file))
}

// forge changes what is signed in ways that go-tuf's types cannot say, and signs that.
func (s *sim) forge(name, role string, change func(signed map[string]any)) {
	file := s.read(name)
	signed := file["signed"].(map[string]any)
	change(signed)
	payload := must(cjson.EncodeCanonical(signed))
	var signatures []any
	for _, k := range s.signers[role] {
		signatures = append(signatures, map[string]any{"keyid": k.id, "sig": fmt.Sprintf("%x", k.sign(payload))})
	}
	file["signatures"] = signatures
	s.files[name] = must(json.Marshal(file))
}

func (s *sim) read(name string) map[string]any {
	if s.files[name] == nil {
		s.t.Fatalf("the server has no %s", name)
	}
	d := json.NewDecoder(bytes.NewReader(s.files[name]))
	d.UseNumber()
	var file map[string]any
	if err := d.Decode(&file); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// replace changes text in a file; the signatures stay what they are.
func (s *sim) replace(name, from, to string) {
	if !strings.Contains(string(s.files[name]), from) {
		s.t.Fatalf("%s has no %s: %s", name, from, s.files[name])
	}
	s.files[name] = []byte(strings.Replace(string(s.files[name]), from, to, 1))
}

// clone is the repository before an attack.
func (s *sim) clone() *sim {
	c := *s
	c.root = must(metadata.Root().FromBytes(must(s.root.ToBytes(false))))
	c.timestamp = must(metadata.Timestamp().FromBytes(must(s.timestamp.ToBytes(false))))
	c.snapshot = must(metadata.Snapshot().FromBytes(must(s.snapshot.ToBytes(false))))
	c.targets = must(metadata.Targets().FromBytes(must(s.targets.ToBytes(false))))
	c.files = maps.Clone(s.files)
	c.signers = make(map[string][]*signer)
	for role, list := range s.signers {
		c.signers[role] = append([]*signer(nil), list...)
	}
	return &c
}

// recover publishes the repository again with versions above all that an attack can have shown.
func (s *sim) recover() {
	s.targets.Signed.Version += 10
	s.snapshot.Signed.Version += 10
	s.timestamp.Signed.Version += 10
	s.publish(targets, snapshot, timestamp)
}
