package identity_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/identity"
)

const year = 365 * day

// trueBroker is a TLS server whose own clock is right, and whose certificate is valid from a month
// ago for a year. It asks for a certificate, and says how the handshake ended on both sides.
type trueBroker struct {
	config *tls.Config
	roots  *x509.CertPool
}

func newTrueBroker(t testing.TB, d *desk) *trueBroker {
	t.Helper()
	key, _ := softwareKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-30 * day), NotAfter: time.Now().Add(year), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, d.root, key.Public(), d.key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(d.root)
	return &trueBroker{roots: roots, config: &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: (*ecdsa.PrivateKey)(key)}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: roots, Time: time.Now, MaxVersion: tls.VersionTLS12,
	}}
}

// meet is one handshake; TLS 1.2, so that its end says everything.
func (b *trueBroker) meet(c *identity.Credential) error {
	near, far := net.Pipe()
	defer near.Close()
	// A pipe has no buffer, and both ends may be writing.
	_, _ = near.SetDeadline(time.Now().Add(time.Second)), far.SetDeadline(time.Now().Add(time.Second))
	served := make(chan error, 1)
	go func() {
		defer far.Close()
		served <- tls.Server(far, b.config).HandshakeContext(background)
	}()
	err := tls.Client(near, c.TLS(b.roots, "localhost")).HandshakeContext(background)
	near.Close()
	if other := <-served; err == nil {
		err = other
	}
	return err
}

// strict makes the desk prove itself to the time that it is judged by, as TLS does.
func strict(d *desk, from, to time.Time) {
	d.set(func(r enroll.Request) error {
		if now := r.Now(); now.Before(from) || now.After(to) {
			return fmt.Errorf("the registrar's certificate is not valid at %s: %w", now.Format(time.DateOnly), enroll.ErrUntrusted)
		}
		return nil
	}, nil)
}

// Acceptance: the clock stands in 1970 and nobody mends it. The device connects, since the floor is
// a time that has passed, and renews, since the monotonic clock goes on.
func TestClockIn1970(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, now := newGateway(t, false), time.Now()
		broker := newTrueBroker(t, g.desk)
		strict(g.desk, now.Add(-30*day), now.Add(year))
		g.clock.set(-30*year, false)
		g.start()
		defer g.stop()
		s := g.i.Status()
		if err := broker.meet(g.i.Current()); err != nil || s.Clock != identity.ClockUntrusted || !strings.Contains(s.ClockNote, "which is past") {
			t.Errorf("%v; status %+v", err, s)
		}
		g.clock.looks()
		g.pass(120 * day)
		if n := len(g.desk.issues()); n != 3 && n != 2 {
			t.Errorf("%d certificates in 120 days of a clock that stands", n)
		}
		if err := broker.meet(g.i.Current()); err != nil {
			t.Errorf("after the renewal: %v", err)
		}
		g.quiet(120*day, 3)
	})
}

// Acceptance: ten years ahead, and nobody vouches for the clock.
func TestClockTenYearsAheadUntrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, now := newGateway(t, true), time.Now()
		broker := newTrueBroker(t, g.desk)
		strict(g.desk, now.Add(-30*day), now.Add(year))
		g.clock.set(10*year, false)
		g.start()
		defer g.stop()
		s := g.i.Status()
		if err := broker.meet(g.i.Current()); err != nil || s.Clock != identity.ClockFloor || !strings.Contains(s.ClockNote, "nobody vouches") || s.DaysLeft < 80 || s.Alarm != "" {
			t.Errorf("%v; status %+v", err, s)
		}
		g.clock.looks()
		g.pass(70 * day)
		if n, last := len(g.desk.issues()), g.last(); n != 3 || last.purpose != enroll.Renew {
			t.Errorf("%d certificates, the last %+v", n, last)
		}
		if err := broker.meet(g.i.Current()); err != nil {
			t.Errorf("after the renewal: %v", err)
		}
		g.quiet(70*day, 2)
	})
}

// The clock that nobody vouches for is right after all, and the floor is behind: a gateway without
// a time server that slept past its certificate. The registrar is believed by the clock.
func TestUntrustedClockThatIsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		<-time.After(200 * day)
		now := time.Now()
		strict(g.desk, now.Add(-30*day), now.Add(year)) // its certificate is younger than the floor
		g.clock.set(0, false)
		g.start()
		defer g.stop()
		g.pass(time.Hour)
		// By the floor our certificate is good: the broker, who has a clock, is the one who knows.
		g.i.Refused(g.i.Current().Fingerprint(), fmt.Errorf("expired certificate"))
		synctest.Wait()
		if s := g.i.Status(); g.last().purpose != enroll.Return || s.Alarm != "" || !s.NotAfter.After(now) {
			t.Errorf("%+v, status %+v", g.last(), s)
		}
	})
}

