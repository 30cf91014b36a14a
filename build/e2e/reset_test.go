package e2e

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// found lists the files below dir that hold one of the secrets.
func found(t *testing.T, dir string, secrets ...[]byte) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(text, secret) {
				files = append(files, path)
				break
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// left lists what is below the state directory, locks aside.
func (s *site) left(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir(s.state, func(path string, entry fs.DirEntry, err error) error {
		if name := entry.Name(); path != s.state && name != "lock" && name != "enroll.lock" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (s *site) enroll(t *testing.T, flags ...string) (token string) {
	t.Helper()
	token = s.token(t, siteDevice)
	mustRun(t, token, with(s.ferrule, append([]string{"enroll", "--config", s.config, "--token", "-"}, flags...)...)...)
	return token
}

// keyBytes are the parts of a key file by which it would be known anywhere: the PEM text and what
// it stands for.
func keyBytes(t *testing.T, path string) [][]byte {
	t.Helper()
	text := []byte(readFile(t, path))
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s is no PEM", path)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	// Not the first line: but for one byte it is the same for every key of this kind.
	return [][]byte{lines[len(lines)/2], block.Bytes[len(block.Bytes)-40:]}
}

// Back to the factory: nothing is left that tells of the device, and it can be enrolled again, with a
// key in a file that the TPM alone can use, and at a handle in it.
func TestReset(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteOptions{sync: "always", every: 50 * time.Millisecond, points: 1})
	_, stderr, code := run(t, "", with(s.ferrule, "reset", "--config", s.config)...)
	if code != 2 || !strings.Contains(stderr, "hint:") || !slices.Contains(s.left(t), "device.crt") {
		t.Errorf("reset without --yes: exit code %d\n%s", code, stderr)
	}
	token := s.enroll(t, "--force")
	s.process.Kill() // so that the outbox is on the disk
	s.run(t)
	waitFor(t, "a backlog", func() bool { return count(s.status(t), "outbox", "disk_bytes") > 1000 })
	_, stderr, code = run(t, "", with(s.ferrule, "reset", "--yes", "--config", s.config)...)
	if code == 0 || !slices.Contains(s.left(t), "device.key") {
		t.Errorf("reset under a running agent: exit code %d\n%s", code, stderr)
	}
	s.stop(t)
	if files := found(t, s.state, []byte(token)); len(files) > 0 {
		t.Errorf("the token is in %v", files)
	}
	secrets := append(keyBytes(t, filepath.Join(s.state, "device.key")), []byte(`"counter"`), []byte(siteDevice))
	if files := found(t, s.state, secrets...); len(files) < 3 {
		t.Fatalf("only %v hold what the search is for: this is no search", files)
	}
	mustRun(t, "", with(s.ferrule, "reset", "--yes", "--config", s.config)...)
	if files, names := found(t, s.state, secrets...), s.left(t); len(files)+len(names) > 0 {
		t.Errorf("the reset left %v, and secrets in %v", names, files)
	}
	s.startBroker(t)
	s.again(t, "tpm2:file=device.key")

	s.edit(t, "tpm2:file=device.key", "tpm2:handle=0x81010001")
	s.again(t, "tpm2:handle=0x81010001")
	if handles := s.persistent(t); strings.Contains(handles, "0x81010001") || !strings.Contains(handles, "0x81000001") {
		t.Errorf("after the reset the TPM holds %s; want the SRK alone", handles)
	}
}

// A key in a file is a secret itself.
func TestResetOfASoftwareKey(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteOptions{sync: "1s", every: time.Second, points: 1, weak: true})
	secrets := keyBytes(t, filepath.Join(s.state, "device.pem"))
	if files := found(t, s.dir, secrets...); len(files) != 1 {
		t.Errorf("the key is in %v", files)
	}
	mustRun(t, "", with(s.ferrule, "reset", "--yes", "--config", s.config)...)
	if files, names := found(t, s.dir, secrets...), s.left(t); len(files)+len(names) > 0 {
		t.Errorf("the reset left %v, and the key in %v", names, files)
	}
	s.again(t, "file:device.pem")
}

// again enrolls, runs and resets once more.
func (s *site) again(t *testing.T, key string) {
	t.Helper()
	s.enroll(t)
	s.run(t)
	s.waitUp(t)
	if got := field(s.status(t), "identity", "key"); got != key {
		t.Errorf("the key is %v; want %s", got, key)
	}
	s.stop(t)
	mustRun(t, "", with(s.ferrule, "reset", "--yes", "--config", s.config)...)
	if names := s.left(t); len(names) > 0 {
		t.Errorf("%s: the reset left %v", key, names)
	}
}

func (s *site) persistent(t *testing.T) string {
	t.Helper()
	return mustRun(t, "", need(t, "tpm2_getcap"), "handles-persistent", "-T", "swtpm:path="+s.tpm.Socket())
}

// The power goes during a reset, at random moments: the next start finishes what was begun, whichever
// command it is, and nothing of the device that was is used again.
func TestResetCutAnywhere(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	cuts, finished := 0, 0
	for n := range number(t, "E2E_RESETS", 12) {
		secrets := keyBytes(t, filepath.Join(s.state, "device.key"))
		reset := exec.Command(s.ferrule[0], "reset", "--yes", "--config", s.config)
		if err := reset.Start(); err != nil {
			t.Fatal(err)
		}
		pause(t, time.Duration(random.IntN(25000))*time.Microsecond)
		_ = reset.Process.Kill()
		if reset.Wait() != nil {
			cuts++
		}
		if n == 0 { // a cut right behind the mark, whatever the dice say
			s.leaveMark(t)
		}
		_, marked := os.Stat(filepath.Join(s.state, "reset"))
		_, enrolled := os.Stat(filepath.Join(s.state, "device.crt"))
		if marked == nil {
			finished++
		}
		switch {
		case marked != nil && enrolled == nil: // it had not begun
			mustRun(t, "", with(s.ferrule, "reset", "--yes", "--config", s.config)...)
		case n%2 == 0:
			_, stderr, code := run(t, "", with(s.ferrule, "run", "--config", s.config)...)
			if code != 11 || !strings.Contains(stderr, "not enrolled") {
				t.Errorf("run after the cut: exit code %d\n%s", code, stderr)
			}
			if names := s.left(t); len(names) > 0 {
				t.Errorf("run left %v", names)
			}
		}
		s.enroll(t)
		if files := found(t, s.state, secrets...); len(files) > 0 {
			t.Errorf("the key of before is in %v", files)
		}
		s.settled(t)
	}
	t.Logf("seed %d: %d cuts, %d of them within", seed, cuts, finished)
	s.run(t)
	s.waitUp(t)
	s.stop(t)
}

// leaveMark puts the site in the state of a reset that ended right after it had begun.
func (s *site) leaveMark(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(s.state, "device.crt")); err != nil {
		s.enroll(t)
	}
	if err := os.WriteFile(filepath.Join(s.state, "reset"), fmt.Append(nil, `{"all":false}`), 0o600); err != nil {
		t.Fatal(err)
	}
}
