package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware/fetch"
	"ferrule/firmware/manifest"
	"ferrule/internal/hint"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network is a server in memory, so that time can be the bubble's.
type network struct {
	conns chan net.Conn
	done  chan struct{}
	cut   int // bytes that the server may send on one connection; 0: any
	dials atomic.Int64
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.done:
		return nil, net.ErrClosed
	}
}
func (n *network) Close() error   { return nil }
func (n *network) Addr() net.Addr { return &net.IPAddr{} }

func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.dials.Add(1)
	ours, theirs := net.Pipe()
	var server net.Conn = theirs
	if n.cut > 0 {
		server = &cutConn{Conn: theirs, left: n.cut}
	}
	select {
	case n.conns <- server:
		return ours, nil
	case <-n.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cutConn is a connection that ends after so many bytes.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	if len(p) < c.left {
		c.left -= len(p)
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:c.left])
	c.Conn.Close()
	return n, io.ErrClosedPipe
}

// serve runs handler and returns a client of it.
func serve(t *testing.T, n *network, handler http.Handler, rate func() int64) *fetch.Client {
	t.Helper()
	n.conns, n.done = make(chan net.Conn), make(chan struct{})
	server := &http.Server{Handler: handler}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(n) }()
	transport := &http.Transport{DialContext: n.dial}
	t.Cleanup(func() {
		close(n.done)
		transport.CloseIdleConnections()
		server.Close()
		<-ended
	})
	c, err := fetch.New(fetch.Options{HTTP: transport, Base: "http://repository.example/sub", Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func content(n int) []byte {
	data := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

const path = "gw/0a.img"

func object(data []byte) manifest.Object { return manifest.Object{Path: path, Size: int64(len(data))} }

// file is an honest server of data.
func file(data []byte, tag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/sub/targets/"+path {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

func TestADownloadThatIsCutEveryHundredKilobytesFetchesNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(6 << 20)
		n := &network{cut: 100 << 10}
		c := serve(t, n, file(data, `"v1"`), nil)
		r := c.Object(t.Context(), object(data), 0)
		defer r.Close()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(data), err)
		}
		if twice := c.Received() - int64(len(data)); twice != 0 {
			t.Errorf("%d bytes were fetched twice", twice)
		}
		t.Logf("%d connections, %d bytes of %d", n.dials.Load(), c.Received(), len(data))
	})
}

func TestSpansAndOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(70_000)
		c := serve(t, &network{cut: 20_000}, file(data, `"v1"`), nil)
		for _, s := range [][2]int64{{0, 70_000}, {69_999, 70_000}, {70_000, 70_000}, {1, 60_001}, {5, 5}} {
			r := c.Span(t.Context(), object(data), s[0], s[1])
			got, err := io.ReadAll(r)
			r.Close()
			if err != nil || !bytes.Equal(got, data[s[0]:s[1]]) {
				t.Errorf("bytes %d to %d: %d bytes, %v", s[0], s[1], len(got), err)
			}
		}
		for _, s := range [][2]int64{{-1, 5}, {6, 5}, {0, 70_001}} {
			if _, err := io.ReadAll(c.Span(t.Context(), object(data), s[0], s[1])); err == nil {
				t.Errorf("bytes %d to %d were read", s[0], s[1])
			}
		}
		r := c.Object(t.Context(), object(data), 0)
		r.Close()
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("reading what is closed: %v", err)
		}
	})
}

