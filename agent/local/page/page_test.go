package page

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// get asks the handler as a browser does.
func get(t *testing.T, method string, header map[string]string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/", nil)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result(), w.Body.String()
}

func TestSizes(t *testing.T) {
	d := compose()
	t.Logf("%d bytes, %d packed", len(d.plain), len(d.packed))
	if len(d.plain) > 90<<10 {
		t.Errorf("the page has %d bytes; 90 KiB are allowed, for browsers that take nothing packed", len(d.plain))
	}
	if len(d.packed) > 32<<10 {
		t.Errorf("packed, the page has %d bytes; 32 KiB are allowed", len(d.packed))
	}
}

func TestAnswer(t *testing.T) {
	answer, plain := get(t, http.MethodGet, nil)
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.HasPrefix(plain, "<!doctype html>") {
		t.Errorf("answered %s, %s, %.40q", answer.Status, answer.Header.Get("Content-Type"), plain)
	}
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-cache"} {
		if got := answer.Header.Get(name); got != want {
			t.Errorf("%s is %q; want %q", name, got, want)
		}
	}
	packed, body := get(t, http.MethodGet, map[string]string{"Accept-Encoding": "gzip, br"})
	unpacked, err := gzip.NewReader(strings.NewReader(body))
	if err != nil || packed.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("packed: %v, %q", err, packed.Header.Get("Content-Encoding"))
	}
	if text, err := io.ReadAll(unpacked); err != nil || string(text) != plain {
		t.Errorf("packed, the page is another one: %v", err)
	}
	if again, body := get(t, http.MethodGet, map[string]string{"If-None-Match": answer.Header.Get("ETag")}); again.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("the same page again: %s", again.Status)
	}
	if head, body := get(t, http.MethodHead, nil); head.StatusCode != http.StatusOK || body != "" {
		t.Errorf("HEAD: %s with %d bytes", head.Status, len(body))
	}
	if post, _ := get(t, http.MethodPost, nil); post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", post.Status)
	}
}

var (
	styles  = regexp.MustCompile(`(?s)<style>(.*?)</style>`)
	inlines = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
	tags    = regexp.MustCompile(`<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s+[^\s=>/]+(?:="[^"]*")?)*)\s*(/?)>`)
	pairs   = regexp.MustCompile(`([^\s=>/]+)(?:="([^"]*)")?`)
)

func TestPolicyNamesWhatIsInThePage(t *testing.T) {
	answer, text := get(t, http.MethodGet, nil)
	policy := answer.Header.Get("Content-Security-Policy")
	for _, kind := range []struct {
		directive string
		blocks    *regexp.Regexp
		want      int
	}{{"style-src", styles, 1}, {"script-src", inlines, 2}} {
		var want []string
		for _, block := range kind.blocks.FindAllStringSubmatch(text, -1) {
			sum := sha256.Sum256([]byte(block[1]))
			want = append(want, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
		}
		if full := kind.directive + " " + strings.Join(want, " ") + ";"; len(want) != kind.want || !strings.Contains(policy, full) {
			t.Errorf("the policy %q has no %q", policy, full)
		}
	}
	for _, must := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"} {
		if !strings.Contains(policy, must) {
			t.Errorf("the policy lacks %q", must)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("the policy is weak: %s", policy)
	}
}

func TestNothingFromOutside(t *testing.T) {
	_, text := get(t, http.MethodGet, nil)
	bare := strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "") // a name, nothing is fetched
	for _, bad := range []string{"http:", "https:", "ws:", "wss:", "@import", "url(", "src=", "//cdn", "import(", "{{"} {
		if at := strings.Index(bare, bad); at >= 0 {
			t.Errorf("the page has %q: …%.60s", bad, bare[at:])
		}
	}
}

// Foreign text, such as the names of units, must not become anything but text.
func TestScriptMakesNoMarkup(t *testing.T) {
	_, text := get(t, http.MethodGet, nil)
	for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "createContextualFragment", "srcdoc", "setTimeout('", "javascript:"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page uses %s", bad)
		}
	}
}

