package tpm_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

// random asks for two random bytes and returns them: the smallest command with an answer.
func random(ctx context.Context, d *tpm.Device) ([]byte, error) {
	rsp, err := tpm2.GetRandom{BytesRequested: 2}.Execute(d.TPM(ctx))
	if err != nil {
		return nil, tpm.CommandError("asking for random bytes", err)
	}
	return rsp.RandomBytes.Buffer, nil
}

func answer() []byte { return tpmtest.Response(tpmtest.RCSuccess, 0, 2, 0xAB, 0xCD) }

// scripted opens a Device whose every reopening takes the next descriptor.
func scripted(t *testing.T, o tpm.Options, fds ...*tpmtest.Descriptor) *tpm.Device {
	t.Helper()
	o.Path = "/dev/tpmrm0"
	d, err := tpm.OpenDescriptors(o, func() (tpm.Descriptor, error) {
		if len(fds) == 0 {
			return nil, syscall.ENOENT
		}
		fd := fds[0]
		fds = fds[1:]
		return fd, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFaultsThatEndWell(t *testing.T) {
	code := func(c uint32, n int) (steps []tpmtest.Step) {
		for range n {
			steps = append(steps, tpmtest.Step{Answer: tpmtest.Response(c)})
		}
		return append(steps, tpmtest.Step{Answer: answer()})
	}
	for name, c := range map[string]struct {
		steps   []tpmtest.Step
		stale   []byte
		retries uint64
	}{
		"no fault":          {steps: code(0, 0)},
		"retry":             {steps: code(tpmtest.RCRetry, 3), retries: 3},
		"yielded":           {steps: code(tpmtest.RCYielded, 1), retries: 1},
		"testing":           {steps: code(tpmtest.RCTesting, 5), retries: 5},
		"nv rate":           {steps: code(tpmtest.RCNVRate, 9), retries: 9},
		"nv unavailable":    {steps: code(tpmtest.RCNVUnavailable, 2), retries: 2},
		"EINTR at write":    {steps: []tpmtest.Step{{WriteErrs: []error{syscall.EINTR, syscall.EINTR}, Answer: answer()}}},
		"EINTR at poll":     {steps: []tpmtest.Step{{PollErrs: []error{syscall.EINTR, syscall.EINTR}, Answer: answer()}}},
		"EINTR at read":     {steps: []tpmtest.Step{{ReadErrs: []error{syscall.EINTR, syscall.EAGAIN}, Answer: answer()}}},
		"empty reads":       {steps: []tpmtest.Step{{Empty: 3, Answer: answer()}}},
		"byte by byte":      {steps: []tpmtest.Step{{Chunk: 1, Answer: answer()}}},
		"split header":      {steps: []tpmtest.Step{{Chunk: 7, Answer: answer()}}},
		"unread answer":     {steps: code(0, 0), stale: tpmtest.Response(tpmtest.RCSuccess, 0, 2, 1, 2)},
		"unread, in pieces": {steps: []tpmtest.Step{{Chunk: 5, Answer: answer()}}, stale: tpmtest.Response(tpmtest.RCFailure, 9, 9)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fd := tpmtest.NewDescriptor(c.steps...)
				if c.stale != nil {
					fd.Leave(c.stale)
				}
				d := scripted(t, tpm.Options{}, fd)
				got, err := random(t.Context(), d)
				if err != nil || !bytes.Equal(got, []byte{0xAB, 0xCD}) {
					t.Fatalf("answer %x, error %v", got, err)
				}
				s := d.Stats()
				if s.Retries != c.retries || s.Commands["GetRandom"] != 1 || s.Total() != 1 || s.Reopened != 0 {
					t.Errorf("counters %+v", s)
				}
				if err := d.Close(); err != nil || !fd.Closed() {
					t.Errorf("closing: %v, descriptor closed: %t", err, fd.Closed())
				}
			})
		})
	}
}

