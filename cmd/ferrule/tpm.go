package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/local"
	"ferrule/internal/disk"
	"ferrule/tpm"
)

// inspectTimeout bounds all questions to the TPM together; deriving three endorsement keys
// takes a slow chip some seconds each.
const inspectTimeout = time.Minute

// errTPMFaults says that the report, which was printed, names what is wrong.
var errTPMFaults = errors.New("the TPM cannot be relied upon as it is")

func tpmFlags(e *env) {
	e.jsonFlag()
	e.flags.StringVar(&e.device, "tpm", "", "look at this TPM (`path` as identity.tpm) instead of the configuration's")
}

// runTPM shows what the TPM is and what keeps it from serving. It changes nothing in it, and
// works without a configuration.
func runTPM(ctx context.Context, e *env) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	report, err := inspect(ctx, e)
	if err != nil {
		return err
	}
	if e.json {
		err = printJSON(e, report)
	} else {
		err = printReport(e.stdout, report)
	}
	if err == nil && slices.ContainsFunc(report.Findings, func(f tpm.Finding) bool { return f.Blocks }) {
		return withCode(exitTPM, errTPMFaults)
	}
	return err
}

// inspect asks the running agent, which holds its TPM, or else the TPM itself.
func inspect(ctx context.Context, e *env) (tpm.Report, error) {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if e.device != "" {
		return tpm.Inspect(ctx, tpm.Options{Path: e.device, Log: log}, tpm.Known{}), nil
	}
	c, err := loadConfig(e)
	if err != nil {
		return tpm.Report{}, err
	}
	var report tpm.Report
	text, err := local.Dial(c.Local.Socket).Command(ctx, "tpm", struct{}{})
	if err == nil {
		return report, json.Unmarshal(text, &report)
	}
	if !errors.Is(err, local.ErrNotRunning) {
		return report, withCode(exitSession, err)
	}
	known, err := identity.Remembered(disk.OS(), c.StateDir)
	if err != nil {
		return report, withCode(exitIdentity, err)
	}
	return tpm.Inspect(ctx, tpm.Options{Path: c.Identity.TPM, Log: log}, known), nil
}

// printReport prints what was found for people, what is wrong last.
func printReport(w io.Writer, r tpm.Report) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if r.Opened {
		how := "raw device: one program at a time"
		if r.ResourceManager {
			how = "kernel's resource manager"
		}
		fmt.Fprintf(table, "TPM\t%s, firmware %s, at %s (%s)\n", vendor(r), r.Firmware, r.Path, how)
		fmt.Fprintf(table, "lockout\tcounter %d of %d%s; one less every %s\n", r.LockoutCounter, r.MaxAuthFail, yes(r.InLockout, ", IN LOCKOUT"), r.LockoutInterval)
		fmt.Fprintf(table, "free\t%d objects, %d sessions\n", r.TransientFree, r.SessionsFree)
		fmt.Fprintf(table, "passwords\towner %s, endorsement %s, lockout %s\n", set(r.OwnerAuth), set(r.EndorsementAuth), set(r.LockoutAuth))
		fmt.Fprintf(table, "curves\tP-256 %s, P-384 %s\n", able(r.P256), able(r.P384))
		fmt.Fprintf(table, "SRK\t%s%s\n", r.SRK.State, yes(r.SRK.State != "absent" && r.SRK.State != "unknown" && !r.SRK.NoDA, ", lacks noDA"))
		fmt.Fprintf(table, "attestation\t%s\n", able(r.Attests))
		for _, ek := range r.EKs {
			printEK(table, ek)
		}
	}
	for _, f := range r.Findings {
		word := "note"
		if f.Blocks {
			word = "FAULT"
		}
		fmt.Fprintf(table, "%s\t%s: %s\n\trepair: %s\n", word, f.Fault, f.Text, f.Repair)
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(table, "verdict\tgood\n")
	}
	return table.Flush()
}

func printEK(w io.Writer, ek tpm.EKReport) {
	fmt.Fprintf(w, "EK\t%s", ek.Kind)
	if ek.Certificate {
		fmt.Fprintf(w, ", certificate by %s until %s (%s)", ek.Issuer, ek.NotAfter.Format(time.DateOnly), ek.Index)
	} else {
		fmt.Fprint(w, ", no certificate")
	}
	fmt.Fprintf(w, "%s\n", yes(ek.Warning != "", "; "+ek.Warning))
}

func vendor(r tpm.Report) string {
	return strings.Join(strings.Fields(r.Manufacturer+" "+r.Vendor), " ")
}

func yes(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

func set(is bool) string {
	if is {
		return "set"
	}
	return "not set"
}

func able(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}
