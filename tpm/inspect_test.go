package tpm_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// faults are those of the findings, with an exclamation mark where they block.
func faults(r tpm.Report) string {
	var all []string
	for _, f := range r.Findings {
		if f.Blocks {
			f.Fault += "!"
		}
		all = append(all, f.Fault)
	}
	return strings.Join(all, " ")
}

// onePlainSentence is what a finding has to be.
func onePlainSentence(t *testing.T, r tpm.Report) {
	t.Helper()
	for _, f := range r.Findings {
		if !strings.HasSuffix(f.Text, ".") || f.Text[:1] != strings.ToUpper(f.Text[:1]) || strings.ContainsAny(f.Text, "\n\t") || f.Repair == "" {
			t.Errorf("finding %+v", f)
		}
	}
}

func TestInspectASoundTPM(t *testing.T) {
	s := tpmtest.Certified(t)
	o := tpm.Options{Path: s.Address()}
	first := tpm.Inspect(background, o, tpm.Known{})
	if faults(first) != "" || first.SRK.State != "absent" || !first.Opened || !first.Attests || !first.P256 || !first.P384 ||
		first.Manufacturer != "IBM" || first.TransientFree != 3 || first.SessionsFree != 3 || first.MaxAuthFail != 3 ||
		first.LockoutInterval.Seconds() != 1000 || first.OwnerAuth || len(first.EKName) != 68 {
		t.Errorf("%+v", first)
	}
	d := open(t, s.Address(), tpm.Options{})
	if h := handles(t, d, 0x81000001); len(h) > 0 && uint32(h[0]) == tpm.SRKHandle {
		t.Error("the TPM was changed")
	}
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	srk, _ := d.EnsureSRK(background, nil)
	ek, _ := d.EndorsementName(background)
	r := d.Inspect(background, tpm.Known{SRK: srk, EK: ek})
	mustSign(t, k)
	if faults(r) != "" || r.SRK.State != "ours" || !r.SRK.NoDA || r.SRK.Name == "" {
		t.Errorf("%+v", r)
	}
	var kinds []string
	for _, e := range r.EKs {
		kinds = append(kinds, e.Kind+" "+e.Index)
		if e.Certificate != (e.Index != "") || e.Certificate && (e.NotAfter.IsZero() || e.Issuer != "CN=swtpm-localca") {
			t.Errorf("%+v", e)
		}
	}
	if got := strings.Join(kinds, ", "); got != "P-384 0x01c00016, RSA-2048 0x01c00002, P-256 " {
		t.Errorf("endorsement keys %q", got)
	}
	text, err := json.Marshal(r)
	if err != nil || !bytes.Contains(text, []byte(`"manufacturer":"IBM"`)) || !bytes.Contains(text, []byte(`"srk":{"state":"ours"`)) {
		t.Errorf("%s, %v", text, err)
	}
}

// Fault 1: permission.
func TestInspectWithoutPermission(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tpmrm0"), nil, 0); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	result := make(chan tpm.Report, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if os.Geteuid() == 0 {
			if _, err := unix.SetfsuidRetUid(nobody); err != nil {
				t.Error(err)
			}
		}
		result <- tpm.InspectAuto(background, dir, tpm.Options{}, tpm.Known{})
	}()
	r := <-result
	onePlainSentence(t, r)
	if faults(r) != "permission!" || !strings.Contains(r.Findings[0].Repair, "group tss") || r.Opened {
		t.Errorf("%+v", r)
	}
}

// Fault 2: no /dev/tpmrm0.
func TestInspectWithoutATPM(t *testing.T) {
	dir := t.TempDir()
	for name, r := range map[string]tpm.Report{
		"no folder entry": tpm.InspectAuto(background, dir, tpm.Options{}, tpm.Known{}),
		"no device":       tpm.Inspect(background, tpm.Options{Path: dir + "/tpmrm0"}, tpm.Known{}),
		"switched off":    tpm.Inspect(background, tpm.Options{Path: "none"}, tpm.Known{}),
		"no simulator":    tpm.Inspect(background, tpm.Options{Path: "unix:" + dir + "/none"}, tpm.Known{}),
	} {
		onePlainSentence(t, r)
		if faults(r) != "missing!" || r.Opened || r.SRK.State != "unknown" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// A raw device alone, which answers nothing a TPM would.
	d, err := tpm.OpenDescriptors(tpm.Options{Path: "/dev/tpm0", CommandTimeout: time.Millisecond}, func() (tpm.Descriptor, error) {
		return tpmtest.NewDescriptor(tpmtest.Step{Answer: tpmtest.Response(tpmtest.RCFailure)}), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := d.Inspect(background, tpm.Known{})
	if !strings.HasPrefix(faults(r), "missing ") || !strings.Contains(r.Findings[0].Text, "resource manager") {
		t.Errorf("%+v", r)
	}
}

// Fault 3: an owner password.
func TestInspectOwnerPassword(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	setOwner := func(old, password string) {
		owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte(old))}
		if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: owner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte(password)}}).Execute(d.TPM(background)); err != nil {
			t.Fatal(err)
		}
	}
	setOwner("", "secret")
	r := d.Inspect(background, tpm.Known{})
	onePlainSentence(t, r)
	if faults(r) != "owner-auth!" || !r.OwnerAuth || !strings.Contains(r.Findings[0].Repair, "tpm2_createprimary") || !r.Attests {
		t.Errorf("%+v", r)
	}
	setOwner("secret", "")
	if _, err := d.EnsureSRK(background, nil); err != nil {
		t.Fatal(err)
	}
	setOwner("", "secret")
	if r := d.Inspect(background, tpm.Known{}); faults(r) != "" || !r.OwnerAuth {
		t.Errorf("with an SRK of the factory: %+v", r)
	}
}

