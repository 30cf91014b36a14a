// Command ferrule-demo shows the whole loop on one machine: a broker, a registrar, a TPM and
// two simulated meters around the real agent, which runs as a child process. Then it cuts the
// network and kills the agent, and counts. What it counts comes from the meters' and the
// broker's own ledgers and from the TPM's socket, never from the agent.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once, and its children with it
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
