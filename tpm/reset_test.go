package tpm_test

import (
	"crypto"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

func TestPowerCutsDoNotLock(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	for cut := range 10 {
		mustSign(t, k)
		if err := s.Restart(background); err != nil {
			t.Fatal(err)
		}
		mustSign(t, k) // the same live key: reloaded
		h, err := d.Health(background)
		if err != nil || h.LockoutCounter != 0 || h.InLockout {
			t.Fatalf("after cut %d: %+v, %v", cut+1, h, err)
		}
	}
	if s := d.Stats(); s.Reopened != 10 || s.Commands["Load"] != 11 {
		t.Errorf("counters %+v", s)
	}
}

func TestPowerCutsLockAKeyWithoutNoDA(t *testing.T) {
	s := tpmtest.Start(t)
	f := rawKey(t, s, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false })
	for cut := range 10 {
		d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
		if err != nil {
			t.Fatal(err)
		}
		k := load(t, d, f)
		if w := k.Warnings(); len(w) != 1 || !strings.Contains(w[0], "noDA") {
			t.Fatalf("warnings %q", w)
		}
		err = sign(t, k, crypto.SHA256)
		if errors.Is(err, tpm.ErrLockout) {
			h, healthErr := d.Health(background)
			if !h.InLockout || h.LockoutCounter < 3 || healthErr != nil || hint.Of(err) == "" {
				t.Errorf("health %+v, %v; hint %q", h, healthErr, hint.Of(err))
			}
			t.Logf("locked after %d cuts, counter %d of %d", cut, h.LockoutCounter, h.MaxAuthFail)
			stillSigns(t, d)
			_ = d.Close()
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(background); err != nil {
			t.Fatal(err)
		}
		_ = d.Close()
	}
	t.Fatal("ten power cuts did not lock a key without noDA")
}

func stillSigns(t *testing.T, d *tpm.Device) {
	t.Helper()
	mustSign(t, load(t, d, newKey(t, d, tpm.KeySpec{})))
}

func TestHundredGoroutinesSignThroughAReset(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	var all sync.WaitGroup
	start, half := make(chan struct{}), make(chan struct{}, 100)
	errs := make(chan error, 100)
	for range 100 {
		all.Go(func() {
			<-start
			for i := range 4 {
				if err := sign(t, k, crypto.SHA256); err != nil {
					errs <- err
					return
				}
				if i == 0 {
					half <- struct{}{}
				}
			}
		})
	}
	close(start)
	for range 50 {
		<-half
	}
	if err := s.Restart(background); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if s := d.Stats(); s.Commands["Load"] != 2 {
		t.Errorf("one reset, and the key was loaded %d times", s.Commands["Load"]-1)
	}
}

func TestTPMThatStaysAwayFailsWithinTheBudget(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{RetryBudget: 200 * time.Millisecond})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := sign(t, k, crypto.SHA256); !errors.Is(err, tpm.ErrNoDevice) || hint.Of(err) == "" {
		t.Errorf("error %v", err)
	}
	if err := s.Restart(background); err != nil {
		t.Fatal(err)
	}
	mustSign(t, k)
}

func TestLostConnectionKeepsTheLoadedKey(t *testing.T) {
	s := tpmtest.Start(t)
	p, err := tpmtest.StartProxy(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	d := open(t, p.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	for range 5 { // more often than there are slots
		dropped := false
		p.Inject(func(code uint32) tpmtest.Fault {
			if code != uint32(tpm2.TPMCCSign) || dropped {
				return tpmtest.Fault{}
			}
			dropped = true
			return tpmtest.Fault{Drop: true}
		})
		mustSign(t, k)
	}
	if s := d.Stats(); s.Reopened != 5 || s.Commands["Load"] != 1 {
		t.Errorf("counters %+v", s)
	}
}

func TestKilledAgentsDoNotFillTheTPM(t *testing.T) {
	for name, spec := range map[string]tpm.KeySpec{"below the SRK": {}, "below the owner": {Parent: tpm.OwnerHandle}} {
		t.Run(name, func(t *testing.T) {
			s := tpmtest.Start(t)
			p, err := tpmtest.StartProxy(s.Address())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Close() })
			d := open(t, p.Address(), tpm.Options{})
			f := newKey(t, d, spec)
			_ = d.Close()
			for range 8 {
				d, err := tpm.Open(background, tpm.Options{Path: p.Address(), RetryBudget: 50 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				mustSign(t, load(t, d, f))
				// What the process does when it is killed: the connection ends, and no more.
				p.Inject(func(uint32) tpmtest.Fault { return tpmtest.Fault{Drop: true} })
				_, _ = random(background, d)
				p.Inject(nil)
				_ = d.Close()
			}
		})
	}
}
