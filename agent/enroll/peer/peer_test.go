package peer_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll/peer"
	"ferrule/internal/hint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service is a server of this CA that wants clients of the same.
type service struct {
	ca     *agenttest.CA
	server *httptest.Server
}

func start(t *testing.T, handler http.HandlerFunc, change func(*tls.Config)) *service {
	t.Helper()
	ca, err := agenttest.NewCA("site")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	s := &service{ca: ca, server: httptest.NewUnstartedServer(handler)}
	s.server.TLS = certificate.ServerTLS(ca)
	change(s.server.TLS)
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

func anybody(c *tls.Config) { c.ClientAuth = tls.NoClientCert }

func (s *service) client(t *testing.T, change func(*peer.Options)) *peer.Client {
	t.Helper()
	o := peer.Options{Service: "the service", Roots: s.ca.Pool()}
	change(&o)
	c, err := peer.New(s.server.URL, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The alerts that are about our certificate, from a real server, in TLS 1.2 and 1.3.
func TestCertificatesThatAreNotTaken(t *testing.T) {
	old := agenttest.Leaf{CommonName: "gw-1", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	for version, name := range map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"} {
		s := start(t, func(http.ResponseWriter, *http.Request) {}, func(c *tls.Config) { c.MaxVersion = version })
		stranger, err := agenttest.NewCA("stranger")
		if err != nil {
			t.Fatal(err)
		}
		for what, test := range map[string]struct {
			ca   *agenttest.CA
			leaf agenttest.Leaf
			hint string
		}{
			"expired": {s.ca, old, "expired"},
			"unknown": {stranger, agenttest.Leaf{CommonName: "gw-1"}, "authority"},
		} {
			shown, err := test.ca.Issue(test.leaf)
			if err != nil {
				t.Fatal(err)
			}
			c := s.client(t, func(o *peer.Options) { o.Present = &shown.TLS })
			if _, err := c.Ask(t.Context(), peer.Question{}); !errors.Is(err, peer.ErrRefused) || !strings.Contains(hint.Of(err), test.hint) {
				t.Errorf("TLS %s, %s: %v (%s)", name, what, err, hint.Of(err))
			}
		}
	}
	s := start(t, func(http.ResponseWriter, *http.Request) {}, func(*tls.Config) {})
	c := s.client(t, func(*peer.Options) {})
	if _, err := c.Ask(t.Context(), peer.Question{}); !errors.Is(err, peer.ErrRefused) || !strings.Contains(hint.Of(err), "none") {
		t.Errorf("none shown: %v (%s)", err, hint.Of(err))
	}
}

// Redirects, compressed bodies, and answers of any length are taken as what they are.
func TestAnswersAreBounded(t *testing.T) {
	s := start(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/long":
			_, _ = w.Write(make([]byte, 100))
		case "/exact":
			_, _ = w.Write(make([]byte, 10))
		case "/headers":
			w.Header().Set("X", strings.Repeat("x", 64<<10))
		case "/elsewhere":
			http.Redirect(w, r, "/exact", http.StatusTemporaryRedirect)
		case "/lost":
			_, _ = w.Write(make([]byte, 5))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		if r.Header.Get("Accept-Encoding") != "" {
			t.Error("it asked for compression")
		}
	}, anybody)
	c := s.client(t, func(o *peer.Options) { o.MaxBody = 10 })
	for path, test := range map[string]struct {
		length int
		cut    bool
		status int
	}{"long": {10, true, 200}, "exact": {10, false, 200}, "none": {0, false, 200}, "elsewhere": {0, false, 307}} {
		a, err := c.Ask(t.Context(), peer.Question{Path: path})
		if err != nil || len(a.Body) != test.length || a.Cut != test.cut || a.Status != test.status {
			t.Errorf("%s: %+v, %v", path, a, err)
		}
	}
	for _, path := range []string{"lost", "headers"} {
		if a, err := c.Ask(t.Context(), peer.Question{Path: path}); !errors.Is(err, peer.ErrUnreachable) {
			t.Errorf("%s: %+v, %v", path, a, err)
		}
	}
}

func TestServiceTime(t *testing.T) {
	date := "Fri, 31 Dec 2038 23:59:59 GMT"
	s := start(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Date", date) }, anybody)
	now := time.Now()
	c := s.client(t, func(o *peer.Options) { o.Now = func() time.Time { return now } })
	if !c.ServiceTime().Equal(now) {
		t.Error("before any answer the time is not ours")
	}
	for _, want := range []string{date, "rubbish"} { // what says nothing changes nothing
		date = want
		if _, err := c.Ask(t.Context(), peer.Question{}); err != nil {
			t.Fatal(err)
		}
		if got := c.ServiceTime(); got.Year() != 2038 {
			t.Errorf("after %q it is %v", want, got)
		}
	}
}

// Nothing of an address that is wrong is worth a try, and no password of it is repeated.
func TestAddresses(t *testing.T) {
	pool := x509.NewCertPool()
	for _, address := range []string{"", "http://a", "https://", "https://u:secret@a", "https://a?b", "https://a#b", "ftp://u:secret@a", "https://u:secret@a:x", "\x00"} {
		if _, err := peer.New(address, peer.Options{Roots: pool}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := peer.New("https://a", peer.Options{}); err == nil {
		t.Error("without roots the system's would be asked")
	}
	if c, err := peer.New("https://a/b/", peer.Options{Roots: pool}); err != nil || c.Base() != "https://a/b" {
		t.Errorf("%v", err)
	}
}

func TestNo(t *testing.T) {
	s := start(t, func(http.ResponseWriter, *http.Request) {}, anybody)
	c := s.client(t, func(*peer.Options) {})
	for name, test := range map[string]struct {
		status int
		after  string
		want   error // nil: a Later
		wait   time.Duration
	}{
		"accepted":        {202, "120", nil, 2 * time.Minute},
		"accepted for no": {202, "", nil, 0},
		"overloaded":      {503, "60", nil, time.Minute},
		"starting":        {503, "", peer.ErrUnreachable, 0},
		"too many":        {429, "", nil, 0},
		"internal":        {500, "", nil, 0},
		"gateway":         {502, "60", peer.ErrUnreachable, 0},
		"gateway timeout": {504, "", peer.ErrUnreachable, 0},
		"timeout":         {408, "", peer.ErrUnreachable, 0},
		"moved":           {301, "", peer.ErrRefused, 0},
		"unauthorized":    {401, "", peer.ErrRefused, 0},
		"not found":       {404, "", peer.ErrRefused, 0},
		"no such status":  {999, "", peer.ErrRefused, 0},
		"no content":      {204, "", peer.ErrRefused, 0},
	} {
		err := c.No(peer.Answer{Status: test.status, Header: http.Header{"Retry-After": {test.after}}}, "bad\x1b[2J\nthing "+strings.Repeat("x", 1000))
		later, postponed := errors.AsType[*peer.Later](err)
		if postponed != (test.want == nil) || postponed && later.After != test.wait || !postponed && !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if hint.Of(err) == "" || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 600 || !strings.HasPrefix(err.Error(), "the service ") {
			t.Errorf("%s: %q (%q)", name, err, hint.Of(err))
		}
	}
}

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestRetryAfter(t *testing.T) {
	for _, test := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0}, {"0", "", time.Second}, {"120", "", 2 * time.Minute}, {" 7 ", "", 7 * time.Second},
		{"86401", "", 24 * time.Hour}, {"99999999999999999999999", "", 24 * time.Hour},
		{"-1", "", 0}, {"1.5", "", 0}, {"0x10", "", 0}, {"soon", "", 0}, {"١", "", 0},
		{"Sat, 21 Nov 2026 12:01:00 GMT", "", time.Minute},
		{"Sat, 21 Nov 2026 11:00:00 GMT", "", time.Second},
		{"Fri, 31 Dec 9999 23:59:59 GMT", "", 24 * time.Hour},
		// By the service's own clock, whatever ours says.
		{"Tue, 01 Jan 2030 00:05:00 GMT", "Tue, 01 Jan 2030 00:00:00 GMT", 5 * time.Minute},
		{"Sat, 21 Nov 2026 12:01:00 GMT", "rubbish", time.Minute},
	} {
		if got := peer.RetryAfter(test.value, test.date, now); got != test.want {
			t.Errorf("%q, sent %q: %v; want %v", test.value, test.date, got, test.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("Sat, 21 Nov 2026 12:01:00 GMT", "Sat, 21 Nov 2026 12:00:00 GMT")
	f.Fuzz(func(t *testing.T, value, date string) {
		if got := peer.RetryAfter(value, date, now); got != 0 && (got < time.Second || got > 24*time.Hour) {
			t.Errorf("%v", got)
		}
	})
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b[2J\n\u202e\xff")
	f.Fuzz(func(t *testing.T, text string) {
		got := peer.Printable(text)
		if len(got) > 900 || strings.ContainsAny(got, "\x1b\n\r\t\x00\u202e") || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q", got)
		}
	})
}
