package agent

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/agent/config"
	"ferrule/agent/doctor"
	"ferrule/agent/identity"
	"ferrule/agent/outbox"
	"ferrule/agent/session/cause"
	"ferrule/hw"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
	"ferrule/tpm"
)

const onDevice = string(cause.SideDevice)

// unreadable is a configuration that nobody can work with.
func unreadable(err error) doctor.Result {
	repair := hint.Of(err)
	if repair == "" {
		repair = "mend the file, then run: ferrule check"
	}
	r := doctor.Result{Saw: strings.Split(err.Error(), "\n")}
	return r.Fail("configuration", onDevice, r.Saw[0], repair)
}

// checkFile looks at a configuration that was read.
func (v *visit) checkFile() doctor.Result {
	r := doctor.Result{Saw: []string{v.o.File + " can be read"}}
	if v.roots != nil {
		return r.Fail("roots", onDevice, v.roots.Error(), "name in session.roots a PEM file with the authority that signed the broker's certificate")
	}
	if agentRuns(v.config.StateDir) {
		r.Warn("an agent runs, and does not answer at local.socket: it was not asked", "restart it, or name a socket for it; some of what follows may be its doing")
	}
	var plans []hw.Plan
	for _, line := range v.config.Lines {
		l, err := hw.New(line, nil, v.log)
		if err != nil {
			return r.Fail("configuration", onDevice, err.Error(), "run: ferrule check")
		}
		plans = append(plans, l.Plan())
	}
	return weighConfig(r, v.config, plans)
}

// checkRunning looks at the configuration that runs, and whether the file says the same still.
func (a *agent) checkRunning() doctor.Result {
	r := doctor.Result{Saw: []string{"the agent runs with it"}}
	switch next, err := a.options.Load(); {
	case err != nil:
		r.Warn("the file has a mistake since: "+strings.ReplaceAll(err.Error(), "\n", "; "), "mend it before the agent starts again; see: ferrule check")
	case a.onTrial != nil:
		r.Saw = append(r.Saw, "it is on trial")
	case !reflect.DeepEqual(next, a.config):
		r.Warn("the file says something else than what runs", "have the agent read it: send it SIGHUP")
	}
	var plans []hw.Plan
	for _, l := range a.lines {
		plans = append(plans, l.Plan())
	}
	return weighConfig(r, a.config, plans)
}

// The window that clouds allow.
const leastWindow, mostWindow = 10, 100

// weighConfig warns of what works and is not wise.
func weighConfig(r doctor.Result, c *config.Config, plans []hw.Plan) doctor.Result {
	units := 0
	for _, line := range c.Lines {
		units += len(line.Units)
	}
	r.Saw = append(r.Saw, fmt.Sprintf("lines: %d, units: %d, brokers: %d, window: %d messages", len(c.Lines), units, len(c.Session.Brokers), c.Session.Window))
	if w := c.Session.Window; w < leastWindow || w > mostWindow {
		r.Warn(fmt.Sprintf("session.window is %d: clouds allow %d to %d messages in flight", w, leastWindow, mostWindow), "set session.window to 64")
	}
	for _, sentence := range c.Local.Advice() {
		r.Warn(sentence, "see docs/local.md")
	}
	for _, plan := range plans {
		switch {
		case plan.Overload():
			return r.Fail("overload", onDevice, plan.Need(), hw.LessLoad)
		case plan.Tight():
			r.Warn(plan.Need()+", and units need time to think", hw.LessLoad)
		}
	}
	return r
}

// Space that the disk should have left, in bytes: below the first the agent cannot keep its files, below
// the second readings of an outage will be dropped early.
const leastSpace, littleSpace = 1 << 20, 16 << 20

