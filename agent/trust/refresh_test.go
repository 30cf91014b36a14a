package trust

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/internal/disk/disktest"
)

// site is where lists are fetched from.
type site struct {
	sync.Mutex
	lists map[string][]byte
	err   error
	make  func(url string) []byte // in place of lists
	asked []time.Time
	tags  []string
}

func (s *site) fetch(_ context.Context, url, tag string) ([]byte, string, error) {
	s.Lock()
	defer s.Unlock()
	s.asked, s.tags = append(s.asked, time.Now()), append(s.tags, tag)
	if s.err != nil {
		return nil, "", s.err
	}
	if s.make != nil {
		return s.make(url), "", nil
	}
	if tag == `"`+digest(s.lists[url])+`"` {
		return nil, "", ErrNotModified
	}
	return s.lists[url], `"` + digest(s.lists[url]) + `"`, nil
}

func (s *site) set(url string, text []byte, err error) {
	s.Lock()
	defer s.Unlock()
	s.lists[url], s.err, s.asked, s.tags = text, err, nil, nil
}

func (s *site) times() []time.Time { s.Lock(); defer s.Unlock(); return s.asked }

const rootURL, issuingURL = "http://ca.example/root.crl", "http://ca.example/issuing.crl"

// fetching is a revocation that runs, with lists from a site.
type fetching struct {
	*Revocation
	*world
	site *site
	pki  *pki
	stop func()
}

func newFetching(t *testing.T, policy Policy) *fetching {
	f := &fetching{world: newWorld(), pki: newPKI(t)}
	f.site = &site{lists: map[string][]byte{rootURL: f.pki.root.revoke(t, nil), issuingURL: f.pki.issuing.revoke(t, nil)}}
	f.start(t, policy, f.Options)
	return f
}

func (f *fetching) start(t *testing.T, policy Policy, o Options) {
	c := DefaultRevocation()
	c.Policy, c.CRL = policy, []string{rootURL, issuingURL}
	f.Revocation = must[*Revocation](t)(NewRevocation(c, o, f.site.fetch))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = f.Run(ctx) }()
	f.stop = func() { cancel(); <-ended }
}

// told says whether a look at the connections was asked for, and forgets it.
func (w *world) told() bool {
	n := len(w.changes)
	for range n {
		<-w.changes
	}
	return n > 0
}

func TestListsAreFetchedBelievedAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetching(t, PolicyHard)
		defer func() { f.stop() }()
		synctest.Wait()
		if len(f.site.times()) != 2 || f.Status().Lists[0].Believed || f.told() {
			t.Errorf("%d fetches, %+v", len(f.site.times()), f.Status())
		}
		expect(t, f.Revocation, f.pki, nil, "", "") // shows the issuers
		synctest.Wait()
		if st := f.Status().Lists; !st[0].Believed || !st[1].Believed || !f.told() {
			t.Errorf("%+v", st)
		}
		// Served from the disk after a power cut, while nothing can be fetched.
		f.stop()
		f.site.set(rootURL, nil, errors.New("down"))
		f.start(t, PolicyHard, f.on(f.disk.PowerCut()))
		expect(t, f.Revocation, f.pki, nil, "", "")
		f.told()
		// Whoever revokes is heard within the refresh.
		f.site.set(issuingURL, f.pki.issuing.revoke(t, nil, f.pki.broker.SerialNumber), nil)
		f.site.set(rootURL, f.pki.root.revoke(t, nil), nil)
		time.Sleep(6*time.Hour + time.Minute)
		synctest.Wait()
		if !f.told() {
			t.Error("the connections were not looked at again")
		}
		expect(t, f.Revocation, f.pki, nil, ResultRevoked, "revoked")
	})
}

// Somebody in between may withhold a list. He may not replace one, or bring an old one back.
func TestListsThatSomebodySlipsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetching(t, PolicySoft)
		defer func() { f.stop() }()
		before := f.site.lists[issuingURL]
		synctest.Wait()
		expect(t, f.Revocation, f.pki, nil, "", "")
		time.Sleep(time.Second)
		f.site.set(issuingURL, f.pki.issuing.revoke(t, nil, f.pki.broker.SerialNumber), nil)
		time.Sleep(7 * time.Hour)
		expect(t, f.Revocation, f.pki, nil, ResultRevoked, "revoked")
		impostor := (*party)(nil).issue(t, "issuing", authority)
		for name, text := range map[string][]byte{
			"an older one": before, "an impostor's": impostor.revoke(t, nil), "garbage": []byte("<html>"), "nothing": nil,
			"a list of somebody else": (*party)(nil).issue(t, "x", authority).revoke(t, nil),
		} {
			f.site.set(issuingURL, text, nil)
			time.Sleep(7 * time.Hour)
			expect(t, f.Revocation, f.pki, nil, ResultRevoked, "revoked")
			// Nor does it take the place of the one on the disk.
			f.stop()
			f.start(t, PolicySoft, f.on(f.disk.PowerCut()))
			synctest.Wait()
			expect(t, f.Revocation, f.pki, nil, ResultRevoked, "revoked")
			if t.Failed() {
				t.Fatal(name)
			}
		}
	})
}

func TestFetchesAreSpreadAndBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetching(t, PolicySoft)
		defer func() { f.stop() }()
		synctest.Wait()
		expect(t, f.Revocation, f.pki, nil, "", "")
		synctest.Wait()
		written := f.disk.Written()
		f.site.Lock()
		f.site.asked, f.site.tags = nil, nil
		f.site.Unlock()
		time.Sleep(48 * time.Hour)
		n := len(f.site.times())
		if n < 2*8 || n > 2*9 {
			t.Errorf("%d fetches in two days", n)
		}
		if f.disk.Written() != written {
			t.Error("an unchanged list was written again")
		}
		for _, tag := range f.site.tags {
			if tag == "" {
				t.Error("it was fetched whole, though it had not changed")
			}
		}
		// A server that is down for a day is asked 2 × 30 times, not once a second.
		f.site.set(issuingURL, nil, errors.New("down"))
		time.Sleep(6 * time.Hour)
		f.site.set(issuingURL, nil, errors.New("down"))
		time.Sleep(24 * time.Hour)
		if n := len(f.site.times()); n < 2*23 || n > 2*50 {
			t.Errorf("%d fetches of what is down", n)
		}
		if st := f.Status().Lists[0]; st.Failures == 0 || !strings.Contains(st.Error, "down") {
			t.Errorf("%+v", st)
		}
	})
}

// A list that runs out is fetched before, and one that has run out is not asked for without end.
func TestListsAreFetchedBeforeTheyRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetching(t, PolicyHard)
		defer func() { f.stop() }()
		synctest.Wait()
		expect(t, f.Revocation, f.pki, nil, "", "")
		short := func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(time.Hour) }
		f.site.Lock()
		f.site.make = func(url string) []byte {
			if url == rootURL {
				return f.pki.root.revoke(t, short)
			}
			return f.pki.issuing.revoke(t, short)
		}
		f.site.Unlock()
		time.Sleep(6 * time.Hour)
		for range 48 {
			f.site.set(rootURL, nil, nil)
			time.Sleep(time.Hour)
			expect(t, f.Revocation, f.pki, nil, "", "")
			if n := len(f.site.times()); n > 6 {
				t.Errorf("%d fetches in an hour", n)
			}
		}
		f.site.Lock()
		f.site.lists = map[string][]byte{rootURL: f.site.make(rootURL), issuingURL: f.site.make(issuingURL)}
		f.site.make = nil
		f.site.Unlock()
		f.site.set(rootURL, f.site.lists[rootURL], nil)
		time.Sleep(24 * time.Hour)
		expect(t, f.Revocation, f.pki, nil, ResultUnknown, "ran out")
		if n := len(f.site.times()); n > 2*50 {
			t.Errorf("%d fetches of what has run out", n)
		}
	})
}

// In hard, a connection that outlives its proof is looked at again; not by a whole fleet at once.
func TestProofsThatEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetching(t, PolicyHard)
		defer func() { f.stop() }()
		staple := f.pki.issuing.staple(t, f.pki.issuing, f.pki.broker.SerialNumber)
		f.site.set(issuingURL, nil, errors.New("down"))
		f.site.set(rootURL, f.site.lists[rootURL], nil)
		f.stop()
		f.start(t, PolicyHard, f.on(disktest.New()))
		synctest.Wait()
		expect(t, f.Revocation, f.pki, staple, "", "")
		synctest.Wait()
		f.told()
		time.Sleep(24*time.Hour - time.Second)
		if f.told() {
			t.Error("too early")
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if !f.told() {
			t.Error("nobody looks")
		}
		expect(t, f.Revocation, f.pki, staple, ResultUnknown, "ran out")
	})
}

