package identity_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/internal/disk/disktest"
)

const day = 24 * time.Hour

// gateway is a device in a bubble whose clock is the test's: a software key, a disk in memory, a
// desk for a registrar, and a broker that takes what is staged.
type gateway struct {
	t      testing.TB
	desk   *desk
	disk   *disktest.Disk
	config identity.Config
	o      identity.Options
	clock  *testClock
	i      *identity.Identity
	enroll enroll.Config

	mu     sync.Mutex
	broker func(c *identity.Credential) error // what it says of a staged certificate; nil: it takes it
	events []string
	cancel func()
	ended  chan struct{}
}

// testClock is a clock that is off by so much. It counts the instants at which it is looked at.
type testClock struct {
	mu      sync.Mutex
	off     time.Duration
	wild    bool // not trusted
	floor   time.Time
	instant map[time.Time]bool
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instant[time.Now().Round(0)] = true
	now := time.Now().Add(c.off)
	if now.Before(c.floor) {
		return c.floor
	}
	return now
}

func (c *testClock) Floor() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}

func (c *testClock) Trusted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.wild
}

func (c *testClock) set(off time.Duration, trusted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off, c.wild = off, !trusted
}

// looks returns at how many instants somebody woke up and looked, since it was last asked.
func (c *testClock) looks() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.instant)
	clear(c.instant)
	return n
}

// newGateway enrolls gw-1, with a factory certificate if wanted.
func newGateway(t testing.TB, factory bool) *gateway {
	g := &gateway{t: t, desk: newDesk(t), disk: disktest.New(), config: software(), clock: &testClock{instant: map[time.Time]bool{}}}
	g.enroll = g.desk.config()
	g.config.Factory = identity.Factory{Key: "file:factory.pem", Certificate: "factory.crt"}
	g.o = g.desk.on(optionsOn(g.disk, "/state"))
	g.o.Clock = g.clock
	g.clock.floor = time.Now().Add(-day)
	g.o.Event = func(_ context.Context, name string, _ ...slog.Attr) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.events = append(g.events, name)
	}
	if factory {
		life := g.desk.life
		g.desk.life = 20 * 365 * day
		deskEnroll(t, g.desk, g.config, g.o, identity.EnrollRequest{Token: g.desk.token("serial-7"), Factory: true})
		g.desk.life = life
	}
	deskEnroll(t, g.desk, g.config, g.o, identity.EnrollRequest{Token: g.desk.token("gw-1")})
	return g
}

// start opens the identity and runs it, until stop.
func (g *gateway) start() {
	g.t.Helper()
	changed := make(chan struct{}, 1)
	g.o.Changed = func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	var err error
	if g.i, err = identity.Open(background, g.config, g.o); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(background)
	g.cancel, g.ended = cancel, make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() { _ = g.i.Run(ctx, g.enroll) })
	both.Go(func() { g.serve(ctx, changed) })
	go func() { both.Wait(); close(g.ended) }()
	synctest.Wait()
}

// serve is the session: it proves what is staged.
func (g *gateway) serve(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		staged := g.i.Staged()
		if staged == nil {
			continue
		}
		g.mu.Lock()
		judge := g.broker
		g.mu.Unlock()
		if judge != nil {
			if err := judge(staged); err != nil {
				g.i.Refused(staged.Fingerprint(), err)
				continue
			}
		}
		g.i.Promote(staged)
	}
}

func (g *gateway) stop() {
	g.cancel()
	<-g.ended
	if err := g.i.Close(); err != nil {
		g.t.Error(err)
	}
}

func (g *gateway) count(event string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, e := range g.events {
		if e == event {
			n++
		}
	}
	return n
}

// pass lets time go by and returns when everybody sleeps.
func (g *gateway) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// last is what the desk issued last.
func (g *gateway) last() issue {
	issues := g.desk.issues()
	return issues[len(issues)-1]
}

