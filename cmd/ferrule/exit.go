package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"ferrule/agent"
	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// Exit codes (docs/command-line.md). Scripts branch on them, so they never change meaning.
const (
	exitDone          = 0
	exitUsage         = 2
	exitConfig        = 3
	exitTPM           = 10
	exitIdentity      = 11
	exitSession       = 12
	exitLine          = 13
	exitOutbox        = 14
	exitUpdateRefused = 20
	exitUpdateFailed  = 21
	exitNoRestart     = 78
)

// coded gives an error an exit code of its own.
type coded struct {
	code int
	err  error
}

func (c *coded) Error() string { return c.err.Error() }
func (c *coded) Unwrap() error { return c.err }

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &coded{code: code, err: err}
}

// report prints err with its hints and returns the exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	printErrors(stderr, err)
	return exitCode(err)
}

// printErrors prints every joined error on a line of its own, each followed by its hint.
func printErrors(stderr io.Writer, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && strings.Contains(err.Error(), "\n") {
		for _, one := range joined.Unwrap() {
			printErrors(stderr, one)
		}
		return
	}
	if inner, ok := err.(*coded); ok {
		printErrors(stderr, inner.err)
		return
	}
	fmt.Fprintf(stderr, "ferrule: error: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(stderr, "ferrule: hint: %s\n", h)
	}
}

// classes maps what an error is to its exit code; the first match wins.
func classes() []struct {
	code int
	is   []error
} {
	return []struct {
		code int
		is   []error
	}{
		{exitNoRestart, []error{identity.ErrWrongTPM}},
		{exitTPM, []error{tpm.ErrNoDevice, tpm.ErrPermission, tpm.ErrBusy, tpm.ErrTimeout, tpm.ErrLockout,
			tpm.ErrHelper, tpm.ErrOwnerAuth, tpm.ErrOwnerChanged, tpm.ErrKeyCorrupt, tpm.ErrUnsupported}},
		{exitIdentity, []error{identity.ErrNotEnrolled, identity.ErrMismatch, tpm.ErrNoKey, tpm.ErrSoftwareKey, enroll.ErrRefused}},
		{exitOutbox, []error{agent.ErrRunning}},
	}
}

func exitCode(err error) int {
	if c, ok := errors.AsType[*coded](err); ok {
		return c.code
	}
	for _, class := range classes() {
		for _, target := range class.is {
			if errors.Is(err, target) {
				return class.code
			}
		}
	}
	return 1
}