// element is one start tag.
type element struct {
	name  string
	attrs map[string]string
}

// parse checks that all tags are closed in order and returns the elements.
func parse(t *testing.T, text string) (all []element) {
	t.Helper()
	text = inlines.ReplaceAllString(styles.ReplaceAllString(text, "<style></style>"), "<script></script>")
	void := []string{"meta", "link", "input", "br", "img"}
	var open []string
	rest := tags.ReplaceAllString(text, "")
	if at := strings.IndexAny(strings.TrimPrefix(rest, "<!doctype html>"), "<>"); at >= 0 {
		t.Errorf("this is no tag: %.60q", strings.TrimPrefix(rest, "<!doctype html>")[at:])
	}
	for _, tag := range tags.FindAllStringSubmatch(text, -1) {
		closing, name, attributes, closed := tag[1] != "", tag[2], tag[3], tag[4] != ""
		if closing {
			if len(open) == 0 || open[len(open)-1] != name {
				t.Fatalf("</%s> closes %v", name, open)
			}
			open = open[:len(open)-1]
			continue
		}
		e := element{name: name, attrs: make(map[string]string)}
		for _, pair := range pairs.FindAllStringSubmatch(attributes, -1) {
			if _, twice := e.attrs[pair[1]]; twice {
				t.Errorf("<%s> has %s twice", name, pair[1])
			}
			e.attrs[pair[1]] = pair[2]
		}
		all = append(all, e)
		if !closed && !slices.Contains(void, name) {
			open = append(open, name)
		}
	}
	if len(open) > 0 {
		t.Errorf("never closed: %v", open)
	}
	return all
}

func TestMarkup(t *testing.T) {
	_, text := get(t, http.MethodGet, nil)
	all := parse(t, text)
	ids := make(map[string]bool)
	for _, e := range all {
		if id, has := e.attrs["id"]; has {
			if ids[id] {
				t.Errorf("the id %q comes twice", id)
			}
			ids[id] = true
		}
	}
	for _, e := range all {
		for name, value := range e.attrs {
			if name == "style" || strings.HasPrefix(name, "on") {
				t.Errorf("<%s %s=…>: the policy lets it do nothing", e.name, name)
			}
			target, refers := strings.CutPrefix(value, "#")
			if name == "aria-labelledby" || name == "for" {
				target, refers = value, true
			}
			if refers && (name == "href" || name == "aria-labelledby" || name == "for") && !ids[target] {
				t.Errorf("<%s %s=%q>: there is no such id", e.name, name, value)
			}
		}
		if e.name == "section" && e.attrs["aria-labelledby"] == "" {
			t.Errorf("section %q has no name for those who hear it", e.attrs["id"])
		}
		if e.name == "button" && e.attrs["type"] != "button" {
			t.Errorf("button %q has no type", e.attrs["id"])
		}
	}
	if got := all[0].attrs["lang"]; got != "en" {
		t.Errorf("the language is %q", got)
	}
}

// Every element that the script looks up by its id is in the page.
func TestScriptFindsItsElements(t *testing.T) {
	_, text := get(t, http.MethodGet, nil)
	looked := regexp.MustCompile(`\$\('#([a-z-]+)`).FindAllStringSubmatch(text, -1)
	if len(looked) < 20 {
		t.Fatalf("only %d look-ups found; this is no check", len(looked))
	}
	for _, id := range looked {
		if !strings.Contains(text, `id="`+id[1]+`"`) {
			t.Errorf("the script looks for #%s", id[1])
		}
	}
}

func TestEveryAssetIsUsed(t *testing.T) {
	entries, err := assets.ReadDir("assets")
	if err != nil {
		t.Fatal(err)
	}
	known := append([]string{"page.html", "page.css", "early.js"}, scripts[:]...)
	for _, entry := range entries {
		if !slices.Contains(known, entry.Name()) {
			t.Errorf("%s is embedded and not used", entry.Name())
		}
	}
	for _, name := range known {
		if asset(name) == "" {
			t.Errorf("%s is missing", name)
		}
	}
}
