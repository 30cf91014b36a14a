package tuf

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"
)

// The four roles, as files and members call them.
const (
	roleRoot      = "root"
	roleTimestamp = "timestamp"
	roleSnapshot  = "snapshot"
	roleTargets   = "targets"
)

// maxSignatures bounds the work before any signature is known to be good.
const maxSignatures = 256

// document is one metadata file, read but not believed: authority.verify does that.
type document struct {
	role       string
	raw        []byte // as it came: what others vouch for with a hash, and what is stored
	signed     []byte // the canonical form of "signed"; nil once believed
	signatures []signature
	version    int64
	expires    time.Time

	consistent  bool        // root
	authorities []authority // root: of root, timestamp, snapshot, targets
	meta        []metaFile  // timestamp, snapshot: by name
	targets     []Target    // targets: by path
	delegates   bool        // targets
}

// metaFile is what a timestamp or a snapshot vouches for (TUF 4.4 METAFILES).
type metaFile struct {
	name    string
	version int64
	length  int64  // in bytes; 0: not said
	sha256  []byte // nil: not said
	sha512  []byte
}

func (d *document) String() string { return fmt.Sprintf("%s version %d", d.role, d.version) }

func (d *document) status() RoleStatus {
	if d == nil {
		return RoleStatus{}
	}
	return RoleStatus{Version: d.version, Expires: d.expires}
}

// authority returns who signs for a role; d is a root.
func (d *document) authority(role string) *authority {
	for i, name := range [...]string{roleRoot, roleTimestamp, roleSnapshot, roleTargets} {
		if name == role {
			return &d.authorities[i]
		}
	}
	return &authority{threshold: 1}
}

// file returns what d vouches for under a name.
func (d *document) file(name string) (metaFile, bool) {
	i := sort.Search(len(d.meta), func(i int) bool { return d.meta[i].name >= name })
	if i < len(d.meta) && d.meta[i].name == name {
		return d.meta[i], true
	}
	return metaFile{}, false
}

// match checks a file's bytes against what was vouched for (TUF 5.5.2, 5.6.2).
func (m *metaFile) match(raw []byte) error {
	if m.length > 0 && m.length != int64(len(raw)) {
		return fmt.Errorf("%d bytes, and %d were announced", len(raw), m.length)
	}
	sum, long := sha256.Sum256(raw), sha512.Sum512(raw)
	if m.sha256 != nil && subtle.ConstantTimeCompare(m.sha256, sum[:]) == 0 {
		return errors.New("its SHA-256 is another than announced")
	}
	if m.sha512 != nil && subtle.ConstantTimeCompare(m.sha512, long[:]) == 0 {
		return errors.New("its SHA-512 is another than announced")
	}
	return nil
}

// parse reads the file of one role. Members that the specification does not know are part of
// what is signed and otherwise ignored (TUF section 4).
func parse(role string, raw []byte) (*document, error) {
	d := &document{role: role, raw: raw}
	v, err := parseJSON(raw)
	if err == nil {
		err = d.readEnvelope(v)
	}
	if err != nil {
		return nil, refuse(ErrFormat, role, "%v", err)
	}
	signed := v.get("signed")
	// Clients MUST verify that spec_version matches; a new major version may mean anything.
	if spec := signed.get("spec_version"); spec.kind != text || !strings.HasPrefix(spec.text, "1.") {
		return nil, refuse(ErrUnsupported, role, "it is written to specification %.20q, this client to 1.0", spec.text)
	}
	if err := d.readSigned(signed); err != nil {
		return nil, refuse(ErrFormat, role, "%v", err)
	}
	return d, nil
}

func (d *document) readEnvelope(v *value) error {
	signed, signatures := v.get("signed"), v.get("signatures")
	switch {
	case signed.kind != object || signatures.kind != list:
		return errors.New(`it needs "signed" and "signatures"`)
	case signed.get("_type").text != d.role:
		return fmt.Errorf("it says that it is a %.40q", signed.get("_type").text)
	case len(signatures.items) > maxSignatures:
		return fmt.Errorf("more than %d signatures", maxSignatures)
	}
	d.signed = signed.canonical(make([]byte, 0, len(d.raw)))
	for i := range signatures.items {
		keyid, sig := signatures.items[i].get("keyid"), signatures.items[i].get("sig")
		if keyid.kind != text || sig.kind != text {
			return errors.New("a signature without keyid or sig")
		}
		// TUF 4.2.1: the keyid MUST be unique in the "signatures" array.
		for _, other := range d.signatures {
			if other.keyid == keyid.text {
				return fmt.Errorf("two signatures of key %.80q", keyid.text)
			}
		}
		b, err := hex.DecodeString(sig.text)
		if err != nil {
			b = nil
		}
		d.signatures = append(d.signatures, signature{keyid: keyid.text, sig: b})
	}
	return nil
}

func (d *document) readSigned(v *value) error {
	var ok bool
	if d.version, ok = v.get("version").integer(1); !ok {
		return errors.New("its version is not a number above 0")
	}
	var err error
	if d.expires, err = time.Parse(time.RFC3339, v.get("expires").text); err != nil {
		return errors.New("its expires is not a date and time")
	}
	switch d.role {
	case roleRoot:
		return d.readRoot(v)
	case roleTargets:
		return d.readTargets(v)
	}
	return d.readMeta(v)
}

