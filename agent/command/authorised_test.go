package command

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ferrule/agent/command/authorize"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
)

// trustedClock is stoppedClock as authorize wants it.
type trustedClock struct{ *stoppedClock }

func (c trustedClock) Trusted() bool { return !c.wrong }

// guarded is a bench whose commands need tokens.
type guarded struct {
	*bench
	issuer, device *ecdsa.PrivateKey
	thumbprint     string
	events         []string
}

func newGuarded(t testing.TB, fsys *disktest.Disk, issuer, device *ecdsa.PrivateKey, mode authorize.Mode) *guarded {
	t.Helper()
	g := &guarded{bench: newBench(t, fsys), issuer: issuer, device: device}
	var err error
	if g.thumbprint, err = jws.Thumbprint(device.Public()); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(issuer.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, there := fsys.Content("/issuer.pem"); !there {
		if err := atomicfile.Write(fsys, "/issuer.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	authority, err := authorize.Open(authorize.Config{Mode: mode, Issuers: []string{"/issuer.pem"}}, authorize.Options{
		FS: fsys, Path: "/authorizations", StateDir: "/", Clock: trustedClock{g.clock}, Log: slog.New(slog.DiscardHandler),
		Device: func() authorize.Device { return authorize.Device{ID: "gw-1", Thumbprints: []string{g.thumbprint}} },
		Key:    func() crypto.Signer { return device },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = authority.Close() })
	g.Authority = authority
	g.Event = func(_ context.Context, name string, _ bool, attrs ...slog.Attr) {
		g.events = append(g.events, fmt.Sprint(name, " ", attrs))
	}
	move := g.Table["move"].Run
	write := Command{Acts: true, Run: move, Target: func(op *authorize.Operation, args json.RawMessage) error {
		var a struct{ Value float64 }
		if err := Arguments(args, &a); err != nil {
			return err
		}
		op.Line, op.Unit, op.Point, op.Value = "l", "u", "p", a.Value
		return nil
	}}
	g.Table["write"] = write
	return g
}

// token grants scope to this device for five minutes.
func (g *guarded) token(t testing.TB, scope string) string {
	t.Helper()
	token, _, err := authorize.Issue(g.issuer, authorize.Grant{Device: "gw-1", Key: g.thumbprint, Scope: scope, Life: 5 * time.Minute}, g.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func payload(id, token string, value float64) string {
	return fmt.Sprintf(`{"id":%q,"expires":"2026-11-21T12:05:00Z","authorization":%q,"args":{"value":%v}}`, id, token, value)
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Whoever holds the broker but no issuer's key moves nothing, and leaves a line.
func TestARogueBrokerMovesNothing(t *testing.T) {
	g := newGuarded(t, disktest.New(), ecKey(t), ecKey(t), authorize.Enforce)
	if r := g.ask(t, "write", payload("a", "", 12)); r.Code != authorize.CodeMissing || g.moved != 0 {
		t.Errorf("%+v, moved %d", r, g.moved)
	}
	if r := g.ask(t, "write", payload("b", g.token(t, "write:l/u/p=0..10"), 12)); r.Code != authorize.CodeScope || g.moved != 0 {
		t.Errorf("%+v, moved %d", r, g.moved)
	}
	if len(g.events) != 2 || !strings.HasPrefix(g.events[0], EventRefused) || !strings.Contains(g.events[0], authorize.CodeMissing) {
		t.Errorf("events: %q", g.events)
	}
	if r := g.ask(t, "look", `{"id":"c","args":{}}`); !r.OK || r.Receipt != "" {
		t.Errorf("a command that does not act: %+v", r)
	}
}

// A token moves once, and the device signs what it did.
func TestATokenMovesOnceAndIsAnsweredByAReceipt(t *testing.T) {
	g := newGuarded(t, disktest.New(), ecKey(t), ecKey(t), authorize.Enforce)
	token := g.token(t, "write:l/u/p=0..10")
	first := g.ask(t, "write", payload("a", token, 7))
	again := g.ask(t, "write", payload("a", token, 7)) // the broker delivers it twice
	other := g.ask(t, "write", payload("b", token, 7)) // somebody sends it again
	if !first.OK || !again.OK || first.Receipt != again.Receipt || other.Code != authorize.CodeReplayed || g.moved != 1 {
		t.Errorf("moved %d; %+v, %+v, %+v", g.moved, first, again, other)
	}
	receipt, err := jws.Parse(first.Receipt)
	if err != nil {
		t.Fatal(err)
	}
	if err := receipt.Verify(g.device.Public()); err != nil || receipt.Header().Typ != authorize.ReceiptType {
		t.Errorf("receipt: %v, typ %q", err, receipt.Header().Typ)
	}
}

// In audit mode everything acts as before, and the log says what enforce would have refused.
func TestAuditModeRefusesNothing(t *testing.T) {
	g := newGuarded(t, disktest.New(), ecKey(t), ecKey(t), authorize.Audit)
	if r := g.ask(t, "write", payload("a", "", 12)); !r.OK || g.moved != 1 {
		t.Errorf("%+v, moved %d", r, g.moved)
	}
	if len(g.events) != 1 || !strings.Contains(g.events[0], authorize.CodeMissing) {
		t.Errorf("events: %q", g.events)
	}
}

// Whatever the power cut leaves of the disk, one token never moves twice, be it asked under the
// same id or under another.
func TestAPowerCutNeverUsesATokenTwice(t *testing.T) {
	issuer, device := ecKey(t), ecKey(t)
	type executed struct{}
	var token string
	open := func(t testing.TB, d *disktest.Disk) *guarded {
		g := newGuarded(t, d, issuer, device, authorize.Enforce)
		run := g.Table["write"].Run
		write := g.Table["write"]
		write.Run = func(ctx context.Context, args json.RawMessage) (any, error) {
			d.Mark(executed{})
			return run(ctx, args)
		}
		g.Table["write"] = write
		return g
	}
	token = open(t, disktest.New()).token(t, "write:l/u/p=0..10")
	states := disktest.Replay(t, func(d *disktest.Disk) {
		open(t, d).ask(t, "write", payload("a", token, 7))
	}, func(t testing.TB, state *disktest.Disk) {
		g := open(t, state)
		g.ask(t, "write", payload("a", token, 7))
		g.ask(t, "write", payload("b", token, 7))
		if n := len(state.Marks()); n > 1 {
			t.Errorf("it moved %d times", n)
		}
	})
	t.Logf("%d disk states", states)
	if states < 5 {
		t.Errorf("only %d disk states were tried", states)
	}
}
