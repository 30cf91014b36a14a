package tpm_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

// proxied is a certified TPM behind a proxy, with a key for it.
type proxied struct {
	s    *tpmtest.Swtpm
	p    *tpmtest.Proxy
	file *tpm.KeyFile
	e    attest.Evidence
}

func newProxied(t testing.TB) *proxied {
	t.Helper()
	w := &proxied{s: tpmtest.Certified(t)}
	var err error
	if w.p, err = tpmtest.StartProxy(w.s.Address()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.p.Close() })
	w.direct(t, func(d *tpm.Device) {
		undefineNV(t, d, 0x01C00002) // RSA takes most of the time, and shows nothing new
		w.file = newKey(t, d, tpm.KeySpec{})
		w.e = mustAttest(t, load(t, d, w.file))
	})
	return w
}

// direct does f with the TPM itself, with no proxy between.
func (w *proxied) direct(t testing.TB, f func(*tpm.Device)) {
	t.Helper()
	d, err := tpm.Open(background, tpm.Options{Path: w.s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	f(d)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// spoil runs f on a Device of its own, with fault at its n-th command and, where forGood, at
// all after it, and reports how many commands there were.
func (w *proxied) spoil(t testing.TB, n int, fault tpmtest.Fault, forGood bool, f func(*tpm.Key) error) (commands int, err error) {
	t.Helper()
	o := tpm.Options{Path: w.p.Address(), RetryBudget: 100 * time.Millisecond}
	if fault.Hang {
		o.CommandTimeout = 500 * time.Millisecond
	}
	d, err := tpm.Open(background, o)
	if err != nil {
		t.Fatal(err)
	}
	k := load(t, d, w.file)
	w.p.Inject(func(uint32) tpmtest.Fault {
		commands++
		if commands == n || forGood && commands > n {
			return fault
		}
		return tpmtest.Fault{}
	})
	err = f(k)
	w.p.Inject(nil)
	_ = k.Close()
	if err := d.Close(); err != nil {
		t.Errorf("command %d: closing: %v", n, err)
	}
	return commands, err
}

// operations are those that load several objects.
func (w *proxied) operations() map[string]func(*tpm.Key) error {
	return map[string]func(*tpm.Key) error{
		"attest": func(k *tpm.Key) error {
			_, err := k.Attest(background, make([]byte, 32))
			return err
		},
		"activate": func(k *tpm.Key) error {
			c, err := w.challenge()
			if err != nil {
				return err
			}
			_, err = k.Activate(background, c)
			return err
		},
	}
}

func (w *proxied) challenge() (attest.Challenge, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](w.e.EKs[0].Public)
	if err != nil {
		return attest.Challenge{}, err
	}
	ek, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return attest.Challenge{}, err
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](w.e.AK)
	if err != nil {
		return attest.Challenge{}, err
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		return attest.Challenge{}, err
	}
	var c attest.Challenge
	c.Credential, c.Secret, err = tpm2.CreateCredential(zeros{}, ek, name.Buffer, make([]byte, 32))
	return c, err
}

// zeros is a source of randomness for secrets that hide nothing.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	copy(p, bytes.Repeat([]byte{1}, len(p)))
	return len(p), nil
}

// TestNothingIsLeftWhicheverCommandFails breaks each command of both operations in turn:
// refused by the TPM, lost on the way, or done with its answer lost.
func TestNothingIsLeftWhicheverCommandFails(t *testing.T) {
	for name, c := range map[string]struct {
		fault   tpmtest.Fault
		forGood bool
	}{
		"refused":             {fault: tpmtest.Fault{Answer: tpmtest.Response(tpmtest.RCFailure)}},
		"lost":                {fault: tpmtest.Fault{Drop: true}},
		"lost for good":       {fault: tpmtest.Fault{Drop: true}, forGood: true},
		"done but unanswered": {fault: tpmtest.Fault{Truncate: 7}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newProxied(t)
			for operation, f := range w.operations() {
				failed := 0
				for n := 1; ; n++ {
					commands, err := w.spoil(t, n, c.fault, c.forGood, f)
					if commands < n {
						break
					}
					if err != nil {
						failed++
					}
					w.direct(t, func(d *tpm.Device) {
						if left := slotsAndSessions(t, d); left != (occupied{}) {
							t.Fatalf("%s, command %d: %+v left in the TPM; the error was %v", operation, n, left, err)
						}
					})
				}
				if failed == 0 && (c.forGood || c.fault.Answer != nil) {
					t.Errorf("%s: no fault was noticed", operation)
				}
			}
			w.direct(t, func(d *tpm.Device) { mustActivate(t, load(t, d, w.file), w.e) })
		})
	}
}

