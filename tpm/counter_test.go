package tpm_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
)

var owner = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}

// raise raises the counter to to, and reads it back.
func raise(t testing.TB, d *tpm.Device, to uint64) {
	t.Helper()
	if err := d.Counter(0).Raise(background, to); err != nil {
		t.Fatalf("raising to %d: %v; %s", to, err, hint.Of(err))
	}
	if got := number(t, d); got != to {
		t.Fatalf("raised to %d, and it is %d", to, got)
	}
}

func number(t testing.TB, d *tpm.Device) uint64 {
	t.Helper()
	n, err := d.Counter(0).Read(background)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wantNoCounter(t testing.TB, d *tpm.Device) {
	t.Helper()
	if n, err := d.Counter(0).Read(background); !errors.Is(err, tpm.ErrNoCounter) {
		t.Fatalf("where there is no counter: %d, %v", n, err)
	}
}

func undefineByOwner(t testing.TB, d *tpm.Device, index uint32) {
	t.Helper()
	c := d.TPM(background)
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	named := tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: rsp.NVName}
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: named}).Execute(c); err != nil {
		t.Fatal(err)
	}
}

// writes are the commands that change the TPM's memory.
func writes(d *tpm.Device, f func()) map[string]uint64 {
	all := spent(d, f)
	delete(all, "NV_ReadPublic")
	delete(all, "NV_Read")
	return all
}

func TestCounterCounts(t *testing.T) {
	type census = map[string]uint64
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	wantNoCounter(t, d)
	for _, c := range []struct {
		to   uint64
		want census
	}{
		{0, census{"NV_DefineSpace": 2, "NV_Increment": 1, "NV_Write": 1, "NV_WriteLock": 1}},
		{0, census{}},
		{1, census{"NV_Increment": 1}},
		{3, census{"NV_Increment": 2}},
		{35, census{"NV_Increment": 32}},
		{20261121, census{"NV_DefineSpace": 1, "NV_Write": 1, "NV_WriteLock": 1, "NV_UndefineSpace": 1}},
		{20261122, census{"NV_Increment": 1}},
		{20271122, census{"NV_DefineSpace": 1, "NV_Write": 1, "NV_WriteLock": 1, "NV_UndefineSpace": 1}},
	} {
		if diff := cmp.Diff(c.want, writes(d, func() { raise(t, d, c.to) })); diff != "" {
			t.Errorf("raising to %d (-want +got):\n%s", c.to, diff)
		}
		if err := s.Restart(background); err != nil {
			t.Fatal(err)
		}
		if got := number(t, d); got != c.to {
			t.Errorf("%d after a reset of the TPM, not %d", got, c.to)
		}
	}
	if err := d.Counter(0).Raise(background, 5); err != nil || number(t, d) != 20271122 {
		t.Errorf("raising to less: %v; it is %d", err, number(t, d))
	}
	if n := spent(d, func() { number(t, d) }); n["NV_ReadPublic"] != 3 || n["NV_Read"] != 2 || len(n) != 2 {
		t.Errorf("reading costs %v", n)
	}
	if h, err := d.Health(background); err != nil || h.LockoutCounter != 0 {
		t.Errorf("after the resets: %+v, %v", h, err)
	}
}

// TestCounterStartsAboveThoseBefore: the TPM's own counter begins above every one before it, and
// the number does not show it.
func TestCounterStartsAboveThoseBefore(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	other := d.Counter(0x01800100)
	if err := other.Raise(background, 0); err != nil {
		t.Fatal(err)
	}
	if err := other.Raise(background, 30); err != nil {
		t.Fatal(err)
	}
	raise(t, d, 4)
	for index := range uint32(2) {
		undefineByOwner(t, d, tpm.CounterIndex+index)
	}
	wantNoCounter(t, d)
	raise(t, d, 5)
	raise(t, d, 6)
}

// TestCounterWhoseIndexWasRemoved: the base alone says how far it had come at least.
func TestCounterWhoseIndexWasRemoved(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	raise(t, d, 7)
	raise(t, d, 8)
	undefineByOwner(t, d, tpm.CounterIndex)
	wantNoCounter(t, d)
	if err := d.Counter(0).Raise(background, 2); err != nil || number(t, d) != 7 {
		t.Errorf("%v; it is %d", err, number(t, d))
	}
}

