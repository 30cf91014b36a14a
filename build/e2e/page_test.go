package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// tab is one tab of a real Chromium, with what it said and what it fetched.
type tab struct {
	ctx     context.Context
	folder  string // for screenshots
	mu      sync.Mutex
	said    []string                    // errors, warnings, violations of the policy
	fetched map[network.RequestID]int64 // bytes from the network, headers included
}

// openTab starts a browser with an empty cache.
func openTab(t *testing.T) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.ExecPath(need(t, "chromium")))
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		grace, done := context.WithTimeout(ctx, 20*time.Second)
		defer done()
		_ = chromedp.Cancel(grace)
		cancel()
	})
	b := &tab{ctx: ctx, folder: artifacts(t), fetched: make(map[network.RequestID]int64)}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting chromium: %v", err)
	}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// artifacts is where screenshots go.
func artifacts(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("FERRULE_ARTIFACTS")
	if folder == "" {
		return t.ArtifactDir()
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			b.said = append(b.said, fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning || e.Type == runtime.ConsoleAPICalledTypeAssert {
			b.said = append(b.said, fmt.Sprintf("console.%s %s", e.Type, e.Args[0].Value))
		}
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, "exception: "+e.ExceptionDetails.Text)
	case *network.EventResponseReceived:
		b.fetched[e.RequestID] += int64(e.Response.EncodedDataLength)
	case *network.EventDataReceived: // of a stream; what ends tells its bytes on the wire at the end
		b.fetched[e.RequestID] += e.DataLength
	case *network.EventLoadingFinished:
		b.fetched[e.RequestID] = int64(e.EncodedDataLength)
	}
}

// bytes is all that was fetched.
func (b *tab) bytes() (sum int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.fetched {
		sum += n
	}
	return sum
}

// quiet fails the test if the browser had to complain of anything.
func (b *tab) quiet(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.said {
		t.Errorf("the browser says %s", line)
	}
	b.said = nil
}

func (b *tab) do(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

func evaluate[T any](t *testing.T, b *tab, expression string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// wait waits until an expression is true in the page.
func (b *tab) wait(t *testing.T, what, expression string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !evaluate[bool](t, b, "!!("+expression+")") {
		if time.Now().After(deadline) {
			b.shoot(t, "failed")
			t.Fatalf("%s: not within a minute; the page says %q", what, evaluate[string](t, b, "document.body.innerText"))
		}
		pause(t, 50*time.Millisecond)
	}
}

func (b *tab) shoot(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.folder, "status-page-"+name+".png"), picture, 0o600); err != nil {
		t.Fatal(err)
	}
}

// show sets the screen: its size in CSS pixels, and whether its owner likes it dark.
func (b *tab) show(t *testing.T, width, height int64, scheme string) {
	t.Helper()
	var options []chromedp.EmulateViewportOption
	if width < 700 {
		options = append(options, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait, chromedp.EmulateScale(2))
	}
	b.do(t, chromedp.EmulateViewport(width, height, options...))
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	}); err != nil {
		t.Fatal(err)
	}
}

// startWeb starts ferrule status --web and returns its link.
func startWeb(t *testing.T, ferrule []string, config string) (web *process, link string) {
	t.Helper()
	web = start(t, "ferrule status --web", with(ferrule, "status", "--web", "--config", config)...)
	return web, web.waitLine(t, "http://127.0.0.1:")
}

// Words that the tests look for in the page.
const (
	jsText    = `(q)=>{const e=document.querySelector(q);return e?e.textContent:""}`
	jsVerdict = `(` + jsText + `)("#verdict")`
	// A machine in a container may have a clock that nobody vouches for, and then the page says so.
	jsAllWell  = `["All is well","The clock is not synchronised"].includes(` + jsVerdict + `)`
	jsCounter  = `[...document.querySelectorAll(".point")].find(p=>p.querySelector(".name").textContent==="counter")`
	jsValue    = `(()=>{const p=` + jsCounter + `;return p?p.querySelector(".value").textContent:""})()`
	jsHasValue = `/^[\d,]+$/.test(` + jsValue + `)`
	jsOverflow = `document.documentElement.scrollWidth-document.documentElement.clientWidth`
	jsActive   = `(()=>{const e=document.activeElement;return e.id||e.className||e.tagName})()`
)

func (b *tab) changes(t *testing.T, what string) {
	t.Helper()
	b.wait(t, "a value", jsHasValue)
	before := evaluate[string](t, b, jsValue)
	b.wait(t, what, jsHasValue+"&&"+jsValue+"!=="+fmt.Sprintf("%q", before))
}

