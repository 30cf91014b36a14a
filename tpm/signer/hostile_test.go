package signer_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ferrule/tpm/signer"
)

// The bytes here are written by hand, from docs/signer.md, so that both sides of the package
// cannot agree on something else.

// frame builds a request or an answer.
func frame(version, verb, b6, b7 byte, id uint64, rest []byte) []byte {
	f := binary.BigEndian.AppendUint32(nil, uint32(12+len(rest)))
	f = append(f, version, verb, b6, b7)
	f = binary.BigEndian.AppendUint64(f, id)
	return append(f, rest...)
}

// answerTo answers the request q.
func answerTo(q []byte, status, flags byte, body []byte) []byte {
	return frame(1, q[5], status, flags, binary.BigEndian.Uint64(q[8:]), body)
}

func describeAnswer(q []byte, key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	return answerTo(q, 0, 0, der)
}

func signAnswer(q []byte, key *ecdsa.PrivateKey, digest []byte) []byte {
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest)
	if err != nil {
		panic(err)
	}
	return answerTo(q, 0, 0, signature)
}

// impostor listens as a helper would and hands the n-th connection, with the request that was
// read from it, to each in turn.
func impostor(t *testing.T, path string, each func(n int, conn net.Conn, q []byte)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				q := make([]byte, 16)
				if _, err := io.ReadFull(conn, q); err != nil {
					return
				}
				rest := make([]byte, binary.BigEndian.Uint32(q)-12)
				if _, err := io.ReadFull(conn, rest); err == nil {
					each(n, conn, append(q, rest...))
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
}

// A hostile or broken helper: each kind has an error of its own, in bounded time, and the next
// signature is good once the helper is.
func TestHostileHelper(t *testing.T) {
	key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	digestOf := func(q []byte) []byte { return q[len(q)-32:] }
	der := func(q []byte) []byte { return signAnswer(q, key, digestOf(q)) }
	mutate := func(at int, b byte) func([]byte) []byte {
		return func(q []byte) []byte {
			a := der(q)
			a[at] ^= b
			return a
		}
	}
	for name, c := range map[string]struct {
		answer func(q []byte) []byte
		want   error
		says   string
	}{
		"endless frame":       {func([]byte) []byte { return bytes.Repeat([]byte{0xff}, 1<<16) }, signer.ErrMalformed, "length"},
		"short frame":         {func([]byte) []byte { return []byte{0, 0, 0, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11} }, signer.ErrMalformed, "length"},
		"text":                {func([]byte) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }, signer.ErrMalformed, "length"},
		"wrong id":            {mutate(15, 1), signer.ErrMalformed, "request"},
		"wrong verb":          {mutate(5, 3), signer.ErrMalformed, "describe"},
		"wrong version":       {mutate(4, 2), signer.ErrMalformed, "version"},
		"unknown flags":       {mutate(7, 4), signer.ErrMalformed, "flags"},
		"success without id":  {func([]byte) []byte { return frame(1, 2, 0, 0, 0, nil) }, signer.ErrMalformed, "id 0"},
		"wrong signature":     {mutate(40, 1), signer.ErrBadSignature, ""},
		"empty signature":     {func(q []byte) []byte { return answerTo(q, 0, 0, nil) }, signer.ErrBadSignature, ""},
		"another digest":      {func(q []byte) []byte { return signAnswer(q, key, make([]byte, 32)) }, signer.ErrBadSignature, ""},
		"another key":         {func(q []byte) []byte { return signAnswer(q, other, digestOf(q)) }, signer.ErrBadSignature, ""},
		"unknown status":      {func(q []byte) []byte { return answerTo(q, 77, 0, []byte("x\x1b[2J\xff")) }, signer.ErrFailed, "x?[2J?"},
		"connection refused":  {func([]byte) []byte { return frame(1, 0, 6, 0, 0, []byte("not you")) }, signer.ErrRefused, "not you"},
		"hangs up":            {func([]byte) []byte { return nil }, signer.ErrUnreachable, ""},
		"hangs up in between": {func(q []byte) []byte { return der(q)[:30] }, signer.ErrUnreachable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			hostile := true
			path := socketPath(t)
			impostor(t, path, func(_ int, conn net.Conn, q []byte) {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case q[5] == 1:
					_, _ = conn.Write(describeAnswer(q, key))
				case hostile:
					_, _ = conn.Write(c.answer(q))
				default:
					_, _ = conn.Write(der(q))
				}
			})
			k := mustOpen(t, signer.Options{Socket: path, Budget: budget(c.want)})
			err := sign(k)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v with %q", err, c.want, c.says)
			}
			mu.Lock()
			hostile = false
			mu.Unlock()
			if err := sign(k); err != nil {
				t.Errorf("once it is good again: %v", err)
			}
		})
	}
}

