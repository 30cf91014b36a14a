package hook_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll/hook"
	"ferrule/agent/enroll/peer"
	"ferrule/internal/hint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a program in shell, in a folder of its own, which is its first argument. It is not
// started itself: a file that was just written may be open in a child of another test.
func script(t *testing.T, text string) hook.Options {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return hook.Options{Command: []string{"/bin/sh", path, dir, "two words; $(reboot)"}, Device: "gw-1", Purpose: "renew", Token: "secret"}
}

func request(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func content(t *testing.T, o hook.Options, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.Command[2], name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The program gets the request, its arguments as they are, and an environment of a few names.
func TestRun(t *testing.T) {
	t.Setenv("FERRULE_SECRET_OF_THE_AGENT", "x")
	key, csr := request(t)
	ca, err := agenttest.NewCA("hook")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(agenttest.Leaf{CommonName: "gw-1", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	o := script(t, `cd "$1"; cat >csr; env >env; printf %s "$2" >argument; pwd >where; echo chatter >&2; cat chain`)
	o.Environment = []string{"FERRULE_BATCH=7"}
	chain := append([]byte("subject=gw-1\n"), issued.ChainPEM...)
	if err := os.WriteFile(filepath.Join(o.Command[2], "chain"), append(chain, ca.RootPEM()...), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := hook.Run(t.Context(), o, csr)
	if err != nil || len(got.Chain) != 2 || !got.Chain[0].Equal(issued.Leaf) || len(got.Roots) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if text := content(t, o, "csr"); !strings.HasPrefix(text, "-----BEGIN CERTIFICATE REQUEST-----\n") {
		t.Errorf("it was asked\n%s", text)
	}
	if argument := content(t, o, "argument"); argument != o.Command[3] {
		t.Errorf("its argument is %q", argument)
	}
	env := content(t, o, "env")
	for _, want := range []string{"FERRULE_DEVICE=gw-1\n", "FERRULE_PURPOSE=renew\n", "FERRULE_TOKEN=secret\n", "FERRULE_BATCH=7\n", "PATH=/usr/local/sbin:"} {
		if !strings.Contains(env, want) {
			t.Errorf("no %q in\n%s", want, env)
		}
	}
	if strings.Contains(env, "SECRET_OF_THE_AGENT") || strings.Contains(env, "HOME=") {
		t.Errorf("the agent's environment is handed on:\n%s", env)
	}
	if text := content(t, o, "where"); text != "" && !strings.HasPrefix(text, o.Command[2]) {
		t.Errorf("it runs in %s", text)
	}
}

func TestHowProgramsFail(t *testing.T) {
	_, csr := request(t)
	other, err := agenttest.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text string
		want error // nil: a Later
		says string
		wait time.Duration
	}{
		"no":               {`printf 'not on\n\033[31mthe list' >&2; exit 1`, peer.ErrRefused, "not on ?[31mthe list", 0},
		"later":            {`echo waiting >&2; exit 75`, nil, "waiting", 0},
		"in two minutes":   {`echo waiting >&2; echo "Retry-After: 120" >&2; exit 75`, nil, "waiting", 2 * time.Minute},
		"later, long talk": {`i=0; while [ $i -lt 3000 ]; do echo talk talk >&2; i=$((i+1)); done; echo "retry-after: 7" >&2; exit 75`, nil, "talk", 7 * time.Second},
		"killed":           {`kill -9 $$`, peer.ErrUnreachable, "killed", 0},
		"says nothing":     {`exit 0`, peer.ErrAnswer, "no certificate", 0},
		"rubbish":          {`echo hello`, peer.ErrAnswer, "no certificate", 0},
		"a key":            {`printf -- '-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n'`, peer.ErrAnswer, "PRIVATE KEY", 0},
		"another's":        {"cat <<'EOF'\n" + string(other.RootPEM()) + "EOF", peer.ErrAnswer, "key of the request", 0},
		"endless":          {`exec yes`, peer.ErrAnswer, "more than", 0},
		"reads nothing":    {`exec <&-; exit 3`, peer.ErrRefused, "exit status 3", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := script(t, test.text)
			_, err := hook.Run(t.Context(), o, csr)
			later, postponed := errors.AsType[*peer.Later](err)
			if postponed != (test.want == nil) || postponed && later.After != test.wait || !postponed && !errors.Is(err, test.want) {
				t.Fatalf("%v", err)
			}
			if hint.Of(err) == "" || !strings.Contains(err.Error(), test.says) || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 700 || strings.Contains(err.Error(), "secret") {
				t.Errorf("%q (%q)", err, hint.Of(err))
			}
		})
	}
	for name, command := range map[string][]string{"not there": {"/nonexistent/program"}, "a folder": {t.TempDir()}, "none": nil} {
		if _, err := hook.Run(t.Context(), hook.Options{Command: command}, csr); err == nil || errors.Is(err, peer.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := hook.Run(t.Context(), script(t, "cat"), []byte("no request")); err == nil {
		t.Error("rubbish was handed on as a request")
	}
}

// When the time is over, so is everything that the program started.
func TestTheWholeGroupGoes(t *testing.T) {
	_, csr := request(t)
	o := script(t, `cd "$1"; sleep 1000 & echo $! >child.new; mv child.new child; wait`)
	o.Timeout = time.Second
	_, err := hook.Run(t.Context(), o, csr)
	if !errors.Is(err, peer.ErrUnreachable) || !strings.Contains(hint.Of(err), "enroll.timeout") {
		t.Errorf("%v (%s)", err, hint.Of(err))
	}
	gone(t, content(t, o, "child"))
}

// So is what it leaves behind when it ends by itself, be it that it holds the pipes.
func TestNothingIsLeftBehind(t *testing.T) {
	_, csr := request(t)
	for _, pipes := range []string{">/dev/null 2>&1", ""} {
		o := script(t, `cd "$1"; sleep 1000 `+pipes+` & echo $! >child; exit 1`)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := hook.Run(ctx, o, csr)
		cancel()
		if err == nil || ctx.Err() == context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		gone(t, content(t, o, "child"))
	}
}

// gone waits until the process is dead: it may still be a zombie that init has not collected.
func gone(t *testing.T, pid string) {
	t.Helper()
	for t.Context().Err() == nil {
		stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(pid), "stat"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return
		}
		if i := strings.LastIndex(string(stat), ") "); i > 0 && strings.ContainsAny(string(stat[i+2:i+3]), "ZX") {
			return
		}
	}
}