func (d *document) readRoot(v *value) error {
	keys, roles := v.get("keys"), v.get("roles")
	if keys.kind != object || roles.kind != object {
		return errors.New("it needs keys and roles")
	}
	consistent := v.get("consistent_snapshot")
	d.consistent = consistent.kind == boolean && consistent.text == "true"
	known := make([]key, 0, len(keys.items))
	for i := range keys.items {
		k, err := parseKey(keys.items[i].name, &keys.items[i].value)
		if err != nil {
			return err
		}
		known = append(known, k)
	}
	for _, name := range [...]string{roleRoot, roleTimestamp, roleSnapshot, roleTargets} {
		a, err := readAuthority(roles.get(name), known)
		if err != nil {
			return fmt.Errorf("role %s: %w", name, err)
		}
		d.authorities = append(d.authorities, a)
	}
	return nil
}

// readAuthority reads who signs for one role. known is sorted by id.
func readAuthority(v *value, known []key) (a authority, err error) {
	var ok bool
	if a.threshold, ok = v.get("threshold").integer(1); !ok {
		return a, errors.New("its threshold is not a number above 0")
	}
	keyids := v.get("keyids")
	if keyids.kind != list {
		return a, errors.New("it needs keyids")
	}
	for i := range keyids.items {
		if keyids.items[i].kind != text {
			return a, errors.New("a keyid that is not a string")
		}
		a.keyids = append(a.keyids, keyids.items[i].text)
	}
	sort.Strings(a.keyids)
	for i, id := range a.keyids {
		if i > 0 && a.keyids[i-1] == id {
			continue // a key listed twice is one key
		}
		at := sort.Search(len(known), func(i int) bool { return known[i].id >= id })
		if at < len(known) && known[at].id == id {
			a.keys = append(a.keys, known[at])
		}
	}
	return a, nil
}

func (d *document) readMeta(v *value) error {
	meta := v.get("meta")
	if meta.kind != object {
		return errors.New("it needs meta")
	}
	for i := range meta.items {
		m, err := readMetaFile(&meta.items[i])
		if err != nil {
			return fmt.Errorf("%.80q: %w", m.name, err)
		}
		d.meta = append(d.meta, m)
	}
	needs := "snapshot.json"
	if d.role == roleSnapshot {
		needs = "targets.json"
	}
	if _, ok := d.file(needs); !ok {
		return fmt.Errorf("it does not mention %s", needs)
	}
	return nil
}

func readMetaFile(v *member) (m metaFile, err error) {
	m.name = v.name
	var ok bool
	if m.version, ok = v.get("version").integer(1); !ok {
		return m, errors.New("its version is not a number above 0")
	}
	if length := v.get("length"); length.kind != null {
		if m.length, ok = length.integer(1); !ok {
			return m, errors.New("its length is not a number above 0")
		}
	}
	if hashes := v.get("hashes"); hashes.kind != null {
		m.sha256, m.sha512, err = readHashes(hashes)
	}
	return m, err
}

// readHashes reads the hashes we know. Where there are only others nothing could be checked, and
// that is an error; an empty object says nothing, as if it were not there.
func readHashes(v *value) (short, long []byte, err error) {
	if v.kind != object {
		return nil, nil, errors.New("its hashes are not an object")
	}
	for i := range v.items {
		b, err := hex.DecodeString(v.items[i].text)
		switch name := v.items[i].name; {
		case name != "sha256" && name != "sha512":
			continue
		case err != nil || v.items[i].kind != text, name == "sha256" && len(b) != sha256.Size, name == "sha512" && len(b) != sha512.Size:
			return nil, nil, fmt.Errorf("its %s is not one", name)
		case name == "sha256":
			short = b
		default:
			long = b
		}
	}
	if len(v.items) > 0 && short == nil && long == nil {
		return nil, nil, errors.New("its hashes are of kinds we do not know")
	}
	return short, long, nil
}

func (d *document) readTargets(v *value) error {
	targets := v.get("targets")
	if targets.kind != object {
		return errors.New("it needs targets")
	}
	if delegations := v.get("delegations"); delegations.kind != null {
		roles := delegations.get("roles")
		d.delegates = delegations.kind != object || len(roles.items) > 0 || delegations.get("succinct_roles").kind != null
	}
	d.targets = make([]Target, 0, len(targets.items))
	for i := range targets.items {
		t, err := readTarget(&targets.items[i])
		if err != nil {
			return fmt.Errorf("target %.80q: %w", t.path, err)
		}
		d.targets = append(d.targets, t)
	}
	return nil
}

func readTarget(v *member) (t Target, err error) {
	t.path = strings.Clone(v.name) // else it would keep the whole document
	var ok bool
	if t.length, ok = v.get("length").integer(0); !ok {
		return t, errors.New("its length is not a number")
	}
	short, _, err := readHashes(v.get("hashes"))
	if err != nil {
		return t, err
	}
	if copy(t.sha256[:], short) != sha256.Size {
		return t, errors.New("it has no sha256")
	}
	switch custom := v.get("custom"); custom.kind {
	case null:
	case object:
		t.custom = custom.compact(nil)
	default:
		return t, errors.New("its custom is not an object")
	}
	return t, nil
}