// quiet checks that nobody woke up more often than once a minute, and for each attempt.
func (g *gateway) quiet(d time.Duration, attempts int) {
	g.t.Helper()
	if looks, most := g.clock.looks(), int(d/time.Minute)+3*attempts+5; looks > most {
		g.t.Errorf("%d wake-ups in %v with %d attempts; at most %d are in order", looks, d, attempts, most)
	}
}

func TestRunRenewsWhenItIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		g.start()
		defer g.stop()
		for n := 1; n <= 3; n++ {
			from := g.i.Current()
			if s := g.i.Status(); s.RenewalDue.Before(time.Now()) || s.Alarm != "" || s.Clock != identity.ClockTrusted || s.ClockNote != "" {
				t.Fatalf("status %+v", s)
			}
			g.clock.looks()
			g.pass(time.Until(g.i.Status().RenewalDue) + 2*time.Minute)
			life := from.Leaf().NotAfter.Sub(from.Leaf().NotBefore)
			at := float64(g.last().at.Sub(from.Leaf().NotBefore)) / float64(life)
			if len(g.desk.issues()) != n+1 || at < 0.55 || at > 0.67 || g.last().purpose != enroll.Renew || g.last().shown != "gw-1" {
				t.Errorf("renewal %d: %+v at %.2f of the life", n, g.last(), at)
			}
			if g.i.Current().Fingerprint() == from.Fingerprint() || g.i.Staged() != nil {
				t.Error("the new certificate is not in use")
			}
			g.quiet(60*day, 1)
		}
		if g.count(identity.EventStaged) != 3 || g.count(identity.EventPromoted) != 3 || g.count(identity.EventAlarm) != 0 {
			t.Errorf("events %v", g.events)
		}
	})
}

// A service that is away: attempts go on with back-off, the alarm comes once, and when the
// certificate has expired the way back is taken.
func TestRunWhileTheServiceIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		attempts := 0
		g.desk.set(func(enroll.Request) error {
			attempts++
			return fmt.Errorf("dialing: %w", enroll.ErrUnreachable)
		}, nil)
		g.o = g.o.Stub(g.desk.enroll, func() float64 { return 0.5 })
		g.start()
		defer g.stop()
		first := g.i.Current()
		g.pass(time.Until(first.Leaf().NotAfter) - 14*day)
		s := g.i.Status()
		if s.Alarm == "" || g.count(identity.EventAlarm) != 1 || s.LastAttempt == nil || s.LastAttempt.Way != "renew" ||
			!strings.Contains(s.LastAttempt.Error, "dialing") || s.NextAttempt.Before(time.Now()) {
			t.Errorf("status %+v", s)
		}
		before := attempts
		g.clock.looks()
		g.pass(24 * time.Hour)
		if n := attempts - before; n < 5 || n > 15 {
			t.Errorf("%d attempts in a day", n)
		}
		g.quiet(day, attempts-before)
		g.pass(15 * day)
		if s := g.i.Status(); s.LastAttempt.Way != "return" || !strings.Contains(s.Alarm, "expired") || s.DaysLeft != -3 && s.DaysLeft != -2 {
			t.Errorf("status after expiry %+v", s)
		}
		g.desk.set(nil, nil)
		g.pass(6*time.Hour + time.Minute)
		if g.last().purpose != enroll.Return || g.last().shown != "serial-7" || g.last().device != "gw-1" {
			t.Errorf("the way back: %+v", g.last())
		}
		if s := g.i.Status(); s.Alarm != "" || g.i.Current() == first || s.LastAttempt.Error != "" {
			t.Errorf("status after the return %+v", s)
		}
	})
}

// Acceptance: what expired while the device was asleep is replaced at once, within one cycle.
func TestExpiredWhileAsleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		<-time.After(200 * day)
		g.start()
		defer g.stop()
		synctest.Wait()
		if g.last().purpose != enroll.Return || g.last().shown != "serial-7" || g.i.Status().Alarm != "" {
			t.Errorf("%+v, status %+v", g.last(), g.i.Status())
		}
	})
}

func TestExpiredWithoutAWayBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		<-time.After(200 * day)
		g.clock.looks()
		g.start()
		defer g.stop()
		g.pass(day)
		s := g.i.Status()
		if s.LastAttempt == nil || !strings.Contains(s.LastAttempt.Error, identity.ErrNoWayBack.Error()) || !strings.Contains(s.LastAttempt.Hint, "ferrule enroll") {
			t.Errorf("status %+v", s)
		}
		g.quiet(day, 20)
	})
}

// A broker that refuses the certificate in use gets another one at once; one that refuses
// everything gets no flood of them.
func TestRefusedByTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		g.start()
		defer g.stop()
		g.pass(time.Hour)
		old := g.i.Current()
		g.i.Refused("0000", errors.New("of a certificate that is not ours any more"))
		g.i.Refused(old.Fingerprint(), errors.New("revoked"))
		g.i.Refused(old.Fingerprint(), errors.New("revoked"))
		synctest.Wait()
		if n := len(g.desk.issues()); n != 3 || g.last().purpose != enroll.Return || g.i.Current() == old || g.count(identity.EventRefused) != 1 {
			t.Errorf("%d certificates, the last %+v, events %v", n, g.last(), g.events)
		}
		g.i.Refused(g.i.Current().Fingerprint(), errors.New("revoked"))
		synctest.Wait()
		if n := len(g.desk.issues()); n != 3 || !strings.Contains(g.i.Status().Alarm, "refuses") {
			t.Errorf("%d certificates at once; status %+v", n, g.i.Status())
		}
		g.pass(2 * time.Minute)
		if n := len(g.desk.issues()); n != 4 {
			t.Errorf("%d certificates after a pause", n)
		}
	})
}

// What spreads a fleet over minutes after a start does not keep a device away whose certificate the
// broker refuses.
func TestRefusedRightAfterTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		g.start()
		defer g.stop()
		g.i.Refused(g.i.Current().Fingerprint(), errors.New("revoked"))
		synctest.Wait()
		if g.last().purpose != enroll.Return {
			t.Errorf("no way back at once; status %+v", g.i.Status())
		}
	})
}

func TestRefusedByMistake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false) // with no way back
		g.start()
		defer g.stop()
		g.pass(time.Hour)
		g.i.Refused(g.i.Current().Fingerprint(), errors.New("unknown CA"))
		synctest.Wait()
		if g.i.Status().Alarm == "" {
			t.Error("no alarm")
		}
		g.i.Accepted(g.i.Current().Fingerprint())
		g.pass(day)
		if s := g.i.Status(); s.Alarm != "" || len(g.desk.issues()) != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// A staged certificate that the broker refuses is proved again with pauses, then given up for
// another one; the certificate in use stays.
func TestStagedCertificateThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		g.o = g.o.Stub(g.desk.enroll, func() float64 { return 0.5 })
		proofs := map[string]int{}
		g.broker = func(c *identity.Credential) error {
			proofs[c.Fingerprint()]++
			g.i.Refused(c.Fingerprint(), errors.New("once more, while the pause lasts"))
			return errors.New("unknown CA")
		}
		g.start()
		defer g.stop()
		old := g.i.Current()
		g.pass(time.Until(g.i.Status().RenewalDue) + 5*day)
		if len(proofs) < 2 || g.i.Current() != old {
			t.Errorf("proofs %v", proofs)
		}
		for leaf, n := range proofs {
			if n > 3 {
				t.Errorf("%s was proved %d times", leaf, n)
			}
		}
		if n := len(g.desk.issues()); n < 5 || n > 50 {
			t.Errorf("%d certificates", n)
		}
		g.mu.Lock()
		g.broker = nil
		g.mu.Unlock()
		g.pass(day)
		if g.i.Current() == old || g.i.Staged() != nil {
			t.Error("the broker takes it now, and it is not in use")
		}
	})
}