// checkDisk looks at the disk of the state directory, and writes nothing.
func checkDisk(c *config.Config) doctor.Result {
	var r doctor.Result
	dir := c.StateDir
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			r.Warn("there is no state directory "+dir, "enroll the device, which makes it: ferrule enroll; or correct state_dir")
			return r
		}
		return r.Fail("state-unreadable", onDevice, fmt.Sprintf("the state directory %s: %v", dir, err), "run as root or as the agent's user")
	}
	free, all := int64(s.Bavail)*int64(s.Bsize), int64(s.Blocks)*int64(s.Bsize) //nolint:unconvert // their types differ between architectures
	r.Saw = append(r.Saw, fmt.Sprintf("%s: %s of %s free", dir, quantity.Size(free&^(1<<20-1)), quantity.Size(all&^(1<<20-1))))
	if s.Files > 0 {
		r.Saw = append(r.Saw, fmt.Sprintf("%d of %d inodes free", s.Ffree, s.Files))
	}
	switch {
	case s.Flags&unix.ST_RDONLY != 0:
		return r.Fail("disk-read-only", onDevice, "the file system of "+dir+" is mounted read-only", "look at dmesg for what went wrong with the flash; then: mount -o remount,rw")
	case errors.Is(unix.Access(dir, unix.W_OK|unix.X_OK), unix.EACCES):
		return r.Fail("state-permission", onDevice, dir+" cannot be written by this user", "run as the agent's user, or give it the directory: chown -R")
	case free < leastSpace, s.Files > 0 && s.Ffree == 0:
		return r.Fail("disk-full", onDevice, "the disk of "+dir+" is full", "make room; readings wait in memory until then, and some will be dropped")
	case free < littleSpace:
		r.Warn(fmt.Sprintf("little is left on the disk of %s: %s", dir, quantity.Size(free&^(1<<10-1))), "make room, or lower outbox.max_bytes")
	}
	return r
}

// tpmShare is how much of its time doctor gives the TPM: deriving endorsement keys takes a slow chip
// some seconds each.
const tpmShare = 15 * time.Second

func usesTPM(c *config.Config) bool { return strings.HasPrefix(c.Identity.Key, "tpm2:") }

func notTPM(c *config.Config) doctor.Result {
	scheme, _, _ := strings.Cut(c.Identity.Key, ":")
	return doctor.Result{State: doctor.NotNeeded, Saw: []string{"the key is " + scheme + ": no TPM is asked"}}
}

func (a *agent) checkTPM(ctx context.Context) doctor.Result {
	if !usesTPM(a.config) {
		return notTPM(a.config)
	}
	ctx, cancel := context.WithTimeout(ctx, tpmShare)
	defer cancel()
	report, err := a.identity.Inspect(ctx)
	if err != nil {
		return doctor.Result{}.Fail(tpm.FaultOther, onDevice, err.Error(), "run: ferrule tpm")
	}
	return tpmResult(report)
}

func (v *visit) checkTPM(ctx context.Context) doctor.Result {
	if !usesTPM(v.config) {
		return notTPM(v.config)
	}
	ctx, cancel := context.WithTimeout(ctx, tpmShare)
	defer cancel()
	known, err := identity.Remembered(v.fsys, v.config.StateDir)
	if err != nil {
		return doctor.Result{}.Fail(tpm.FaultOther, onDevice, err.Error(), "run: ferrule tpm")
	}
	report := tpm.Inspect(ctx, tpm.Options{Path: v.config.Identity.TPM, Log: v.log}, known)
	v.absent = report.Opened && report.SRK.State == "absent" && known.SRK != nil
	return tpmResult(report)
}

// tpmResult makes what a TPM said that of its layer.
func tpmResult(report tpm.Report) doctor.Result {
	var r doctor.Result
	if report.Opened {
		r.Saw = append(r.Saw,
			fmt.Sprintf("%s, firmware %s, at %s", strings.Join(strings.Fields(report.Manufacturer+" "+report.Vendor), " "), report.Firmware, report.Path),
			fmt.Sprintf("lockout counter %d of %d, %d objects and %d sessions free, SRK %s", report.LockoutCounter, report.MaxAuthFail, report.TransientFree, report.SessionsFree, report.SRK.State))
	}
	for _, f := range report.Findings {
		if f.Blocks && r.State != doctor.Failed {
			r = r.Fail("tpm-"+f.Fault, onDevice, f.Text, f.Repair)
		} else if f.Fault != tpm.FaultEndorsement { // matters to registrars, and not to the session
			r.Warn(f.Text, f.Repair)
		}
	}
	return r
}

