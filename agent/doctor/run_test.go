package doctor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/session/cause"
)

// A good device at a good broker: every layer of the network is reached and says what it saw.
func TestEverythingWorks(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		urls := []string{secure(t, limited(w.server.ServerTLS(w.ca), version), speaks(good))}
		if line, can := mosquittoVersion(version); can {
			url, _ := w.mosquitto(w.server, w.ca, line)
			urls = append(urls, url)
		}
		for _, url := range urls {
			r := w.run(url)
			if r.State != OK {
				show(t, r)
				t.Fatalf("state %s", r.State)
			}
			for _, layer := range []Layer{DNS, TCP, TLS, Client, MQTT, Subscription, RoundTrip} {
				if c := find(t, r, layer); c.State != OK || len(c.Saw) == 0 {
					t.Errorf("%+v", c)
				}
			}
			if id := r.Facts.Brokers[0].ClientID; id != "device-1-doctor" {
				t.Errorf("client id %q", id)
			}
		}
	})
}

// The session's own client id is never used while an agent runs, whatever the broker says to doctor's.
func TestTheSessionIsNotThrownOut(t *testing.T) {
	w := newWorld(t)
	ids := make(chan string, 16)
	url := secure(t, w.server.ServerTLS(w.ca), func(c net.Conn) {
		buffer := make([]byte, 4096)
		n, err := c.Read(buffer)
		if err != nil || n < 16 {
			return
		}
		id := string(buffer[14:n])
		ids <- id
		if strings.HasSuffix(id, "-doctor") {
			_, _ = c.Write([]byte{packetConnack << 4, 2, 0, 2})
			return
		}
		if buffer[9]&2 != 0 {
			t.Error("a clean session would drop what the broker keeps for the device")
		}
		_, _ = c.Write([]byte{packetConnack << 4, 2, 0, 0})
		speaks(good)(c)
	})
	r := w.run(url)
	expect(t, r, MQTT, CauseDoctorID, cause.SideBroker, `"device-1-doctor"`)
	last := &cause.Failure{Stage: cause.StageConnack, Cause: cause.NotAuthorized, Side: cause.SideBroker, Text: "as the session heard it", Hint: "register"}
	r = w.run(url, func(o *Options) { o.Session = func() Session { return Session{Last: last} } })
	expect(t, r, MQTT, cause.NotAuthorized, cause.SideBroker, "as the session heard it")
	for range 2 {
		if id := <-ids; id != "device-1-doctor" {
			t.Fatalf("client id %q beside a running agent", id)
		}
	}
	r = w.run(url, func(o *Options) { o.Alone = func() bool { return true } })
	if r.State != OK || !strings.Contains(strings.Join(find(t, r, MQTT).Saw, "\n"), "takes none but the device's own") || find(t, r, RoundTrip).State != OK {
		show(t, r)
		t.Error("where no agent runs, the device's own id is not tried")
	}
}

// What the running session knows is taken from it.
func TestTheSessionIsAsked(t *testing.T) {
	w := newWorld(t)
	url := secure(t, w.server.ServerTLS(w.ca), func(c net.Conn) {
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			t.Error("doctor spoke MQTT although the session stands")
		}
	})
	up := func(s Session) func(*Options) {
		s.Broker, s.Since = url, time.Now()
		return func(o *Options) { o.Session = func() Session { return s } }
	}
	r := w.run(url, up(Session{Subscribed: true, Published: 9, Acked: 7}))
	if r.State != OK || !strings.Contains(strings.Join(find(t, r, RoundTrip).Saw, ""), "7 of 9") {
		show(t, r)
		t.Error("state", r.State)
	}
	r = w.run(url, up(Session{Published: 9}))
	if r.State != Warned || find(t, r, Subscription).State != Warned || find(t, r, RoundTrip).State != Warned {
		show(t, r)
		t.Error("state", r.State)
	}
}

