package audit

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ferrule/internal/disk"
)

// Report is what Verify found. The log is what the device wrote, as far as it is signed, if Break is nil.
type Report struct {
	Segments int       `json:"segments"`
	First    uint64    `json:"first"` // where the log begins: 1, or later where older parts were removed
	Last     uint64    `json:"last"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	// Signed is the last line that the head proves, by the key of thumbprint Key, of the device Device, at SignedAt.
	Signed   uint64    `json:"signed"`
	SignedAt time.Time `json:"signed_at"`
	Key      string    `json:"key,omitempty"`
	Device   string    `json:"device,omitempty"`
	// Unsigned lines at the end are chained, and whoever writes the disk could have made them.
	Unsigned uint64   `json:"unsigned"`
	Notes    []string `json:"notes,omitempty"` // what is no break, and worth a look
	Break    *Break   `json:"break,omitempty"`
}

// Break is the first place where the log is not what the device wrote.
type Break struct {
	Code    string `json:"code"`
	Segment string `json:"segment,omitempty"`
	Line    int    `json:"line,omitempty"` // in the segment, from 1
	Seq     uint64 `json:"seq,omitempty"`  // that was expected
	Reason  string `json:"reason"`
}

// The codes of breaks.
const (
	BreakLine     = "line"     // not a whole line
	BreakChain    = "chain"    // the line does not follow the one before: changed, removed, moved, doubled, inserted
	BreakBegin    = "begin"    // the oldest lines are missing
	BreakCut      = "cut"      // the newest lines are missing
	BreakHead     = "head"     // the signed head is missing, or not by a key that was given
	BreakProof    = "proof"    // the line is not the one that the head proves
	BreakTorn     = "torn"     // what follows a tear is not what followed when it was found
	BreakReported = "reported" // the device itself found the log broken here
)

// Verify reads the log in dir and checks it against the heads of keys: the device's public key, or former ones, from
// which it follows what they said of their successors. The error is for what cannot be read. It may run beside the agent.
func Verify(fsys disk.FS, dir string, keys ...crypto.PublicKey) (Report, error) {
	const tries = 3 // the agent may remove a segment, or sign, under our eyes
	for try := 1; ; try++ {
		v := &verifier{fsys: fsys, dir: dir, keys: map[string]crypto.PublicKey{}, heads: map[string]head{}}
		for _, key := range keys {
			v.trust(key)
		}
		err := v.run()
		if vanished := errors.Is(err, fs.ErrNotExist); err != nil && (!vanished || try == tries) {
			return v.report, fmt.Errorf("reading the audit log: %w", err)
		}
		if err == nil && (v.report.Break == nil || try == tries || !v.changed()) {
			return v.report, nil
		}
	}
}

type verifier struct {
	fsys     disk.FS
	dir      string
	keys     map[string]crypto.PublicKey // by thumbprint
	heads    map[string]head
	texts    string // of the heads, as they were read
	segments []segment
	tears    map[string]tear
	best     head
	report   Report

	prev  hash
	begun bool
}

// tear is where a segment ends, by the word of a later one.
type tear struct {
	offset, bytes int64
	digest        string
}

func (v *verifier) trust(key crypto.PublicKey) {
	if t := thumbprintOf(key); t != "" {
		v.keys[t] = key
	}
}

func (v *verifier) broken(b Break) { v.report.Break = &b }

func (v *verifier) notef(format string, args ...any) {
	v.report.Notes = append(v.report.Notes, fmt.Sprintf(format, args...))
}

func (v *verifier) run() (err error) {
	if v.texts, err = v.headTexts(); err != nil {
		return err
	}
	if v.segments, err = list(v.fsys, v.dir); err != nil {
		return err
	}
	v.report.Segments = len(v.segments)
	if err := v.survey(); err != nil {
		return err
	}
	if !v.readHeads() {
		return nil
	}
	for i := range v.segments {
		if err := v.walk(i); err != nil || v.report.Break != nil {
			return err
		}
	}
	v.finish()
	return nil
}

// headTexts are the heads of the folder, to notice whether they change meanwhile.
func (v *verifier) headTexts() (string, error) {
	entries, err := v.fsys.ReadDir(v.dir)
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), headPrefix) && strings.HasSuffix(e.Name(), headSuffix) {
			text, err := disk.ReadFile(v.fsys, filepath.Join(v.dir, e.Name()), maxHead)
			if err != nil && !errors.Is(err, disk.ErrTooLarge) {
				return "", err
			}
			fmt.Fprintf(&all, "%s %s\n", e.Name(), text)
		}
	}
	return all.String(), nil
}

func (v *verifier) changed() bool {
	texts, err := v.headTexts()
	return err != nil || texts != v.texts
}

// survey reads what later segments say of the ends of earlier ones, and what old keys say of new ones.
func (v *verifier) survey() error {
	v.tears = map[string]tear{}
	for _, s := range v.segments {
		opening := true
		_, err := scan(v.fsys, filepath.Join(v.dir, s.name()), -1, func(l Line, _ []byte, _ int64) error {
			opening = opening && strings.HasPrefix(l.Event, "audit.")
			if l.Event == eventTorn && opening {
				v.tears[l.text("segment")] = tear{l.number("offset"), l.number("bytes"), l.text("sha256")}
			}
			if l.Event == eventKey {
				v.follow(l)
			}
			return nil
		})
		if err != nil && !errors.Is(err, errTorn) {
			return err
		}
	}
	return nil
}

// follow trusts a key that a trusted key has named in this very line.
func (v *verifier) follow(l Line) {
	key, trusted := v.keys[l.text("from")]
	var s statement
	if !trusted || verified(l.text("statement"), KeyType, key, &s) != nil || s.Seq != l.Seq || s.Prev != l.Prev {
		return
	}
	der, err := base64.RawURLEncoding.DecodeString(s.To)
	if err != nil {
		return
	}
	if next, err := x509.ParsePKIXPublicKey(der); err == nil && thumbprintOf(next) == l.text("to") {
		v.trust(next)
	}
}

// readHeads reads the heads of all trusted keys. The one that reaches farthest counts; the others must be true too.
func (v *verifier) readHeads() bool {
	for _, thumbprint := range slices.Sorted(maps.Keys(v.keys)) {
		h, err := readHead(v.fsys, v.dir, v.keys[thumbprint])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			v.broken(Break{Code: BreakHead, Segment: headName(thumbprint), Reason: err.Error()})
			return false
		}
		v.heads[thumbprint] = h
		if h.Seq > v.best.Seq {
			v.best = h
			v.report.Key, v.report.Device, v.report.Signed, v.report.SignedAt = thumbprint, h.Device, h.Seq, time.Unix(h.Signed, 0).UTC()
		}
	}
	if len(v.heads) == 0 {
		v.broken(Break{Code: BreakHead, Reason: "no key that was given has signed a head of this log"})
	}
	return len(v.heads) > 0
}

// walk checks the lines of segment i.
func (v *verifier) walk(i int) error {
	s := v.segments[i]
	path, number := filepath.Join(v.dir, s.name()), 0
	t, torn := v.tears[s.name()]
	limit := int64(-1)
	if torn {
		limit = max(0, t.offset)
	}
	end, err := scan(v.fsys, path, limit, func(l Line, raw []byte, _ int64) error {
		number++
		v.line(s, number, l, raw)
		if v.report.Break != nil {
			return io.EOF
		}
		return nil
	})
	switch {
	case v.report.Break != nil:
		return nil
	case err != nil && !errors.Is(err, errTorn):
		return err
	case torn && (err != nil || end != limit):
		v.broken(Break{BreakLine, s.name(), number + 1, v.report.Last + 1, "this is not a whole line of the log"})
		return nil
	case torn:
		return v.void(s, number, t)
	case err != nil:
		return v.tail(i, number, end)
	}
	return nil
}

// line checks one line against the one before, and against the heads.
func (v *verifier) line(s segment, number int, l Line, raw []byte) {
	at := Break{Segment: s.name(), Line: number, Seq: v.report.Last + 1}
	switch {
	case !v.begun:
		v.begun, v.report.First, v.report.From = true, l.Seq, l.Time
		if l.Seq == 1 && l.Prev != (hash{}).String() {
			at.Seq, at.Code, at.Reason = 1, BreakChain, "the first line names a line before it"
		}
		if l.Seq > v.best.First {
			at.Seq, at.Code, at.Reason = v.best.First, BreakBegin, fmt.Sprintf("the log begins with line %d; the head says %d", l.Seq, v.best.First)
		}
	case l.Seq != v.report.Last+1:
		at.Code, at.Reason = BreakChain, fmt.Sprintf("line %d follows line %d", l.Seq, v.report.Last)
	case l.Prev != v.prev.String():
		at.Code, at.Reason = BreakChain, fmt.Sprintf("line %d was written after another line %d than the one that is here", l.Seq, v.report.Last)
	}
	v.report.Last, v.report.To, v.prev = l.Seq, l.Time, hashOf(raw)
	for _, h := range v.heads {
		if h.Seq == l.Seq && h.Hash != v.prev.String() && at.Code == "" {
			at.Code, at.Reason = BreakProof, fmt.Sprintf("line %d is not the one that the head proves", l.Seq)
		}
	}
	v.own(l, &at)
	if at.Code != "" {
		v.broken(at)
	}
}

// own takes what the log says of itself.
func (v *verifier) own(l Line, at *Break) {
	switch l.Event {
	case eventMissing:
		if at.Code == "" {
			at.Code, at.Reason = BreakReported, fmt.Sprintf("the device found at a start that lines up to %d, which its key had proved, were missing or others", l.number("signed"))
		}
	case eventHeadLost:
		before := uint64(max(0, l.number("last")))
		proved := slices.ContainsFunc(slices.Collect(maps.Values(v.heads)), func(h head) bool { return before <= h.Seq && h.Seq < l.Seq })
		switch {
		case proved: // by a former key
		case before <= signLines:
			v.notef("lines up to %d were never signed at their time", before)
		case at.Code == "":
			at.Code, at.Reason = BreakReported, fmt.Sprintf("the device found at a start no head that proves the lines up to %d; with the certificates of former keys they may be proved", before)
		}
	case eventUnsigned:
		v.notef("lines %d to %d were on the disk, and not signed, when the agent started at line %d after a power cut or a kill; whoever could write the disk meanwhile could have written them",
			l.number("from"), l.number("to"), l.Seq)
	case eventKey:
		word := "by the word of the old key"
		if l.text("statement") == "" {
			word = "without a word of the old key"
		}
		v.notef("line %d: the device's key changed from %.43q to %.43q %s", l.Seq, l.text("from"), l.text("to"), word)
	}
}

// void checks what follows a tear that was found at a later start.
func (v *verifier) void(s segment, lines int, t tear) error {
	f, err := v.fsys.OpenFile(filepath.Join(v.dir, s.name()), 0, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size() - t.offset
	v.notef("%s: what follows line %d was torn by a power cut or a disk that refused: %d bytes", s.name(), lines, size)
	if t.bytes < 0 {
		return nil // whatever a disk made of a write that it refused
	}
	digest := sha256.New()
	if _, err := io.Copy(digest, io.NewSectionReader(f, t.offset, max(0, size))); err != nil {
		return err
	}
	if size != t.bytes || hex.EncodeToString(digest.Sum(nil)) != t.digest {
		v.broken(Break{BreakTorn, s.name(), lines + 1, v.report.Last + 1, "what follows the tear is not what followed when the device found it"})
	}
	return nil
}

// tail judges a segment that ends in something else than a line, which no later line explains.
func (v *verifier) tail(i, lines int, end int64) error {
	s := v.segments[i]
	size, err := sizeOf(v.fsys, filepath.Join(v.dir, s.name()))
	if err != nil {
		return err
	}
	last := true
	for _, later := range v.segments[i+1:] {
		end, err := scan(v.fsys, filepath.Join(v.dir, later.name()), -1, func(Line, []byte, int64) error { return nil })
		if err != nil && !errors.Is(err, errTorn) {
			return err
		}
		last = last && end == 0
	}
	if !last || v.report.Last < v.best.Seq || size-end > maxBatch+MaxLine {
		v.broken(Break{BreakLine, s.name(), lines + 1, v.report.Last + 1, "this is not a whole line of the log"})
		return nil
	}
	v.notef("%s: the last %d bytes, after line %d, are torn: a power cut, or the agent is writing", s.name(), size-end, lines)
	return nil
}

// finish judges the end.
func (v *verifier) finish() {
	r := &v.report
	if r.Last < v.best.Seq {
		v.broken(Break{Code: BreakCut, Seq: r.Last + 1, Reason: fmt.Sprintf("the log ends with line %d; the head proves lines up to %d", r.Last, v.best.Seq)})
		return
	}
	r.Unsigned = r.Last - v.best.Seq
}