// budget is short where the error is one that comes when it is over.
func budget(want error) time.Duration {
	if want == signer.ErrUnreachable {
		return 300 * time.Millisecond
	}
	return 30 * time.Second
}

func TestHelperThatStalls(t *testing.T) {
	key := newKey(t, elliptic.P256())
	for name, before := range map[string]int{"before the answer": 0, "in the middle of it": 20} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			impostor(t, path, func(n int, conn net.Conn, q []byte) {
				switch n {
				case 0:
					_, _ = conn.Write(describeAnswer(q, key))
				case 1:
					_, _ = conn.Write(signAnswer(q, key, q[len(q)-32:])[:before])
					_, _ = conn.Read(make([]byte, 1)) // until the client gives up
				default:
					_, _ = conn.Write(signAnswer(q, key, q[len(q)-32:]))
				}
			})
			c := mustOpen(t, signer.Options{Socket: path, Budget: 300 * time.Millisecond})
			if err := sign(c); !errors.Is(err, signer.ErrUnreachable) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("stalled: %v", err)
			}
			if err := sign(c); err != nil {
				t.Errorf("the next: %v", err)
			}
		})
	}
}

// A helper that drips one byte at a time is slow, not endless.
func TestHelperThatDrips(t *testing.T) {
	key := newKey(t, elliptic.P256())
	path := socketPath(t)
	impostor(t, path, func(_ int, conn net.Conn, q []byte) {
		a := describeAnswer(q, key)
		if q[5] == 2 {
			a = signAnswer(q, key, q[len(q)-32:])
		}
		for i := range a {
			_, _ = conn.Write(a[i : i+1])
		}
	})
	if err := sign(mustOpen(t, signer.Options{Socket: path})); err != nil {
		t.Error(err)
	}
}

// Requests that break the protocol, from a client that may sign: each is answered, or hung up on,
// and the helper lives.
func TestHostileClient(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	serve(t, path, keys, signer.ServeOptions{})
	name, digest := []byte("gw"), make([]byte, 32)
	both := append(append([]byte{}, name...), digest...)
	for what, c := range map[string]struct {
		send   []byte
		status byte // 0xff: no answer at all
		id     uint64
	}{
		"a good one":        {frame(1, 2, 1, 2, 9, both), 0, 9},
		"endless":           {bytes.Repeat([]byte{0xff}, 1<<16), 1, 0},
		"too short":         {[]byte{0, 0, 0, 3, 1, 2, 3}, 1, 0},
		"too long":          {frame(1, 2, 1, 2, 9, make([]byte, 200)), 1, 0},
		"text":              {[]byte("GET / HTTP/1.1\r\n\r\n"), 1, 0},
		"wrong version":     {frame(2, 2, 1, 2, 9, both), 1, 9},
		"id 0":              {frame(1, 2, 1, 2, 0, both), 1, 0},
		"name past the end": {frame(1, 1, 0, 9, 9, name), 1, 9},
		"name too long":     {frame(1, 1, 0, 65, 9, make([]byte, 65)), 1, 9},
		"name not UTF-8":    {frame(1, 1, 0, 1, 9, []byte{0xff}), 1, 9},
		"name with escape":  {frame(1, 1, 0, 1, 9, []byte{0x1b}), 1, 9},
		"short digest":      {frame(1, 2, 1, 2, 9, both[:33]), 1, 9},
		"long digest":       {frame(1, 2, 1, 0, 9, both), 1, 9},
		"unknown hash":      {frame(1, 2, 4, 2, 9, both), 2, 9},
		"no hash":           {frame(1, 2, 0, 2, 9, both), 2, 9},
		"unknown curve":     {frame(1, 3, 3, 2, 9, name), 2, 9},
		"describe and more": {frame(1, 1, 0, 2, 9, both), 1, 9},
		"describe a number": {frame(1, 1, 7, 2, 9, name), 1, 9},
		"unknown verb":      {frame(1, 4, 0, 2, 9, name), 2, 9},
		"no such key":       {frame(1, 1, 0, 1, 9, []byte("x")), 3, 9},
		"exists":            {frame(1, 3, 1, 2, 9, name), 5, 9},
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(c.send) // what is too long may not all be taken
		a, err := io.ReadAll(conn)
		if len(a) < 16 {
			t.Errorf("%s: answer %x, %v", what, a, err)
		} else if a[6] != c.status || binary.BigEndian.Uint64(a[8:]) != c.id || int(binary.BigEndian.Uint32(a)) != len(a)-4 {
			t.Errorf("%s: answer %x", what, a)
		}
		_ = conn.Close()
	}
	// Some only open, or hang up in the middle.
	for n := range 40 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(frame(1, 1, 0, 2, 9, name)[:n%17])
		_ = conn.Close()
	}
	if err := sign(mustOpen(t, signer.Options{Socket: path})); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Clients that say nothing hold up others for the time of one frame, and the end not at all.