// Fault 4: a cleared TPM, and another one.
func TestInspectAClearedTPM(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	srk, err := d.EnsureSRK(background, nil)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := d.EndorsementName(background)
	if err != nil {
		t.Fatal(err)
	}
	known := tpm.Known{SRK: srk, EK: ek}
	if r := open(t, tpmtest.Other(t).Address(), tpm.Options{}).Inspect(background, known); faults(r) != "cleared!" || !strings.Contains(r.Findings[0].Text, "another TPM") {
		t.Errorf("another TPM: %+v", r)
	}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.EvictControl{
		Auth:             owner,
		ObjectHandle:     tpm2.NamedHandle{Handle: tpm2.TPMHandle(tpm.SRKHandle), Name: tpm2.TPM2BName{Buffer: srk}},
		PersistentHandle: tpm2.TPMHandle(tpm.SRKHandle),
	}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
	if r := d.Inspect(background, known); faults(r) != "" || r.SRK.State != "absent" {
		t.Errorf("the SRK was removed, and would come back the same: %+v", r)
	}
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
	r := d.Inspect(background, known)
	onePlainSentence(t, r)
	if faults(r) != "cleared!" || !strings.Contains(r.Findings[0].Text, "was cleared") {
		t.Errorf("cleared: %+v", r)
	}
	persistPrimary(t, d, tpm2.ECCSRKTemplate)
	if r := d.Inspect(background, known); faults(r) != "cleared!" || r.SRK.State != "ours" {
		t.Errorf("cleared, and used since: %+v", r)
	}
}

// Fault 5: lockout; attestation goes on in it.
func TestInspectLockout(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	index := tpm2.TPMHandle(0x01400001)
	defineNV(t, d, index, []byte("secret"), func(a *tpm2.TPMANV) { a.NoDA = false })
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.TPM(background))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, _ = tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: public.NVName, Auth: tpm2.PasswordAuth([]byte("a guess"))},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Size:       6,
		}.Execute(d.TPM(background))
		r := d.Inspect(background, tpm.Known{})
		onePlainSentence(t, r)
		want := "lockout-counter"
		if i == 2 {
			want = "lockout"
		}
		if faults(r) != want || r.LockoutCounter != uint32(i+1) || r.InLockout != (i == 2) {
			t.Errorf("after %d guesses: %+v", i+1, r)
		}
	}
	mustActivate(t, k, mustAttest(t, k))
	mustSign(t, k)
}

func TestInspectOddities(t *testing.T) {
	t.Run("an SRK of others", func(t *testing.T) {
		d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
		theirs := tpm2.ECCSRKTemplate
		theirs.ObjectAttributes.NoDA = false
		persistPrimary(t, d, theirs)
		if r := d.Inspect(background, tpm.Known{}); faults(r) != "srk endorsement" || r.SRK.State != "foreign" || r.SRK.NoDA {
			t.Errorf("%+v", r)
		}
	})
	t.Run("no storage key", func(t *testing.T) {
		d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
		signing := tpm.AKTemplate()
		persistPrimary(t, d, signing)
		r := d.Inspect(background, tpm.Known{})
		onePlainSentence(t, r)
		if faults(r) != "srk! endorsement" || r.SRK.State != "unsuitable" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("an endorsement password", func(t *testing.T) {
		d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
		endorse := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
		if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: endorse, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("x")}}).Execute(d.TPM(background)); err != nil {
			t.Fatal(err)
		}
		r := d.Inspect(background, tpm.Known{})
		onePlainSentence(t, r)
		if faults(r) != "endorsement" || !r.EndorsementAuth || r.Attests {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a spoilt certificate", func(t *testing.T) {
		d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
		defineNV(t, d, 0x01C00002, []byte("\x1b[2J"), nil)
		r := d.Inspect(background, tpm.Known{})
		onePlainSentence(t, r)
		if faults(r) != "endorsement endorsement" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a silent TPM", func(t *testing.T) {
		p, err := tpmtest.StartProxy("")
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		p.Inject(func(uint32) tpmtest.Fault { return tpmtest.Fault{Hang: true} })
		r := tpm.Inspect(background, tpm.Options{Path: p.Address(), CommandTimeout: 1, RetryBudget: 1}, tpm.Known{})
		onePlainSentence(t, r)
		if faults(r) != "silent!" || p.Commands() > 1 {
			t.Errorf("%+v", r)
		}
	})
}
