package audit

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/jws"
)

// The events that the log writes about itself.
const (
	eventTorn     = "audit.torn"      // a segment ends at offset: a power cut, or a disk that refused
	eventKey      = "audit.key"       // the device's key is new
	eventHeadLost = "audit.head-lost" // the log went on without a head that proves what is before
	eventUnsigned = "audit.unsigned"  // lines that no head proved when the agent started; it signs them all the same
	eventMissing  = "audit.missing"   // lines that a head had proved are gone or others
)

// maxHead bounds the file of a head, in bytes.
const maxHead = 4 << 10

// head is what a key signs: the log of this device, from First on, reaches line Seq, whose hash is Hash.
type head struct {
	Device  string `json:"dev"`
	First   uint64 `json:"first"`
	Seq     uint64 `json:"seq"`
	Hash    string `json:"hash"`
	Signed  int64  `json:"iat"`
	Trusted bool   `json:"clock_trusted"`
}

// statement is what an old key says of a new one, and where in the log.
type statement struct {
	Device string `json:"dev"`
	Seq    uint64 `json:"seq"` // of the line that carries it
	Prev   string `json:"prev"`
	To     string `json:"to"` // SubjectPublicKeyInfo, base64url
}

func headName(thumbprint string) string { return headPrefix + thumbprint + headSuffix }

// readHead reads the head that a key has signed; fs.ErrNotExist where there is none.
func readHead(fsys disk.FS, dir string, key crypto.PublicKey) (h head, err error) {
	thumbprint, err := jws.Thumbprint(key)
	if err != nil {
		return h, err
	}
	text, err := disk.ReadFile(fsys, filepath.Join(dir, headName(thumbprint)), maxHead)
	if err != nil {
		return h, err
	}
	return parseHead(string(text), key)
}

var errHead = errors.New("the signed head of the audit log cannot be believed")

func parseHead(text string, key crypto.PublicKey) (h head, err error) {
	if err := verified(text, HeadType, key, &h); err != nil {
		return head{}, fmt.Errorf("%w: %w", errHead, err)
	}
	if h.Seq == 0 || h.First == 0 || h.First > h.Seq || len(h.Hash) != 2*len(hash{}) {
		return head{}, fmt.Errorf("%w: it makes no sense", errHead)
	}
	return h, nil
}

// verified reads a token of one type that key has signed.
func verified(text, typ string, key crypto.PublicKey, v any) error {
	t, err := jws.Parse(text)
	if err != nil {
		return err
	}
	if t.Header().Typ != typ {
		return fmt.Errorf("it is of type %.40q", t.Header().Typ)
	}
	if err := t.Verify(key); err != nil {
		return err
	}
	return t.Claims(v)
}

// due says when the head is to be signed: at once at the start and where the key is another, but not soon after a
// key refused.
func (w *writer) due(now time.Time) time.Duration {
	key := w.o.Key()
	if !w.loaded || w.last == 0 || key == nil {
		return never
	}
	unsigned := w.last - w.head.Seq
	other := thumbprintOf(key.Public()) != w.headKey
	if unsigned == 0 && !other {
		return never
	}
	due := w.unsigned.Add(w.o.Config.SignEvery.Std())
	switch {
	case other || w.signedAt.IsZero():
		due = now
	case unsigned >= signLines:
		due = w.signedAt.Add(signPause)
	}
	if !w.refused.IsZero() && due.Before(w.refused.Add(signRetry)) {
		due = w.refused.Add(signRetry)
	}
	return max(0, due.Sub(now))
}

// unannounced is what the log has to say where key is another than the last, and the last has not said so.
func (w *writer) unannounced(key crypto.PublicKey) *Event {
	thumbprint, err := jws.Thumbprint(key)
	if err != nil || w.headKey == "" || w.headKey == thumbprint || w.announced == thumbprint {
		return nil
	}
	w.announced = thumbprint
	return &Event{Name: eventKey, Attrs: []slog.Attr{slog.String("from", w.headKey), slog.String("to", thumbprint)}}
}