// The page in a real browser, before the real agent.
func TestStatusPage(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 200 * time.Millisecond, points: 6})
	s.run(t)
	waitFor(t, "the session", func() bool { return field(s.status(t), "session", "stage") == "up" })
	web, link := startWeb(t, s.ferrule, s.config)
	b := openTab(t)
	b.show(t, 1440, 900, "light")
	b.do(t, chromedp.Navigate(link))
	b.wait(t, "the verdict", jsAllWell)
	b.wait(t, "a value", jsHasValue)
	fetched := b.bytes()
	painted := evaluate[float64](t, b, `performance.getEntriesByName("first-contentful-paint")[0].startTime`)
	t.Logf("cold cache: %d bytes until the first values; first paint after %.0f ms", fetched, painted)
	if fetched > 100_000 || fetched < 10_000 {
		t.Errorf("%d bytes were fetched from a cold cache until the first values; 100,000 are allowed", fetched)
	}
	if at := evaluate[string](t, b, "location.href"); strings.Contains(at, "token") {
		t.Errorf("the token stays in the address: %s", at)
	}
	b.changes(t, "live values")

	t.Run("contents", func(t *testing.T) { pageContents(t, b) })
	t.Run("clicks", func(t *testing.T) { pageClicks(t, b) })
	t.Run("keyboard", func(t *testing.T) { pageKeyboard(t, b) })
	t.Run("screens", func(t *testing.T) { pageScreens(t, b) })
	pageRestart(t, b, s)
	b.quiet(t)
	if code := web.stop(t); code != 0 {
		t.Errorf("status --web ended with exit code %d", code)
	}
	s.stop(t)
}

// pageContents checks that each part says what the agent says.
func pageContents(t *testing.T, b *tab) {
	b.wait(t, "the number of points", `document.querySelector("#readings-aside").textContent`)
	for part, words := range map[string][]string{
		"#device":   {siteDevice},
		"#path":     {"1 of 1 up", "waiting", "Up", "127.0.0.1", "messages/s"},
		"#readings": {"rs485-1", "meter-a", "meter-b", "counter", "p5", "14 points"},
		"#lines":    {"rs485-1", "115200 8E1", "% load", "polls"},
		"#session":  {"mqtts://127.0.0.1", "TLS 1.3", "Acknowledged", "Up in "},
		"#outbox":   {"Dropped", "none", "nothing lost"},
		"#identity": {siteDevice, "in the TPM", " left", "Issuer"},
		"#commands": {"heard", "Executed"},
		"#trust":    {"Roots for brokers", "Audit log"},
		"#update":   {"no updates configured", "boot "},
		"#link":     {"Live"},
	} {
		said := evaluate[string](t, b, fmt.Sprintf("(%s)(%q)", jsText, part))
		for _, word := range words {
			if !strings.Contains(said, word) {
				t.Errorf("%s does not say %q: %q", part, word, said)
			}
		}
	}
	if order := evaluate[[]string](t, b, `[...document.querySelectorAll(".unit h3")].map(e=>e.textContent)`); strings.Join(order, " ") != "meter-a meter-b" {
		t.Errorf("the units come as %q; the configuration has another order", order)
	}
	if title := evaluate[string](t, b, "document.title"); title != "✓ "+siteDevice && title != "! "+siteDevice {
		t.Errorf("the tab is called %q", title)
	}
	if names := evaluate[[]string](t, b, `[...document.querySelectorAll("button,a,input,summary")].filter(e=>!(e.getAttribute("aria-label")||e.textContent.trim()||(e.labels&&e.labels.length))).map(e=>e.outerHTML)`); len(names) > 0 {
		t.Errorf("without a name for a screen reader: %q", names)
	}
}