func TestSilentClientsAreBounded(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	stop := serve(t, path, keys, signer.ServeOptions{})
	for range 20 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if err := sign(mustOpen(t, signer.Options{Socket: path, Budget: time.Minute})); err != nil {
		t.Error(err)
	}
	stop()
}

const asUser = "FERRULE_SIGNER_TEST_SOCKET"

// Run as another user by the test below: one signature.
func TestAsAnotherUser(t *testing.T) {
	path := os.Getenv(asUser)
	if path == "" {
		return
	}
	c, err := signer.Open(t.Context(), signer.Options{Socket: path, Budget: 5 * time.Second})
	if err == nil {
		_, err = c.Sign(nil, make([]byte, 32), crypto.SHA256)
	}
	if err != nil {
		t.Fatalf("as user %d: %v", os.Getuid(), err)
	}
}

// The kernel says who connects. Only root can become somebody else, so elsewhere this test asks
// as the only user it has.
func TestWrongPeerIsRefused(t *testing.T) {
	path, keys := socketPath(t), newMemory(t, "gw")
	if err := os.Chmod(path[:len(path)-2], 0o755); err != nil {
		t.Fatal(err)
	}
	ask := func(uid, gid uint32) string {
		words := append(strings.Fields(os.Getenv("FERRULE_EXEC")), copyOfSelf(t), "-test.run=^TestAsAnotherUser$", "-test.count=1")
		child := exec.CommandContext(t.Context(), words[0], words[1:]...)
		child.Env = append(os.Environ(), asUser+"="+path)
		if os.Getuid() == 0 {
			child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
		}
		child.Dir = "/"
		out, err := child.CombinedOutput()
		if err == nil {
			return ""
		}
		return string(out)
	}
	with := func(mode os.FileMode, o signer.ServeOptions, uid, gid uint32) string {
		stop := serve(t, path, keys, o)
		defer stop()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return ask(uid, gid)
	}
	if out := with(0o600, signer.ServeOptions{}, uint32(os.Getuid()), uint32(os.Getgid())); out != "" {
		t.Errorf("the same user: %s", out)
	}
	if os.Getuid() != 0 {
		t.Log("not root: other users are not tried")
		return
	}
	if out := with(0o666, signer.ServeOptions{}, 4711, 4712); !strings.Contains(out, "refused") || !strings.Contains(out, "4711") {
		t.Errorf("another user: %q", out)
	}
	if out := with(0o600, signer.ServeOptions{}, 4711, 4712); !strings.Contains(out, "permission denied") {
		t.Errorf("another user, by the mode: %q", out)
	}
	if out := with(0o666, signer.ServeOptions{UIDs: []uint32{4711}}, 4711, 4712); out != "" {
		t.Errorf("a user that is allowed: %s", out)
	}
	if out := with(0o666, signer.ServeOptions{GIDs: []uint32{4712}}, 4711, 4712); out != "" {
		t.Errorf("a group that is allowed: %s", out)
	}
	if out := with(0o666, signer.ServeOptions{UIDs: []uint32{4712}, GIDs: []uint32{4711}}, 4711, 4712); !strings.Contains(out, "refused") {
		t.Errorf("a user for a group: %q", out)
	}
}

// copyOfSelf is this binary where every user may run it.
func copyOfSelf(t *testing.T) string {
	t.Helper()
	path := socketPath(t) + ".test"
	data, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err == nil {
		err = os.Chmod(path[:strings.LastIndexByte(path, '/')], 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
