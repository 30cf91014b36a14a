package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"ferrule/agent/audit"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/internal/jws"
)

// maxKeyFile bounds a file of keys or certificates, in bytes.
const maxKeyFile = 64 << 10

// auditOptions are the flags of ferrule audit.
type auditOptions struct {
	dir   string
	files keyFiles
}

// keyFiles collects --certificate and --key, which may be given several times.
type keyFiles []string

func (k *keyFiles) String() string { return fmt.Sprint(*k) }

func (k *keyFiles) Set(file string) error {
	*k = append(*k, file)
	return nil
}

func auditFlags(e *env) {
	e.jsonFlag()
	e.flags.StringVar(&e.audit.dir, "dir", "", "the log's `folder`, a copy on another machine say; that of the configuration unless given")
	e.flags.Var(&e.audit.files, "certificate", "the device's certificate, from your own records, a PEM `file`; may be repeated for former ones")
	e.flags.Var(&e.audit.files, "key", "instead: the device's public key, a PEM `file`; may be repeated")
}

// runAudit checks the audit log: ferrule audit verify.
func runAudit(_ context.Context, e *env) error {
	if word := e.flags.Arg(0); word != "verify" {
		return withCode(exitUsage, hint.With(fmt.Errorf("ferrule audit has no %q", word), "run: ferrule audit verify"))
	}
	dir, files, own, err := auditSources(e)
	if err != nil {
		return err
	}
	var keys []crypto.PublicKey
	for _, file := range files {
		found, err := readPublicKeys(file)
		if err != nil {
			return withCode(exitIdentity, err)
		}
		keys = append(keys, found...)
	}
	report, err := audit.Verify(disk.OS(), dir, keys...)
	if err != nil {
		return err
	}
	if own {
		report.Notes = append(report.Notes, "checked with the certificate on this disk; whoever can replace both log and certificate is found only with one from your records: --certificate")
	}
	if e.json {
		err = printJSON(e, report)
	} else {
		printAudit(e.stdout, dir, report)
	}
	if err == nil && report.Break != nil {
		return withCode(exitIdentity, brokenAudit(*report.Break))
	}
	return err
}

// auditSources says where the log and the keys are. own tells that the key comes from the device's own disk.
func auditSources(e *env) (dir string, files []string, own bool, err error) {
	dir, files = e.audit.dir, e.audit.files
	if dir != "" && len(files) > 0 {
		return dir, files, false, nil
	}
	c, err := loadConfig(e)
	if err != nil {
		return "", nil, false, err
	}
	if dir == "" {
		dir = filepath.Join(c.StateDir, "audit")
	}
	if len(files) == 0 {
		file := c.Identity.Certificate
		if !filepath.IsAbs(file) {
			file = filepath.Join(c.StateDir, file)
		}
		files, own = []string{file}, true
	}
	return dir, files, own, nil
}

// readPublicKeys reads the keys of a PEM file: of a chain of certificates the first, which is the device's, else every public key.
func readPublicKeys(file string) ([]crypto.PublicKey, error) {
	text, err := disk.ReadFile(disk.OS(), file, maxKeyFile)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading the device's key: %w", err), "give the device's certificate with --certificate")
	}
	var keys []crypto.PublicKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", file, err)
			}
			return []crypto.PublicKey{certificate.PublicKey}, jws.Usable(certificate.PublicKey)
		case "PUBLIC KEY":
			key, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err == nil {
				err = jws.Usable(key)
			}
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", file, err)
			}
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("reading %s: it holds neither a certificate nor a public key", file)
	}
	return keys, nil
}

func printAudit(w io.Writer, dir string, r audit.Report) {
	fmt.Fprintf(w, "audit log  %s\n", dir)
	if r.Last > 0 {
		fmt.Fprintf(w, "lines      %d to %d in %d files, %s to %s\n", r.First, r.Last, r.Segments,
			r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339))
	}
	if r.Signed > 0 {
		fmt.Fprintf(w, "signed     to line %d, by the key %s of %q, at %s\n", r.Signed, r.Key, r.Device, r.SignedAt.Format(time.RFC3339))
	}
	if r.Unsigned > 0 {
		fmt.Fprintf(w, "unsigned   %d lines at the end: chained, and not proved yet\n", r.Unsigned)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "note       %s\n", note)
	}
	if r.Break == nil {
		fmt.Fprintln(w, "whole      nothing was changed, removed, moved or put in")
	}
}

func brokenAudit(b audit.Break) error {
	where := "the audit log is broken"
	if b.Segment != "" {
		where += " at " + b.Segment
	}
	if b.Line > 0 {
		where += fmt.Sprintf(" line %d", b.Line)
	}
	return hint.With(errors.New(where+": "+b.Reason), "keep a copy of the folder before anything else; docs/audit.md says what each break means")
}