// TestHangsEndAndLeaveNothing: a chip that goes silent is given up within the command
// timeout, whichever command it is.
func TestHangsEndAndLeaveNothing(t *testing.T) {
	w := newProxied(t)
	for _, c := range []struct {
		operation string
		code      tpm2.TPMCC
	}{
		{"attest", tpm2.TPMCCNVRead}, {"attest", tpm2.TPMCCCertify}, {"attest", tpm2.TPMCCFlushContext},
		{"activate", tpm2.TPMCCStartAuthSession}, {"activate", tpm2.TPMCCPolicySecret}, {"activate", tpm2.TPMCCActivateCredential},
	} {
		f, hung := w.operations()[c.operation], false
		_, err := w.spoil(t, 0, tpmtest.Fault{Hang: true}, false, func(k *tpm.Key) error {
			w.p.Inject(func(code uint32) tpmtest.Fault {
				if hung || code != uint32(c.code) {
					return tpmtest.Fault{}
				}
				hung = true
				return tpmtest.Fault{Hang: true}
			})
			return f(k)
		})
		if !errors.Is(err, tpm.ErrTimeout) && c.code != tpm2.TPMCCFlushContext || !hung {
			t.Errorf("%s, %v: %v", c.operation, c.code, err)
		}
		w.direct(t, func(d *tpm.Device) {
			if left := slotsAndSessions(t, d); left != (occupied{}) {
				t.Errorf("%s, %v: %+v left in the TPM", c.operation, c.code, left)
			}
		})
	}
}

// TestPowerCutAfterEveryCommand kills the TPM after each command of both operations; what
// is done again afterwards ends as if nothing had been.
func TestPowerCutAfterEveryCommand(t *testing.T) {
	w := newProxied(t)
	for operation, f := range w.operations() {
		for n := 1; ; n++ {
			d, err := tpm.Open(background, tpm.Options{Path: w.p.Address(), RetryBudget: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			k := load(t, d, w.file)
			commands, matters := 0, false // once there is a result, only slots are freed
			w.p.Inject(func(code uint32) tpmtest.Fault {
				if commands++; commands <= n {
					return tpmtest.Fault{}
				}
				matters = matters || code != uint32(tpm2.TPMCCFlushContext)
				if commands == n+1 {
					if err := w.s.Kill(); err != nil {
						t.Error(err)
					}
				}
				return tpmtest.Fault{Drop: true}
			})
			err = f(k)
			_ = d.Close()
			w.p.Inject(nil)
			if commands <= n {
				break
			}
			if err == nil && matters {
				t.Errorf("%s, command %d: the TPM was gone, and nobody noticed", operation, n)
			}
			if err := w.s.Restart(background); err != nil {
				t.Fatal(err)
			}
			w.direct(t, func(d *tpm.Device) {
				k := load(t, d, w.file)
				for name, f := range w.operations() {
					if err := f(k); err != nil {
						t.Errorf("%s after a cut behind command %d of %s: %v", name, n, operation, err)
					}
				}
				if h, err := d.Health(background); err != nil || h.LockoutCounter != 0 {
					t.Fatalf("after a cut behind command %d of %s: %+v, %v", n, operation, h, err)
				}
			})
		}
	}
}

// TestPowerCutsAfterAttestationDoNotLock: the endorsement keys lack noDA, as the profile has
// it, and neither they nor the attestation key count all the same.
func TestPowerCutsAfterAttestationDoNotLock(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	for cut := range 10 {
		e := mustAttest(t, k)
		mustActivate(t, k, e)
		mustSign(t, k)
		if err := s.Restart(background); err != nil {
			t.Fatal(err)
		}
		mustSign(t, k)
		if h, err := d.Health(background); err != nil || h.LockoutCounter != 0 || h.InLockout {
			t.Fatalf("after cut %d: %+v, %v", cut+1, h, err)
		}
	}
}
