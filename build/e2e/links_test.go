package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// toxics is toxiproxy in front of a site's broker: a link that can be made bad in many ways.
type toxics struct {
	*site
	api string // of toxiproxy
}

// newToxics starts a site whose agent goes through toxiproxy to the broker.
func newToxics(t *testing.T, writeTimeout time.Duration) *toxics {
	t.Helper()
	s := newSite(t, siteOptions{sync: "1s", every: 20 * time.Millisecond, points: 4, weak: true})
	lines := strings.Fields(mustRun(t, "", "../toxiproxy.sh"))
	x := &toxics{site: s, api: "http://127.0.0.1:" + freePort(t)}
	start(t, "toxiproxy", lines[len(lines)-1], "-host", "127.0.0.1", "-port", x.api[strings.LastIndexByte(x.api, ':')+1:])
	x.waitPort(t, strings.TrimPrefix(x.api, "http://"))
	link := "127.0.0.1:" + freePort(t)
	x.call(t, "POST", "/proxies", map[string]any{"name": "link", "listen": link, "upstream": s.broker, "enabled": true})
	s.edit(t, "mqtts://"+s.broker, "mqtts://"+link, `spread = "200ms"`, `spread = "10ms"`, "[session]\n", fmt.Sprintf("[session]\nwrite_timeout = %q\n", writeTimeout))
	s.run(t)
	x.waitUp(t)
	return x
}

// call asks toxiproxy's HTTP API.
func (x *toxics) call(t *testing.T, method, path string, body any) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, x.api+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body)
	if response.StatusCode >= 300 {
		t.Fatalf("toxiproxy: %s %s: %s", method, path, answer)
	}
}

// add makes the link bad in one direction, or in both where stream is empty.
func (x *toxics) add(t *testing.T, kind, stream string, attributes map[string]any) {
	t.Helper()
	for _, s := range []string{"upstream", "downstream"} {
		if stream == "" || stream == s {
			x.call(t, "POST", "/proxies/link/toxics", map[string]any{"name": kind + "-" + s, "type": kind, "stream": s, "attributes": attributes})
		}
	}
}

// heal makes the link good again, of what add did.
func (x *toxics) heal(t *testing.T, kind, stream string) {
	t.Helper()
	for _, s := range []string{"upstream", "downstream"} {
		if stream == "" || stream == s {
			x.call(t, "DELETE", "/proxies/link/toxics/"+kind+"-"+s, nil)
		}
	}
}

func (x *toxics) waitUp(t *testing.T) {
	t.Helper()
	waitFor(t, "the session", func() bool { return field(x.status(t), "session", "stage") == "up" })
}

// waitFailure waits for a failure after at, and returns its cause and when it was found.
func (x *toxics) waitFailure(t *testing.T, at time.Time) (cause string, found time.Time) {
	t.Helper()
	waitFor(t, "a failure", func() bool {
		text, _ := field(x.status(t), "session", "last_failure", "at").(string)
		found, _ = time.Parse(time.RFC3339Nano, text)
		cause, _ = field(x.status(t), "session", "last_failure", "cause").(string)
		return found.After(at)
	})
	return cause, found
}

// connects counts the connections that the broker accepted.
func (x *toxics) connects(t *testing.T) int {
	t.Helper()
	n, _ := field(x.status(t), "session", "connects").(float64)
	return int(n)
}

// finish drains the outbox and judges: nothing is lost, the order is kept, and after each cut no more
// came again than one window held. Nobody took the link's doing for another client.
func (x *toxics) finish(t *testing.T, cuts []time.Time) {
	t.Helper()
	x.waitDrained(t)
	if n := field(x.status(t), "session", "takeovers"); n != 0.0 {
		t.Errorf("%v takeovers", n)
	}
	if n := field(x.status(t), "outbox", "set_aside"); n != 0.0 && n != nil {
		t.Errorf("%v entries were set aside", n)
	}
	x.stop(t)
	v := x.judge(t, nil, promise{})
	if v.received < 200 {
		t.Errorf("only %d readings came: this was no load", v.received)
	}
	if len(cuts) == 0 && v.again > 0 {
		t.Errorf("%d readings came again, and nothing was cut", v.again)
	}
	for n, at := range cuts {
		next := time.Now()
		if n+1 < len(cuts) {
			next = cuts[n+1]
		}
		if again, most := x.repeated(t, at, next); again > most {
			t.Errorf("cut %d: %d readings came again; at most the %d of one window may", n, again, most)
		}
	}
}