// A service that refuses the renewal is not hammered, and the factory certificate helps.
func TestRenewalRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		asked := 0
		var first *identity.Attempt
		g.desk.set(func(r enroll.Request) error {
			if r.Purpose != enroll.Renew {
				first = g.i.Status().LastAttempt
				return nil
			}
			asked++
			return fmt.Errorf("%w: revoked\n\x1b[31mby somebody", enroll.ErrRefused)
		}, nil)
		g.start()
		defer g.stop()
		g.pass(time.Until(g.i.Status().RenewalDue) + 10*time.Minute)
		if first == nil || first.Way != "renew" || strings.ContainsAny(first.Error, "\n\x1b") || !strings.Contains(first.Error, "revoked") {
			t.Errorf("the first attempt: %+v", first)
		}
		if asked != 1 || g.last().purpose != enroll.Return || g.last().shown != "serial-7" {
			t.Errorf("renewal asked for %d times, the last certificate %+v", asked, g.last())
		}
	})
}

func TestRenewByCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		g.start()
		defer g.stop()
		old := g.i.Current()
		if err := g.i.Renew(background, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		second := g.i.Current()
		if second == old || !equal(second.Leaf().PublicKey, old.Leaf().PublicKey) {
			t.Error("no new certificate for the same key")
		}
		if err := g.i.Renew(background, true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if equal(g.i.Current().Leaf().PublicKey, old.Leaf().PublicKey) || !g.i.Status().LastAttempt.NewKey {
			t.Errorf("no new key: %+v", g.i.Status().LastAttempt)
		}
		g.pass(5 * time.Minute) // the old key is closed meanwhile
		no := fmt.Errorf("%w: not today", enroll.ErrRefused)
		g.desk.set(func(enroll.Request) error { return no }, nil)
		if err := g.i.Renew(background, false); !errors.Is(err, enroll.ErrRefused) {
			t.Errorf("error %v", err)
		}
		release := make(chan struct{})
		g.desk.set(func(enroll.Request) error { <-release; return nil }, nil)
		short, cancel := context.WithTimeout(background, time.Second)
		defer cancel()
		if err := g.i.Renew(short, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if err := g.i.Renew(short, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error of another one meanwhile %v", err)
		}
		before := g.i.Current()
		close(release)
		synctest.Wait()
		if g.i.Current() == before {
			t.Error("what Renew gave up waiting for did not come")
		}
	})
}

// A rotation of the key that a restart interrupted goes on by itself, with the same key.
func TestInterruptedRotationGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		var sent []string
		g.desk.set(nil, func(enroll.Request) error {
			sent = append(sent, g.last().public)
			return fmt.Errorf("%w: %w", enroll.ErrUnreachable, errCut)
		})
		g.start()
		if err := g.i.Renew(background, true); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		g.stop()
		g.desk.set(nil, func(enroll.Request) error { sent = append(sent, g.last().public); return nil })
		g.start()
		defer g.stop()
		g.pass(time.Minute)
		if len(sent) != 2 || sent[0] != sent[1] || g.i.Staged() != nil || g.i.RotationBegun() {
			t.Errorf("%d requests, the same key: %t", len(sent), len(sent) == 2 && sent[0] == sent[1])
		}
	})
}

// Where others renew, the alarm is all there is to do.
func TestRunWithoutAService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		g.enroll.Method = enroll.MethodNone
		g.start()
		defer g.stop()
		g.clock.looks()
		g.pass(100 * day)
		if len(g.desk.issues()) != 2 || g.count(identity.EventAlarm) != 1 || g.i.Status().Alarm == "" {
			t.Errorf("%d certificates, events %v", len(g.desk.issues()), g.events)
		}
		g.quiet(100*day, 0)
	})
}
