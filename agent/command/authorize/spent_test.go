package authorize_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/command/authorize"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
)

// Whatever the power leaves of the disk, a token whose use was made durable is never good again.
func TestPowerCutNeverRevivesAToken(t *testing.T) {
	w := newWorld(t)
	start := w.disk.(*disktest.Disk).Kill()
	var tokens []string
	for range 4 {
		tokens = append(tokens, w.token())
	}
	run := func(d *disktest.Disk) {
		w := *w
		w.disk, w.Authority = d, nil
		for i, token := range tokens {
			if i%2 == 0 {
				w.start()
			}
			d.Mark(fmt.Sprintf("begin %d", i))
			w.good(token, operation())
			d.Mark(i)
		}
	}
	run(start)
	n := 0
	for name, state := range start.CrashStates() {
		n++
		w := *w
		w.t, w.disk, w.Authority = t, state, nil
		w.start()
		for _, m := range state.Marks() {
			i, used := m.(int)
			if !used {
				continue
			}
			if _, err := w.use(tokens[i], operation()); err == nil {
				t.Fatalf("power cut %s: token %d is good again", name, i)
			}
		}
		// And the device is not stuck: a token that is issued two minutes after this start is good.
		w.clock = &clock{now: noon.Add(3 * time.Minute)}
		w.start()
		w.good(w.token(set("iat", w.clock.now.Add(2*time.Minute).Unix()-60), set("exp", w.clock.now.Add(5*time.Minute).Unix())), operation())
	}
	t.Logf("%d states", n)
}

// A store that is damaged, or gone, refuses what it may have held, and no more.
func TestDamagedStore(t *testing.T) {
	for name, spoil := range map[string]func(d *disktest.Disk){
		"gone":      func(d *disktest.Disk) { _ = d.Remove(store) },
		"empty":     func(d *disktest.Disk) { d.SetContent(store, nil) },
		"rubbish":   func(d *disktest.Disk) { d.SetContent(store, []byte(strings.Repeat("rubbish", 100))) },
		"zeros":     func(d *disktest.Disk) { d.SetContent(store, make([]byte, 200)) },
		"bit":       func(d *disktest.Disk) { spoilByte(d, 100) },
		"last byte": func(d *disktest.Disk) { spoilByte(d, -1) },
		"cut": func(d *disktest.Disk) {
			text, _ := d.Content(store)
			d.SetContent(store, text[:len(text)-5])
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			used := w.token()
			w.good(used, operation())
			spoil(w.disk.(*disktest.Disk))
			w.clock.untrusted = true // as at a boot without a battery
			w.start()
			w.clock.untrusted = false
			if _, err := w.use(used, operation()); err == nil {
				t.Fatal("a used token is good again")
			}
			w.bad(authorize.CodeStale, w.token(), operation())
			w.clock.now = noon.Add(2 * time.Minute)
			fresh := set("iat", w.clock.now.Unix())
			w.good(w.token(fresh), operation())
			w.start()
			w.good(w.token(fresh), operation())
		})
	}
}

func spoilByte(d *disktest.Disk, at int) {
	text, _ := d.Content(store)
	if at < 0 {
		at += len(text)
	}
	at = min(at, len(text)-20)
	text[at] ^= 0x10
	d.SetContent(store, text)
}

// A full store refuses; it never forgets a token that could still be used.
func TestFullStore(t *testing.T) {
	w := newWorld(t)
	first := w.sign(w.ed, nil, w.claims(set("exp", noon.Add(time.Minute).Unix())))
	w.good(first, operation())
	if err := w.Fill(noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.bad(authorize.CodeStore, w.token(), operation())
	w.bad(authorize.CodeReplayed, first, operation())
	w.start()
	w.bad(authorize.CodeStore, w.token(), operation())
	w.clock.now = noon.Add(3 * time.Minute)
	w.good(w.token(), operation())
	if n := w.Status().Waiting; n != 1 {
		t.Errorf("%d tokens wait after all but one expired", n)
	}
	// The clock goes back: what was forgotten stays refused.
	w.clock.now = noon
	w.bad(authorize.CodeExpired, first, operation())
	w.start()
	if _, err := w.use(first, operation()); err == nil {
		t.Error("after a start with the clock back, a used token is good again")
	}
	if size := len(content(w)); size > 1<<20 {
		t.Errorf("the store has %d bytes", size)
	}
}

func content(w *world) []byte {
	text, _ := w.disk.(*disktest.Disk).Content(store)
	return text
}

// The file stays small in years of commands, and each costs one sync.
func TestStoreIsBounded(t *testing.T) {
	w := newWorld(t)
	d := w.disk.(*disktest.Disk)
	w.good(w.token(), operation())
	largest, syncs := 0, d.Count(disktest.Sync)
	const n = 800
	for range n {
		w.clock.now = w.clock.now.Add(10 * time.Minute)
		now := w.clock.now
		w.good(w.sign(w.ed, nil, w.claims(set("iat", now.Unix()), set("exp", now.Add(time.Minute).Unix()))), operation())
		largest = max(largest, len(content(w)))
	}
	if largest > 64<<10 || d.Count(disktest.Sync)-syncs > n+n/50 {
		t.Errorf("%d bytes, %d syncs for %d commands", largest, d.Count(disktest.Sync)-syncs, n)
	}
}

// A disk that cannot keep the use refuses the command, says so, and is well again.
func TestStoreOnABadDisk(t *testing.T) {
	for name, errno := range map[string]error{"full": syscall.ENOSPC, "read-only": syscall.EROFS, "broken": syscall.EIO} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := w.disk.(*disktest.Disk)
			w.good(w.token(), operation())
			d.Fail(func(op disktest.Op) error {
				if op.Kind.Changes() || op.Kind == disktest.Sync {
					return errno
				}
				return nil
			})
			token := w.token()
			w.bad(authorize.CodeStore, token, operation())
			if w.Status().Problem == "" {
				t.Error("nobody is told")
			}
			w.bad(authorize.CodeReplayed, token, operation()) // it may be on the disk
			d.Fail(nil)
			w.good(w.token(), operation())
			if p := w.Status().Problem; p != "" {
				t.Error(p)
			}
			w.start()
			w.bad(authorize.CodeReplayed, token, operation())
		})
	}
}