func TestCounterAfterClear(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	raise(t, d, 7)
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
	wantNoCounter(t, d)
	raise(t, d, 7)
}

// defineByOwner puts an index of somebody else where one of ours belongs.
func defineByOwner(t testing.TB, d *tpm.Device, index uint32, size uint16, change func(*tpm2.TPMANV)) error {
	t.Helper()
	pub := tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
		Attributes: tpm2.TPMANV{AuthWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	if change != nil {
		change(&pub.Attributes)
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(pub)}.Execute(d.TPM(background))
	return err
}

func TestForeignIndexes(t *testing.T) {
	for name, c := range map[string]struct {
		index  uint32
		size   uint16
		change func(*tpm2.TPMANV)
	}{
		"ordinary where the counter belongs": {tpm.CounterIndex, 8, nil},
		"a counter that power cuts lock":     {tpm.CounterIndex, 8, func(a *tpm2.TPMANV) { a.NT, a.NoDA = tpm2.TPMNTCounter, false }},
		"a counter that forgets":             {tpm.CounterIndex, 8, func(a *tpm2.TPMANV) { a.NT, a.Orderly = tpm2.TPMNTCounter, true }},
		"a base that cannot be locked":       {tpm.CounterIndex + 1, 24, func(a *tpm2.TPMANV) { a.WriteAll = true }},
		"a base of another size":             {tpm.CounterIndex + 2, 25, func(a *tpm2.TPMANV) { a.WriteAll, a.WriteDefine = true, true }},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
			if err := defineByOwner(t, d, c.index, c.size, c.change); err != nil {
				t.Fatal(err)
			}
			_, err := d.Counter(0).Read(background)
			for _, err := range []error{err, d.Counter(0).Raise(background, 1)} {
				if !errors.Is(err, tpm.ErrForeignIndex) || !strings.Contains(hint.Of(err), "tpm2_nvundefine") {
					t.Errorf("%v; hint %q", err, hint.Of(err))
				}
			}
			if n := d.Stats().Commands["NV_DefineSpace"]; n != 1 {
				t.Errorf("%d indexes were defined beside it", n-1)
			}
			undefineByOwner(t, d, c.index)
			raise(t, d, 1)
		})
	}
}

// TestBaseOfSomebodyElse: the right kind of index with other content is written where that can
// still be done, and refused where it is locked.
func TestBaseOfSomebodyElse(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	if err := defineByOwner(t, d, tpm.CounterIndex+1, 24, func(a *tpm2.TPMANV) { a.WriteAll, a.WriteDefine = true, true }); err != nil {
		t.Fatal(err)
	}
	c := d.TPM(background)
	named := func() (tpm2.AuthHandle, tpm2.NamedHandle) {
		rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(tpm.CounterIndex + 1)}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
		h := tpm2.TPMHandle(tpm.CounterIndex + 1)
		return tpm2.AuthHandle{Handle: h, Name: rsp.NVName, Auth: tpm2.PasswordAuth(nil)}, tpm2.NamedHandle{Handle: h, Name: rsp.NVName}
	}
	auth, index := named()
	if _, err := (tpm2.NVWrite{AuthHandle: auth, NVIndex: index, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 24)}}).Execute(c); err != nil {
		t.Fatal(err)
	}
	wantNoCounter(t, d)
	auth, index = named()
	if _, err := (tpm2.NVWriteLock{AuthHandle: auth, NVIndex: index}).Execute(c); err != nil {
		t.Fatal(err)
	}
	raise(t, d, 3)
}

