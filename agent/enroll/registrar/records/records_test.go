package records

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

const dir = "/ca"

func open(t testing.TB, fsys disk.FS) *Book {
	t.Helper()
	folder := dir
	if fsys == disk.OS() {
		folder = t.TempDir()
	} else if err := disk.MakeFolder(fsys, dir); err != nil {
		t.Fatal(err)
	}
	return openAt(t, fsys, folder)
}

func openAt(t testing.TB, fsys disk.FS, folder string) *Book {
	t.Helper()
	b, err := Open(fsys, folder)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ek is the hash of an endorsement key.
func ek(n int) string { return fmt.Sprintf("%064x", n+1) }

func certificate(n int, basis Basis) Certificate {
	now := time.Now().UTC().Truncate(time.Second)
	return Certificate{Serial: fmt.Sprintf("%x", n+1), Fingerprint: fmt.Sprintf("%064x", n+1), PublicKey: fmt.Sprintf("%064x", n+1),
		Basis: basis, Issuer: "local", Issued: now, NotAfter: now.Add(time.Hour), Chain: "chain " + fmt.Sprint(n)}
}

// enroll gives a device one more certificate, and its EK.
func enroll(t testing.TB, b *Book, device, ek string, c Certificate) error {
	return b.Update(t.Context(), device, func(d *Device) (bool, error) {
		if d.EK != "" && d.EK != ek {
			return false, errors.New("another TPM")
		}
		d.ID, d.EK = device, ek
		return true, d.Add(c, time.Now())
	})
}

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	d := disktest.New()
	b := open(t, d)
	if _, err := b.Device("gw-1"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a device that nobody knows: %v", err)
	}
	want := certificate(0, Return)
	if err := enroll(t, b, "gw-1", ek(0), want); err != nil {
		t.Fatal(err)
	}
	got, err := openAt(t, d, dir).Device("gw-1")
	want.State = Current
	if err != nil || got.EK != ek(0) || len(got.Certificates) != 1 || got.Certificates[0] != want {
		t.Errorf("%+v, %v", got, err)
	}
	if all, err := b.Devices(); err != nil || len(all) != 1 || all[0].ID != "gw-1" {
		t.Errorf("%+v, %v", all, err)
	}
	if holder, err := b.Holder(ek(0)); err != nil || holder != "gw-1" {
		t.Errorf("the TPM is %q, %v", holder, err)
	}
}

func TestIdsAndHashesThatAreFileNames(t *testing.T) {
	b := open(t, disktest.New())
	for _, id := range []string{"", ".", "..", "../x", "a/b", "a b", "gw\n", "-gw", strings.Repeat("a", 65)} {
		if _, err := b.Device(id); err == nil || errors.Is(err, ErrUnknown) || hint.Of(err) == "" {
			t.Errorf("device %q: %v", id, err)
		}
		if err := enroll(t, b, id, "", certificate(0, Return)); err == nil {
			t.Errorf("device %q has a record", id)
		}
	}
	for _, ek := range []string{"", "..", strings.Repeat("A", 64), strings.Repeat("0", 63)} {
		if _, err := b.Holder(ek); err == nil {
			t.Errorf("EK %q was looked up", ek)
		}
	}
}

// A record that was copied to another name, or is damaged, is not taken for good.
func TestSpoiltRecords(t *testing.T) {
	d := disktest.New()
	b := open(t, d)
	if err := enroll(t, b, "gw-1", ek(0), certificate(0, Return)); err != nil {
		t.Fatal(err)
	}
	text, _ := d.Content(dir + "/devices/gw-1.json")
	for name, text := range map[string][]byte{"of another": text, "cut": text[:len(text)/2], "empty": nil, "huge": make([]byte, maxFileBytes+1)} {
		file, err := d.OpenFile(dir+"/devices/gw-2.json", 0x40|1, 0o600) // O_CREATE|O_WRONLY
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		d.SetContent(dir+"/devices/gw-2.json", text)
		if _, err := b.Device("gw-2"); err == nil || errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
		if err := enroll(t, b, "gw-2", ek(1), certificate(1, Return)); err == nil {
			t.Errorf("%s: it was written over", name)
		}
		if all, err := b.Devices(); err == nil || hint.Of(err) == "" || len(all) != 1 || all[0].ID != "gw-1" {
			t.Errorf("%s: %d others, %v", name, len(all), err)
		}
		if r, err := b.RevokeSerial(t.Context(), "1"); err != nil || r.Device != "gw-1" {
			t.Errorf("%s: another's certificate cannot be revoked: %+v, %v", name, r, err)
		}
	}
}