func TestOneTokenManyAtOnce(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	var passed atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := w.use(token, operation()); err == nil {
				passed.Add(1)
			}
		})
	}
	all.Wait()
	if passed.Load() != 1 {
		t.Errorf("one token moved %d times", passed.Load())
	}
}

func TestReceipt(t *testing.T) {
	w := newWorld(t)
	op := operation()
	d, err := w.Check(t.Context(), w.token(), op)
	if err != nil {
		t.Fatal(err)
	}
	out := authorize.Outcome{OK: true, Result: []byte(`{"read":12.5}`)}
	if receipt, err := w.Receipt(t.Context(), d, op, out); err == nil {
		t.Errorf("a receipt before the token was spent: %s", receipt)
	}
	if err := w.Spend(t.Context(), &d, op); err != nil {
		t.Fatal(err)
	}
	receipt, err := w.Receipt(t.Context(), d, op, out)
	if err != nil || w.key.count.Load() != 1 {
		t.Fatalf("%v, %d signatures", err, w.key.count.Load())
	}
	parsed, err := jws.Parse(receipt)
	if err != nil {
		t.Fatal(err)
	}
	if h := parsed.Header(); h.Typ != authorize.ReceiptType || h.Kid != w.thumbprint {
		t.Errorf("%+v", h)
	}
	if err := parsed.Verify(w.key.Public()); err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := parsed.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"iss": device, "aud": "ops", "jti": d.Token, "id": "c1", "command": "write", "line": "rs485-1", "unit": "meter-a", "point": "limit", "value": 12.5,
		"ok": true, "result": authorize.Digest(out.Result), "args": authorize.Digest(op.Args), "clock_trusted": true, "mode": "enforce",
		"iat": float64(noon.Unix()), "grant": "write:rs485-1/meter-a/limit=0..50",
	} {
		if claims[name] != want {
			t.Errorf("%s is %v, want %v", name, claims[name], want)
		}
	}
	// A receipt is no authorisation, even where the device's own key were an issuer's.
	w.bad(authorize.CodeHeader, receipt, op)
	w.key.fail.Store(true)
	if _, err := w.Receipt(t.Context(), d, op, out); err == nil || !strings.Contains(err.Error(), "signing the receipt") {
		t.Errorf("a key that refuses: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := w.Receipt(ctx, d, op, out); !errors.Is(err, context.Canceled) {
		t.Errorf("too late: %v", err)
	}
}

// In audit mode the receipt says what enforce would have refused.
func TestReceiptInAuditMode(t *testing.T) {
	w := newWorld(t)
	w.config.Mode = authorize.Audit
	w.start()
	d := w.good("", operation())
	receipt, err := w.Receipt(t.Context(), d, operation(), authorize.Outcome{Code: "failed"})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(receipt, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims["would_refuse"] != authorize.CodeMissing || claims["ok"] != false || claims["code"] != "failed" {
		t.Errorf("%s", payload)
	}
}

func TestIssue(t *testing.T) {
	w := newWorld(t)
	grant := authorize.Grant{Issuer: "ops", Device: device, Key: w.thumbprint, Scope: "write:*/*/*", Life: 5 * time.Minute}
	token, claims, err := authorize.Issue(w.ed, grant, noon)
	if err != nil || claims.Expires-claims.IssuedAt != 300 {
		t.Fatalf("%+v, %v", claims, err)
	}
	w.good(token, operation())
	second, _, err := authorize.Issue(w.ed, grant, noon)
	if err != nil {
		t.Fatal(err)
	}
	w.good(second, operation())
	for name, change := range map[string]func(g *authorize.Grant){
		"scope":     func(g *authorize.Grant) { g.Scope = "write" },
		"no words":  func(g *authorize.Grant) { g.Scope = "wirte:*/*/*" },
		"device":    func(g *authorize.Grant) { g.Device = "" },
		"key":       func(g *authorize.Grant) { g.Key = "x" },
		"life":      func(g *authorize.Grant) { g.Life = time.Hour },
		"no life":   func(g *authorize.Grant) { g.Life = 0 },
		"too large": func(g *authorize.Grant) { g.Scope = "write:a/b/" + strings.Repeat("c", 3000) },
	} {
		g := grant
		change(&g)
		if token, _, err := authorize.Issue(w.ed, g, noon); err == nil {
			t.Errorf("%s: %s", name, token)
		}
	}
}

// FuzzStore opens rubbish as the store.
func FuzzStore(f *testing.F) {
	w := newWorld(f)
	used := w.sign(w.ed, nil, w.claims(set("jti", "fixed")))
	w.good(used, operation())
	f.Add(content(w))
	f.Add(content(w)[:40])
	f.Add([]byte{})
	whole := content(w)
	f.Fuzz(func(t *testing.T, data []byte) {
		w := *w
		w.t, w.disk, w.Authority = t, disktest.New(), nil
		if err := w.disk.MkdirAll("/state", 0o700); err != nil {
			t.Fatal(err)
		}
		w.pin("ec.pem", w.ec.Public())
		w.pin("ed.pem", w.ed.Public())
		w.file("authorized", data)
		w.start()
		if _, err := w.use(used, operation()); err == nil && bytes.Equal(data, whole) {
			t.Fatal("a used token is good again")
		}
	})
}
