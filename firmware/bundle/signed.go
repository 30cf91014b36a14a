package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The roles of a repository.
const (
	rootRole      = metadata.ROOT
	targetsRole   = metadata.TARGETS
	snapshotRole  = metadata.SNAPSHOT
	timestampRole = metadata.TIMESTAMP
)

func roles() []string { return []string{rootRole, targetsRole, snapshotRole, timestampRole} }

// defaultLife is how long a signature holds where nobody has said otherwise. A timestamp that
// runs out stops updates, never a device; two weeks let a cron job fail over the holidays.
func defaultLife(role string) time.Duration {
	const day = 24 * time.Hour
	switch role {
	case rootRole:
		return 3 * 365 * day
	case targetsRole:
		return 365 * day
	case snapshotRole:
		return 30 * day
	}
	return 14 * day
}

// writeSecret writes a file that only its owner may read.
func writeSecret(fsys disk.FS, name string, text []byte) error {
	return atomicfile.Write(fsys, name, text, 0o600)
}

// sign replaces the signatures of meta by those of the keys that root names for the role, and
// writes it out. Errors are ErrKeys where there are fewer than the threshold.
func sign[T metadata.Roles](root *metadata.RootType, role string, keys Keys, meta *metadata.Metadata[T]) ([]byte, error) {
	meta.ClearSignatures()
	if err := addSignatures(root, role, keys, meta); err != nil {
		return nil, err
	}
	return encode(meta)
}

func addSignatures[T metadata.Roles](root *metadata.RootType, role string, keys Keys, meta *metadata.Metadata[T]) error {
	message, err := canonical(meta.Signed)
	if err != nil {
		return fmt.Errorf("signing %s: %w", role, err)
	}
	named := root.Roles[role]
	if named == nil {
		return fmt.Errorf("signing %s: %w: the root has no such role", role, ErrDamaged)
	}
	have := 0
	for _, k := range keys {
		if !slices.Contains(named.KeyIDs, k.ID) {
			continue
		}
		have++
		if slices.ContainsFunc(meta.Signatures, func(s metadata.Signature) bool { return s.KeyID == k.ID }) {
			continue // a key of the root before, which is also one of the new root
		}
		signature, err := k.sign(message)
		if err != nil {
			return fmt.Errorf("signing %s with key %s: %w", role, k.ID, err)
		}
		meta.Signatures = append(meta.Signatures, metadata.Signature{KeyID: k.ID, Signature: signature})
	}
	if have < named.Threshold {
		err := fmt.Errorf("signing %s: %w: %d of its %d keys are here, and %d are needed", role, ErrKeys, have, len(named.KeyIDs), named.Threshold)
		return hint.With(err, keysHint(role, named.KeyIDs))
	}
	return nil
}

func keysHint(role string, ids []string) string {
	flag := "--keys"
	if role == rootRole {
		flag = "--root"
	}
	var short []string
	for _, id := range ids {
		short = append(short, id[:min(8, len(id))])
	}
	return fmt.Sprintf("give the keys of %s with %s FILE or FOLDER, several times if need be; their ids begin with %s", role, flag, strings.Join(short, ", "))
}

func encode[T metadata.Roles](meta *metadata.Metadata[T]) ([]byte, error) {
	slices.SortFunc(meta.Signatures, func(a, b metadata.Signature) int { return strings.Compare(a.KeyID, b.KeyID) })
	data, err := meta.ToBytes(false)
	if err != nil {
		return nil, fmt.Errorf("writing metadata: %w", err)
	}
	return append(data, '\n'), nil
}

// canonical is the form that signatures are over: OLPC canonical JSON (TUF specification 1.0, 4.2).
func canonical(v any) ([]byte, error) { return form{}.of(v) }

// compact is the same form with control characters escaped, so that it is JSON: that in which
// devices hash a manifest.
func compact(v any) ([]byte, error) { return form{escape: true}.of(v) }

type form struct{ escape bool }

func (f form) of(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	return f.append(nil, value)
}

func (f form) append(out []byte, value any) (_ []byte, err error) {
	switch v := value.(type) {
	case nil:
		return append(out, "null"...), nil
	case bool:
		return fmt.Append(out, v), nil
	case json.Number:
		if _, err := v.Int64(); err != nil {
			return nil, fmt.Errorf("%s is no integer, and canonical JSON has no other numbers", v)
		}
		return append(out, v...), nil
	case string:
		return f.quote(out, v), nil
	case []any:
		out = append(out, '[')
		for i, element := range v {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = f.append(out, element); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	case map[string]any:
		return f.object(out, v)
	}
	return nil, errors.New("canonical JSON has no such value")
}

func (f form) quote(out []byte, text string) []byte {
	out = append(out, '"')
	for i := range len(text) {
		switch b := text[i]; {
		case b == '"' || b == '\\':
			out = append(out, '\\', b)
		case b < ' ' && f.escape:
			out = fmt.Appendf(out, `\u%04x`, b)
		default:
			out = append(out, b)
		}
	}
	return append(out, '"')
}

func (f form) object(out []byte, members map[string]any) (_ []byte, err error) {
	out = append(out, '{')
	for i, name := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(f.quote(out, name), ':')
		if out, err = f.append(out, members[name]); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}