// TestNobodyLowersTheCounter: without the owner's authority neither the base can be written
// again, nor the counter set back; and the tools of others read what we wrote.
func TestNobodyLowersTheCounter(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	raise(t, d, 11)
	raise(t, d, 12)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	tool(t, s, dir, "tpm2_nvread", "0x184fe00", "-C", "0x184fe00", "-s", "8", "-o", "counter")
	tool(t, s, dir, "tpm2_nvread", "0x184fe01", "-C", "o", "-s", "24", "-o", "base")
	counter, base := content(t, filepath.Join(dir, "counter")), content(t, filepath.Join(dir, "base"))
	if string(base[:8]) != "ferrule1" || base[23] != 11 || counter[7] != base[15]+1 {
		t.Errorf("counter %x, base %x", counter, base)
	}
	public := toolOutput(t, s, "tpm2_nvreadpublic", "0x184fe01")
	for _, want := range []string{"writelocked", "writedefine", "no_da"} {
		if !strings.Contains(public, want) {
			t.Errorf("no %s in %s", want, public)
		}
	}
	for _, args := range [][]string{
		{"tpm2_nvwrite", "0x184fe01", "-C", "0x184fe01", "-i", "base"},
		{"tpm2_nvwrite", "0x184fe00", "-C", "0x184fe00", "-i", "counter"},
		{"tpm2_nvwrite", "0x184fe00", "-C", "o", "-i", "counter"},
	} {
		if out, err := command(s, dir, args...).CombinedOutput(); err == nil {
			t.Errorf("%v was taken: %s", args, out)
		}
	}
	d = open(t, s.Address(), tpm.Options{})
	raise(t, d, 13)
}

// TestOwnerPasswordAndCounter: the hint's commands make what the agent needs, which then works
// without the password.
func TestOwnerPasswordAndCounter(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	tool(t, s, dir, "tpm2_changeauth", "-Q", "-c", "o", "secret")
	d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Counter(0).Raise(background, 0)
	said := hint.Of(err)
	if !errors.Is(err, tpm.ErrOwnerAuth) {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	attributes := regexp.MustCompile(`-s (\d+) -a '([^']+)'`).FindAllStringSubmatch(said, -1)
	if len(attributes) != 2 {
		t.Fatalf("hint %q", said)
	}
	for i, index := range []string{"0x184fe00", "0x184fe01", "0x184fe02"} {
		if !strings.Contains(said, index) {
			t.Errorf("%s is not in the hint", index)
		}
		a := attributes[min(i, 1)]
		tool(t, s, dir, "tpm2_nvdefine", "-Q", index, "-C", "o", "-P", "secret", "-s", a[1], "-a", a[2])
	}
	d = open(t, s.Address(), tpm.Options{})
	wantNoCounter(t, d)
	for _, to := range []uint64{3, 4, 1000, 1001} { // the older base cannot be removed, and does no harm
		raise(t, d, to)
	}
	if err := d.Counter(0).Raise(background, 5000); !errors.Is(err, tpm.ErrOwnerAuth) || number(t, d) != 1001 {
		t.Errorf("a third base: %v", err)
	}
}

// TestCounterInLockout: neither making nor raising is stopped by a lockout.
func TestCounterInLockout(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	lockOut(t, d)
	raise(t, d, 1)
	raise(t, d, 2)
}

func lockOut(t *testing.T, d *tpm.Device) {
	t.Helper()
	index := tpm2.TPMHandle(0x01400001)
	defineNV(t, d, index, []byte("secret"), func(a *tpm2.TPMANV) { a.NoDA = false })
	c := d.TPM(background)
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		_, _ = tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: public.NVName, Auth: tpm2.PasswordAuth([]byte("a guess"))},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName}, Size: 6,
		}.Execute(c)
	}
	if h, err := d.Health(background); err != nil || !h.InLockout {
		t.Fatalf("%+v, %v", h, err)
	}
}

func TestCounterWhereMemoryIsFull(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	last := uint32(0x01800000)
	for size := uint16(2048); size > 0; {
		if err := defineByOwner(t, d, last, size, nil); err != nil {
			if !errors.Is(err, tpm2.TPMRCNVSpace) {
				t.Fatal(err)
			}
			size /= 2
			continue
		}
		last++
	}
	wantNoCounter(t, d)
	if err := d.Counter(0).Raise(background, 1); !errors.Is(err, tpm2.TPMRCNVSpace) || hint.Of(err) == "" {
		t.Errorf("%v; hint %q", err, hint.Of(err))
	}
	wantNoCounter(t, d)
	undefineByOwner(t, d, 0x01800000)
	raise(t, d, 1)
}