// Acceptance: ten years ahead, and the time server says so. Nothing can be believed then: the status
// says why, nothing is hammered, and all is well when the clock is.
func TestClockTenYearsAheadTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, now := newGateway(t, true), time.Now()
		broker := newTrueBroker(t, g.desk)
		asked := 0
		g.desk.set(func(r enroll.Request) error {
			asked++
			if at := r.Now(); at.After(now.Add(year)) {
				return fmt.Errorf("the registrar's certificate expired: %w", enroll.ErrUntrusted)
			}
			return nil
		}, nil)
		g.o = g.o.Stub(g.desk.enroll, func() float64 { return 0.5 })
		g.clock.set(10*year, true)
		g.start()
		defer g.stop()
		g.clock.looks()
		g.pass(day)
		s := g.i.Status()
		if err := broker.meet(g.i.Current()); err == nil || s.Clock != identity.ClockTrusted || !strings.Contains(s.ClockNote, "said to be right") || !strings.Contains(s.Alarm, "expired") {
			t.Errorf("%v; status %+v", err, s)
		}
		if asked < 3 || asked > 24 {
			t.Errorf("the registrar was asked %d times in a day", asked)
		}
		g.quiet(day, asked)
		g.clock.set(0, true)
		g.pass(7 * time.Hour)
		if err := broker.meet(g.i.Current()); err != nil || g.i.Status().Alarm != "" {
			t.Errorf("once the clock is right: %v, status %+v", err, g.i.Status())
		}
	})
}

// A clock that jumps to and fro all day, by an hour and by years: noticed, and nothing else.
func TestClockThatJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, true)
		g.start()
		defer g.stop()
		g.clock.looks()
		for n := range 24 * 4 {
			off := []time.Duration{-time.Hour, 0, 10 * year, -30 * year}[n%4]
			g.clock.set(off, n%4 < 2)
			g.pass(15 * time.Minute)
		}
		if n := len(g.desk.issues()); n != 2 {
			t.Errorf("%d certificates; nothing was due", n)
		}
		g.quiet(day, 0)
	})
}

// A trusted clock that is set back by an hour costs nothing.
func TestClockBackByAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		broker := newTrueBroker(t, g.desk)
		g.start()
		defer g.stop()
		g.pass(day)
		g.clock.set(-time.Hour, true)
		g.pass(time.Hour)
		if err := broker.meet(g.i.Current()); err != nil || len(g.desk.issues()) != 1 {
			t.Errorf("%v, %d certificates", err, len(g.desk.issues()))
		}
	})
}

// Who gives a certificate of the far future would lift the clock's floor to there.
func TestCertificateOfTheFutureIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, false)
		g.start()
		defer g.stop()
		g.desk.ahead = 10 * year
		if err := g.i.Renew(background, false); err == nil || !strings.Contains(err.Error(), "valid from") {
			t.Errorf("error %v", err)
		}
	})
}

// The clock stands in 1970 or ten years ahead, and broker and registrar have got their certificates
// since ours was made: the earliest time that it can be lies before them, and is no reason to
// keep away. A clock that is trusted is one.
func TestServersYoungerThanOurCertificate(t *testing.T) {
	for _, off := range []time.Duration{-30 * year, 10 * year} {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, false)
			<-time.After(60 * day)
			broker, from := newTrueBroker(t, g.desk), time.Now().Add(-30*day)
			young := x509.CertificateInvalidError{Cert: &x509.Certificate{NotBefore: from}, Reason: x509.Expired}
			g.desk.set(func(r enroll.Request) error {
				if now := r.Now(); now.Before(from) || now.After(from.Add(year)) {
					return fmt.Errorf("%w: %w", enroll.ErrUntrusted, young)
				}
				return nil
			}, nil)
			g.clock.set(off, false)
			g.start()
			defer g.stop()
			c := g.i.Current()
			err := broker.meet(c)
			at, ok := c.Later(time.Time{}, err)
			if err == nil || !ok || !at.Equal(from.Truncate(time.Second)) {
				t.Errorf("clock off by %s: %v; to be judged at %s, %t", off, err, at, ok)
			}
			if _, again := c.Later(at, err); again {
				t.Error("a certificate that begins at the time it is judged by begins later")
			}
			if err := g.i.Renew(background, false); err != nil {
				t.Errorf("clock off by %s: %v", off, err)
			}
			g.clock.set(off, true)
			if _, ok := c.Later(time.Time{}, err); ok && off > 0 {
				t.Error("a trusted clock is overruled")
			}
		})
	}
}
