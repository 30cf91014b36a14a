package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"text/tabwriter"
	"time"

	"ferrule/agent/enroll/registrar"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

func runCAInit(_ context.Context, e *env) error {
	dir := e.flags.Arg(0)
	ca, err := registrar.InitCA(disk.OS(), dir, e.name)
	if err != nil {
		return err
	}
	for _, server := range []string{"broker", "registrar"} {
		if err := ca.Server(server, e.hosts); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.stdout, `CA ready in %[1]s
  root.crt       give it to devices and brokers as the root they trust
  device-ca.crt  signs devices; brokers that do not follow chains need it too
  broker.crt     and broker.key, for the broker
Keep root.key and device-ca.key where nobody else reads them.
`, dir)
	return nil
}

func runCAServer(_ context.Context, e *env) error {
	if e.name == "" || len(e.hosts) == 0 {
		return hint.With(fmt.Errorf("%w: --name and --host are needed", errUsage), "ferrule-factory ca server DIR --name broker2 --host broker2.example")
	}
	ca, err := registrar.OpenCA(disk.OS(), e.flags.Arg(0))
	if err != nil {
		return err
	}
	return ca.Server(e.name, e.hosts)
}

func runTokenAdd(_ context.Context, e *env) error {
	if e.device == "" || e.valid <= 0 {
		return hint.With(fmt.Errorf("%w: --device is needed, and --valid above zero", errUsage), "ferrule-factory token add DIR --device ID")
	}
	ca, err := registrar.OpenCA(disk.OS(), e.flags.Arg(0))
	if err != nil {
		return err
	}
	token, err := ca.AddToken(e.device, e.valid)
	if err != nil {
		return err
	}
	if e.json {
		return json.NewEncoder(e.stdout).Encode(map[string]any{
			"device": e.device, "token": token, "expires": time.Now().Add(e.valid).UTC().Format(time.RFC3339),
		})
	}
	fmt.Fprintln(e.stdout, token)
	return nil
}

func runTokenList(_ context.Context, e *env) error {
	grants, err := grantsOf(e)
	if err != nil {
		return err
	}
	if e.json {
		return printLines(e, grants)
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
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
	return table.Flush()
}

// runRecords prints what a batch record needs of every issued certificate.
func runRecords(_ context.Context, e *env) error {
	grants, err := grantsOf(e)
	if err != nil {
		return err
	}
	issued := grants[:0]
	for _, g := range grants {
		if g.Used() {
			issued = append(issued, g)
		}
	}
	return printLines(e, issued)
}

func grantsOf(e *env) ([]registrar.Grant, error) {
	ca, err := registrar.OpenCA(disk.OS(), e.flags.Arg(0))
	if err != nil {
		return nil, err
	}
	return ca.Grants()
}

func printLines(e *env, grants []registrar.Grant) error {
	encoder := json.NewEncoder(e.stdout)
	for _, g := range grants {
		if err := encoder.Encode(g); err != nil {
			return err
		}
	}
	return nil
}

func registrarFlags(e *env) {
	e.flags.StringVar(&e.ca, "ca", "", "the CA's `directory`")
	e.flags.StringVar(&e.listen, "listen", ":8443", "the `address` to listen on; port 0 takes a free one")
	e.flags.DurationVar(&e.valid, "life", registrar.DeviceLife, "how long device certificates live")
	e.flags.StringVar(&e.log, "log", "text", "form of the log: text or json")
}

func logger(e *env) (*slog.Logger, error) {
	switch e.log {
	case "text":
		return slog.New(slog.NewTextHandler(e.stderr, nil)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(e.stderr, nil)), nil
	}
	return nil, hint.With(fmt.Errorf("%w: --log %q is not known", errUsage, e.log), "it is text or json")
}

func runRegistrar(ctx context.Context, e *env) error {
	if e.ca == "" || e.valid <= 0 {
		return hint.With(fmt.Errorf("%w: --ca is needed, and --life above zero", errUsage), "ferrule-factory registrar --ca DIR")
	}
	log, err := logger(e)
	if err != nil {
		return err
	}
	ca, err := registrar.OpenCA(disk.OS(), e.ca)
	if err != nil {
		return err
	}
	r := registrar.New(ca, e.valid, log)
	listener, err := r.Listen(ctx, e.listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "registrar listens on https://%s\n", listener.Addr())
	return r.Serve(ctx, listener)
}