// TestCounterAtATPMThatSparesItsMemory: NV_RATE means that the same is asked for again, later.
func TestCounterAtATPMThatSparesItsMemory(t *testing.T) {
	p, err := tpmtest.StartProxy(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	d := open(t, p.Address(), tpm.Options{})
	raise(t, d, 1)
	refused := 0
	p.Inject(func(code uint32) tpmtest.Fault {
		if code == uint32(tpm2.TPMCCNVIncrement) && refused%4 < 3 {
			refused++
			return tpmtest.Fault{Answer: tpmtest.Response(uint32(tpm2.TPMRCNVRate))}
		}
		refused++
		return tpmtest.Fault{}
	})
	raise(t, d, 3)
	if refused == 0 || d.Stats().Retries == 0 {
		t.Errorf("refused %d times, %d retries", refused, d.Stats().Retries)
	}
	p.Inject(nil)
}

// counterFault is what becomes of the n-th command of a Raise, and of the TPM.
type counterFault struct {
	fault tpmtest.Fault
	cut   bool // the TPM's power goes before it
}

// TestCounterCutAnywhere breaks every command of making, raising, and of reaching far. What is
// read then is the number of before or that of after (or that there is none yet), and the next
// Raise ends exactly where it should.
func TestCounterCutAnywhere(t *testing.T) {
	for name, f := range map[string]counterFault{
		"power cut":           {cut: true},
		"lost":                {fault: tpmtest.Fault{Drop: true}},
		"done but unanswered": {fault: tpmtest.Fault{Truncate: 7}},
		"refused":             {fault: tpmtest.Fault{Answer: tpmtest.Response(tpmtest.RCFailure)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, c := range []struct {
				doing        string
				before, goal uint64
				made         bool
			}{{"making", 0, 3, false}, {"raising", 3, 5, true}, {"reaching far", 5, 500, true}} {
				states := 0
				for n := 1; cutCounter(t, f, c.made, c.before, c.goal, n); n++ {
					states++
				}
				t.Logf("%s: %d states", c.doing, states)
				if states < 10 {
					t.Errorf("%s: only %d states", c.doing, states)
				}
			}
		})
	}
}

// cutCounter breaks the n-th command; false: there are no so many.
func cutCounter(t *testing.T, f counterFault, made bool, before, goal uint64, n int) bool {
	t.Helper()
	s, err := tpmtest.StartSwtpm(background, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	p, err := tpmtest.StartProxy(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	d, err := tpm.Open(background, tpm.Options{Path: p.Address(), RetryBudget: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if made {
		raise(t, d, before)
	}
	commands := 0
	p.Inject(func(uint32) tpmtest.Fault {
		if commands++; commands < n || commands > n && !f.cut {
			return tpmtest.Fault{}
		}
		if f.cut && commands == n {
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
		}
		if f.cut {
			return tpmtest.Fault{Drop: true}
		}
		return f.fault
	})
	_ = d.Counter(0).Raise(background, goal)
	p.Inject(nil)
	_ = d.Close()
	if commands < n {
		return false
	}
	if f.cut {
		if err := s.Restart(background); err != nil {
			t.Fatal(err)
		}
	}
	checkAfterCut(t, s, made, before, goal, n)
	return true
}

func checkAfterCut(t *testing.T, s *tpmtest.Swtpm, made bool, before, goal uint64, n int) {
	t.Helper()
	d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := d.Counter(0).Read(background)
	switch {
	case errors.Is(err, tpm.ErrNoCounter) && !made:
	case err != nil:
		t.Errorf("command %d: %v", n, err)
	case got < before || got > goal:
		t.Errorf("command %d: it is %d, neither %d nor %d", n, got, before, goal)
	}
	raise(t, d, goal)
	raise(t, d, goal+1)
}

func BenchmarkCounter(b *testing.B) {
	d := open(b, tpmtest.Start(b).Address(), tpm.Options{})
	raise(b, d, 0)
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			number(b, d)
		}
	})
	b.Run("raise", func(b *testing.B) {
		for to := number(b, d) + 1; b.Loop(); to++ {
			if err := d.Counter(0).Raise(background, to); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			undefineByOwner(b, d, tpm.CounterIndex)
			undefineByOwner(b, d, tpm.CounterIndex+1)
			if err := d.Counter(0).Raise(background, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// command is a program of tpm2-tools at the TPM s.
func command(s *tpmtest.Swtpm, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+s.Socket(), "TSS2_LOG=all+NONE")
	return cmd
}

func toolOutput(t *testing.T, s *tpmtest.Swtpm, args ...string) string {
	t.Helper()
	out, err := command(s, t.TempDir(), args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