// What a broker may say to CONNECT, SUBSCRIBE and PUBLISH.
func TestCausesOfMQTT(t *testing.T) {
	refuse := func(kind byte, reply []byte, more bool) func(net.Conn) {
		return speaks(func(k byte) ([]byte, bool) {
			if k == kind {
				return reply, more
			}
			return good(k)
		})
	}
	connack := func(code byte) func(net.Conn) {
		return refuse(packetConnect, []byte{packetConnack << 4, 2, 0, code}, false)
	}
	for name, test := range map[string]struct {
		broker func(net.Conn)
		layer  Layer
		what   cause.Cause
		side   cause.Side
	}{
		"version":          {connack(1), MQTT, cause.Protocol, cause.SideBroker},
		"unavailable":      {connack(3), MQTT, cause.Unavailable, cause.SideBroker},
		"not authorised":   {connack(5), MQTT, cause.NotAuthorized, cause.SideBroker},
		"closed":           {refuse(packetConnect, nil, false), MQTT, cause.Closed, cause.SideBroker},
		"no mqtt":          {refuse(packetConnect, []byte("SSH-2.0-OpenSSH\r\n"), true), MQTT, cause.Protocol, cause.SideBroker},
		"silent":           {refuse(packetConnect, nil, true), MQTT, cause.Stalled, cause.SideBroker},
		"deaf":             {refuse(packetSubscribe, []byte{packetSuback << 4, 3, 0, subscribeID, 0x80}, true), Subscription, cause.Subscription, cause.SideBroker},
		"no subscription":  {refuse(packetSubscribe, nil, false), Subscription, cause.Closed, cause.SideBroker},
		"may not publish":  {refuse(packetPublish, nil, false), RoundTrip, CausePublish, cause.SideBroker},
		"acks nothing":     {refuse(packetPublish, nil, true), RoundTrip, cause.NoAck, cause.SideBroker},
		"acks another one": {refuse(packetPublish, []byte{packetPuback << 4, 2, 9, 9}, true), RoundTrip, cause.Protocol, cause.SideBroker},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			url := secure(t, w.server.ServerTLS(w.ca), test.broker)
			r := w.run(url, func(o *Options) {
				o.Alone = func() bool { return true } // so that a refusal is not blamed on doctor's client id
				o.Timeouts.Connack, o.Timeouts.Suback, o.Timeouts.Puback = patience, patience, patience
				switch test.what {
				case cause.Stalled:
					o.Timeouts.Connack = time.Second
				case cause.NoAck:
					o.Timeouts.Puback = time.Second
				}
			})
			expect(t, r, test.layer, test.what, test.side, "")
		})
	}
}