// identityProblem says why key and certificate are of no use.
func identityProblem(err error) doctor.Result {
	what := "identity"
	for _, known := range []struct {
		err  error
		what string
	}{
		{identity.ErrWrongTPM, "wrong-tpm"}, {identity.ErrCleared, "key-lost"}, {identity.ErrNotEnrolled, "not-enrolled"},
		{identity.ErrMismatch, "certificate-mismatch"}, {tpm.ErrSoftwareKey, "software-key"}, {tpm.ErrNoKey, "no-key"},
		{tpm.ErrNoDevice, "tpm-missing"}, {tpm.ErrPermission, "tpm-permission"}, {tpm.ErrBusy, "tpm-busy"}, {tpm.ErrTimeout, "tpm-silent"},
		{tpm.ErrLockout, "tpm-lockout"}, {tpm.ErrOwnerAuth, "tpm-owner-auth"}, {tpm.ErrOwnerChanged, "tpm-cleared"}, {tpm.ErrKeyCorrupt, "key-damaged"},
	} {
		if errors.Is(err, known.err) {
			what = known.what
			break
		}
	}
	repair := hint.Of(err)
	if repair == "" {
		repair = "put the file back from a backup of this very device, or enroll again: ferrule enroll --force --token T"
	}
	return doctor.Result{}.Fail(what, onDevice, err.Error(), repair)
}

// soonExpired is what a certificate may have left before somebody should know that nothing renews it.
const soonExpired = 14 * 24 * time.Hour

// checkIdentity looks whether the key signs, and whether its certificate is one for a client.
func checkIdentity(id *identity.Identity, now time.Time) doctor.Result {
	s, current := id.Status(), id.Current()
	leaf := current.Leaf()
	r := doctor.Result{Saw: []string{
		"key " + s.Key,
		fmt.Sprintf("certificate of %s by %s, %s to %s", s.Device, leaf.Issuer, leaf.NotBefore.Format(time.DateOnly), leaf.NotAfter.Format(time.DateOnly)),
	}}
	took, err := signs(current)
	if err != nil {
		return r.Fail("key", onDevice, fmt.Sprintf("the key does not sign: %v", err), "look at the TPM: ferrule tpm, and dmesg for its driver")
	}
	r.Saw = append(r.Saw, fmt.Sprintf("the key fits the certificate, and signs in %s", took.Round(100*time.Microsecond)))
	if !forClients(leaf) {
		return r.Fail("certificate-usage", onDevice, "the certificate is not for TLS clients: its extended key usage lacks clientAuth", "have it issued with extended key usage clientAuth")
	}
	switch {
	case now.After(leaf.NotAfter):
		return r.Fail("certificate-expired", onDevice, "the certificate expired on "+leaf.NotAfter.Format(time.RFC3339), "renew it: ferrule enroll")
	case now.Before(leaf.NotBefore):
		return r.Fail("clock", onDevice, "the certificate begins on "+leaf.NotBefore.Format(time.RFC3339)+", and our clock stands before that", "set the clock: timedatectl")
	case leaf.NotAfter.Sub(now) < soonExpired && leaf.NotAfter.Sub(now) < leaf.NotAfter.Sub(leaf.NotBefore)/6:
		r.Warn("the certificate expires on "+leaf.NotAfter.Format(time.RFC3339), "see why it was not renewed: ferrule status; else: ferrule enroll")
	}
	if s.Weak {
		r.Warn("the key is a file, which whoever reads the disk can copy", `keep it in the TPM: identity.key = "tpm2:file=device.key"`)
	}
	if s.Alarm != "" {
		r.Warn(s.Alarm, "see: ferrule status")
	}
	if s.Problem != "" {
		r.Warn(s.Problem, "look at the disk")
	}
	return r
}

