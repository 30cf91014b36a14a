package tuf_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"ferrule/firmware/tuf"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

// endless is a file without an end; the server sends as much as is asked for.
const endless = "endless"

// server gives out the files of a repository.
type server struct {
	files    map[string][]byte
	requests []string
	fail     map[string]error
}

func (s *server) Metadata(_ context.Context, name string, limit int64) ([]byte, error) {
	s.requests = append(s.requests, name)
	if err := s.fail[name]; err != nil {
		return nil, err
	}
	data, ok := s.files[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("GET %s: %w", name, fs.ErrNotExist)
	case string(data) == endless:
		return make([]byte, limit+1), nil
	case int64(len(data)) > limit:
		return append([]byte(nil), data[:limit+1]...), nil
	}
	return append([]byte(nil), data...), nil
}

// DownloadFile is the same server for go-tuf.
func (s *server) DownloadFile(url string, limit int64, _ time.Duration) ([]byte, error) {
	data, err := s.Metadata(context.Background(), path.Base(url), limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &metadata.ErrDownloadHTTP{StatusCode: 404, URL: url}
	case err == nil && int64(len(data)) > limit:
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: url}
	}
	return data, err
}

// world is one repository, our client, and go-tuf's beside it.
type world struct {
	t      testing.TB
	repo   *sim
	pin    []byte
	now    time.Time
	disk   *disktest.Disk
	client *tuf.Client
	last   *tuf.Targets
	server *server
	oracle string // go-tuf's folder; "": it is not asked
}

func newWorld(t testing.TB, repo *sim) *world {
	w := &world{t: t, repo: repo, pin: repo.files["1.root.json"], now: today, disk: disktest.New(), server: &server{}, oracle: t.TempDir()}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.client, err = openAt(w.disk, w.pin, func() time.Time { return w.now }); err != nil {
		w.t.Fatal(err)
	}
}

func openAt(d *disktest.Disk, pin []byte, now func() time.Time) (*tuf.Client, error) {
	return tuf.Open(tuf.Options{FS: d, Dir: "/state/tuf", Root: pin, Now: func() (time.Time, bool) { return now(), true }})
}

// refresh lets both clients look at the repository.
func (w *world) refresh() (ours, theirs error) {
	w.t.Helper()
	w.server.files, w.server.requests = w.repo.files, nil
	w.last, ours = w.client.Refresh(w.t.Context(), w.server)
	requests := w.server.requests
	if w.oracle != "" {
		theirs = w.askOracle()
	}
	w.server.requests = requests
	return ours, theirs
}

func (w *world) askOracle() error {
	pin := w.pin
	if stored, err := os.ReadFile(filepath.Join(w.oracle, "root.json")); err == nil {
		pin = stored
	}
	cfg, err := config.New("http://repository/metadata", pin)
	if err != nil {
		return err
	}
	cfg.Fetcher, cfg.LocalMetadataDir, cfg.LocalTargetsDir = w.server, w.oracle, w.oracle
	u, err := updater.New(cfg)
	if err != nil {
		return err
	}
	u.UnsafeSetRefTime(w.now)
	return u.Refresh()
}

// accept refreshes, and both must accept.
func (w *world) accept() {
	w.t.Helper()
	ours, theirs := w.refresh()
	if ours != nil || theirs != nil {
		w.t.Fatalf("a good repository is refused: ours %v, go-tuf %v", ours, theirs)
	}
}

// reject refreshes, and both must refuse, ours for the given reason.
func (w *world) reject(kind error, reason string) {
	w.t.Helper()
	ours, theirs := w.refresh()
	checkRefusal(w.t, ours, kind, reason)
	if theirs == nil && w.oracle != "" {
		w.t.Errorf("go-tuf accepts what we refuse: %v", ours)
	}
}

func checkRefusal(t testing.TB, err, kind error, reason string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), reason) {
		t.Errorf("refused with %q, want %q of kind %q", err, reason, kind)
	}
	if err != nil && hint.Of(err) == "" {
		t.Errorf("%q comes without a hint", err)
	}
	for _, other := range kinds {
		if other != kind && errors.Is(err, other) {
			t.Errorf("%q is also %q", err, other)
		}
	}
}

var kinds = []error{tuf.ErrFormat, tuf.ErrUnsupported, tuf.ErrSignature, tuf.ErrRollback, tuf.ErrMismatch, tuf.ErrExpired, tuf.ErrTooLarge, tuf.ErrCorrupt, tuf.ErrNoRoot}

// versions are root, timestamp, snapshot and targets.
func versions(s tuf.Status) [4]int64 {
	return [4]int64{s.Root.Version, s.Timestamp.Version, s.Snapshot.Version, s.Targets.Version}
}

// stored is what a client believes that starts on this disk after its power was cut.
func (w *world) stored() [4]int64 {
	w.t.Helper()
	c, err := openAt(w.disk.PowerCut(), w.pin, func() time.Time { return w.now })
	if err != nil {
		w.t.Fatal(err)
	}
	return versions(c.Status())
}

// expect checks what is trusted, in memory and on disk.
func (w *world) expect(root, timestamp, snapshot, targets int64) {
	w.t.Helper()
	want := [4]int64{root, timestamp, snapshot, targets}
	if got := versions(w.client.Status()); got != want {
		w.t.Errorf("trusted: root, timestamp, snapshot, targets %v, want %v", got, want)
	}
	if got := w.stored(); got != want {
		w.t.Errorf("on disk: root, timestamp, snapshot, targets %v, want %v", got, want)
	}
}