func pageClicks(t *testing.T, b *tab) {
	links := evaluate[[]string](t, b, `[...document.querySelectorAll(".jump a")].map(a=>a.hash)`)
	if len(links) != 8 {
		t.Errorf("links to %v", links)
	}
	for _, to := range links {
		b.do(t, chromedp.Click(chromedp.CSS(`.jump a[href="`+to+`"]`)))
		b.wait(t, to+" in sight", fmt.Sprintf(`(()=>{const r=document.querySelector(%q).getBoundingClientRect();return r.top>=0&&r.top<innerHeight})()`, to))
	}
	b.do(t, chromedp.Evaluate[chromedp.Void](jsCounter+`.scrollIntoView({block:"center"})`), chromedp.Click(chromedp.CSS(".point .name")))
	drawn := `(()=>{const c=document.querySelector(".detail canvas");if(!c||!c.width)return false;return c.getContext("2d").getImageData(0,0,c.width,c.height).data.some(x=>x)})()`
	b.wait(t, "the large plot", drawn)
	b.wait(t, "its figures", `/highest\d/.test(document.querySelector(".detail").textContent.replace(/[\s,]/g,""))`)
	b.shoot(t, "detail")
	b.do(t, chromedp.Click(chromedp.CSS(".point .name")))
	b.wait(t, "the large plot gone", `!document.querySelector(".detail")`)

	b.do(t, chromedp.SendKeys(chromedp.CSS("#filter"), "p3"))
	b.wait(t, "the filter", `[...document.querySelectorAll(".row")].filter(e=>e.offsetParent).length===2&&document.querySelector("#found").textContent==="2 units found"`)
	b.do(t, chromedp.KeyEvent(kb.Escape))
	b.wait(t, "the filter empty", `[...document.querySelectorAll(".row")].filter(e=>e.offsetParent).length===14`)

	for _, want := range []string{"light", "dark", "automatic"} {
		b.do(t, chromedp.Click(chromedp.CSS("#theme")))
		b.wait(t, "theme "+want, fmt.Sprintf(`document.querySelector("#theme").getAttribute("aria-label")===%q&&(localStorage.getItem("ferrule.theme")===%[2]q)`, "Theme: "+want, want))
	}
}

// pageKeyboard walks through the page without a mouse.
func pageKeyboard(t *testing.T, b *tab) {
	b.do(t, chromedp.Evaluate[chromedp.Void](`document.activeElement.blur();scrollTo(0,0);history.replaceState(null,"",location.pathname)`), chromedp.Navigate(evaluate[string](t, b, "location.href")))
	b.wait(t, "the values again", jsHasValue)
	b.do(t, chromedp.KeyEvent(kb.Tab))
	if got := evaluate[string](t, b, jsActive); got != "skip" {
		t.Errorf("the first stop is %q; want the way past the head", got)
	}
	b.do(t, chromedp.KeyEvent(kb.Enter))
	b.wait(t, "past the head", jsActive+`==="main"`)
	var walk []string
	for range 40 {
		b.do(t, chromedp.KeyEvent(kb.Tab))
		at := evaluate[string](t, b, jsActive)
		if at == "BODY" {
			break
		}
		if hidden := evaluate[bool](t, b, `(()=>{const r=document.activeElement.getBoundingClientRect();return r.width<1||r.bottom<0||r.top>innerHeight||getComputedStyle(document.activeElement).outlineStyle==="none"})()`); hidden {
			t.Errorf("the focus on %s cannot be seen", at)
		}
		walk = append(walk, at)
	}
	for _, want := range []string{"A", "filter", "SUMMARY", "point"} {
		if !strings.Contains(strings.Join(walk, " ")+" ", want+" ") {
			t.Errorf("the tab key does not reach %q: %v", want, walk)
		}
	}
	if stops := strings.Count(strings.Join(walk, " "), "point"); stops != 1 {
		t.Errorf("the tab key stops at %d points; the arrows are for them", stops)
	}
	b.do(t, chromedp.Evaluate[chromedp.Void](`document.querySelector(".point").focus()`), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.Enter))
	b.wait(t, "the third point open", `[...document.querySelectorAll(".point")].findIndex(p=>p.getAttribute("aria-expanded")==="true")===2`)
	b.do(t, chromedp.KeyEvent(kb.Escape))
	b.wait(t, "it closed", `!document.querySelector(".detail")`)
	b.do(t, chromedp.KeyEvent(kb.End))
	b.wait(t, "the last point", `document.activeElement===[...document.querySelectorAll(".point")].pop()`)
	b.do(t, chromedp.KeyEvent("/"))
	b.wait(t, "the search", jsActive+`==="filter"`)
	b.do(t, chromedp.KeyEvent(kb.Escape))
	b.wait(t, "the search empty", `[...document.querySelectorAll(".row")].filter(e=>e.offsetParent).length===14`)
}