func TestFilesThatChange(t *testing.T) {
	p, w := newPKI(t), newWorld()
	v := revocation(t, w, PolicyHard, p.root.revoke(t, nil), p.issuing.revoke(t, nil))
	expect(t, v, p, nil, "", "")
	put(w.disk, "list-b", p.issuing.revoke(t, nil, p.broker.SerialNumber))
	v.look(t.Context(), v.sources[1])
	if !v.settle(v.sources[1]) {
		t.Error("not noticed")
	}
	expect(t, v, p, nil, ResultRevoked, "revoked")
	_ = w.disk.Remove("list-b")
	v.look(t.Context(), v.sources[1])
	v.settle(v.sources[1])
	expect(t, v, p, nil, ResultRevoked, "revoked") // what is known stays known
	if st := v.Status().Lists[1]; st.Failures != 1 || st.Entries != 1 {
		t.Errorf("%+v", st)
	}
}

func TestStoredListsOverPowerCutsAndDamage(t *testing.T) {
	p, w := newPKI(t), newWorld()
	first, second := p.issuing.revoke(t, nil, big.NewInt(1)), p.issuing.revoke(t, nil, big.NewInt(1), p.broker.SerialNumber)
	c := DefaultRevocation()
	c.CRL = []string{issuingURL}
	open := func(d *disktest.Disk, s *site) *Revocation {
		return must[*Revocation](t)(NewRevocation(c, w.on(d), s.fetch))
	}
	load := func(v *Revocation) {
		v.look(context.Background(), v.sources[0])
		v.settle(v.sources[0])
	}
	disktest.Replay(t, func(d *disktest.Disk) {
		s := &site{lists: map[string][]byte{issuingURL: first}}
		v := open(d, s)
		_ = v.Check(p.state(nil))
		load(v)
		d.Mark("first")
		s.set(issuingURL, second, nil)
		load(v)
		d.Mark("second")
	}, func(t testing.TB, state *disktest.Disk) {
		v := open(state, &site{})
		err := v.Check(p.state(nil))
		entries := v.Status().Lists[0].Entries
		done := len(state.Marks())
		if done == 2 && (err == nil || entries != 2) || done == 1 && entries == 0 || strings.Contains(w.log.String(), "not usable") {
			t.Errorf("after %d: %v, %d entries", done, err, entries)
		}
	})
	// A bit that flips costs the list at most; it is fetched again.
	d := disktest.New()
	v := open(d, &site{lists: map[string][]byte{issuingURL: second}})
	_ = v.Check(p.state(nil))
	load(v)
	name := v.sources[0].path
	good, _ := d.Content(name)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		put(d, name, bad)
		v := open(d, &site{lists: map[string][]byte{issuingURL: second}})
		_ = v.Check(p.state(nil))
		load(v)
		if err := v.Check(p.state(nil)); err == nil {
			t.Fatalf("byte %d: the list is lost for good", i)
		}
	}
}

func TestHTTP(t *testing.T) {
	list := newPKI(t).issuing.revoke(t, nil)
	var asked http.Header
	mux := http.NewServeMux()
	mux.HandleFunc("/etag", func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(list))
	})
	mux.HandleFunc("/date", func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(list))
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/etag", http.StatusFound) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.Copy(w, io.LimitReader(zeros{}, 2*maxList))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	server := httptest.NewServer(mux)
	defer server.Close()
	fetch := HTTP(nil)
	for _, path := range []string{"/etag", "/date", "/moved"} {
		text, tag, err := fetch(t.Context(), server.URL+path, "")
		if err != nil || !bytes.Equal(text, list) || tag == "" {
			t.Fatal(path, err, tag)
		}
		if _, _, err := fetch(t.Context(), server.URL+path, tag); !errors.Is(err, ErrNotModified) {
			t.Error(path, err, asked)
		}
	}
	for path, want := range map[string]string{"/loop": "three redirects", "/nowhere": "404"} {
		if _, _, err := fetch(t.Context(), server.URL+path, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(path, err)
		}
	}
	if text, _, err := fetch(t.Context(), server.URL+"/endless", ""); err != nil || len(text) != maxList+1 {
		t.Error(len(text), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := fetch(ctx, server.URL+"/slow", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	secure := httptest.NewUnstartedServer(mux)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	defer secure.Close()
	if _, _, err := fetch(t.Context(), secure.URL+"/etag", ""); err == nil {
		t.Error("an unknown authority was believed")
	}
	pool := x509.NewCertPool()
	pool.AddCert(secure.Certificate())
	if _, _, err := HTTP(func() *x509.CertPool { return pool })(t.Context(), secure.URL+"/etag", ""); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