func TestFaultsThatEndBadly(t *testing.T) {
	endless := make([]tpmtest.Step, 2000)
	for i := range endless {
		endless[i].Answer = tpmtest.Response(tpmtest.RCRetry)
	}
	announces := func(size byte) []byte {
		b := answer()
		b[5] = size
		return b
	}
	huge := answer()
	huge[2] = 0x7F
	for name, c := range map[string]struct {
		steps []tpmtest.Step
		want  error
		hint  string
		after time.Duration
		lost  bool
	}{
		"retry for ever":   {steps: endless, want: tpm.ErrTimeout, hint: "power-cycle", after: 5 * time.Second},
		"hang":             {want: tpm.ErrTimeout, hint: "power-cycle", after: 10 * time.Second, lost: true},
		"driver gives up":  {steps: []tpmtest.Step{{ReadErrs: []error{syscall.ETIME}, Answer: answer()}}, want: tpm.ErrTimeout, hint: "power-cycle", lost: true},
		"device unplugged": {steps: []tpmtest.Step{{WriteErrs: []error{syscall.ENODEV}}}, want: syscall.ENODEV, lost: true},
		"driver error":     {steps: []tpmtest.Step{{ReadErrs: []error{syscall.EIO}, Answer: answer()}}, want: syscall.EIO, lost: true},
		"nothing to read":  {steps: []tpmtest.Step{{Empty: 1000, Answer: answer()}}, want: io.ErrUnexpectedEOF, lost: true},
		"short write":      {steps: []tpmtest.Step{{Short: true}}, want: io.ErrShortWrite, lost: true},
		"oversize":         {steps: []tpmtest.Step{{Answer: huge}}, want: tpm.ErrFraming, lost: true},
		"undersize":        {steps: []tpmtest.Step{{Answer: announces(9)}}, want: tpm.ErrFraming, lost: true},
		"more than said":   {steps: []tpmtest.Step{{Answer: announces(12)}}, want: tpm.ErrFraming, lost: true},
		"less than said":   {steps: []tpmtest.Step{{Answer: announces(99)}}, want: tpm.ErrTimeout, after: 10 * time.Second, lost: true},
		"lockout":          {steps: []tpmtest.Step{{Answer: tpmtest.Response(tpmtest.RCLockout)}}, want: tpm.ErrLockout, hint: "lockout recovery"},
		"no slots":         {steps: []tpmtest.Step{{Answer: tpmtest.Response(tpmtest.RCObjectMemory)}}, want: tpm.ErrBusy, hint: "flushcontext"},
		"not started":      {steps: []tpmtest.Step{{Answer: tpmtest.Response(tpmtest.RCInitialize)}}, want: tpm2.TPMRCInitialize, hint: "startup-clear"},
		"failure mode":     {steps: []tpmtest.Step{{Answer: tpmtest.Response(tpmtest.RCFailure)}}, want: tpm2.TPMRCFailure},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := tpmtest.NewDescriptor(c.steps...), tpmtest.NewDescriptor(tpmtest.Step{Answer: answer()})
				d := scripted(t, tpm.Options{}, first, second)
				start := time.Now()
				_, err := random(t.Context(), d)
				if took := time.Since(start); took > c.after+time.Second || took < c.after-time.Second {
					t.Errorf("took %s, want about %s", took, c.after)
				}
				if !errors.Is(err, c.want) || !strings.Contains(hint.Of(err), c.hint) {
					t.Fatalf("error %v, hint %q", err, hint.Of(err))
				}
				synctest.Wait()
				if first.Closed() != c.lost {
					t.Errorf("descriptor closed: %t, want %t", first.Closed(), c.lost)
				}
				if c.lost {
					if _, err := random(t.Context(), d); err != nil || d.Stats().Reopened != 1 {
						t.Errorf("next command: %v, counters %+v", err, d.Stats())
					}
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestContextEndsAnExchangeAndARepeat(t *testing.T) {
	cause := errors.New("enough")
	for name, step := range map[string]tpmtest.Step{
		"while it hangs":          {},
		"between two repetitions": {Answer: tpmtest.Response(tpmtest.RCNVRate)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				steps := make([]tpmtest.Step, 100)
				for i := range steps {
					steps[i] = step
				}
				d := scripted(t, tpm.Options{}, tpmtest.NewDescriptor(steps...), tpmtest.NewDescriptor(tpmtest.Step{Answer: answer()}))
				ctx, cancel := context.WithCancelCause(t.Context())
				start := time.Now()
				time.AfterFunc(time.Second, func() { cancel(cause) })
				if _, err := random(ctx, d); !errors.Is(err, cause) || time.Since(start) != time.Second {
					t.Errorf("after %s: %v", time.Since(start), err)
				}
				if _, err := random(ctx, d); !errors.Is(err, cause) {
					t.Errorf("with an ended context: %v", err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestWaitingForTheDeviceEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := scripted(t, tpm.Options{}, tpmtest.NewDescriptor())
		done := make(chan error)
		go func() {
			_, err := random(context.Background(), d)
			done <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := random(ctx, d); !errors.Is(err, tpm.ErrTimeout) {
			t.Errorf("behind a hanging command: %v", err)
		}
		if err := <-done; !errors.Is(err, tpm.ErrTimeout) {
			t.Errorf("the hanging command: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLostDeviceThatStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := scripted(t, tpm.Options{}, tpmtest.NewDescriptor())
		if _, err := random(t.Context(), d); !errors.Is(err, tpm.ErrTimeout) {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := random(t.Context(), d); !errors.Is(err, tpm.ErrNoDevice) || hint.Of(err) == "" {
			t.Errorf("reopening: %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("reopening took %s, beyond the budget", took)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := random(t.Context(), d); err == nil {
			t.Error("a closed device answers")
		}
	})
}

func TestFaultsOnASocket(t *testing.T) {
	huge := answer()
	huge[2] = 1
	for name, c := range map[string]struct {
		fault tpmtest.Fault
		want  error
	}{
		"byte by byte": {tpmtest.Fault{Answer: answer(), Dribble: true}, nil},
		"cut header":   {tpmtest.Fault{Answer: answer(), Truncate: 4}, io.ErrUnexpectedEOF},
		"cut body":     {tpmtest.Fault{Answer: answer(), Truncate: 11}, io.ErrUnexpectedEOF},
		"gone":         {tpmtest.Fault{Drop: true}, io.EOF},
		"oversize":     {tpmtest.Fault{Answer: huge}, tpm.ErrFraming},
		"hang":         {tpmtest.Fault{Hang: true}, tpm.ErrTimeout},
		"retry":        {tpmtest.Fault{Answer: tpmtest.Response(tpmtest.RCRetry)}, tpm.ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := tpmtest.StartProxy("")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Close() })
			d := open(t, p.Address(), tpm.Options{CommandTimeout: 200 * time.Millisecond, RetryBudget: 100 * time.Millisecond})
			p.Inject(func(uint32) tpmtest.Fault { return c.fault })
			if _, err := random(t.Context(), d); !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			p.Inject(func(uint32) tpmtest.Fault { return tpmtest.Fault{Answer: answer()} })
			if got, err := random(t.Context(), d); err != nil || !bytes.Equal(got, []byte{0xAB, 0xCD}) {
				t.Errorf("next command: %x, %v", got, err)
			}
		})
	}
}

// open opens a TPM for the length of a test.
func open(t testing.TB, path string, o tpm.Options) *tpm.Device {
	t.Helper()
	o.Path = path
	d, err := tpm.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