// pageScreens looks at it on small and large screens, in both themes and both directions.
func pageScreens(t *testing.T, b *tab) {
	for _, screen := range []struct {
		name          string
		width, height int64
	}{{"phone", 390, 844}, {"small-phone", 320, 568}, {"tablet", 820, 1180}, {"desk", 1440, 900}, {"wall", 3840, 2160}} {
		var grounds []string
		for _, scheme := range []string{"light", "dark"} {
			b.show(t, screen.width, screen.height, scheme)
			b.do(t, chromedp.Evaluate[chromedp.Void]("scrollTo(0,0)"))
			b.changes(t, "values on "+screen.name)
			for _, direction := range []string{"rtl", "ltr"} {
				b.do(t, chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.documentElement.dir=%q", direction)))
				if wide := evaluate[float64](t, b, jsOverflow); wide > 0 {
					t.Errorf("%s, %s: the page is %.0f pixels too wide", screen.name, direction, wide)
				}
			}
			grounds = append(grounds, evaluate[string](t, b, "getComputedStyle(document.body).backgroundColor"))
			b.shoot(t, screen.name+"-"+scheme)
		}
		if grounds[0] == grounds[1] {
			t.Errorf("%s: light and dark are the same: %s", screen.name, grounds[0])
		}
		small := `[...document.querySelectorAll("button,.jump a,summary,input")].filter(e=>e.offsetParent&&e.getBoundingClientRect().height<32).map(e=>e.outerHTML.slice(0,80))`
		if targets := evaluate[[]string](t, b, small); len(targets) > 0 {
			t.Errorf("%s: too small for a finger: %q", screen.name, targets)
		}
	}
	b.show(t, 1440, 900, "light")
}

// pageRestart has the agent end, by its own will and by another's, and come back.
func pageRestart(t *testing.T, b *tab, s *site) {
	for i, end := range []func(){func() { s.agent.stop(t) }, func() { s.agent.kill() }} {
		end()
		b.wait(t, "that nobody is there", jsVerdict+`==="The agent is not running"&&document.documentElement.dataset.state==="stale"`)
		b.wait(t, "what to do", `document.querySelector("#problems").textContent.includes("ferrule run")`)
		if title := evaluate[string](t, b, "document.title"); !strings.HasPrefix(title, "✗ ") {
			t.Errorf("the tab is called %q", title)
		}
		if i == 0 {
			b.shoot(t, "away")
		}
		s.run(t)
		b.wait(t, "the agent again", jsAllWell+`&&document.documentElement.dataset.state==="live"`)
		boot, _ := field(s.status(t), "boot").(float64)
		b.wait(t, "its boot", fmt.Sprintf(`document.querySelector("#update").textContent.includes("boot %.0f")`, boot))
		b.changes(t, "live values after the restart")
	}
}

// crowd is an agent of the test's own: 5 lines of 10 units with 4 points, and names that are no
// good. It sends to whoever watches, as fast as told.
type crowd struct {
	every time.Duration
	names []string // of the units of a line
}

const evil = `<img src=x onerror="document.title='owned'">`

func newCrowd() *crowd {
	c := &crowd{every: 100 * time.Millisecond}
	for i := range 8 {
		c.names = append(c.names, fmt.Sprintf("unit-%d", i))
	}
	c.names = append(c.names, evil, "\u05de\u05d5\u05e0\u05d4\u202eabc "+strings.Repeat("long ", 40))
	return c
}

func (c *crowd) status(n int) string {
	var lines []map[string]any
	for l := range 5 {
		var units []map[string]any
		for i, name := range c.names {
			units = append(units, map[string]any{"name": name, "address": i, "state": "ok", "polls": n, "errors": map[string]int{"timeout": n/7 + 1}})
		}
		lines = append(lines, map[string]any{"name": fmt.Sprintf("line-%d", l), "state": "up", "role": "master", "protocol": "modbus-rtu",
			"load_percent": 50, "polls": n, "errors": map[string]int{evil: 1}, "units": units})
	}
	text, _ := json.Marshal(map[string]any{"device": "gw-" + evil, "version": "1", "boot": 3, "started": time.Now().Add(-time.Hour),
		"clock":   map[string]any{"now": time.Now(), "trusted": true},
		"session": map[string]any{"stage": "up", "subscribed": true, "broker": "mqtts://" + evil, "since": time.Now().Add(-time.Hour), "acked": n},
		"outbox":  map[string]any{"depth": 1, "appended": n}, "lines": lines})
	return string(text)
}

func (c *crowd) serve(t *testing.T) (config string) {
	t.Helper()
	dir := shortDir(t)
	socket := filepath.Join(dir, "f.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	stream := func(every time.Duration, send func(w http.ResponseWriter, n int)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for n := 0; r.Context().Err() == nil; n++ {
				send(w, n)
				if http.NewResponseController(w).Flush() != nil {
					return
				}
				select {
				case <-r.Context().Done():
				case <-time.After(every):
				}
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, c.status(1)) })
	mux.HandleFunc("GET /events", stream(time.Second, func(w http.ResponseWriter, n int) { fmt.Fprintf(w, "event: status\ndata: %s\n\n", c.status(n)) }))
	mux.HandleFunc("GET /readings", stream(c.every, func(w http.ResponseWriter, n int) { fmt.Fprint(w, c.readings(n)) }))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { _ = server.Close(); served.Wait() })
	config = filepath.Join(dir, "ferrule.toml")
	file := fmt.Sprintf("[session]\nbrokers = [\"mqtts://127.0.0.1:1\"]\n[local]\nsocket = %q\n[[line]]\nname = \"a\"\nport = \"/dev/null\"\nprotocol = \"text\"\n", socket)
	if err := os.WriteFile(config, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

// readings are one poll of every unit: 200 readings.
func (c *crowd) readings(n int) string {
	var b strings.Builder
	for l := range 5 {
		for u, name := range c.names {
			entry, _ := json.Marshal(map[string]any{"boot": 3, "seq": n, "line": fmt.Sprintf("line-%d", l), "unit": name, "readings": map[string]any{
				"power": 1000 + n%50*u, "voltage": 230 + float64(n%9)/10, "running": n%20 > 9, "__proto__": n}})
			fmt.Fprintf(&b, "data: %s\n\n", entry)
		}
	}
	if n%10 == 0 {
		b.WriteString("data: {not json\n\n")
		fmt.Fprintf(&b, "data: {\"line\":\"line-0\",\"unit\":\"unit-0\",\"readings\":{\"once\":%d}}\n\n", n)
	}
	return b.String()
}

// 200 points, 2,000 readings a second, hostile names: nothing moves about, nothing runs, and the
// page still answers a phone's finger.
func TestStatusPageInACrowd(t *testing.T) {
	config := newCrowd().serve(t)
	_, link := startWeb(t, build(t, "ferrule", native), config)
	b := openTab(t)
	b.show(t, 1440, 900, "dark")
	b.do(t, chromedp.Navigate(link))
	b.wait(t, "all points", `document.querySelectorAll(".point").length>200`)
	b.wait(t, "the status", jsAllWell+`&&document.querySelectorAll("#line-list .unit-line").length===50`)
	b.wait(t, "values on the screen", `document.querySelector(".point .value").textContent!=="…"`)
	b.do(t, chromedp.Evaluate[chromedp.Void](`window.shifts=[];window.frames_=0;new PerformanceObserver(l=>{for(const e of l.getEntries())shifts.push(e.value)}).observe({type:"layout-shift"});`+
		`(function f(){window.frames_++;requestAnimationFrame(f)})()`))
	elements := evaluate[int](t, b, `document.querySelectorAll("*").length`)
	b.wait(t, "200 frames", "window.frames_>200")
	if moved := evaluate[float64](t, b, "shifts.reduce((a,b)=>a+b,0)"); moved > 0.02 {
		t.Errorf("the layout shifts by %.4f", moved)
	}
	if now := evaluate[int](t, b, `document.querySelectorAll("*").length`); now > elements+100 {
		t.Errorf("there were %d elements, and now there are %d", elements, now)
	}
	b.shoot(t, "crowd-dark")

	b.show(t, 390, 844, "light")
	b.do(t, chromedp.Navigate(evaluate[string](t, b, "location.href")))
	b.wait(t, "all points on a phone", `document.querySelectorAll(".point").length>=200`)
	b.do(t, chromedp.Click(chromedp.CSS(".jump a[href='#lines']")))
	b.wait(t, "the lines in sight", `(()=>{const r=document.querySelector("#lines").getBoundingClientRect();return r.top>=0&&r.top<innerHeight})()`)
	if wide := evaluate[float64](t, b, jsOverflow); wide > 0 {
		t.Errorf("the page is %.0f pixels too wide", wide)
	}
	b.shoot(t, "crowd-phone")
	if evaluate[int](t, b, `document.querySelectorAll("img").length`) > 0 || evaluate[string](t, b, "document.title") == "owned" {
		t.Error("a name became an element")
	}
	if said := evaluate[string](t, b, `document.querySelector("#device").textContent`); said != "gw-"+evil {
		t.Errorf("the device is called %q", said)
	}
	if polluted := evaluate[string](t, b, `typeof ({}).power+typeof Object.prototype.n`); polluted != "undefinedundefined" {
		t.Errorf("a point's name changed all objects: %s", polluted)
	}
	b.quiet(t)
}