// mosquitto refuses by its access rules.
func TestMosquittoForbidsSubscribing(t *testing.T) {
	w := newWorld(t)
	rules := filepath.Join(t.TempDir(), "nobody-may.anything")
	if err := os.WriteFile(rules, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	url, log := w.mosquitto(w.server, w.ca, "use_identity_as_username true", "acl_file "+rules)
	r := w.run(url)
	if !log.said("device-1-doctor") {
		t.Error("mosquitto saw no client device-1-doctor")
	}
	if c := find(t, r, Subscription); c.State != Failed && c.State != OK { // 2.0 grants and never delivers
		show(t, r)
		t.Error("state", c.State)
	}
}

// One of two brokers works: the other one is a warning, with its repair.
func TestAnotherBrokerWorks(t *testing.T) {
	w := newWorld(t)
	good := secure(t, w.server.ServerTLS(w.ca), speaks(good))
	bad := "mqtts://127.0.0.1:" + freePort(t)
	r := w.run(bad, func(o *Options) { o.Brokers = append(o.Brokers, w.options(good).Brokers...) })
	if _, failed := r.First(); failed || r.State != Warned {
		show(t, r)
		t.Fatal("state", r.State)
	}
	if c := find(t, r, TCP); c.Broker != bad || c.State != Warned || len(c.Warnings) == 0 || c.Warnings[0].Repair == "" {
		t.Errorf("%+v", c)
	}
}

// A layer that is handed in fails: those of the network are looked at all the same, but for a
// configuration that cannot be read.
func TestHandedInLayers(t *testing.T) {
	w := newWorld(t)
	url := secure(t, w.server.ServerTLS(w.ca), speaks(good))
	with := func(layer Layer) func(*Options) {
		return func(o *Options) {
			o.Checks = []Check{{layer, func(context.Context) Result { return Result{}.Fail("broken", "device", "it is broken", "mend it") }}}
		}
	}
	r := w.run(url, with(TPM))
	if r.Failing != TPM || find(t, r, RoundTrip).State != OK {
		show(t, r)
		t.Errorf("failing %s", r.Failing)
	}
	r = w.run(url, with(Configuration))
	if r.Failing != Configuration || slices.ContainsFunc(r.Checks[1:], func(c Result) bool { return c.State != NotReached }) {
		show(t, r)
		t.Errorf("failing %s", r.Failing)
	}
}

// Through a proxy: it is the proxy that is looked up and connected to, its login stays with it, and its
// clock is laid beside ours.
func TestThroughAProxy(t *testing.T) {
	w := newWorld(t)
	broker := secure(t, w.server.ServerTLS(w.ca), speaks(good))
	for name, date := range map[string]time.Time{"right": time.Now(), "another": time.Now().Add(-48 * time.Hour)} {
		t.Run(name, func(t *testing.T) {
			proxy := serve(t, func(c net.Conn) {
				request, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return // somebody only looked whether we listen
				}
				to, err := net.Dial("tcp", request.Host)
				if err != nil {
					return
				}
				defer to.Close()
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nDate: %s\r\n\r\n", date.UTC().Format(http.TimeFormat))
				go func() { _, _ = io.Copy(to, c); _ = to.Close() }()
				_, _ = io.Copy(c, to)
			})
			r := w.run(broker, func(o *Options) {
				o.Dial.Proxy = "http://joe:CANARY@" + strings.TrimPrefix(proxy, "mqtts://")
				o.Explain = true
			})
			if _, failed := r.First(); failed || find(t, r, Proxy).State != OK || find(t, r, RoundTrip).State != OK {
				show(t, r)
				t.Fatal("state", r.State)
			}
			if warned := find(t, r, Clock).State == Warned; warned != (name == "another") {
				t.Errorf("%+v", find(t, r, Clock))
			}
			if text := printed(t, r); strings.Contains(text, "CANARY") || !strings.Contains(text, strings.TrimPrefix(proxy, "mqtts://")) {
				t.Errorf("%s", text)
			}
		})
	}
}

// printed is everything that a report can be made into.
func printed(t testing.TB, r Report) string {
	t.Helper()
	var b strings.Builder
	if err := errors.Join(r.Print(&b, Style{Color: true}), r.Explain(&b), Compare(r, Report{}).Print(&b)); err != nil {
		t.Fatal(err)
	}
	return b.String() + string(must[[]byte](t)(json.Marshal(r))) + fmt.Sprintf("%+v %#v", r, r)
}

// The secrets of the one connection whose handshake is explained, as the broker wrote them down, are in
// nothing that comes out of it.
func TestNoSecretOfTheHandshakeComesOut(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		var mu sync.Mutex
		var log bytes.Buffer
		config := limited(w.server.ServerTLS(w.ca), version)
		config.KeyLogWriter = writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		})
		r := w.run(secure(t, config, speaks(good)), func(o *Options) { o.Explain = true })
		text := printed(t, r)
		if r.State != OK || !strings.Contains(text, "Finished") {
			show(t, r)
			t.Fatal("the handshake is not explained")
		}
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for line := range strings.Lines(log.String()) {
			secret := strings.Fields(line)[2]
			raw := must[[]byte](t)(hex.DecodeString(secret))
			n++
			for _, way := range []string{secret, strings.ToUpper(secret), string(raw), base64.StdEncoding.EncodeToString(raw), strings.Trim(fmt.Sprint(raw), "[]")} {
				if strings.Contains(text, way) {
					t.Errorf("%s comes out", strings.Fields(line)[0])
				}
			}
		}
		if n == 0 {
			t.Error("the broker wrote down no secret")
		}
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