// sign signs the head of what is on disk.
func (w *writer) sign(key crypto.Signer, device string, clock Clock) error {
	return w.signFrom(key, device, clock, w.begins)
}

// signFrom signs a head that says that the log begins at first.
func (w *writer) signFrom(key crypto.Signer, device string, clock Clock, first uint64) error {
	h, err := w.storeHead(key, device, clock, first)
	if err != nil {
		w.refused, w.refusal = time.Now(), err
		return err
	}
	w.head, w.headKey, w.signedAt = h, thumbprintOf(key.Public()), time.Now()
	w.refused, w.refusal, w.begins = time.Time{}, nil, first
	return nil
}

// storeHead signs a head with any key of ours, and puts it beside those of others.
func (w *writer) storeHead(key crypto.Signer, device string, clock Clock, first uint64) (h head, err error) {
	thumbprint, err := jws.Thumbprint(key.Public())
	if err != nil {
		return h, fmt.Errorf("signing the audit log: %w", err)
	}
	h = head{Device: device, First: first, Seq: w.last, Hash: w.lastHash.String(), Signed: clock.Now().Unix(), Trusted: clock.Trusted()}
	text, err := jws.Sign(key, map[string]any{"typ": HeadType, "kid": thumbprint}, h)
	if err != nil {
		return h, fmt.Errorf("signing the audit log: %w", err)
	}
	if thumbprint != w.headKey {
		w.dropHeads(thumbprint)
	}
	if err := atomicfile.Write(w.o.FS, filepath.Join(w.o.Dir, headName(thumbprint)), []byte(text), 0o600); err != nil {
		return h, fmt.Errorf("storing the head of the audit log: %w", err)
	}
	return h, nil
}

// dropHeads keeps the newest heads of former keys.
func (w *writer) dropHeads(keep string) {
	list, err := w.o.FS.ReadDir(w.o.Dir)
	if err != nil {
		return
	}
	var heads []fs.FileInfo
	for _, entry := range list {
		if !strings.HasPrefix(entry.Name(), headPrefix) || entry.Name() == headName(keep) || entry.Name() == headName(w.headKey) {
			continue
		}
		if info, err := entry.Info(); err == nil {
			heads = append(heads, info)
		}
	}
	slices.SortStableFunc(heads, func(a, b fs.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for _, old := range heads[min(len(heads), maxHeads-2):] {
		_ = w.o.FS.Remove(filepath.Join(w.o.Dir, old.Name())) // whatever stays is tried next time
	}
}

// knows reports whether a key has signed a head of this log, so that it can take over.
func (w *writer) knows(key crypto.PublicKey) bool {
	h, err := readHead(w.o.FS, w.o.Dir, key)
	if err != nil || h.Seq > w.last {
		return false
	}
	w.announced = thumbprintOf(key)
	return true
}

// change is the old key's word for the new one.
func (w *writer) change(old crypto.Signer, to crypto.PublicKey, device string) (e Event, err error) {
	from, err := jws.Thumbprint(old.Public())
	if err != nil {
		return e, err
	}
	thumbprint, err := jws.Thumbprint(to)
	if err != nil {
		return e, err
	}
	der, err := x509.MarshalPKIXPublicKey(to)
	if err != nil {
		return e, err
	}
	s := statement{Device: device, Seq: w.last + 1, Prev: w.lastHash.String(), To: base64.RawURLEncoding.EncodeToString(der)}
	text, err := jws.Sign(old, map[string]any{"typ": KeyType, "kid": from}, s)
	if err != nil {
		return e, err
	}
	w.announced = thumbprint
	return Event{Name: eventKey, Essential: true, Attrs: []slog.Attr{
		slog.String("from", from), slog.String("to", thumbprint), slog.String("statement", text),
	}}, nil
}

func thumbprintOf(key crypto.PublicKey) string {
	t, _ := jws.Thumbprint(key) // "" where it has none
	return t
}
