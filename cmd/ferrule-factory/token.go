package main

import (
	"cmp"
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// tokenOptions are the flags of token add.
type tokenOptions struct {
	device string
	valid  time.Duration
}

func tokenFlags(e *env) {
	e.Flags.StringVar(&e.token.device, "device", "", "the device's `id`: letters, digits and . _ -")
	e.Flags.DurationVar(&e.token.valid, "valid", time.Hour, "how long the token may be redeemed")
	jsonFlag(e)
}

func runTokenAdd(_ context.Context, e *env) error {
	if e.token.device == "" || e.token.valid <= 0 {
		return hint.With(fmt.Errorf("%w: --device is needed, and --valid above zero", cli.ErrUsage), "ferrule-factory token add DIR --device ID")
	}
	_, book, err := openCA(e.Flags.Arg(0))
	if err != nil {
		return err
	}
	token, err := book.AddToken(e.token.device, e.token.valid)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{
			"device": e.token.device, "token": token, "expires": time.Now().Add(e.token.valid).UTC().Format(time.RFC3339),
		})
	}
	fmt.Fprintln(e.Stdout, token)
	return nil
}

func runTokenList(_ context.Context, e *env) error {
	_, book, err := openCA(e.Flags.Arg(0))
	if err != nil {
		return err
	}
	grants, damaged := book.Tokens()
	if e.json {
		return cmp.Or(printLines(e, grants), damaged)
	}
	table := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tADDED\tSTATE")
	for _, g := range grants {
		state := "open until " + g.Expires.Format(time.RFC3339)
		switch {
		case g.Used():
			state = "redeemed on " + g.Issued.Format(time.RFC3339) + ", serial " + g.Serial
		case time.Now().After(g.Expires):
			state = "expired"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", g.Device, g.Added.Format(time.RFC3339), state)
	}
	return cmp.Or(table.Flush(), damaged)
}

// openCA opens the CA in a directory and the records beside it.
func openCA(dir string) (*ca.CA, *records.Book, error) {
	authority, err := ca.Open(disk.OS(), dir)
	if err != nil {
		return nil, nil, err
	}
	book, err := records.Open(disk.OS(), dir)
	return authority, book, err
}
