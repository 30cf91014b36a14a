// Command ferrule-release is the host tool of the release engineer: update keys, bundles with
// their deltas, and the signed repository that any web server hands to the fleet.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

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
		Name:  "ferrule-release",
		About: "makes updates, signs them and publishes them as static files.",
		More:  "From keys to a rollout, step by step: docs/releases.md.",
		Env:   func(c *cli.Call) *env { return &env{Call: c} },
		Prepare: func(e *env) (err error) {
			e.now, err = clock(os.Getenv("SOURCE_DATE_EPOCH"))
			return err
		},
		Table: []cli.Command[*env]{
			{Words: "keys init", Args: "REPO", Summary: "make the keys and an empty repository; safe to run again", Flags: initFlags, Run: runKeysInit},
			{Words: "keys rotate", Args: "REPO", Summary: "replace the keys of a role, or sign the root anew for its time", Flags: rotateFlags, Run: runKeysRotate},
			{Words: "bundle", Args: "REPO PART=IMAGE…", Summary: "make a release of images, with deltas to older ones; it waits to be published", Flags: bundleFlags, Run: runBundle},
			{Words: "delta", Args: "REPO RELEASE", Summary: "make more deltas of a release; they wait to be published", Flags: deltaFlags, Run: runDelta},
			{Words: "publish", Args: "REPO [RELEASE…]", Summary: "sign and publish what waits; safe to run again after a cut", Flags: publishFlags, Run: runPublish},
			{Words: "refresh", Args: "REPO", Summary: "sign the timestamp anew before it runs out: for cron", Flags: refreshFlags, Run: runRefresh},
			{Words: "rollout", Args: "REPO RELEASE", Summary: "say who gets a release when, pause it, go on", Flags: rolloutFlags, Run: runRollout},
			{Words: "list", Args: "REPO", Summary: "what is published, and what waits", Flags: jsonFlag, Run: runList},
			{Words: "verify", Args: "REPO|URL", Summary: "read the repository as a device does, make every part out of every object", Flags: verifyFlags, Run: runVerify},
		},
	}
	return tool.Run(ctx, args, stdout, stderr)
}

// env is what a command gets.
type env struct {
	*cli.Call
	now     func() time.Time
	json    bool
	keys    keyOptions
	bundle  bundleOptions
	delta   deltaOptions
	publish publishOptions
	rollout rolloutOptions
	verify  verifyOptions
}

func jsonFlag(e *env) { e.Flags.BoolVar(&e.json, "json", false, "print JSON for machines") }

func (e *env) printJSON(v any) error { return json.NewEncoder(e.Stdout).Encode(v) }

// clock is the time that signatures count from: the machine's, or that of SOURCE_DATE_EPOCH, so
// that the same inputs give the same bytes (reproducible-builds.org).
func clock(epoch string) (func() time.Time, error) {
	if epoch == "" {
		return time.Now, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%w: SOURCE_DATE_EPOCH is %q, and seconds since 1970 are needed", cli.ErrUsage, epoch)
	}
	return func() time.Time { return time.Unix(seconds, 0) }, nil
}