func forClients(leaf *x509.Certificate) bool {
	none := len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0
	return none || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// signs has the key sign something once, and the certificate check it.
func signs(c *identity.Credential) (took time.Duration, err error) {
	message := []byte("ferrule doctor " + rand.Text())
	digest := sha256.Sum256(message)
	algorithm, signed, how := x509.ECDSAWithSHA256, digest[:], crypto.SignerOpts(crypto.SHA256)
	switch c.Leaf().PublicKey.(type) {
	case *rsa.PublicKey:
		algorithm = x509.SHA256WithRSA
	case ed25519.PublicKey:
		algorithm, signed, how = x509.PureEd25519, message, crypto.Hash(0)
	}
	start := time.Now()
	signature, err := c.Key().Sign(rand.Reader, signed, how)
	if err != nil {
		return 0, err
	}
	return time.Since(start), c.Leaf().CheckSignature(algorithm, message, signature)
}

// checkOutbox is the outbox of the running agent.
func checkOutbox(s outbox.Status) doctor.Result {
	r := doctor.Result{Saw: []string{
		fmt.Sprintf("%d entries wait, the oldest for %s; %s", s.Depth, time.Duration(s.OldestAge*float64(time.Second)).Round(time.Second), quantity.Size(s.Bytes)),
		fmt.Sprintf("%d appended, %d acknowledged, %d sent again", s.Appended, s.Acked, s.Resent),
	}}
	if s.Problem != "" {
		return r.Fail("outbox", onDevice, "the disk refuses the outbox: "+s.Problem, "look at the disk; readings wait in memory until then")
	}
	for _, lost := range []struct {
		n            uint64
		what, repair string
	}{
		{s.Dropped, "entries were dropped, since the outbox was full", "raise outbox.max_bytes, or find why the session was down for so long"},
		{s.Damaged, "stretches of the log could not be read", "a power cut does that; if it goes on, the flash fails"},
		{s.SetAside, "entries were set aside, since the broker does not take them", "see outbox/aside.jsonl in the state directory"},
	} {
		if lost.n > 0 {
			r.Warn(fmt.Sprintf("%d %s", lost.n, lost.what), lost.repair)
		}
	}
	return r
}

// mostFiles bounds what is counted of the outbox's folders.
const mostFiles = 100_000

// checkOutboxFiles looks at what an agent that does not run has left: its entries are in files that
// only it opens.
func checkOutboxFiles(_ disk.FS, c *config.Config) doctor.Result {
	var r doctor.Result
	files, bad, size := 0, 0, int64(0)
	var oldest time.Time
	err := filepath.WalkDir(filepath.Join(c.StateDir, "outbox"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil || files >= mostFiles {
			return nil //nolint:nilerr // it went while we looked
		}
		files, size = files+1, size+info.Size()
		if strings.HasSuffix(path, ".bad") {
			bad++
		}
		if oldest.IsZero() || info.ModTime().Before(oldest) {
			oldest = info.ModTime()
		}
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return doctor.Result{State: doctor.NotNeeded, Saw: []string{"nothing is there yet"}}
	case errors.Is(err, fs.ErrPermission):
		return r.Fail("outbox-permission", onDevice, "this user may not read the outbox", "run as root or as the agent's user")
	case err != nil:
		return r.Fail("outbox", onDevice, err.Error(), "look at dmesg for what is wrong with the flash")
	}
	r.Saw = append(r.Saw, fmt.Sprintf("%d files of %s, the oldest of %s; how many entries they hold the running agent knows", files, quantity.Size(size), oldest.UTC().Format(time.RFC3339)))
	if bad > 0 {
		r.Warn(fmt.Sprintf("%d damaged files were set aside (*.bad)", bad), "a power cut does that; if it goes on, the flash fails")
	}
	return r
}

// readOnly is a file system that nothing can be changed on.
type readOnly struct{ disk.FS }

var errReadOnly = fmt.Errorf("doctor changes nothing: %w", fs.ErrPermission)

func (r readOnly) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND) != 0 {
		return nil, errReadOnly
	}
	return r.FS.OpenFile(name, flag, perm)
}
func (readOnly) Rename(string, string) error        { return errReadOnly }
func (readOnly) Remove(string) error                { return errReadOnly }
func (readOnly) MkdirAll(string, fs.FileMode) error { return errReadOnly }
func (readOnly) SyncDir(string) error               { return errReadOnly }
