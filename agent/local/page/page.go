// Package page is the status page as one self-contained document. What it shows comes from the
// status API beside it, by addresses relative to its own; every word of it that others wrote (names
// of units, texts of brokers) goes in as text, and the policy that is sent with it lets nothing run
// or load but the page's own script and style.
package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
)

//go:embed assets
var assets embed.FS

// scripts are the parts of the page's script, in the order in which they are joined.
var scripts = [...]string{"base.js", "plot.js", "readings.js", "verdict.js", "flow.js", "parts.js", "session.js", "stream.js", "main.js"}

// document is the page as it is sent.
type document struct {
	plain, packed []byte
	tag           string // entity tag
	policy        string // Content-Security-Policy
}

// Handler serves the page on whatever path it is asked for; it answers GET and HEAD. The page asks
// for status, events and readings beside that path.
func Handler() http.Handler {
	d := compose()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the page can only be read", http.StatusMethodNotAllowed)
			return
		}
		d.serve(w, r)
	})
}

func (d *document) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	Protect(h)
	h.Set("Content-Security-Policy", d.policy)
	h.Set("Cache-Control", "no-cache") // a newer agent has a newer page
	h.Set("Vary", "Accept-Encoding")
	h.Set("ETag", d.tag)
	if strings.Contains(r.Header.Get("If-None-Match"), d.tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := d.plain
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = d.packed
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // the browser went away: nobody is left to tell
	}
}

// Protect sets the headers that keep an answer to a browser from being framed, sniffed, referred to
// or read by another site.
func Protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// compose joins the parts. The policy names script and style by their hashes (CSP Level 3, 2.3.1):
// what anybody else brings into the page does not run.
func compose() *document {
	style := strip(asset("page.css"))
	var script strings.Builder
	script.WriteString("(()=>{'use strict';\n")
	for _, name := range scripts {
		script.WriteString(strip(asset(name)))
	}
	script.WriteString("})();")
	early := strip(asset("early.js"))

	text := strip(asset("page.html"))
	text = strings.Replace(text, "{{style}}", style, 1)
	text = strings.Replace(text, "{{early}}", early, 1)
	text = strings.Replace(text, "{{script}}", script.String(), 1)

	sum := sha256.Sum256([]byte(text))
	return &document{
		plain:  []byte(text),
		packed: pack(text),
		tag:    `"` + hex.EncodeToString(sum[:12]) + `"`,
		policy: policy(style, early, script.String()),
	}
}

func policy(style string, scripts ...string) string {
	var hashes []string
	for _, s := range scripts {
		hashes = append(hashes, hash(s))
	}
	return strings.Join([]string{
		"default-src 'none'",
		"script-src " + strings.Join(hashes, " "),
		"style-src " + hash(style),
		"connect-src 'self'",
		"img-src data:", // the icon in the tab
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// asset returns an embedded file; that all are there is a test.
func asset(name string) string {
	text, _ := assets.ReadFile("assets/" + name)
	return string(text)
}

// strip leaves out indentation, empty lines and lines that are a comment as a whole: the reader of
// the source needs them, the phone does not.
func strip(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "// ") || strings.HasPrefix(line, "/* ") && strings.HasSuffix(line, " */") {
			continue
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

func pack(text string) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil
	}
	// A buffer takes everything.
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.Bytes()
}
