// Command ferrule-factory is the host tool of the factory line: a local CA, one-time tokens,
// and the registrar that turns a token and a device's evidence into a certificate.
package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/signal"
	"syscall"

	"ferrule/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	tool := cli.Tool[*env]{
		Name:  "ferrule-factory",
		About: "makes gateways into enrolled devices.",
		More:  "The whole line, step by step: docs/factory.md.",
		Env:   func(c *cli.Call) *env { return &env{Call: c} },
		Table: []cli.Command[*env]{
			{Words: "ca init", Args: "DIR", Summary: "make the CA: root, device CA, certificates for broker and registrar; safe to run again", Flags: caFlags, Run: runCAInit},
			{Words: "ca server", Args: "DIR", Summary: "make one more server certificate", Flags: serverFlags, Run: runCAServer},
			{Words: "token add", Args: "DIR", Summary: "make a one-time token for a device", Flags: tokenFlags, Run: runTokenAdd},
			{Words: "token list", Args: "DIR", Summary: "list tokens and what came of them", Flags: jsonFlag, Run: runTokenList},
			{Words: "registrar", Args: "[-- COMMAND]", Summary: "check the evidence of devices and hand out their certificates", Flags: registrarFlags, Run: runRegistrar},
			{Words: "devices", Args: "DIR [ID]", Summary: "list devices, their TPMs and certificates; or all of one", Flags: jsonFlag, Run: runDevices},
			{Words: "revoke", Args: "DIR DEVICE|SERIAL", Summary: "take certificates back, and write the list for brokers", Flags: revokeFlags, Run: runRevoke},
			{Words: "batch plan", Args: "DEVICES.csv DIR", Summary: "make the orders of devices that are enrolled by files; safe to run again", Flags: jsonFlag, Run: runBatchPlan},
			{Words: "batch issue", Args: "DIR [-- COMMAND]", Summary: "check the evidence that came back, and write the deliveries; safe to run again", Flags: issuingFlags, Run: runBatchIssue},
			{Words: "batch status", Args: "DIR", Summary: "how far each device of a batch is", Flags: jsonFlag, Run: runBatchStatus},
			{Words: "labels", Args: "RECORDS.jsonl", Summary: "print labels with QR codes, an HTML page for A4 sheets of 3 × 8", Flags: jsonFlag, Run: runLabels},
			{Words: "authorize init", Args: "DIR", Summary: "make the key of one who authorises commands; safe to run again", Flags: authorizeInitFlags, Run: runAuthorizeInit},
			{Words: "authorize", Args: "", Summary: "print a token that lets one command of one device act", Flags: authorizeFlags, Run: runAuthorize},
			{Words: "records", Args: "DIR", Summary: "print one JSON line for every certificate issued", Flags: jsonFlag, Run: runRecords},
		},
	}
	return tool.Run(ctx, args, stdout, stderr)
}

// env is what a command gets.
type env struct {
	*cli.Call
	json      bool
	ca        caOptions
	token     tokenOptions
	issuing   issuingOptions
	registrar registrarOptions
	release   bool
	authorize authorizeOptions
}

func jsonFlag(e *env) { e.Flags.BoolVar(&e.json, "json", false, "print JSON for machines") }

func (e *env) printJSON(v any) error { return json.NewEncoder(e.Stdout).Encode(v) }

// printLines prints JSON lines.
func printLines[T any](e *env, lines []T) error {
	for _, line := range lines {
		if err := e.printJSON(line); err != nil {
			return err
		}
	}
	return nil
}