// hostile is a server, and what becomes of a download of 100,000 bytes from it; whole: it
// succeeds in spite of it.
var hostile = []struct {
	name    string
	handler func(data []byte, asked int) http.HandlerFunc
	whole   bool
	is      error
	says    string
	advises string
}{
	{name: "without ranges", whole: true, handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			if asked == 0 {
				_, _ = w.Write(data[:60_000])
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(data)
		}
	}},
	{name: "another file after a cut", is: fetch.ErrChanged, handler: func(data []byte, asked int) http.HandlerFunc {
		if asked > 0 {
			return file(content(len(data)), `"v2"`)
		}
		return cutAfter(file(data, `"v1"`), 50_000)
	}},
	{name: "another file after a cut, and ranges of it in spite of If-Range", is: fetch.ErrChanged, handler: func(data []byte, asked int) http.HandlerFunc {
		if asked > 0 {
			return func(w http.ResponseWriter, r *http.Request) {
				r.Header.Del("If-Range")
				file(data, `"v2"`)(w, r)
			}
		}
		return cutAfter(file(data, `"v1"`), 50_000)
	}},
	{name: "another range", is: fetch.ErrAnswer, says: "bytes 0-99", handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-99/100000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[:100])
		}
	}},
	{name: "a file of another length", is: fetch.ErrAnswer, says: "50000", handler: func(data []byte, asked int) http.HandlerFunc {
		return file(data[:50_000], `"v1"`)
	}},
	{name: "a file of another length, without ranges", is: fetch.ErrAnswer, says: "99999", handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "99999")
			_, _ = w.Write(data[:99_999])
		}
	}},
	{name: "more than was asked for", whole: true, handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(data[:70_000]) // chunked: no length
			for range 100 {
				if _, err := w.Write(data[70_000:]); err != nil {
					return
				}
			}
		}
	}},
	{name: "short answers", whole: true, handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var first int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first)
			last := min(first+20_000, len(data)) - 1
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", first, last))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[first : last+1])
		}
	}},
	{name: "one byte each time", is: io.ErrUnexpectedEOF, says: "without progress", handler: func(data []byte, asked int) http.HandlerFunc {
		return cutAfter(file(data, `"v1"`), 1)
	}},
	{name: "drips", is: fetch.ErrStalled, handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for _, b := range data {
				if _, err := w.Write([]byte{b}); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				wait(r, time.Second)
			}
		}
	}},
	{name: "silent before the answer", is: fetch.ErrStalled, handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	}},
	{name: "silent in the body", is: fetch.ErrStalled, handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(data[:10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}},
	{name: "compressed", is: fetch.ErrAnswer, says: "gzip", handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(data)
		}
	}},
	{name: "404", is: fs.ErrNotExist, says: "404", advises: "uploaded whole", handler: status(404, "")},
	{name: "403", says: "403 Forbidden", advises: "certificate", handler: status(403, "")},
	{name: "416", is: fetch.ErrAnswer, handler: status(416, "")},
	{name: "503 for ever", says: "503", handler: status(503, "20")},
	{name: "503 for a day", says: "wait 24h0m0s", handler: status(503, "86400")},
	{name: "429, then well", whole: true, handler: func(data []byte, asked int) http.HandlerFunc {
		if asked == 0 {
			return status(429, "30")(data, asked)
		}
		return file(data, `"v1"`)
	}},
	{name: "500 thrice, then well", whole: true, handler: func(data []byte, asked int) http.HandlerFunc {
		if asked < 3 {
			return status(500, "soon")(data, asked)
		}
		return file(data, `"v1"`)
	}},
	{name: "redirects for ever", says: "redirections", handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) }
	}},
	{name: "no HTTP", says: "malformed", handler: func(data []byte, asked int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = conn.Write([]byte("SSH-2.0-OpenSSH\r\n\r\n"))
				conn.Close()
			}
		}
	}},
}

func status(code int, after string) func([]byte, int) http.HandlerFunc {
	return func([]byte, int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(code)
		}
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	n, _ = w.ResponseWriter.Write(p[:n])
	if w.left == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func cutAfter(h http.HandlerFunc, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { h(&cutWriter{w, n}, r) }
}

func wait(r *http.Request, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.Context().Done():
	case <-timer.C:
	}
}

