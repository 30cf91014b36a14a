package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"ferrule/tpm"
)

// Status is what the agent shows of its identity.
type Status struct {
	Device      string    `json:"device"`
	Key         string    `json:"key"`
	Weak        bool      `json:"weak"`
	TPM         *TPM      `json:"tpm,omitempty"`
	Serial      string    `json:"serial"`
	Issuer      string    `json:"issuer"`
	Fingerprint string    `json:"fingerprint"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	// DaysLeft is rounded down, and below zero for an expired certificate.
	DaysLeft int `json:"days_left"`
	// Staged says that a new certificate waits for a broker to take it.
	Staged bool `json:"staged,omitempty"`
	// RenewalDue is when another one is asked for.
	RenewalDue  time.Time `json:"renewal_due,omitzero"`
	LastAttempt *Attempt  `json:"last_attempt,omitempty"`
	// NextAttempt is when a renewal that failed is tried again.
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	// Alarm says why somebody should look: little is left of the certificate's life, or nothing.
	Alarm string `json:"alarm,omitempty"`
	// Problem is what could not be written to the disk.
	Problem string `json:"problem,omitempty"`
	// Factory is the factory certificate (IDevID), where there is one.
	Factory *FactoryStatus `json:"factory,omitempty"`
	// Clock is by which clock certificates are judged: trusted, untrusted or floor. ClockNote says
	// why, where it is not the system's.
	Clock     string `json:"clock"`
	ClockNote string `json:"clock_note,omitempty"`
	// FullHandshakes each cost one signature of the key, Resumed ones none.
	FullHandshakes uint64 `json:"full_handshakes"`
	Resumed        uint64 `json:"resumed_handshakes"`
}

// Attempt is one try to obtain a certificate.
type Attempt struct {
	At time.Time `json:"at"`
	// Way is renew, by the certificate that is renewed, or return, by the factory certificate or
	// the endorsement key.
	Way    string `json:"way"`
	NewKey bool   `json:"new_key,omitempty"`
	// Error is empty where a certificate came.
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// FactoryStatus is what there is to know of the factory certificate.
type FactoryStatus struct {
	Device   string    `json:"device"`
	Serial   string    `json:"serial"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
}

// TPM is the chip as it was found at the start, with what was asked of it since.
type TPM struct {
	tpm.Health
	tpm.Stats
}

// Status returns the identity as it is now. It asks the TPM nothing.
func (i *Identity) Status() Status {
	c := i.Current()
	now, clock := i.judge.now(c.leaf)
	s := Status{
		Device: c.leaf.Subject.CommonName, Key: i.config.Key, Weak: c.key.Weak(),
		Serial: c.leaf.SerialNumber.Text(16), Issuer: c.leaf.Issuer.CommonName, Fingerprint: c.fingerprint,
		NotBefore: c.leaf.NotBefore, NotAfter: c.leaf.NotAfter,
		DaysLeft:       int(math.Floor(c.leaf.NotAfter.Sub(now).Hours() / 24)),
		Clock:          clock,
		FullHandshakes: i.counters.full.Load(), Resumed: i.counters.resumed.Load(),
	}
	s.ClockNote = i.clockNote(c.leaf, now, clock)
	i.renewalStatus(&s, now)
	if f := i.factory; f != nil {
		s.Factory = &FactoryStatus{f.Subject.CommonName, f.SerialNumber.Text(16), f.Issuer.CommonName, f.NotAfter}
	}
	i.opening.Lock()
	defer i.opening.Unlock()
	if i.device != nil {
		s.TPM = &TPM{Health: i.health, Stats: i.device.Stats()}
	}
	return s
}

func (i *Identity) renewalStatus(s *Status, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s.Staged, s.Problem = i.staged != nil, i.state.problem
	if i.state.terms != nil {
		newest := i.current
		if i.staged != nil {
			newest = i.staged
		}
		s.RenewalDue = i.dueOf(newest.leaf)
	}
	if i.state.last != nil {
		last := *i.state.last
		s.LastAttempt = &last
	}
	if wait := time.Until(i.state.next); i.state.last != nil && i.state.last.Error != "" && wait > 0 {
		s.NextAttempt = i.o.Clock.Now().Add(wait).Round(time.Second)
	}
	switch t := i.term(i.current); {
	case i.state.refused:
		s.Alarm = "the broker refuses the certificate"
	case t.expired(now):
		s.Alarm = "the certificate expired on " + stamp(t.notAfter)
	case !now.Before(t.alarmAt()):
		s.Alarm = "the certificate expires on " + stamp(t.notAfter) + ", and no broker has taken another one yet"
	}
}

// clockNote says what the clocks are, where they differ.
func (i *Identity) clockNote(leaf *x509.Certificate, now time.Time, clock string) string {
	system, floor := i.o.Clock.Now(), i.o.Clock.Floor()
	switch {
	case clock == ClockFloor:
		return fmt.Sprintf("nobody vouches for the system's clock, and it says %s, when our certificate has expired; %s is the earliest time that it can be, and is used",
			stamp(system), stamp(now))
	case clock == ClockUntrusted && !system.After(floor):
		return fmt.Sprintf("the system's clock stands before %s, which is past; %s is the earliest time that it can be, and is used", stamp(floor), stamp(now))
	case clock == ClockTrusted && now.After(leaf.NotAfter):
		return fmt.Sprintf("the system's clock is said to be right and says %s: our certificate has expired by it", stamp(now))
	}
	return ""
}

// readFactory looks at the factory certificate; its key is opened when it is needed.
func (i *Identity) readFactory(ctx context.Context) {
	if i.config.Factory.Certificate == "" {
		return
	}
	chain, _, err := readChain(i.o, i.config.Factory.Certificate)
	switch {
	case err == nil:
		i.factory = chain[0]
	case !errors.Is(err, fs.ErrNotExist):
		i.o.Log.LogAttrs(ctx, slog.LevelWarn, "factory certificate not usable", slog.Any("err", err))
	}
}

// attrs describe a certificate to log and audit.
func (c *Credential) attrs() []slog.Attr {
	return []slog.Attr{
		slog.String("device", c.leaf.Subject.CommonName), slog.String("serial", c.leaf.SerialNumber.Text(16)),
		slog.String("leaf", c.fingerprint), slog.Time("not_after", c.leaf.NotAfter.UTC()),
	}
}

// maxText bounds what Status shows of an error, in bytes.
const maxText = 600

// text is an error as Status shows it: a service's words are in it, so nothing of it may act on a
// terminal.
func text(err error) string {
	if err == nil {
		return ""
	}
	s := strings.ToValidUTF8(err.Error(), "�")
	s = strings.Map(func(r rune) rune {
		if r == '\n' {
			return ';'
		}
		if !strconv.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