// Two books on one disk stand for two processes: each has locks of its own and flock between.
func TestTwoRegistrarsOneFolder(t *testing.T) {
	folder := t.TempDir()
	books := []*Book{openAt(t, disk.OS(), folder), openAt(t, disk.OS(), folder)}
	t.Run("one TPM, many devices", func(t *testing.T) {
		var wait sync.WaitGroup
		won := make([]error, 16)
		for n := range won {
			wait.Go(func() { won[n] = enroll(t, books[n%2], fmt.Sprintf("gw-%d", n), ek(0), certificate(n, Return)) })
		}
		wait.Wait()
		holders := 0
		for _, err := range won {
			if taken, ok := errors.AsType[*Taken](err); err == nil {
				holders++
			} else if !ok || taken.EK != ek(0) {
				t.Error(err)
			}
		}
		all, err := books[0].Devices()
		if holders != 1 || err != nil || len(all) != 1 {
			t.Errorf("%d devices have the TPM, %d records, %v", holders, len(all), err)
		}
	})
	t.Run("one device, many TPMs", func(t *testing.T) {
		var wait sync.WaitGroup
		won := make([]error, 16)
		for n := range won {
			wait.Go(func() { won[n] = enroll(t, books[n%2], "one", ek(100+n), certificate(n, Return)) })
		}
		wait.Wait()
		if n := len(won) - len(slices.DeleteFunc(won, func(err error) bool { return err == nil })); n != 1 {
			t.Errorf("%d TPMs are the device", n)
		}
	})
	t.Run("one device, many certificates", func(t *testing.T) {
		var wait sync.WaitGroup
		for n := range 32 {
			wait.Go(func() {
				if err := enroll(t, books[n%2], "many", ek(200), certificate(n, ByCertificate(fmt.Sprint(n)))); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if d, err := books[1].Device("many"); err != nil || len(d.Certificates) != 32 {
			t.Errorf("%d of 32 certificates are on record, %v", len(d.Certificates), err)
		}
	})
}

// Who holds a lock is waited for, and not for ever.
func TestALockThatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, disktest.New())
		release, err := b.locks.take(t.Context(), stripe("gw-1"))
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := enroll(t, b, "gw-1", ek(0), certificate(0, Return)); !errors.Is(err, errBusy) || time.Since(begin) != lockPatient {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Update(ctx, "gw-1", nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		release()
		if err := enroll(t, b, "gw-1", ek(0), certificate(0, Return)); err != nil {
			t.Error(err)
		}
	})
}

// A power cut at any write leaves every device with the TPM that it was told of, and no TPM
// with two devices; and a claim without its record keeps nobody out.
func TestPowerCut(t *testing.T) {
	states := disktest.Replay(t, func(d *disktest.Disk) {
		b := open(t, d)
		for n, step := range []struct {
			device string
			ek     int
		}{{"gw-1", 0}, {"gw-2", 1}, {"gw-1", 0}} {
			if err := enroll(t, b, step.device, ek(step.ek), certificate(n, ByCertificate(fmt.Sprint(n)))); err != nil {
				t.Fatal(err)
			}
			d.Mark(n)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		b := open(t, state)
		for n, device := range []string{"gw-1", "gw-2"}[:min(2, len(state.Marks()))] {
			d, err := b.Device(device)
			if err != nil || d.EK != ek(n) || len(d.Certificates) < 1 {
				t.Fatalf("%s after the cut: %+v, %v", device, d, err)
			}
			if err := enroll(t, b, "gw-9", ek(n), certificate(9, Return)); err == nil {
				t.Errorf("the TPM of %s became another device", device)
			}
		}
		// Whatever was not answered may be done by somebody else.
		for n := range 2 {
			holder, err := b.Holder(ek(n))
			if err != nil {
				t.Fatal(err)
			}
			if holder == "" {
				if err := enroll(t, b, fmt.Sprintf("new-%d", n), ek(n), certificate(n, Return)); err != nil {
					t.Errorf("a claim without a record: %v", err)
				}
			}
		}
		held := map[string]string{}
		all, err := b.Devices()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if other, twice := held[d.EK]; twice {
				t.Errorf("%s and %s have one TPM", d.ID, other)
			}
			held[d.EK] = d.ID
		}
	})
	t.Logf("%d disks", states)
}

func TestTokens(t *testing.T) {
	b := open(t, disktest.New())
	token, err := b.AddToken("gw-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Token("another"); !errors.Is(err, ErrTokenUnknown) {
		t.Error(err)
	}
	if g, err := b.Token(token); err != nil || g.Device != "gw-1" || g.Used() || time.Until(g.End()) > time.Hour {
		t.Errorf("%+v, %v", g, err)
	}
	c := certificate(4, ByToken(TokenDigest(token)))
	if err := enroll(t, b, "gw-1", "", c); err != nil {
		t.Fatal(err)
	}
	if g, err := b.Token(token); err != nil || !g.Used() || g.Serial != c.Serial || !g.End().Equal(c.NotAfter) {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := b.AddToken("gw-1", 0); err == nil || hint.Of(err) == "" {
		t.Errorf("a token for no time: %v", err)
	}
	if _, err := b.AddToken("gw 1", time.Hour); err == nil || hint.Of(err) == "" {
		t.Errorf("a token for no device: %v", err)
	}
}

// What is current, what is still good, and what is over.
func TestStates(t *testing.T) {
	var d Device
	now := time.Now()
	add := func(c Certificate) {
		t.Helper()
		if err := d.Add(c, now); err != nil {
			t.Fatal(err)
		}
	}
	states := func() (s []State) {
		for _, c := range d.Certificates {
			s = append(s, c.State)
		}
		return s
	}
	add(certificate(0, "token:x"))
	add(certificate(1, ByCertificate("1")))
	if got := states(); !slices.Equal(got, []State{Previous, Current}) || d.Certificates[0].Chain != "" || d.Certificates[1].Chain == "" {
		t.Errorf("renewed: %v", got)
	}
	add(certificate(2, ByCertificate("1"))) // the answer was lost, and the key with it
	if got := states(); !slices.Equal(got, []State{Previous, Superseded, Current}) {
		t.Errorf("renewed again by the first: %v", got)
	}
	add(certificate(3, ByCertificate("3")))
	if got := states(); !slices.Equal(got, []State{Superseded, Superseded, Previous, Current}) {
		t.Errorf("renewed by the third: %v", got)
	}
	factory := certificate(4, "token:y")
	factory.Factory = true
	add(factory)
	if d.Current(false).Serial != "4" || d.Current(true).Serial != "5" {
		t.Errorf("the factory certificate is one of another kind: %v", states())
	}
	add(certificate(5, Return))
	if got := states(); !slices.Equal(got, []State{Superseded, Superseded, Superseded, Superseded, Current, Current}) {
		t.Errorf("returned: %v", got)
	}
}

func TestRecordsStaySmall(t *testing.T) {
	var d Device
	now := time.Now()
	if err := d.Add(certificate(0, "token:x"), now); err != nil {
		t.Fatal(err)
	}
	for n := range 10_000 { // certificates of an hour, for a year
		now = now.Add(50 * time.Minute)
		c := certificate(n, Return)
		c.Issued, c.NotAfter = now, now.Add(time.Hour)
		if err := d.Add(c, now); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(d.Certificates); n > keepExpired+4 || d.Issued("token:x") == nil {
		t.Errorf("%d certificates are kept; that of the token: %v", n, d.Issued("token:x"))
	}
	for n := range maxValid + 1 {
		err := d.Add(certificate(n, Return), time.Now())
		if n > maxValid-keepExpired-4 && errors.Is(err, ErrTooMany) {
			return
		}
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
	}
	t.Error("there is no end of valid certificates")
}

func TestRevocation(t *testing.T) {
	d := disktest.New()
	b := open(t, d)
	enrolled := func(device string, ek string, n int, basis Basis) {
		t.Helper()
		if err := enroll(t, b, device, ek, certificate(n, basis)); err != nil {
			t.Fatal(err)
		}
	}
	enrolled("gw-1", ek(0), 0, "token:a")
	enrolled("gw-1", ek(0), 1, ByCertificate("1"))
	if _, err := b.RevokeSerial(t.Context(), "77"); !errors.Is(err, ErrUnknown) || hint.Of(err) == "" {
		t.Errorf("a serial number of nobody: %v", err)
	}
	if _, err := b.RevokeDevice(t.Context(), "gw-9", false); !errors.Is(err, ErrUnknown) || hint.Of(err) == "" {
		t.Errorf("a device that nobody knows: %v", err)
	}
	if r, err := b.RevokeSerial(t.Context(), "01"); err != nil || r.Device != "gw-1" || !slices.Equal(r.Serials, []string{"1"}) {
		t.Errorf("%+v, %v", r, err)
	}
	if got, _ := b.Device("gw-1"); !got.Out().IsZero() {
		t.Error("the device is out because of a certificate that was replaced")
	}
	if _, err := b.RevokeSerial(t.Context(), "2"); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.Device("gw-1"); got.Out().IsZero() {
		t.Error("the device is in, and its certificate is revoked")
	}
	r, err := b.RevokeDevice(t.Context(), "gw-1", true)
	if err != nil || r.Released != ek(0) || len(r.Serials) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	enrolled("gw-2", ek(0), 2, "token:b") // the TPM is free
	enrolled("gw-1", ek(1), 3, "token:c") // and so is the id
	if got, _ := b.Device("gw-1"); !got.Out().IsZero() || got.Certificates[0].Revoked.IsZero() {
		t.Errorf("let in again: %+v", got)
	}
}

// The same command again changes nothing, and a cut in between is mended by it.
func TestRevocationPowerCut(t *testing.T) {
	disktest.Replay(t, func(d *disktest.Disk) {
		b := open(t, d)
		if err := enroll(t, b, "gw-1", ek(0), certificate(0, "token:a")); err != nil {
			t.Fatal(err)
		}
		d.Mark("enrolled")
		if _, err := b.RevokeDevice(t.Context(), "gw-1", true); err != nil {
			t.Fatal(err)
		}
		d.Mark("revoked")
	}, func(t testing.TB, state *disktest.Disk) {
		if len(state.Marks()) == 0 {
			return
		}
		b := open(t, state)
		if d, err := b.Device("gw-1"); err != nil || len(state.Marks()) == 2 && d.Out().IsZero() {
			t.Errorf("%+v, %v", d, err)
		}
		if _, err := b.RevokeDevice(t.Context(), "gw-1", true); err != nil {
			t.Error(err)
		}
		if err := enroll(t, b, "gw-2", ek(0), certificate(1, "token:b")); err != nil {
			t.Errorf("the TPM is not free: %v", err)
		}
		if again, err := b.RevokeDevice(t.Context(), "gw-1", true); err != nil || again.Released != "" {
			t.Errorf("%+v, %v", again, err)
		}
	})
}

// A disk that fails says so, and nothing is answered that it would forget.
func TestFailingDisk(t *testing.T) {
	for fail := 0; ; fail++ {
		d := disktest.New()
		b := open(t, d)
		left := fail
		d.Fail(func(op disktest.Op) error {
			if !op.Kind.Changes() && op.Kind != disktest.Sync && op.Kind != disktest.SyncDir {
				return nil
			}
			if left--; left < 0 {
				return errors.New("no space left on device")
			}
			return nil
		})
		err := enroll(t, b, "gw-1", ek(0), certificate(0, Return))
		d.Fail(nil)
		if err == nil && left < 0 {
			t.Fatalf("operation %d failed, and the record was taken for written", fail)
		}
		if err == nil {
			return
		}
		if err := enroll(t, b, "gw-1", ek(0), certificate(0, Return)); err != nil {
			t.Errorf("operation %d: afterwards: %v", fail, err)
		}
	}
}

func TestLocksAreFilesOfTheFolder(t *testing.T) {
	folder := t.TempDir()
	if err := enroll(t, openAt(t, disk.OS(), folder), "gw-1", ek(0), certificate(0, Return)); err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(folder, lockDir, "*")); err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
}