func TestHostileServers(t *testing.T) {
	for _, h := range hostile {
		t.Run(h.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := content(100_000)
				var asked atomic.Int64
				handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.handler(data, int(asked.Add(1))-1)(w, r)
				})
				c := serve(t, &network{}, handler, nil)
				start := time.Now()
				r := c.Object(t.Context(), object(data), 0)
				got, err := io.ReadAll(r)
				r.Close()
				if h.whole != (err == nil) || h.whole && !bytes.Equal(got, data) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				if !bytes.Equal(got, data[:len(got)]) {
					t.Error("foreign bytes were handed on")
				}
				if h.is != nil && !errors.Is(err, h.is) || h.says != "" && !strings.Contains(err.Error(), h.says) || !strings.Contains(hint.Of(err), h.advises) {
					t.Errorf("%v\nhint: %s", err, hint.Of(err))
				}
				if took := time.Since(start); took > 30*time.Minute {
					t.Errorf("gave up after %v", took)
				}
				t.Logf("%d requests, %v: %v", asked.Load(), time.Since(start).Round(time.Second), err)
			})
		})
	}
}

// A redirection that is not followed is one the next time, too.
func TestARefusedRedirectionIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := serve(t, &network{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		}), nil)
		r := c.Object(t.Context(), object(content(10)), 0)
		defer r.Close()
		if _, err := io.ReadAll(r); err == nil || time.Since(start) > 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if _, err := c.Metadata(t.Context(), "timestamp.json", 10); err == nil || time.Since(start) > 0 {
			t.Errorf("metadata, after %v: %v", time.Since(start), err)
		}
	})
}

func TestTheRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(1 << 20)
		c := serve(t, &network{}, file(data, ""), func() int64 { return 10_000 })
		start := time.Now()
		r := c.Object(t.Context(), object(data), 0)
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if took := time.Since(start).Seconds(); took < 104 || took > 106 {
			t.Errorf("1 MiB at 10 kB/s took %.1f s", took)
		}
	})
}

func TestACancelledDownloadEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &network{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		r := c.Object(ctx, object(content(10)), 0)
		defer r.Close()
		if _, err := io.ReadAll(r); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := content(5000)
		asked := 0
		c := serve(t, &network{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch asked++; r.URL.Path {
			case "/sub/metadata/timestamp.json":
				w.Header().Set("Content-Length", "5000")
				_, _ = w.Write(want[:1000])
				if asked < 3 {
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
				_, _ = w.Write(want[1000:])
			case "/sub/metadata/endless.json":
				for {
					if _, err := w.Write(want); err != nil {
						return
					}
				}
			case "/sub/metadata/cut.json":
				cutAfter(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(want) }, 10)(w, r)
			case "/sub/metadata/2.root.json":
				w.WriteHeader(http.StatusForbidden)
			default:
				http.NotFound(w, r)
			}
		}), nil)
		if got, err := c.Metadata(t.Context(), "timestamp.json", 5000); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := c.Metadata(t.Context(), "timestamp.json", 4999); !errors.Is(err, fetch.ErrTooLarge) {
			t.Errorf("too long by one: %v", err)
		}
		if _, err := c.Metadata(t.Context(), "endless.json", 1<<20); !errors.Is(err, fetch.ErrTooLarge) {
			t.Errorf("endless: %v", err)
		}
		if _, err := c.Metadata(t.Context(), "cut.json", 1<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut: %v", err)
		}
		for _, name := range []string{"2.root.json", "3.root.json"} {
			if _, err := c.Metadata(t.Context(), name, 100); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"", "../x", "a/b", "a?b", ".hidden", "ä"} {
			if _, err := c.Metadata(t.Context(), name, 100); err == nil || !strings.Contains(err.Error(), "not a name") {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}

func TestNewRefusesWhatIsNoRepository(t *testing.T) {
	for _, base := range []string{"", "ftp://x/", "updates.example", "https://", "http://%zz"} {
		if _, err := fetch.New(fetch.Options{Base: base}); err == nil || hint.Of(err) == "" {
			t.Errorf("%q: %v", base, err)
		}
	}
}