// A link on which nothing moves any more, without a word, under load: found within write_timeout and
// a second. One on which only the acknowledgements are lost has the broker take everything twice.
func TestFrozenLinks(t *testing.T) {
	const limit = 2 * time.Second
	for name, stream := range map[string]string{"both ways": "", "no acknowledgement comes": "downstream"} {
		t.Run(name, func(t *testing.T) {
			x := newToxics(t, limit)
			var cuts []time.Time
			for range 3 {
				x.waitUp(t)
				pause(t, 500*time.Millisecond)
				frozen := time.Now()
				x.add(t, "timeout", stream, map[string]any{"timeout": 0})
				cause, found := x.waitFailure(t, frozen)
				cuts = append(cuts, found) // until then one window got through
				if took := found.Sub(frozen); cause != "frozen" || took > limit+time.Second {
					t.Errorf("%s after %v", cause, took)
				} else {
					t.Logf("write_timeout %v: %s, found after %v", limit, cause, took.Round(time.Millisecond))
				}
				x.heal(t, "timeout", stream)
			}
			x.finish(t, cuts)
		})
	}
}

// Connections that are reset, again and again, in the middle of whatever goes on.
func TestResetLinks(t *testing.T) {
	x := newToxics(t, 10*time.Second)
	var cuts []time.Time
	for n := range 6 {
		x.waitUp(t)
		pause(t, time.Duration(n)*150*time.Millisecond)
		cuts = append(cuts, time.Now())
		x.add(t, "reset_peer", "", map[string]any{"timeout": 0})
		if cause, _ := x.waitFailure(t, cuts[n]); cause != "closed" {
			t.Errorf("cut %d: %s", n, cause)
		}
		x.heal(t, "reset_peer", "")
	}
	x.finish(t, cuts)
}

// Every second connection breaks after some bytes, some of them in the handshake.
func TestEverySecondConnectionBreaks(t *testing.T) {
	x := newToxics(t, 10*time.Second)
	var cuts []time.Time
	for n := range 6 {
		x.waitUp(t)
		pause(t, 300*time.Millisecond)
		if n%2 == 0 {
			x.add(t, "limit_data", "upstream", map[string]any{"bytes": 1000 + 9000*n})
		}
		cuts = append(cuts, time.Now())
		x.call(t, "POST", "/proxies/link", map[string]any{"enabled": false})
		x.waitFailure(t, cuts[len(cuts)-1])
		x.call(t, "POST", "/proxies/link", map[string]any{"enabled": true})
		if n%2 == 0 {
			cuts = append(cuts, time.Now())
			x.waitFailure(t, cuts[len(cuts)-1])
			x.heal(t, "limit_data", "upstream")
		}
	}
	x.finish(t, cuts)
}

// Packets of a few bytes each; and a line that is slower than the readings, far away. Nothing breaks,
// so nothing comes twice.
func TestSlicedAndSlowLinks(t *testing.T) {
	for name, add := range map[string]func(t *testing.T, x *toxics){
		"sliced": func(t *testing.T, x *toxics) {
			x.add(t, "slicer", "", map[string]any{"average_size": 48, "size_variation": 32, "delay": 100})
		},
		"slow": func(t *testing.T, x *toxics) {
			x.add(t, "latency", "", map[string]any{"latency": 300, "jitter": 100})
			x.add(t, "bandwidth", "upstream", map[string]any{"rate": 12})
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newToxics(t, 10*time.Second)
			add(t, x)
			pause(t, 6*time.Second)
			if n := x.connects(t); n != 1 {
				t.Errorf("%d connections", n)
			}
			if name == "slow" {
				x.heal(t, "bandwidth", "upstream")
				x.heal(t, "latency", "") // or there is always something in flight
			}
			x.finish(t, nil)
		})
	}
}
