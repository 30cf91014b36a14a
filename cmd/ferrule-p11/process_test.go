//go:build cgo

package main

import (
	"crypto/elliptic"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A call that does not return costs its client the time of one request, and the process its life.
func TestModuleThatHangs(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	socket := filepath.Join(shortDir(t), "s")
	args := []string{"--module", h.faulty(), "--patience", "500ms", "--pin-file", h.file("pin"), "--socket", socket}
	p := startProgram(t, args...)
	k := openKey(t, socket, "gw")
	h.plan("hang")
	result := make(chan error, 1)
	go func() { result <- sign(k) }()
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != exitToken || !strings.Contains(p.output(), "hangs") {
		t.Errorf("exit code %d: %s", code, p.output())
	}
	// What a supervisor does. The signature that was waited for all the while is given.
	h.plan("")
	p = startProgram(t, args...)
	if err := <-result; err != nil {
		t.Errorf("the signature across the restart: %v", err)
	}
	h.plan("crash")
	go func() { result <- sign(k) }()
	<-p.ended
	h.plan("")
	startProgram(t, args...)
	if err := <-result; err != nil {
		t.Errorf("the signature across a crash: %v", err)
	}
}

// The helper is killed under a live client, again and again; and ends cleanly when asked to.
func TestHelperKilledUnderALiveClient(t *testing.T) {
	h := newSofthsm(t)
	h.initToken("gateway", false)
	h.put("gateway", "gw", "01", newKey(t, elliptic.P256()))
	socket := filepath.Join(shortDir(t), "s")
	args := []string{"--module", softhsmModule(t), "--token", "gateway", "--pin-file", h.file("pin"), "--socket", socket, "--key", "gw"}
	p := startProgram(t, args...)
	k := openKey(t, socket, "")
	for range 3 {
		p.end(syscall.SIGKILL)
		result := make(chan error, 1)
		go func() { result <- sign(k) }()
		p = startProgram(t, args...)
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
	if code := p.end(syscall.SIGTERM); code != exitDone {
		t.Errorf("exit code %d on SIGTERM", code)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if out := p.output(); strings.Contains(out, pin) {
		t.Error("the PIN is in the log")
	}
}
